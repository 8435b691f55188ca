"""Finds methods: the classes of a room's files that fill a contract.

A method is there because its file is there; nobody lists it. `importlib` is forbidden to everything
else that runs, so that what is imported can be read in the code. Here it imports the files that lie
in a folder of the pack, beside the code that asks for them, and nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Contract = TypeVar("Contract")


def discover(package: str, contract: Callable[..., Contract]) -> tuple[type[Contract], ...]:
    """The public classes that a package's files define and that fill a contract, sorted by name.

    package is its `__name__`. Classes that leave a method of the contract open are left out.
    """
    base: Any = contract  # mypy wants concrete classes as type[...], and contracts are abstract
    path = sys.modules[package].__path__
    names = sorted(info.name for info in pkgutil.iter_modules(path))
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    classes: list[Any] = [
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and issubclass(value, base)
        and not inspect.isabstract(value)
        and not value.__name__.startswith("_")
    ]
    return tuple(sorted(classes, key=lambda kind: kind.__name__))
