"""What a run could leave behind, and a place in the middle of its passes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any


def everything(model: Any) -> dict[str, Any]:
    """What a run could leave in a MODEL and its network: options, patches, hooks, replacements."""
    unet = model.model.diffusion_model
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "options": copy.deepcopy(model.model_options),
        "patches": sorted(model.patches),
        "objects": sorted(model.object_patches),
        "backups": sorted(model.object_patches_backup),
        "hooks": [
            (name, kind, len(getattr(module, kind)))
            for name, module in unet.named_modules()
            for kind in hooks
            if getattr(module, kind)
        ],
        "replaced": [name for name, module in unet.named_modules() if "forward" in vars(module)],
        "weights": [(name, weight.data_ptr()) for name, weight in unet.named_parameters()],
    }


@contextlib.contextmanager
def at_middle(model: Any, act: Callable[[int], None]) -> Iterator[None]:
    """In the middle of every pass through the network, act on the number of the pass."""
    passes: list[None] = []

    def hook(*args: Any) -> None:
        passes.append(None)
        act(len(passes))

    # the host runs the layers of a block, and never the block itself
    first = model.model.diffusion_model.middle_block[0]
    handle = first.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
