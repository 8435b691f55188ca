"""The pack's version, from the one place where it is written."""

from __future__ import annotations

import pathlib
import re

_WRITTEN = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def pack_version() -> str:
    """The version in pyproject.toml, which lies beside the code in custom_nodes too.

    It is "unknown" where that file was removed.
    """
    # by hand: Python 3.10 has no tomllib
    text = _WRITTEN.read_text(encoding="utf-8") if _WRITTEN.is_file() else ""
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "unknown"
