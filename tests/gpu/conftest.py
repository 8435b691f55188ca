"""Tests on a pretended GPU. They have a process of their own (`tests/host/test_gpu.py` starts it),
because torch knows one backend of that kind for good, and cannot checkpoint beside it."""

from conftest import (
    folders,
    inference_mode,
    pytest_collection_modifyitems,
    pytest_configure,
)

__all__ = ["folders", "inference_mode", "pytest_collection_modifyitems", "pytest_configure"]
