"""Slopes of energies through real UNets and a real VAE: right, in every precision, and without a
trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import comfy.samplers
import pytest
import torch

import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.core.gradients import Energy, Evaluation, Slope
from pivot_edit.host.model import gradients
from pivot_edit.host.run.gradients import HostGradients
from pivot_edit.toy.loader import load

KINDS = tuple(unets.SHAPES)
SIGMA, CPU = 1.5, torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mean(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).mean(1)


def latent_energy(seen: Evaluation) -> torch.Tensor:
    """Quadratic, directly and through x0."""
    goal = noise(1, *seen.x.shape[1:], seed=2)
    return mean((seen.denoised - goal).square()) + 0.1 * mean((seen.x - goal).square())


def eps_energy(seen: Evaluation) -> torch.Tensor:
    return mean((seen.eps * noise(1, *seen.x.shape[1:], seed=3)).tanh())


def text_energy(seen: Evaluation) -> torch.Tensor:
    """Directly and through eps."""
    return 10.0 * mean(seen.text * seen.text.roll(1, 2)) + mean(seen.eps.square())


def picture_energy(seen: Evaluation) -> torch.Tensor:
    """Of a smooth picture's colours, and of x0: two ways back that meet."""
    colours = seen.picture.mean((1, 2)) - torch.tensor([0.9, 0.1, 0.4])
    return colours.square().sum(1) + 0.01 * mean(seen.denoised.square())


ENERGIES: dict[str, Energy] = {
    "latent": latent_energy,
    "eps": eps_energy,
    "text": text_energy,
    "picture": picture_energy,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    with torch.inference_mode():
        return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def plain() -> Any:
    with torch.inference_mode():
        return unets.build("SD15")


@pytest.fixture(scope="module")
def vae() -> Any:
    with torch.inference_mode():
        return load()[2]


class Within(comfy.samplers.Sampler):
    """Runs something where a sampler would be."""

    def __init__(self, act: Callable[[Any, dict[str, Any]], Any]) -> None:
        self.act, self.outcome = act, None

    def sample(
        self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, *rest: Any, **more: Any
    ) -> torch.Tensor:
        self.outcome = self.act(model_wrap, extra_args["model_options"])
        return rest[1]


def within(model: Any, act: Callable[[Any, dict[str, Any]], Any], source: Any = None) -> Any:
    """What `act(guider, options)` gives within a sampling run of the host."""
    guider, sampler = comfy.samplers.CFGGuider(model), Within(act)
    kind = next(kind for kind in KINDS if width(kind) == width_of(model))
    guider.set_conds(source or unets.conditioning(kind, 0), unets.conditioning(kind, 1))
    x = noise(1, 4, 8, 8)
    guider.sample(torch.zeros_like(x), x, sampler, torch.tensor([2.0, 1.0]), seed=0)
    return sampler.outcome


def width(kind: str) -> int:
    return unets.SHAPES[kind]["context_dim"]


def width_of(model: Any) -> int:
    return model.model.model_config.unet_config["context_dim"]


def slopes(
    model: Any,
    energy: Energy,
    points: list[torch.Tensor],
    wrt: tuple[str, ...] = ("latent",),
    texts: list[torch.Tensor] | None = None,
    **options: Any,
) -> list[Slope]:
    """At each of some latents, in one run."""
    options.setdefault("checkpointing", "off")

    def act(guider: Any, model_options: dict[str, Any]) -> list[Slope]:
        service = HostGradients(guider, model_options, **options)
        read = texts or [None] * len(points)
        return [
            service.slope(energy, x, SIGMA, wrt, text) for x, text in zip(points, read, strict=True)
        ]

    return within(model, act)


def assert_slope(
    model: Any, energy: Energy, wrt: tuple[str, ...], step: float = 2e-4, **options: Any
) -> None:
    """Against central differences, half along the gradient and half anywhere."""
    at = {"latent": noise(1, 4, 8, 8), "text": noise(1, 77, width_of(model), seed=5)}
    found = slopes(model, energy, [at["latent"]], wrt, [at["text"]], **options)[0]
    assert found.gradient.keys() == set(wrt)
    for name in wrt:
        gradient = found.gradient[name]
        along = gradient / gradient.norm() + (side := noise(*gradient.shape, seed=6)) / side.norm()
        reach = step * at[name].norm()
        ends = [{**at, name: at[name] + sign * reach * along} for sign in (1, -1)]
        values = slopes(
            model,
            energy,
            [end["latent"] for end in ends],
            wrt,
            [end["text"] for end in ends],
            **options,
        )
        rise = float(values[0].value.double() - values[1].value.double()) / (2 * float(reach))
        assert float((gradient * along).sum()) == pytest.approx(rise, rel=2e-3), name


@pytest.mark.parametrize("name", ENERGIES)
def test_the_slope_is_that_of_central_differences(model, vae, name) -> None:
    wrt = ("latent",) if name == "picture" else ("latent", "text")
    assert_slope(model, ENERGIES[name], wrt, vae=vae if name == "picture" else None)


def test_the_slope_of_guidance_and_of_a_smaller_picture(plain, vae) -> None:
    shapes = []

    def energy(seen: Evaluation) -> torch.Tensor:
        shapes.append(tuple(seen.picture.shape))
        return picture_energy(seen)

    assert_slope(plain, energy, ("latent", "text"), vae=vae, cfg=3.0, decode_scale=0.5)
    assert set(shapes) == {(1, 32, 32, 3)}


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_denoised_is_what_the_host_predicts(model, vae, cfg) -> None:
    """And the picture what the host decodes of it, although both are made in another way."""
    seen = {}

    def energy(evaluation: Evaluation) -> torch.Tensor:
        seen["picture"] = evaluation.picture.detach()
        return picture_energy(evaluation)

    def act(guider: Any, options: dict[str, Any]) -> Any:
        x = noise(1, 4, 8, 8)
        guider.set_cfg(cfg)
        wanted = guider(x * (1 + SIGMA**2) ** 0.5, torch.tensor([SIGMA]), model_options=options)
        return wanted, HostGradients(guider, options, vae, cfg=cfg).slope(energy, x, SIGMA).denoised

    wanted, denoised = within(model, act)
    torch.testing.assert_close(denoised, wanted, rtol=1e-4, atol=1e-5)
    picture = vae.decode(model.model.process_latent_out(denoised))
    torch.testing.assert_close(seen["picture"], picture, rtol=1e-4, atol=1e-4)
    assert not denoised.is_inference() and not denoised.requires_grad


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_points_the_same_way(plain, vae, dtype) -> None:
    """Whatever the energy's size: its way back must neither underflow nor overflow."""
    half, small, sizes = unets.build("SD15", dtype=dtype), load()[2], (1.0, 1e-12, 1e6)
    small.first_stage_model.to(dtype)
    small.vae_dtype = dtype

    def energy(seen: Evaluation) -> torch.Tensor:
        return picture_energy(seen) * torch.tensor(sizes)[: len(seen.x)]

    wrt, x = ("latent", "text"), noise(1, 4, 8, 8)
    found = slopes(half, energy, [x.expand(3, -1, -1, -1)], wrt, vae=small, decode_scale=0.5)[0]
    wanted = slopes(plain, picture_energy, [x], wrt, vae=vae, decode_scale=0.5)[0]
    for name in wrt:
        assert found.gradient[name].dtype == torch.float32
        first, *others = (
            each / size for each, size in zip(found.gradient[name], sizes, strict=True)
        )
        # the same arithmetic up to a power of two: only the way back's last bits may differ
        for other in others:
            assert (other - first).norm() < 8 * torch.finfo(dtype).eps * first.norm(), name
        # float32 is another model: how far rounding every layer leads away from it depends on the
        # CPU (AVX2 alone: 15 % in bfloat16). A wrong power of two is a factor of 2 at least.
        assert cosine(first, wanted.gradient[name]) > 0.95, name
        length = first.norm() / wanted.gradient[name].norm()
        assert length.log2().abs() < 0.5, name


def test_pictures_of_a_batch_have_their_own_slopes(model, vae) -> None:
    """Even where one energy is a million times the other."""
    x = noise(2, 4, 8, 8)

    def uneven(seen: Evaluation) -> torch.Tensor:
        return picture_energy(seen) * torch.tensor([1.0, 1e-6])[: len(seen.x)]

    wrt = ("latent", "text")
    together = slopes(model, uneven, [x], wrt, vae=vae)[0]
    for i, size in enumerate((1.0, 1e-6)):
        alone = slopes(model, picture_energy, [x[i : i + 1]], wrt, vae=vae)[0]
        torch.testing.assert_close(together.value[i : i + 1], alone.value * size)
        for name in wrt:
            wanted = alone.gradient[name] * size
            error = (together.gradient[name][i : i + 1] - wanted).norm() / wanted.norm()
            assert float(error) < 1e-3, (name, i)


def test_checkpointing_changes_only_memory(model, vae) -> None:
    x, wrt = noise(1, 4, 8, 8), ("latent", "text")
    on, off = (
        slopes(model, picture_energy, [x], wrt, vae=vae, checkpointing=choice)[0]
        for choice in ("on", "off")
    )
    for name in wrt:
        torch.testing.assert_close(on.gradient[name], off.gradient[name], rtol=1e-4, atol=1e-7)


def test_checkpointing_comes_on_where_memory_is_short(plain, vae, monkeypatch) -> None:
    def act(guider: Any, options: dict[str, Any]) -> list[str]:
        reports, free = [], management.get_free_memory()
        for share in (1, 1_000, 1_000_000):
            monkeypatch.setattr(
                management, "get_free_memory", lambda *args, share=share: free // share
            )
            service = HostGradients(guider, options, vae)
            service.slope(picture_energy, noise(1, 4, 8, 8), SIGMA)
            reports.append(service.memory)
        return reports

    reports = within(plain, act)
    assert "checkpointing off" in reports[0] and "may not fit" not in reports[0]
    assert "checkpointing on" in reports[-1] and "may not fit" in reports[-1]


def test_what_is_planned_is_what_the_way_back_keeps(plain, vae) -> None:
    """Counted on parts of the latent: within a tenth of what the whole keeps, VAE and all."""
    x = noise(1, 4, 32, 48)

    def act(guider: Any, options: dict[str, Any]) -> tuple[int, int]:
        service = HostGradients(guider, options, vae)
        service._load(x)
        text = unets.conditioning("SD15", 0)[0][0].clone()
        service._planned(x, SIGMA, text, ("latent",))
        without = HostGradients(guider, options)
        without._planned(x, SIGMA, text, ("latent",))
        assert service.memory.split(" of ")[0] != without.memory.split(" of ")[0]
        planned = [service._unet_bytes(x, SIGMA, text, ("latent",)), service._vae_bytes(x)]
        total = 0
        for network, blocks, run in (
            (
                guider.inner_model.diffusion_model,
                gradients.unet_blocks(),
                lambda leaf: service._denoise(SIGMA, leaf, text),
            ),
            (vae.first_stage_model, gradients.vae_blocks(), service._decode),
        ):
            with (
                gradients.differentiable(network, CPU, False, blocks),
                gradients.SavedBytes(network, blocks) as saved,
            ):
                run(x.clone().requires_grad_(True))
            total += saved.total
        return sum(part[False] for part in planned), total

    planned, kept = within(plain, act)
    assert planned == pytest.approx(kept, rel=0.1)


# -- low memory
# -------------------------------------------------------------------------------------------

LORA = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
DECODER = "decoder.mid.block_1.conv1.weight"


def patched(patcher: Any, name: str) -> None:
    """A weight with a patch on it, as of a LoRA."""
    weight = patcher.model.state_dict()[name]
    assert patcher.add_patches({name: (noise(*weight.shape, seed=9),)}, 0.1)


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_weights_patched_when_they_are_used_are_followed(monkeypatch, checkpointing) -> None:
    """The host's low-memory way: patches are applied by functions of the layers, at every call."""
    wrt, outcomes, functions = ("latent", "text"), [], []
    for lowvram in (False, True):
        model, vae = unets.build("SD15"), load()[2]
        patched(model, LORA)
        patched(vae.patcher, DECODER)
        layers = [
            model.model.get_submodule(LORA.removesuffix(".weight")),
            vae.first_stage_model.get_submodule(DECODER.removesuffix(".weight")),
        ]
        if lowvram:
            monkeypatch.setattr(management, "load_models_gpu", streaming())

        def energy(seen: Evaluation, layers: Any = layers) -> torch.Tensor:
            functions.append([len(layer.weight_function) for layer in layers])
            return picture_energy(seen)

        x = noise(1, 4, 8, 8)
        outcomes.append(slopes(model, energy, [x], wrt, vae=vae, checkpointing=checkpointing)[0])
    assert functions == [[0, 0], [1, 1]], "those of the second must be patched when used"
    for name in wrt:
        torch.testing.assert_close(*(o.gradient[name] for o in outcomes), rtol=1e-3, atol=1e-6)


def streaming() -> Any:
    """The host's loading, with as few weights resident as on a small card."""
    plain = management.load_models_gpu

    def load_few(patchers: list[Any], *args: Any, **kwargs: Any) -> None:
        plain(patchers, *args, **kwargs)
        for patcher in patchers:
            patcher.unpatch_model(CPU)
            patcher.load(CPU, lowvram_model_memory=1, force_patch_weights=False)

    return load_few


def test_weights_elsewhere_are_streamed_in_as_they_are_used(plain, vae) -> None:
    """Layers whose weights are not on the device that computes give copies, and are put back."""
    elsewhere = torch.device("cuda:0")
    for network, blocks in (
        (plain.model.diffusion_model, gradients.unet_blocks()),
        (vae.first_stage_model, gradients.vae_blocks()),
    ):
        before = traces(network)
        with gradients.differentiable(network, elsewhere, True, blocks):
            layers = [each for each in network.modules() if hasattr(each, "weight_function")]
            weighted = [each for each in layers if list(each.parameters(recurse=False))]
            assert weighted and all(torch.clone in each.weight_function for each in weighted)
        assert traces(network) == before


# -- without a trace
# -------------------------------------------------------------------------------------------


def traces(network: torch.nn.Module) -> list[Any]:
    """All that modules hold beside weights, by identity; lists by what is in them, too."""
    inside = ("_parameters", "_buffers", "_modules")
    return [
        {
            name: (id(value), list(value) if isinstance(value, list | dict) else None)
            for name, value in vars(module).items()
            if name not in inside
        }
        | {
            "grads": [
                (p.requires_grad and not p.is_inference(), p.grad)
                for p in module.parameters(recurse=False)
            ]
        }
        for module in network.modules()
    ]


class Stop(Exception):
    """Raised in the middle."""


def stopped(seen: Evaluation) -> torch.Tensor:
    seen.picture.sum()
    raise Stop


def interrupted(seen: Evaluation) -> torch.Tensor:
    management.interrupt_current_processing(True)
    return picture_energy(seen)


@pytest.mark.parametrize("checkpointing", ["on", "off"])
@pytest.mark.parametrize(
    ("energy", "error"),
    [
        (picture_energy, None),
        (stopped, Stop),
        (interrupted, management.InterruptProcessingException),
    ],
)
def test_networks_are_as_before(energy, error, checkpointing) -> None:
    """Fresh ones, as a node's loader makes them: weights bit-equal, all else the same objects."""
    model, vae = unets.build("SD15"), load()[2]
    networks = [model.model.diffusion_model, vae.first_stage_model]
    assert all(p.is_inference() for network in networks for p in network.parameters())

    def act(guider: Any, options: dict[str, Any]) -> None:
        management.load_models_gpu([guider.model_patcher, vae.patcher])
        states = [{k: v.clone() for k, v in each.state_dict().items()} for each in networks]
        before = [traces(each) for each in networks]
        service = HostGradients(guider, options, vae, checkpointing=checkpointing)
        try:
            if error is None:
                service.slope(energy, noise(1, 4, 8, 8), SIGMA, ("latent", "text"))
            else:
                with pytest.raises(error):
                    service.slope(energy, noise(1, 4, 8, 8), SIGMA)
        finally:
            management.interrupt_current_processing(False)
        for network, state, trace in zip(networks, states, before, strict=True):
            after = network.state_dict()
            assert after.keys() == state.keys() and traces(network) == trace
            assert all(torch.equal(after[name], value) for name, value in state.items())

    within(model, act)


def test_weights_that_ask_for_gradients_are_frozen_only_for_the_while() -> None:
    with torch.inference_mode(False):
        vae = load()[2]
    network = vae.first_stage_model
    network.requires_grad_(True)
    model = unets.build("SD15")
    asked = []

    def energy(seen: Evaluation) -> torch.Tensor:
        asked.append(any(p.requires_grad for p in network.parameters()))
        return picture_energy(seen)

    slopes(model, energy, [noise(1, 4, 8, 8)], vae=vae)
    assert asked == [False]
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_an_interrupt_comes_before_the_evaluation(plain) -> None:
    asked: list[Evaluation] = []

    def act(guider: Any, options: dict[str, Any]) -> None:
        service = HostGradients(guider, options)
        service.slope(latent_energy, noise(1, 4, 8, 8), SIGMA)
        management.interrupt_current_processing(True)
        service.slope(lambda seen: asked.append(seen), noise(1, 4, 8, 8), SIGMA)

    try:
        with pytest.raises(management.InterruptProcessingException):
            within(plain, act)
    finally:
        management.interrupt_current_processing(False)
    assert not asked


def test_kernels_without_a_gradient_are_left_out_for_the_while(plain, vae, monkeypatch) -> None:
    """Faster attentions of other packs and builds, in the UNet and in the VAE."""

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("a kernel without a gradient was used")

    blocks = [
        each for each in vae.first_stage_model.modules() if hasattr(each, "optimized_attention")
    ]
    for block in blocks:
        monkeypatch.setattr(block, "optimized_attention", kernel)
    other = plain.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = kernel
    x = noise(1, 4, 8, 8)
    wanted = slopes(plain, picture_energy, [x], vae=vae)[0]
    found = slopes(other, picture_energy, [x], vae=vae)[0]
    assert torch.equal(found.gradient["latent"], wanted.gradient["latent"])
    assert blocks and all(block.optimized_attention is kernel for block in blocks)


# -- refusals
# -------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_named(plain) -> None:
    """With the sigma; a norm at zero has a finite value and no slope."""
    x = noise(1, 4, 8, 8)
    where = {"where": "FreeDoM, step 3"}
    with pytest.raises(PivotError, match=r"the energy, but got NaN .* step 3, sigma 1\.5"):
        slopes(plain, lambda seen: latent_energy(seen) * torch.nan, [x], **where)
    with pytest.raises(PivotError, match=r"gradient with respect to the latent.* sigma 1\.5"):
        slopes(plain, lambda seen: mean((seen.eps * 0).square()).sqrt(), [x], **where)


def test_what_does_not_fit_is_refused(plain, vae) -> None:
    x, prompt = noise(1, 4, 8, 8), unets.conditioning("SD15", 0)
    other = load()[2]
    other.latent_channels = 16

    def fails(message: str, energy: Energy = latent_energy, **options: Any) -> None:
        source = options.pop("source", None)
        wrt, texts = options.pop("wrt", ("latent",)), options.pop("texts", None)
        sigma = options.pop("sigma", SIGMA)

        def act(guider: Any, model_options: dict[str, Any]) -> None:
            service = HostGradients(guider, model_options, **options)
            service.slope(energy, x, sigma, wrt, texts)

        with pytest.raises(PivotError, match=message):
            within(plain, act, source)

    fails("a VAE, for an energy of pictures, but got none in gradients, sigma", picture_energy)
    fails("16 in 2 dimensions", vae=other)
    fails("one energy for each of 1 pictures", lambda seen: seen.eps.sum())
    fails("a constant", lambda seen: mean(seen.eps.detach()))
    fails("depends on the text", lambda seen: mean(seen.x), wrt=("latent", "text"))
    fails("variables among", wrt=("picture",))
    fails("variables among", wrt=())
    fails("sigma above 0", sigma=0.0)
    fails("a text for each of 1 pictures", texts=noise(3, 77, 64))
    fails("decode_scale", decode_scale=0.0)
    fails("checkpointing to be one of", checkpointing="maybe")
    fails("one plain source prompt", prompt="source")
    fails("one plain positive prompt, but got 2", source=[*prompt, *prompt])
    area = [[prompt[0][0], {"area": (4, 4, 0, 0)}]]
    fails("one with area", source=area)
