"""Structure distance on a small random ViT: the right keys and sizes, 0 for equal pictures, growing
with noise."""

from __future__ import annotations

import pytest
import torch

from bench.pie.metrics import quiet
from bench.pie.structure import distance, normalised, resized, self_similarity


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    with quiet():
        transformers = pytest.importorskip("transformers")  # slow, and of this fixture alone
        config = transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=224,
        )
        vit = transformers.ViTModel(config, add_pooling_layer=False)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    torch.manual_seed(1)
    small = torch.rand(2, 3, 8, 8)
    return torch.nn.functional.interpolate(small, (64, 64), mode="bilinear") * 255.0


def test_equal_pictures_have_no_distance(model: torch.nn.Module, pictures: torch.Tensor) -> None:
    assert distance(model, pictures, pictures.clone()).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("parity", [True, False])
def test_it_grows_with_noise(model: torch.nn.Module, pictures: torch.Tensor, parity: bool) -> None:
    torch.manual_seed(2)
    noise = torch.randn_like(pictures)
    far = [
        distance(model, pictures, pictures + strength * noise, parity)
        for strength in (1.0, 4.0, 16.0, 64.0)
    ]
    assert all((after > before).all() for before, after in zip(far, far[1:], strict=False)), far
    assert (far[0] > 0).all()


def test_it_does_not_depend_on_the_batch(model: torch.nn.Module, pictures: torch.Tensor) -> None:
    other = pictures.flip(-1)
    alone = torch.cat([distance(model, pictures[i : i + 1], other[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(distance(model, pictures, other), alone, rtol=1e-4, atol=1e-9)
    assert alone[0] != alone[1]


def test_it_is_the_cosine_of_the_last_blocks_keys(
    model: torch.nn.Module, pictures: torch.Tensor
) -> None:
    pixels = normalised(resized(pictures))
    with torch.no_grad():
        before = model(pixels, output_hidden_states=True).hidden_states[-2]
        last = model.encoder.layer[-1]
        keys = last.attention.attention.key(last.layernorm_before(before))
    wanted = torch.nn.functional.cosine_similarity(keys[:, :, None], keys[:, None], dim=-1)
    torch.testing.assert_close(self_similarity(model, pixels), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.shape[1] == 1 + 14 * 14  # the class token counts


def test_no_hook_stays_behind(model: torch.nn.Module, pictures: torch.Tensor) -> None:
    distance(model, pictures, pictures)
    assert not any(part._forward_hooks for part in model.modules())


def test_a_model_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a ViT with projections named key, got Linear"):
        self_similarity(torch.nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "size", [(512, 512), (128, 128), (300, 400), (640, 200), (200, 900), (224, 224)]
)
def test_sizes_and_values_are_those_of_torchvision(size: tuple[int, int]) -> None:
    with quiet():
        transforms = pytest.importorskip("torchvision.transforms")
    picture = torch.rand(1, 3, *size) * 255.0
    wanted = transforms.Resize(224, max_size=480, antialias=False)(picture)
    torch.testing.assert_close(resized(picture), wanted)


def test_parity_takes_imagenets_mean_off_0_to_255() -> None:
    white = torch.full((1, 3, 2, 2), 255.0)
    assert normalised(white)[0, 0, 0, 0] == pytest.approx((255.0 - 0.485) / 0.229)
    assert normalised(white, parity=False)[0, 2, 0, 0] == pytest.approx((1.0 - 0.406) / 0.225)
