"""What the figures of an inversion mean and what to try.

There are five questions, and each has one answer: the first rung of its ladder that holds. No two
findings can therefore contradict each other, and the worst is said first. Where the picture is
another one, nothing else can be judged by it, and nothing else is said.

Limits are ratios within one run. The picture is compared with the autoencoder's own round trip, the
noise with white noise and with the picture, and the prompt with the negative prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .control import Place
from .correction import SOURCE, Correction
from .quality import Quality
from .trajectory import Trajectory

AS_GOOD, CLOSE = 0.5, 3.0
"""dB below the autoencoder's own round trip at which a picture comes back as well as it can, or
nearly."""
DOUBLE = 3.0
"""dB at which a squared error is twice another: more of it comes from elsewhere."""
LOSSY = 25.0
"""dB of the round trip below which people see what the autoencoder loses."""
MOVED = 1.0
"""dB that an edit without a changed word may lose."""
MOSTLY = 2.0 / 3.0
"""The share of the picture in the noise at which it is twice the rest."""
LOUD = 1.5
"""The noise's energy over that of white noise, which is all that the model was trained on, from
which it is another kind. Inverted noise falls short of 1 at cfg 1; only guidance takes it beyond.
"""
ENOUGH = 50
"""Steps, of the papers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An inversion, its figures, and how it is to be replayed."""

    quality: Quality
    trajectory: Trajectory
    correction: Correction
    cfg: float

    @property
    def worse_prompt(self) -> bool:
        """Whether the model restores the picture worse with the source prompt."""
        prompt = self.quality.prompt
        return prompt is not None and prompt.sure and prompt.ratio > 1.0

    @property
    def better_prompt(self) -> bool:
        """Whether the model restores the picture better with the source prompt."""
        prompt = self.quality.prompt
        return prompt is not None and prompt.sure and prompt.ratio < 1.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is said of an inversion."""

    name: str
    """In two words."""
    text: str
    """What it means and what to try, in one line."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """One answer to a question."""

    name: str
    """In two words."""
    rank: int
    """How bad it is, 0 the worst."""
    holds: Callable[[Case], bool]
    says: Callable[[Case], str]


def verdict(
    quality: Quality, trajectory: Trajectory, correction: Correction, cfg: float
) -> list[Finding]:
    """The findings, the worst first."""
    case = Case(quality, trajectory, correction, cfg)
    rungs = [rung for ladder in LADDERS.values() if (rung := _first(ladder, case))]
    rungs.sort(key=lambda rung: rung.rank)
    if rungs[0].rank == 0:
        rungs = rungs[:1]
    if rungs[0].rank < FIT:
        rungs = [rung for rung in rungs if rung.rank < FIT]
    return [Finding(rung.name, rung.says(case)) for rung in rungs]


def _first(ladder: tuple[Rung, ...], case: Case) -> Rung | None:
    return next((rung for rung in ladder if rung.holds(case)), None)


# -- is it the picture?


def _another(case: Case) -> bool:
    return case.quality.foreign > DOUBLE


def _lossy(case: Case) -> bool:
    return case.quality.ceiling < LOSSY


def _says_another(case: Case) -> str:
    figures = case.quality
    return (
        f"This is not the picture that was inverted, or not its VAE: they differ at "
        f"{figures.ceiling:.1f} dB, where this VAE brings this picture back at "
        f"{figures.round_trip:.1f} dB. Connect the picture and the VAE that went into VAE Encode; "
        "nothing else can be said before."
    )


def _says_lossy(case: Case) -> str:
    return (
        f"The autoencoder itself loses detail ({case.quality.ceiling:.1f} dB), and no edit can be "
        "closer to the picture. Try a larger picture or another VAE."
    )


# -- does the prompt describe it?


def _says_prompt(case: Case) -> str:
    prompt = case.quality.prompt
    times = prompt.ratio if prompt else 1.0
    return (
        "The source prompt does not describe this picture: the model restores it from fresh noise "
        f"with {times:.2f} times the error it has under the negative prompt. What the "
        "picture does not show cannot be edited in it. Invert with a prompt that says what is "
        "there."
    )


# -- can its noise be edited?


def _no_room(case: Case) -> bool:
    return case.quality.head_start >= 1.0


def _picture_left(case: Case) -> bool:
    return case.quality.share > MOSTLY


def _loud(case: Case) -> bool:
    noise = case.quality.noise
    return noise.std**2 + noise.mean**2 > LOUD


def _says_no_room(case: Case) -> str:
    sigma = float(case.trajectory.sigmas[-1])
    return (
        f"{_steps(case.trajectory.steps)} cannot edit: edits begin at noise level {sigma:.2f}, "
        "where the picture is stronger than its noise. Invert with 10 steps or more."
    )


def _steps(count: int) -> str:
    return f"{count} {'step' if count == 1 else 'steps'}"


def _says_picture_left(case: Case) -> str:
    return (
        f"{100 * case.quality.share:.0f} % of the noise is still the picture, so that edits are "
        f"stiff or break it. Invert with {_noise_tips(case)}."
    )


def _says_loud(case: Case) -> str:
    return (
        f"The noise is louder than any that the model knows (deviation "
        f"{case.quality.noise.std:.2f}, white noise 1), so that edits break the picture. Invert "
        f"with {_noise_tips(case)}."
    )


def _noise_tips(case: Case) -> str:
    tips = {
        "cfg 1": case.trajectory.guidance != 1.0,
        f"{ENOUGH} steps": case.trajectory.steps < ENOUGH,
        "a source prompt that describes the picture": not case.better_prompt,
    }
    return _listed(tips) or "more steps"


# -- does it come back?


def _back(case: Case) -> bool:
    return case.quality.gap <= AS_GOOD


def _nearly(case: Case) -> bool:
    return case.quality.gap <= CLOSE


def _always(case: Case) -> bool:
    return True


def _says_back(case: Case) -> str:
    return "The picture comes back as well as the autoencoder allows, and its noise can be edited."


def _says_nearly(case: Case) -> str:
    return f"The picture nearly comes back, {_below(case)}"


def _says_not(case: Case) -> str:
    return f"The picture does not come back, {_below(case)}"


def _below(case: Case) -> str:
    tips = _return_tips(case)
    advice = f" Try {tips}." if tips else ""
    return f"{case.quality.gap:.1f} dB below what the autoencoder allows.{advice}"


def _return_tips(case: Case) -> str:
    """What brings a picture back more exactly, the surest first."""
    trajectory, correction = case.trajectory, case.correction
    place = Place(0, trajectory.steps, float(trajectory.sigmas[-1]))
    guided = correction.uncond("source", place) != SOURCE
    tips = {
        "correction direct, which is exact at any cfg": not correction.pinned,
        f"a cfg nearer to the inversion's own, {trajectory.guidance:g}": guided
        and case.cfg != trajectory.guidance,
        "the inversion method uni": trajectory.method not in ("uni", "fixed_point"),
        f"{ENOUGH} steps": trajectory.steps < ENOUGH,
    }
    return _listed(tips)


def _listed(tips: dict[str, bool]) -> str:
    return "; ".join(tip for tip, helps in tips.items() if helps)


# -- does an edit keep the rest?


def _moves(case: Case) -> bool:
    return case.quality.psnr - case.quality.unchanged > MOVED


def _says_moves(case: Case) -> str:
    return (
        f"At cfg {case.cfg:g} an edit moves the picture even where no word changes "
        f"({case.quality.unchanged:.1f} dB). Hold the rest with P2P Attention Controller or Local "
        "Blend, or lower cfg."
    )


FIT, FINE = 5, 9
"""The rank from which an inversion is fit for edits, and that of praise. Of one that is not fit,
and must be made anew, nothing is said of returning."""
LADDERS: dict[str, tuple[Rung, ...]] = {
    "picture": (
        Rung("another picture", 0, _another, _says_another),
        Rung("lossy autoencoder", 8, _lossy, _says_lossy),
    ),
    "noise": (
        Rung("no room", 1, _no_room, _says_no_room),
        Rung("loud noise", 3, _loud, _says_loud),
        Rung("picture left", 4, _picture_left, _says_picture_left),
    ),
    "prompt": (Rung("wrong prompt", 2, lambda case: case.worse_prompt, _says_prompt),),
    "return": (
        Rung("comes back", FINE, _back, _says_back),
        Rung("nearly back", 7, _nearly, _says_nearly),
        Rung("not back", 5, _always, _says_not),
    ),
    "rest": (Rung("rest moves", 6, _moves, _says_moves),),
}
"""The questions, and the answers of each, of which the first that holds is given."""
