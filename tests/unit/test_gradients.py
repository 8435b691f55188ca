"""Slopes of energies through a small network whose gradients are known."""

from __future__ import annotations

import pytest
import torch
from reference import noise

from pivot_edit.core.errors import PivotError
from pivot_edit.core.gradients import Energy, Evaluation, Slope, pull_back, slope

SIGMA = 0.75
X, TEXT = noise(1, 2, 4, 3, 3), noise(2, 2, 5, 4)
WEIGHT = noise(3, 20, 36)


def network(x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return (x * (text.flatten(1) @ WEIGHT.to(x)).view_as(x)).tanh()


def decode(latent: torch.Tensor) -> torch.Tensor:
    return latent[:, :3].square().movedim(1, -1)


def energy(seen: Evaluation) -> torch.Tensor:
    """Of all that there is, in every way at once."""
    parts = (seen.picture, seen.eps, seen.denoised.sin(), seen.x.square(), seen.text.cos())
    return torch.stack([part.flatten(1).mean(1) for part in parts]).sum(0)


def test_the_way_back_in_parts_is_the_way_back() -> None:
    """Cut behind the network and the decoder, scaled by powers of two: what autograd gives as a
    whole."""
    found = slope(energy, network, X, SIGMA, TEXT, ("text", "latent"), decode)
    x, text = X.clone().requires_grad_(True), TEXT.clone().requires_grad_(True)
    denoised = network(x, text)
    value = energy(Evaluation(x, SIGMA, text, denoised, decode))
    wanted = torch.autograd.grad(value.sum(), (text, x))
    torch.testing.assert_close(found.value, value)
    torch.testing.assert_close(found.denoised, denoised)
    assert list(found.gradient) == ["text", "latent"]
    for each, want in zip(found.gradient.values(), wanted, strict=True):
        torch.testing.assert_close(each, want, rtol=1e-5, atol=1e-7)


def test_what_is_not_asked_for_is_not_followed() -> None:
    found = slope(energy, network, X, SIGMA, TEXT, ("text",), decode)
    assert list(found.gradient) == ["text"]
    asked = []

    def watched(seen: Evaluation) -> torch.Tensor:
        asked.append((seen.x.requires_grad, seen.text.requires_grad))
        return energy(seen)

    for wrt in (("latent",), ("text",)):
        slope(watched, network, X, SIGMA, TEXT, wrt, decode)
    assert asked == [(True, False), (False, True)]


def test_pictures_are_decoded_once_and_only_when_asked_for() -> None:
    calls: list[int] = []

    def counted(latent: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return decode(latent)

    def twice(seen: Evaluation) -> torch.Tensor:
        return (seen.picture + seen.picture).flatten(1).sum(1)

    slope(lambda seen: seen.eps.flatten(1).sum(1), network, X, SIGMA, TEXT, decode=counted)
    assert not calls
    slope(twice, network, X, SIGMA, TEXT, decode=counted)
    assert calls == [1]


def test_inference_tensors_may_be_given() -> None:
    """As nodes give them."""
    wanted = slope(energy, network, X, SIGMA, TEXT, decode=decode).gradient["latent"]
    with torch.inference_mode():
        found = slope(energy, network, X.clone(), SIGMA, TEXT.clone(), decode=decode)
    assert torch.equal(found.gradient["latent"], wanted)
    assert not found.gradient["latent"].is_inference()


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9])
def test_half_precision_neither_underflows_nor_overflows(size: float) -> None:
    """Each row by itself: a small one beside a large one keeps its figures."""
    x = noise(4, 2, 6).requires_grad_(True)
    output = (x.half() * 3).float()
    cotangent = noise(5, 2, 6) * torch.tensor([[size], [1.0]])
    (back,) = pull_back(output, [x], cotangent, cotangent.abs().amax(1))
    torch.testing.assert_close(back, 3 * cotangent, rtol=2e-3, atol=0.0)


def test_an_output_that_knows_nothing_of_it_is_none() -> None:
    x, y = noise(4, 2, 6).requires_grad_(True), noise(5, 2, 6).requires_grad_(True)
    ones = torch.ones(2, 6)
    assert pull_back(2 * x, [x, y], ones, ones.amax(1))[1] is None


def failing(message: str, broken: Energy, **options: object) -> None:
    settings = {"wrt": ("latent",), "where": "a step", "sigma": SIGMA, "text": TEXT, **options}
    with pytest.raises(PivotError, match=message):
        slope(broken, network, X, **settings)


def test_what_does_not_fit_is_refused() -> None:
    failing("a VAE, .* in a step, sigma 0.75", energy)
    failing("one energy for each of 2", lambda seen: seen.eps.mean())
    failing("one energy for each of 2", lambda seen: seen.eps)
    failing("a constant", lambda seen: seen.eps.detach().flatten(1).sum(1))
    failing("depends on the text", lambda seen: seen.x.flatten(1).sum(1), wrt=("latent", "text"))
    failing("variables among", energy, wrt=("picture",))
    failing("variables among", energy, wrt=())
    failing("sigma above 0", energy, sigma=0.0)
    failing("a text for each of 2", energy, text=TEXT[:1])
    failing("the energy, but got NaN", lambda seen: seen.eps.flatten(1).sum(1) / 0)
    failing(
        "gradient with respect to the latent, but got NaN",
        lambda seen: (
            (seen.x - seen.x.detach()).flatten(1).norm(dim=1) * 1.0
            + (seen.eps * 0).flatten(1).square().sum(1).sqrt()
        ),
    )


def test_the_slope_is_plain_numbers() -> None:
    found: Slope = slope(energy, network, X, SIGMA, TEXT, decode=decode)
    tensors = (found.value, found.denoised, *found.gradient.values())
    assert not any(each.requires_grad for each in tensors)


def test_a_small_energy_beside_a_large_one_keeps_its_slope_in_half_precision() -> None:
    """Every picture has a power of two of its own."""
    sizes = torch.tensor([1.0, 1e-9])

    def halved(x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return network(x.half().to(x), text)

    def plain(seen: Evaluation) -> torch.Tensor:
        return seen.denoised.square().flatten(1).mean(1)

    wanted = slope(plain, network, X, SIGMA, TEXT).gradient["latent"]
    found = slope(lambda seen: sizes * plain(seen), halved, X, SIGMA, TEXT).gradient["latent"]
    found = found / sizes.view(2, 1, 1, 1)
    error = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-2
