"""A placeholder for development hosts: ComfyUI imports torchaudio, but only its audio nodes use
it."""

from __future__ import annotations

__version__ = "0.0.0"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"torchaudio.{name} does not exist: this is Pivot Edit's placeholder for hosts without "
        "audio. "
        "Install the real torchaudio to use audio nodes."
    )
