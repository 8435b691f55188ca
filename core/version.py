"""The pack's version, from the one place where it is written."""

from __future__ import annotations

import pathlib
import re

_WRITTEN = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def pack_version() -> str:
    """The version in pyproject.toml, which lies beside the code in custom_nodes too; "unknown"
    where it was removed."""
    # by hand: Python 3.10 has no tomllib
    text = _WRITTEN.read_text(encoding="utf-8") if _WRITTEN.is_file() else ""
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "unknown"
