"""Pictures of every size beside their edits and around them, as the host has encoded them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import graphs
import unets
from bench import thumbnails, workflows
from pivot_edit.core.errors import PivotError
from pivot_edit.host.tasks import pictures as task
from pivot_edit.host.tasks import storage
from pivot_edit.host.tasks.inversion import InversionParts, invert_latent
from pivot_edit.inversion import Ddim
from pivot_edit.nodes.compare import PivotCompare, PivotPasteEdit
from pivot_edit.toy.loader import load
from tools.client import Client, Graph, ServerError
from tools.pictures import psnr, to_array, to_image

SIZES = [(135, 131), (128, 143), (97, 64), (159, 127)]


@pytest.fixture(scope="module")
def vae() -> Any:
    with torch.inference_mode():
        return load()[2]


def picture(count: int, size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.rand(count, *size, channels, generator=generator)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("factor", [8, 16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_an_edit_goes_back_to_where_the_host_has_encoded(
    vae, size, factor: int, channels: int, monkeypatch
) -> None:
    """What the host would encode, pasted back, is the picture again; shifted by one it is not."""
    monkeypatch.setattr(vae, "downscale_ratio", factor)
    whole = picture(2, size, channels)
    crop = vae.vae_encode_crop_pixels(whole)
    assert crop.shape[1] % factor == crop.shape[2] % factor == 0
    again, mask = PivotPasteEdit.execute(vae, whole, crop, 0).args
    assert torch.equal(again, whole) and mask.shape == (2, *size)
    if crop.shape[1:3] != size:
        shifted = PivotPasteEdit.execute(vae, whole, crop.roll(1, 2), 0).args[0]
        assert not torch.equal(shifted, whole)
    assert torch.equal(task.encoded(vae, whole, tuple(crop.shape[1:3]))[..., :3], crop)


def test_the_source_panel_shows_what_was_encoded(vae) -> None:
    whole = picture(1, (135, 131), 4)
    crop = vae.vae_encode_crop_pixels(whole)
    grid = task.comparison(vae, whole, crop, crop)
    assert grid.shape == (1, 128, 3 * 128 + 16, 3)
    assert torch.equal(grid[:, :, :128], grid[:, :, 272:])
    assert (grid[:, :, :128] - crop).abs().max() < 1.01 / 255
    assert (grid[:, :, 128:136] == 1.0).all()


def test_pictures_of_another_size_are_centred_and_cropped(vae) -> None:
    large, edited = picture(1, (300, 200)), picture(1, (64, 64))
    assert task.comparison(vae, large, edited, edited).shape == (1, 64, 3 * 64 + 16, 3)


def test_every_edit_stands_beside_its_own_picture(vae) -> None:
    """Two pictures and three targets: edits come target after target."""
    values = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).expand(-1, 64, 64, 3)
    edits = torch.linspace(0.0, 1.0, 6).view(6, 1, 1, 1).expand(-1, 64, 64, 3)
    grid = task.comparison(vae, values, 1.0 - values, edits)
    panels = [grid[:, 32, x, 0] for x in (32, 104, 176)]
    assert panels[0].tolist() == pytest.approx([0.2, 0.6] * 3, abs=0.01)
    assert panels[1].tolist() == pytest.approx([0.8, 0.4] * 3, abs=0.01)
    assert panels[2].tolist() == pytest.approx(edits[:, 0, 0, 0].tolist(), abs=0.01)


class Counted:
    """A VAE that notes what it decodes."""

    decoded = 0

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        self.decoded += 1
        return torch.zeros(len(samples), 64, 64, 3)


@pytest.mark.parametrize(
    ("images", "edits", "back", "prefix", "message"),
    [
        (2, 3, 1, "pivot/edit", "pictures for 3 edit.* but got 2 in Decode and Compare"),
        (3, 1, 1, "pivot/edit", "pictures for 1 edit.* but got 3"),
        (1, 3, 2, "pivot/edit", "reconstructions for 3 edit.* but got 2"),
        (1, 1, 1, "../edit", "a name inside of .* in Decode and Compare"),
        (1, 1, 1, "big/edit", "'big' is a link to .* in Decode and Compare"),
        (1, 1, 1, "deep/big/er/edit", "'big' is a link to "),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_work(
    folders: pathlib.Path, images: int, edits: int, back: int, prefix: str, message: str
) -> None:
    (folders / "output" / "deep").mkdir()
    for place in ("big", "deep/big"):
        (folders / "output" / place).symlink_to(folders)
    vae = Counted()
    latents = [{"samples": torch.zeros(count, 4, 8, 8)} for count in (edits, back)]
    with pytest.raises(PivotError, match=message):
        PivotCompare.execute(vae, torch.zeros(images, 64, 64, 3), *latents, prefix)
    assert not vae.decoded and not list(folders.rglob("*.png"))


def test_what_the_file_system_refuses_is_explained(vae, folders: pathlib.Path) -> None:
    (folders / "output" / "a.txt").touch()
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for prefix, message in (("a.txt/edit", "folders on the way"), ("x" * 300, "can hold")):
        with pytest.raises(PivotError, match=f"{message}.* in Decode and Compare"):
            PivotCompare.execute(vae, torch.zeros(1, 64, 64, 3), latent, latent, prefix)


# noise masks


def latent_with(vae: Any, node: str) -> dict[str, Any]:
    """A LATENT with a noise mask, as stock nodes make it."""
    import nodes

    image, mask = picture(1, (64, 64)), torch.zeros(1, 64, 64)
    if node == "inpainting":
        return nodes.VAEEncodeForInpaint().encode(vae, image, mask + 1.0)[0]
    return nodes.SetLatentNoiseMask().set_mask(nodes.VAEEncode().encode(vae, image)[0], mask)[0]


@pytest.mark.parametrize("node", ["set", "inpainting"])
def test_a_noise_mask_is_refused_by_name(vae, folders, node: str) -> None:
    latent = latent_with(vae, node)
    model, source = unets.build("SD15", shallow=True), unets.conditioning("SD15", 0)
    message = r"noise mask \(Set Latent Noise Mask, VAE Encode \(for Inp.* in DDIM .*Local Blend's"
    with pytest.raises(PivotError, match=message):
        invert_latent(model, latent, source, 2, "reference", Ddim(), False)
    plain = {"samples": latent["samples"]}
    trajectory = invert_latent(model, plain, source, 2, "reference", Ddim(), False)[0]
    name = storage.save(trajectory, storage.PREFIX, False)[0]
    with pytest.raises(PivotError, match="with a noise mask .* in Load Inversion"):
        storage.load(name, latent=latent)
    assert storage.load(name, latent=plain)[0].steps == 2


def test_a_replay_takes_no_noise_mask_under_any_guider() -> None:
    import comfy.samplers

    model, source = unets.build("SD15", shallow=True), unets.conditioning("SD15", 0)
    latent = unets.latent(8, 8)
    trajectory = invert_latent(model, latent, source, 2, "reference", Ddim(), False)[0]
    parts = InversionParts.of(model, trajectory, "none")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(source, source)
    x, mask = latent["samples"], torch.ones(1, 1, 8, 8)
    noise = parts.noise.generate_noise({"samples": x})
    with pytest.raises(PivotError, match=r"without a noise mask.*Connect the mask to Local Blend"):
        guider.sample(noise, x, parts.sampler, parts.sigmas, denoise_mask=mask, seed=0)


MASKS = {"PivotDDIMInversion": "refused", "PivotLoadInversion": "refused"}
"""What a node does with a noise mask. Others take samples, whose mask the sampler has followed."""
SAMPLES = {"PivotAttentionMaps", "PivotBlendMask", "PivotCompare"}


def test_every_node_that_takes_a_latent_is_known() -> None:
    taking = {
        schema.node_id
        for schema in (node.define_schema() for node in workflows.pack_nodes())
        if any(entry.io_type == "LATENT" for entry in schema.inputs)
    }
    assert taking == {*MASKS, *SAMPLES}


# through the API


def pasting(client: Client) -> tuple[Graph, Image.Image]:
    """The shipped workflow on a picture of odd sizes whose edit changes no word."""
    graph: Graph = json.loads((workflows.API / "local_blend.json").read_text())
    frame = np.pad(to_array(thumbnails.example()), ((1, 2), (3, 4), (0, 0)), "edge")
    whole = to_image(frame)
    graphs.inputs(graph, "LoadImage")["image"] = client.upload(whole, "odd.png")
    source = graphs.inputs(graph, "PivotSourcePrompt")["prompt"]
    graphs.inputs(graph, "PivotPromptPair")["target_prompt"] = source
    graphs.inputs(graph, "PivotLocalBlend")["blend_words"] = "red, star"
    graphs.inputs(graph, "PivotDDIMInversion").update(steps=10, check_reconstruction=False)
    return graph, whole


@pytest.mark.server
def test_the_shipped_workflow_pastes_at_the_right_place(client: Client) -> None:
    """A picture whose sides are no multiple of 8, edited into itself."""
    graph, whole = pasting(client)
    paste = graphs.node(graph, "PivotPasteEdit")
    (saved,) = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    (result,) = client.run(graph).images[saved]
    assert result.size == whole.size
    near = psnr(to_array(result), to_array(whole))
    edited = graph[paste]["inputs"]["edited"]
    graph[paste] = {
        "class_type": "ImageCompositeMasked",
        "inputs": {
            "destination": graph[paste]["inputs"]["image"],
            "source": edited,
            "mask": graph[paste]["inputs"]["mask"],
            **{"x": 0, "y": 0, "resize_source": False},
        },
    }
    (corner,) = client.run(graph).images[saved]
    assert near > 30.0 and psnr(to_array(corner), to_array(whole)) < 25.0


@pytest.mark.server
def test_a_noise_mask_is_refused_with_the_nodes_name(client: Client) -> None:
    graph = graphs.starter(client)
    inversion = graphs.inputs(graph, "PivotDDIMInversion")
    graph["90"] = {
        "class_type": "SolidMask",
        "inputs": {"value": 0.0, "width": 128, "height": 128},
    }
    graph["91"] = {
        "class_type": "SetLatentNoiseMask",
        "inputs": {"samples": inversion["latent"], "mask": ["90", 0]},
    }
    inversion["latent"] = ["91", 0]
    with pytest.raises(ServerError, match="connect the mask to Local Blend's mask") as caught:
        client.run(graph)
    assert caught.value.node_class == "PivotDDIMInversion"


@pytest.mark.server
def test_several_pictures_with_several_targets_are_compared(client: Client) -> None:
    graph: Graph = json.loads((workflows.API / "several_targets.json").read_text())
    graphs.inputs(graph, "LoadImage")["image"] = client.upload(graphs.picture(), "scene.png")
    graphs.inputs(graph, "PivotDDIMInversion").update(steps=2, check_reconstruction=False)
    load = graphs.node(graph, "LoadImage")
    both = {"class_type": "ImageBatch", "inputs": {"image1": [load, 0], "image2": [load, 0]}}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if value == [load, 0]:
                node["inputs"][name] = ["90", 0]
    graph["90"] = both
    result = client.run(graph)
    compare = graphs.node(graph, "PivotCompare")
    assert len(result.previews[compare]) == len(result.images[compare]) == 6
    assert result.previews[compare][0].size == (3 * 128 + 16, 128)
