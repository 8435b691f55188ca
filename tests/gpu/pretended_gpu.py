"""A GPU where there is none: tensors that say they are on it and compute on the CPU.

    with pretended_gpu() as seen:      # ComfyUI's own device is the GPU
        ...
    seen.waits                         # Counter of (line of ours, what it waited for)
    seen.launches                      # Counter of the operators that ran on the GPU

torch's Python backend names a device of its own (PrivateUse1). Every ATen operator passes through
`_operator`: operands on two devices are refused where CUDA refuses them, and what makes the host
wait for the device, or crosses between the two, is counted at the innermost line of the pack.
Where tensors lie and when the host waits is what is tested; kernels and their speed are the CPU's.
Gradients work, torch's checkpointing does not: torch aborts, because the backend has no streams.
"""

from __future__ import annotations

import collections
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed.tensor  # names torch.Generator in annotations, so it comes before the mock
import torch.utils.backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import pivot_edit

NAME = "pretended"
torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
GPU, CPU = torch.device(NAME, 0), torch.device("cpu")
PACK = f"{pathlib.Path(pivot_edit.__file__).parent}/"
OURS = ("attention/", "core/", "guidance/", "host/", "inversion/", "nodes/", "show/", "toy/")
PLENTY = 20 * 2**30
"""Bytes of memory that the GPU has, all of them free."""

CROSSING = {"_to_copy", "copy_", "set_", "lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
FILLING = {"fill", "fill_", "masked_fill", "masked_fill_", "where", "lerp"}
"""Beside pointwise operators, those that take a number of no dimension from the CPU."""
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount"}
"""What gives the host values, or as many results as the values say."""
FREE = set(
    "view _unsafe_view _reshape_alias reshape expand permute transpose t select slice unsqueeze "
    "squeeze detach alias as_strided split split_with_sizes unbind chunk narrow movedim diagonal "
    "unfold lift_fresh set_ empty empty_like new_empty empty_strided new_empty_strided".split()
)
"""What launches nothing: views, and memory without values."""


class DevicesMixed(RuntimeError):
    """An operator that CUDA would refuse, because its operands lie on two devices."""


class Seen:
    """What happened on the GPU."""

    def __init__(self) -> None:
        self.launches: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()

    def wait(self, what: str) -> None:
        """The host waits for the device, or sends it something."""
        line = _line()
        if line:
            self.waits[line, what] += 1

    def waits_in(self, *folders: str) -> int:
        """How often lines of these folders of the pack waited."""
        return sum(n for (line, _), n in self.waits.items() if line.startswith(folders))


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU; its values lie in `held`, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        tensor.held = held
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({list(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))  # which kernel it takes is no operator
        if func is torch.Tensor.detach and torch.is_inference_mode_enabled():
            return OnGpu(args[0].held.detach())  # torch's own wants a counter of the wrapper's
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operator(func, args, kwargs or {})


class _Every(TorchDispatchMode):
    """Passes on operators that make tensors, too."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operator(func, args, kwargs or {})


_running: list[_Every] = []


def _operator(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator: checked, counted, computed on the CPU, its results where they belong."""
    leaves = tree_leaves((args, kwargs))
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in tensors if isinstance(leaf, OnGpu)]
    if not there and (asked is None or asked.type != NAME):
        return func(*args, **kwargs)
    with _running[-1] if _running else contextlib.nullcontext():
        out = func.decompose(*args, **kwargs)  # under inference mode composite ones come whole
    if out is not NotImplemented:
        return out
    name = func._schema.name.removeprefix("aten::")
    _check(func, name, args, tensors)
    if _running:
        _count(_running[-1].seen, name, args, there, asked)
    out = func(*tree_map(_bare, args), **{key: tree_map(_bare, x) for key, x in kwargs.items()})
    if name in INDEXING or name in CROSSING - {"_to_copy"} or name.rstrip("_") != name:
        on_gpu = isinstance(args[0], OnGpu)
    elif name in ("_local_scalar_dense", "equal"):
        on_gpu = False
    else:
        on_gpu = asked.type == NAME if asked is not None else bool(there)
    return tree_map(lambda x: _placed(x, on_gpu, tensors, name == "_to_copy"), out)


def _bare(leaf: Any) -> Any:
    if isinstance(leaf, OnGpu):
        return leaf.held
    return CPU if isinstance(leaf, torch.device) else leaf


def _placed(result: Any, on_gpu: bool, operands: Sequence[torch.Tensor], copied: bool) -> Any:
    """A result on its device; what an operator changed in place is still the same tensor."""
    if not isinstance(result, torch.Tensor):
        return result
    for one in operands:
        if result is one or result is getattr(one, "held", None):
            if not copied:
                return one
            result = result.clone()  # to another device, though the values lie where they lay
    return OnGpu(result) if on_gpu else result


def _check(func: Any, name: str, args: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Raise DevicesMixed where CUDA would."""
    others = [one for one in tensors if not isinstance(one, OnGpu)]
    if name in CROSSING or not others or len(others) == len(tensors):
        return
    changed_here = name.endswith("_") and not isinstance(args[0], OnGpu)
    if name in INDEXING:
        indices = [one for one in args[1] if one is not None]
        values = [x for x in args[2:3] if isinstance(x, torch.Tensor) and x.ndim]
        here = not isinstance(args[0], OnGpu)
        mixed = here and any(isinstance(one, OnGpu) for one in indices)
        if not mixed and all(isinstance(x, OnGpu) != here for x in values):
            return
    elif torch.Tag.pointwise in func.tags or name in FILLING:
        if not changed_here and all(other.ndim == 0 for other in others):
            return
    shapes = ", ".join(f"{one.device.type} {list(one.shape)}" for one in tensors)
    raise DevicesMixed(f"{name}: {shapes}, {_line() or 'not our line'}")


def _count(seen: Seen, name: str, args: Any, there: Sequence[Any], asked: Any) -> None:
    if name not in FREE and not name.startswith("sym_"):
        seen.launches[name] += 1
    if name in WAITING:
        seen.wait(name)
    elif name == "_to_copy" and asked is not None and bool(there) != (asked.type == NAME):
        seen.wait("to the CPU" if there else "to the GPU")
    elif name == "copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
        seen.wait("to the GPU" if isinstance(args[0], OnGpu) else "to the CPU")
    elif name in INDEXING and isinstance(args[0], OnGpu):
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                seen.wait("how many are chosen")
            elif index is not None and not isinstance(index, OnGpu):
                seen.wait("to the GPU")


def _line() -> str:
    """The innermost line of the pack that is running, as `folder/file.py:number`."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename.removeprefix(PACK)
        if name.startswith(OURS):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, *_: Any, scale: Any = None, **__: Any
) -> Any:
    """Attention as one launch, or, where a gradient is wanted, of plain operators."""
    operands = [one for one in (q, k, v, attn_mask) if one is not None]
    if any(one.device != q.device for one in operands):
        raise DevicesMixed(f"attention: {[one.device.type for one in operands]}, {_line()}")
    if not torch.is_grad_enabled():
        bare = [_bare(one) for one in (q, k, v, attn_mask)]
        with torch._C._DisableTorchDispatch():
            out = torch.nn.functional.scaled_dot_product_attention(*bare, scale=scale)
        if _running:
            _running[-1].seen.launches["scaled_dot_product_attention"] += 1
        return OnGpu(out)
    weight = (q.float() @ k.float().transpose(-2, -1)) * (scale or q.shape[-1] ** -0.5)
    weight = weight if attn_mask is None else weight + attn_mask
    return (weight.softmax(-1) @ v.float()).to(q.dtype)


@contextlib.contextmanager
def pretended_gpu(gpu_only: bool = False) -> Iterator[Seen]:
    """ComfyUI computes on the GPU inside; gpu_only: and keeps everything there."""
    from comfy import model_management as host
    from comfy.ldm.modules import attention

    kept = GPU if gpu_only else CPU
    memory = lambda dev=None, torch_free_too=False, **_: (  # noqa: E731
        (PLENTY, PLENTY) if torch_free_too else PLENTY
    )
    answers = {
        "get_torch_device": lambda: GPU,
        "get_free_memory": memory,
        "get_total_memory": lambda *_, **__: PLENTY,
        "text_encoder_device": lambda: GPU,
        "vae_device": lambda: GPU,
        "unet_offload_device": lambda: kept,
        "intermediate_device": lambda: kept,
        "device_supports_non_blocking": lambda device: False,
        "should_use_fp16": lambda *_, **__: False,
        "should_use_bf16": lambda *_, **__: False,
        "get_offload_stream": lambda device: None,
    }
    plain = torch.Generator
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    with contextlib.ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        for name in ("optimized_attention", "optimized_attention_masked"):  # as chosen on a GPU
            stack.enter_context(mock.patch.object(attention, name, attention.attention_pytorch))
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(host, name, answer))
        state = host.VRAMState.NORMAL_VRAM
        stack.enter_context(mock.patch.object(host, "vram_state", state))
        stack.enter_context(mock.patch.object(torch, "Generator", lambda device=None: plain()))
        # gradients go back in this thread, where the mode is
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        mode = stack.enter_context(_Every(Seen()))
        _running.append(mode)
        stack.callback(_running.pop)
        yield mode.seen
