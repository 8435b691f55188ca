"""Loads the pack as `pivot_edit`, as ComfyUI loads it under a name of its own; nothing is
installed."""

from tools.pack import load_pack

load_pack()
