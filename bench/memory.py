"""What a stretch of torch code allocates, on any device: live and peak bytes, and every new
tensor's shape.

    with MemoryHook() as hook:
        run()
    hook.peak, hook.largest, hook.shapes

Every operator is seen below autograd and below torch's composite operators (attention falls back to
one that writes its maps out, and that is seen too). Only storages that the operators make are
counted: weights and inputs are not. A kernel's private scratch memory is no tensor and is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class MemoryHook(TorchDispatchMode):
    """live, peak: bytes of the storages made since the hook was entered; largest: elements of the
    largest new tensor; shapes: the shapes of all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.largest = 0
        self.shapes: set[tuple[int, ...]] = set()
        self._storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with (
            self
        ):  # inference mode hands composite operators over whole; their parts are what allocates
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
            given = [tensor.untyped_storage() for tensor in _tensors((args, kwargs))]
            for tensor in _tensors(out):
                self._see(tensor, given)
        return out

    def _see(self, tensor: torch.Tensor, given: list[torch.UntypedStorage]) -> None:
        """Count a result unless it shares the storage of an operand or of an earlier result."""
        storage = tensor.untyped_storage()
        if storage in self._storages or any(storage is one for one in given):
            return
        self._storages[storage] = None
        weakref.finalize(storage, self._freed, storage.nbytes()).atexit = False
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, tensor.numel())
        self.shapes.add(tuple(tensor.shape))

    def _freed(self, size: int) -> None:
        self.live -= size


def attention_maps(
    shapes: Iterable[tuple[int, ...]], heads: int, queries: int, keys: int
) -> list[tuple[int, ...]]:
    """The shapes that hold attention maps: queries x keys, of one head or of several flattened into
    the rows."""
    size = heads * queries * keys
    return [
        shape
        for shape in shapes
        if shape[-2:] == (queries, keys)
        or (shape[-1:] == (keys,) and torch.Size(shape).numel() % size == 0)
    ]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
