"""The gradient of any scalar of a latent, a text, a prediction or a decoded picture.

An energy says how good each picture of a batch is; its slope says how to change the latent or the
text. FreeDoM (Yu et al. 2023, arXiv 2303.09833) and pix2pix-zero (Parmar et al. 2023, arXiv
2302.03027) are energies. Null-text optimisation has a loss of its own, and shares the way back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

from .errors import PivotError, check_finite
from .path import VP

Variable = Literal["latent", "text"]
VARIABLES: tuple[Variable, ...] = ("latent", "text")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What an energy may look at, for the pictures of a batch, in fp32. All of it has gradients."""

    x: torch.Tensor
    """Variance-preserving latents [B, C, H, W] at `sigma`."""
    sigma: float
    text: torch.Tensor
    """What the network read [B, T, D]."""
    denoised: torch.Tensor
    """The x0 that it predicts, in units of x."""
    decode: Callable[[torch.Tensor], torch.Tensor]
    """The decoder, from x0 to pictures."""

    @functools.cached_property
    def eps(self) -> torch.Tensor:
        """The noise prediction [B, C, H, W]."""
        return VP.eps(self.x, self.denoised, self.sigma)

    @functools.cached_property
    def picture(self) -> torch.Tensor:
        """The decoded x0, IMAGE [B, H, W, 3] within 0 to 1, when it is first asked for.

        It is flat where the decoder leaves that range, as the host clamps it. Raises PivotError
        without a VAE.
        """
        return self.decode(self.denoised)


Energy = Callable[[Evaluation], torch.Tensor]
"""One scalar for each picture, [B], which must not depend on the other pictures of the batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Slope:
    """An energy and its gradient at one place. Nothing of it has gradients any more."""

    value: torch.Tensor
    """The energy of each picture [B]."""
    gradient: dict[Variable, torch.Tensor]
    """By the name of each variable, of its shape."""
    denoised: torch.Tensor
    """The x0 that was predicted [B, C, H, W]."""


class Gradients(Protocol):
    """The gradient service of a run: a network, its prompt, and perhaps a VAE."""

    def slope(
        self,
        energy: Energy,
        x: torch.Tensor,
        sigma: float,
        wrt: Sequence[Variable] = ("latent",),
        text: torch.Tensor | None = None,
    ) -> Slope:
        """The slope of an energy at latents x [B, C, H, W], variance-preserving, and `sigma` > 0.

        text: [B, T, D] or [1, T, D] in place of the prompt's. Raises PivotError, which names
        sigma, where NaN or infinity appear.
        """


def slope(
    energy: Energy,
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigma: float,
    text: torch.Tensor,
    wrt: Sequence[Variable] = ("latent",),
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    where: str = "",
) -> Slope:
    """The slope of an energy through network(x, text) -> x0 and decode(x0) -> picture.

    x [B, C, H, W] and text [B, T, D] are in fp32 or wider, and so must be what the two return. The
    way back stops behind each of them, and goes on scaled to about 1: see `pull_back`.
    """
    place = f"{where}, sigma {sigma:.4g}" if where else f"sigma {sigma:.4g}"
    _check(wrt, x, sigma, text, place)
    # ComfyUI runs nodes in inference mode, in which nothing has gradients
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {"latent": _leaf(x, "latent" in wrt), "text": _leaf(text, "text" in wrt)}
        cuts = [_Cut.behind(network(leaves["latent"], leaves["text"]))]

        def picture(latent: torch.Tensor) -> torch.Tensor:
            if decode is None:
                raise PivotError("a VAE, for an energy of pictures", "none", _CONNECT, place)
            cuts.append(_Cut.behind(decode(latent)))
            return cuts[-1].leaf

        seen = Evaluation(leaves["latent"], sigma, leaves["text"], cuts[0].leaf, picture)
        value = _checked(energy(seen), len(x), place)
        slopes = _way_back(value, [leaves[name] for name in wrt], cuts)
    gradient = {name: _dependent(each, name, place) for name, each in zip(wrt, slopes, strict=True)}
    return Slope(value.detach(), gradient, cuts[0].leaf.detach())


_CONNECT = "Connect the VAE of the model."


def pull_back(
    output: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    cotangent: torch.Tensor,
    magnitude: torch.Tensor,
) -> list[torch.Tensor | None]:
    """The way back from `output` to each of `inputs`, None for those that it does not depend on.

    magnitude says how large the cotangent is, in one number or one for each row. The way begins at
    the cotangent divided by the nearest power of two, so that a network in half precision neither
    underflows nor overflows. The power is multiplied in again at the end, in the cotangent's own
    precision.
    """
    scale = 2.0 ** magnitude.clamp_min(1e-30).log2().round()
    back = torch.autograd.grad(output, inputs, cotangent / _rows(scale, output), allow_unused=True)
    return [
        None if each is None else each.to(cotangent.dtype) * _rows(scale, each) for each in back
    ]


def _rows(scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number, or one for each row, to be combined with a tensor of rows."""
    return scale.reshape(-1, *[1] * (like.ndim - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """A place where the way back stops."""

    output: torch.Tensor
    """What a network gave."""
    leaf: torch.Tensor
    """What goes on in its place."""

    @classmethod
    def behind(cls, output: torch.Tensor) -> _Cut:
        """The cut behind an output."""
        return cls(output, output.detach().requires_grad_(True))


def _way_back(
    value: torch.Tensor, leaves: list[torch.Tensor], cuts: list[_Cut]
) -> list[torch.Tensor | None]:
    """From the energies to the leaves, through the cuts from the last one to the first."""
    ends = [*leaves, *(cut.leaf for cut in cuts)]
    # rows are independent of each other: the gradient of the sum is each picture's own
    slopes: list[torch.Tensor | None] = list(
        torch.autograd.grad(value.sum(), ends, allow_unused=True)
    )
    # the decoder before the network: the picture's slope ends at the leaf that the network gave
    for cut in reversed(cuts):
        cotangent = slopes.pop()
        ends.pop()
        if cotangent is not None and cut.output.requires_grad:
            magnitude = cotangent.flatten(1).abs().amax(1)
            back = pull_back(cut.output, ends, cotangent, magnitude)
            slopes = [_sum(a, b) for a, b in zip(slopes, back, strict=True)]
    return slopes


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _leaf(tensor: torch.Tensor, variable: bool) -> torch.Tensor:
    """An ordinary copy, because what comes from a node is an inference tensor."""
    return tensor.detach().clone().requires_grad_(variable)


def _check(
    wrt: Sequence[Variable], x: torch.Tensor, sigma: float, text: torch.Tensor, place: str
) -> None:
    if not wrt or not set(wrt) <= set(VARIABLES):
        raise PivotError(
            f"variables among {VARIABLES}", repr(tuple(wrt)), "Name one or both.", place
        )
    if not sigma > 0.0:
        raise PivotError("sigma above 0", f"{sigma:g}", "Leave the clean end out.", place)
    if len(text) != len(x):
        raise PivotError(
            f"a text for each of {len(x)} pictures", f"{len(text)}", "Repeat the text.", place
        )


def _checked(value: torch.Tensor, batch: int, place: str) -> torch.Tensor:
    if value.shape != (batch,):
        raise PivotError(
            f"one energy for each of {batch} pictures",
            f"a tensor of shape {tuple(value.shape)}",
            "Reduce over all dimensions but the first.",
            place,
        )
    if not value.requires_grad:
        raise PivotError(
            "an energy that depends on what it is given", "a constant", _DETACHED, place
        )
    return check_finite(value, "the energy", place)


_DETACHED = "Compute it from the evaluation, without detach or no_grad."


def _dependent(gradient: torch.Tensor | None, name: Variable, place: str) -> torch.Tensor:
    """The gradient with respect to a variable, which the energy has to depend on."""
    if gradient is None:
        raise PivotError(f"an energy that depends on the {name}", "one without", _DETACHED, place)
    return check_finite(gradient, f"the energy's gradient with respect to the {name}", place)
