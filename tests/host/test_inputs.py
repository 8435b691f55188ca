"""Every input with a widget, of every node, at its extremes and beyond, as links may bring it: a
result, or a refusal that names the node.

ComfyUI compares with a node's ranges only what is typed in.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfy_api.latest import io

from bench import workflows
from pivot_edit.core.errors import PivotError

NODES = {kind.define_schema().node_id: kind for kind in workflows.pack_nodes()}
NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400
NO_NUMBERS = ["0.5", None, [1], {}, True, torch.tensor(0.5)]
NO_TEXTS = [None, 5, 0.5, True, ["a"], {}, "\ud800", "a \udcff b"]
TEXTS = [
    *(
        "",
        " ",
        "\n",
        ",,,",
        ".",
        "..",
        "a/",
        "a//b",
        "a\0b",
        "../x",
        "/etc/passwd",
        "\x7f",
        "\u202e",
    ),
    *("x" * 300, "x" * 4000, "é", "日本語", "🙂" * 70, "[a-z]*", "\\", "(((((", "(star:1.2)"),
    *("star:", ": 2", "star:: 2", "star: nan", "star: inf", "star: 1e5", "star: " + "9" * 400),
    *("star: -1", "star: 0.2-0.8-1", "star: 0.8-0.2", "star: 5-6", "star: ٣", "star: ²", "star=2"),
    *("up.", "up.2-1", "up." + "9" * 5000, "mid.0-" + "9" * 30, "all none", "up.٣", "decoder 3"),
    *("embedding:", "embedding:nope", "%width%", "%batch_num%", "%date:yyyy%", "a:b", "-", "a->b"),
]
"""Malformed texts of every small grammar, and texts that file systems do not like."""


@dataclasses.dataclass(frozen=True)
class Bed:
    """Values that fit every socket, and the files that nodes have written."""

    sockets: dict[str, Any]
    named: dict[str, Any]
    inputs: dict[tuple[str, str], Any]

    def usual(self, node: str) -> dict[str, Any]:
        """Values under which a node runs."""
        values = {entry.id: self._value(node, entry) for entry in schema(node)}
        return {name: value for name, value in values.items() if value is not None}

    def _value(self, node: str, entry: Any) -> Any:
        default = getattr(entry, "default", None)
        for table, key in ((self.inputs, (node, entry.id)), (self.named, entry.id)):
            if key in table:
                return table[key]
        if entry.io_type in self.sockets:
            return self.sockets[entry.io_type]
        if isinstance(entry, io.Combo.Input):
            return entry.options[0] if default is None else default
        return default


def schema(node: str) -> list[Any]:
    return NODES[node].define_schema().inputs


def run(node: str, **inputs: Any) -> Any:
    """A node's outputs, as the host runs it."""
    kind = NODES[node]
    hidden = types.SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    clone = type(kind.__name__, (kind,), {"hidden": hidden})
    if "file" in inputs:
        refusal = clone.validate_inputs(inputs["file"])
        if refusal is not True:
            raise PivotError("a file", refusal, "", NODES[node].define_schema().display_name)
        clone.fingerprint_inputs(inputs["file"])
    return clone.execute(**inputs).args


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    import folder_paths

    base = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for name in ("input", "output", "temp"):
            (base / name).mkdir()
            patch.setattr(folder_paths, f"{name}_directory", str(base / name))
        yield made_bed()


def made_bed() -> Bed:
    """The smallest picture that goes all the way through."""
    model, clip, vae = run("PivotToyModel")
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    latent = {"samples": vae.encode(image)}
    source, text = run("PivotSourcePrompt", clip=clip, prompt="a red star on a lake")
    other = "a blue star on a lake"
    _, target, words, negative = run(
        "PivotPromptPair", clip=clip, source_prompt=text, target_prompt=other
    )
    inverting = {"model": model, "latent": latent, "source": source, "steps": 1}
    inversion = run(
        "PivotDDIMInversion", **inverting, levels="reference", check_reconstruction=False
    )[0]
    recorded = run("PivotRecordAttention", model=model, start=0.0, end=1.0)[0]
    blending = {"blend_words": "star", "subtract_words": "", "threshold": 0.3, "pool": False}
    blended = run(
        "PivotLocalBlend",
        model=recorded,
        words=words,
        subtract_threshold=0.5,
        start=0.0,
        **blending,
    )[0]
    texts = {"source": source, "target": target, "negative": negative}
    edited, back, _, mask = run(
        "PivotEditSampler",
        model=blended,
        inversion=inversion,
        cfg=3.0,
        correction="direct",
        **texts,
    )
    file = run("PivotSaveInversion", inversion=inversion, filename_prefix="a", half_precision=False)
    sockets = {
        **{"MODEL": model, "CLIP": clip, "VAE": vae, "IMAGE": image, "LATENT": latent},
        **{"CONDITIONING": source, "PIVOT_WORDS": words, "PIVOT_INVERSION": inversion},
    }
    named = {
        **{"target": target, "negative": negative, "samples": edited, "edited": edited},
        **{"reconstructed": back, "source_prompt": text, "target_prompt": other, "steps": 1},
        **{"blend_words": "star", "file": file[1]},
    }
    inputs = {
        ("PivotAttentionMaps", "model"): blended,
        ("PivotAttentionMaps", "prompt"): text,
        ("PivotBlendMask", "model"): blended,
        ("PivotSourcePrompt", "prompt"): text,
        ("PivotPasteEdit", "edited"): image,
    }
    return Bed(sockets, named, inputs)


def beyond(entry: Any) -> list[Any]:
    """Values that an input must refuse."""
    if isinstance(entry, io.Float.Input | io.Int.Input):
        past = [entry.min - 1, entry.max + 1]
        return [*NO_NUMBERS, NAN, INFINITE, -INFINITE, HUGE, -HUGE, *past]
    if isinstance(entry, io.String.Input):
        return NO_TEXTS
    if isinstance(entry, io.Combo.Input):
        return [*NO_TEXTS, "", "nothing of the kind"]
    return [None, "yes", 5, NAN, []] if isinstance(entry, io.Boolean.Input) else []


def extremes(entry: Any) -> list[Any]:
    """Values that an input may take or refuse."""
    if isinstance(entry, io.Float.Input | io.Int.Input):
        return [entry.min, *([] if entry.id == "steps" else [entry.max])]
    if isinstance(entry, io.Combo.Input):
        return list(entry.options)
    if isinstance(entry, io.Boolean.Input):
        return [True, False]
    return TEXTS if isinstance(entry, io.String.Input) else []


@pytest.mark.parametrize("node", NODES)
def test_every_value_gives_a_result_or_a_refusal_that_names_the_node(bed: Bed, node: str) -> None:
    """A refusal of a value of the wrong kind names the input, too."""
    usual, name = bed.usual(node), NODES[node].define_schema().display_name
    run(node, **usual)
    for entry in schema(node):
        for value in beyond(entry):
            with pytest.raises(PivotError, match=f"in {name}") as caught:
                run(node, **{**usual, entry.id: value})
            assert entry.id in str(caught.value)
        for value in extremes(entry):
            if value == usual.get(entry.id):
                continue
            try:
                run(node, **{**usual, entry.id: value})
            except PivotError as error:
                assert error.where
