"""Local blend of Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626, sec. 4): edit only where
words are looked at.

After each step, `x <- x_source + mask (x - x_source)`. The mask is where the words' maps exceed a
share of their greatest value, in the source or in the target (METHODS 3.7). They are summed over
the steps so far, and folded: one-hot values through fused attention, edits included. A user's mask
works alone or limits the words' one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from ..core import options
from ..core.control import (
    Attend,
    AttentionCall,
    Controller,
    ControlOptions,
    Kind,
    ModelFacts,
    Place,
    Reads,
    Row,
    all_pairs,
)
from ..core.errors import PivotError
from ..core.layers import Layer, map_scale
from ..core.maps import (
    Columns,
    Groups,
    MapSum,
    Results,
    key_of,
    mask_pictures,
    resize,
    word_maps,
)
from ..core.options import NodeText
from ..core.pictures import cut_mask
from ..core.words import PromptPair, Words, check_in_pairs, columns_in_both, phrases


@dataclasses.dataclass(frozen=True)
class BlendWords:
    """The token columns of one target's words in both prompts."""

    source_length: int
    """The number of columns of the source prompt."""
    target_length: int
    """The number of columns of the target prompt."""
    source: Columns
    """Where to edit. None in both prompts means everywhere."""
    target: Columns
    source_subtract: Columns = ()
    """Where not to edit."""
    target_subtract: Columns = ()


@dataclasses.dataclass(eq=False)
class BlendState:
    """What a run remembers."""

    maps: MapSum = dataclasses.field(default_factory=MapSum)
    limits: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The user's masks at the latent's size, by picture."""
    masks: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The masks that were used last, by row."""


@dataclasses.dataclass(frozen=True, eq=False)
class LocalBlend(Controller):
    """Sets target latents to the source's outside of a mask, after every step."""

    title: ClassVar[str] = "Local Blend"
    sets_latents: ClassVar[bool] = True
    words: tuple[BlendWords, ...] = ()
    """The words of each target, or none where the user's mask works alone."""
    scales: tuple[int, ...] = (4,)
    """The scales that the model has attention at."""
    threshold: float = 0.3
    """The share of a map's greatest value from which on a place is edited."""
    subtract_threshold: float = 0.5
    """The share from which on it is not, of words to subtract. The paper subtracts from 0.3 on;
    with 0.5 more is kept (docs/BENCHMARKS.md)."""
    start: float = 0.2
    """The first step that is blended, as a fraction of the steps."""
    pool: bool = False
    """Whether maps are widened by a 3x3 maximum before the threshold, as in the paper. Without,
    more is kept."""
    mask: torch.Tensor | None = None
    """The user's mask [pictures or 1, H, W], 1 where the edit may show."""
    results: Results = dataclasses.field(default_factory=Results)
    """The masks that runs have used, by latent."""

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "cross" and bool(self.words)

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Layers of the one scale at which maps are read."""
        return layer.scale == map_scale(latent, self.scales)

    def reads(self, place: Place) -> Reads:
        """The source's maps at every step, because the mask sums over all of them."""
        return "cond" if self.words else "nothing"

    def begin(self) -> BlendState:
        """A state without maps and masks."""
        return BlendState()

    def __call__(self, call: AttentionCall, attend: Attend, state: BlendState) -> torch.Tensor:
        if self.works(call.site, call.place):
            state.maps.add(call, word_maps(call, self._groups(), state.maps.values))
        return attend(call)

    def _groups(self) -> Groups:
        """The words whose maps are read: of the source those of every target, of a target its own.

        Words to edit at and words to subtract alternate.
        """
        source = tuple(
            columns for words in self.words for columns in (words.source, words.source_subtract)
        )
        groups: Groups = {("source", 0): (self.words[0].source_length, source)}
        for index, words in enumerate(self.words):
            groups["target", index] = (words.target_length, (words.target, words.target_subtract))
        return groups

    def after_step(
        self, x: torch.Tensor, rows: tuple[Row, ...], place: Place, state: BlendState
    ) -> torch.Tensor:
        if place.step < int(self.start * place.steps):
            return x
        blended = x.clone()
        for row, source in all_pairs(rows):
            mask = self._mask(rows[row], rows[source], x, state)
            state.masks[row] = mask
            blended[row] = blend(x[source], x[row], mask.to(x.dtype))
        return blended

    def _mask(self, row: Row, source: Row, x: torch.Tensor, state: BlendState) -> torch.Tensor:
        """The mask [H, W] of the latents x, 1 where the edit shows, on their device."""
        size = (x.shape[-2], x.shape[-1])
        words = self._words_mask(row, source, size, state.maps).to(x.device) if self.words else None
        if self.mask is None:
            return torch.ones(size, device=x.device) if words is None else words
        picture = row.picture % len(self.mask)
        if picture not in state.limits:
            # a mask drawn on a picture of odd sides is cut as VAE Encode cuts the picture
            drawn = cut_mask(self.mask[picture].float(), size)
            mask = resize(drawn, size, "area").clamp(0.0, 1.0)
            state.limits[picture] = mask.to(x.device)
        limit = state.limits[picture]
        return limit if words is None else limit * words

    def _words_mask(
        self, row: Row, source: Row, size: tuple[int, int], maps: MapSum
    ) -> torch.Tensor:
        """The mask [H, W] that a target's words give, 1 where they are looked at."""
        source_maps, target_maps = maps.sums.get(key_of(source)), maps.sums.get(key_of(row))
        if row.target >= len(self.words):
            raise PivotError(
                f"words for {row.target + 1} target prompts",
                f"{len(self.words)}",
                "Connect the words that belong to these target prompts.",
                self.title,
            )
        if source_maps is None or target_maps is None:
            raise PivotError(
                "word maps of the whole picture, for the source and every target",
                "none: prompts with an area or mask bounds see a part of it, or a patch replaces "
                "the UNet",
                "Remove the area from the conditioning and limit the edit by a mask at Local "
                "Blend, or remove the patch.",
                self.title,
            )
        # the source's maps are those of all targets, two by two: to edit at, to subtract
        words, first = self.words[row.target], 2 * row.target
        everywhere = not (words.source or words.target)
        inside = torch.full(size, everywhere, device=target_maps.device)
        for columns, words_map in (
            (words.source, source_maps[..., first]),
            (words.target, target_maps[..., 0]),
        ):
            if columns:
                inside |= self._exceeds(words_map, size, self.threshold, self.pool)
        for columns, words_map in (
            (words.source_subtract, source_maps[..., first + 1]),
            (words.target_subtract, target_maps[..., 1]),
        ):
            if columns:
                inside &= ~self._exceeds(words_map, size, self.subtract_threshold, False)
        return inside.float()

    @staticmethod
    def _exceeds(
        words_map: torch.Tensor, size: tuple[int, int], threshold: float, pool: bool
    ) -> torch.Tensor:
        """Where a map [h, w], at the size asked for, exceeds a share of its greatest value."""
        if pool:
            words_map = torch.nn.functional.max_pool2d(words_map[None], 3, 1, 1)[0]
        # nearest, and the threshold afterwards, as in the paper's code
        words_map = resize(words_map, size)
        return words_map > threshold * words_map.max()

    def finish(self, samples: torch.Tensor, rows: tuple[Row, ...], state: BlendState) -> None:
        """Keeps the masks that were used last, to be shown."""
        samples = samples.cpu()
        for index, mask in state.masks.items():
            self.results.put(samples[index], mask.cpu())


def blend(source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`source + mask (target - source)` for [C, H, W] and a mask [H, W], exact where the mask is 0
    or 1."""
    mixed = torch.lerp(source, target, mask.expand_as(source))
    return torch.where(mask <= 0.0, source, torch.where(mask >= 1.0, target, mixed))


@dataclasses.dataclass(frozen=True, eq=False)
class LocalBlendOptions(ControlOptions):
    """Where the edit may show, as people write it."""

    node: ClassVar[NodeText] = NodeText(
        "PivotLocalBlend",
        LocalBlend.title,
        "Keeps everything outside of a region exactly as in the source. The region is where the "
        "model looks for the words you name, or a mask, or both. Chains with the other "
        "controllers in any order.",
        ("p2p local blend", "blend words", "edit mask", "localblend"),
    )

    blend_words: str = options.text(
        "",
        "What changes, before and after, e.g. `cat, dog`; all words that name it show best where "
        "it is, e.g. `striped, red, ball`. Words of either prompt; a replaced word stands for its "
        "counterpart too. May be empty with subtract_words or a mask.",
    )
    subtract_words: str = options.text(
        "",
        "What must not change although it lies there, e.g. `hat`. Alone: everything else may "
        "change, as for a new background. Usually empty.",
    )
    threshold: float = options.fraction(
        LocalBlend.threshold,
        "Which share of the strongest attention still belongs to the region. Higher makes it "
        "smaller; 0.2 to 0.6.",
    )
    subtract_threshold: float = options.fraction(
        LocalBlend.subtract_threshold,
        "The same for subtract_words. Higher subtracts less; 0.2 to 0.6.",
    )
    start: float = options.fraction(
        LocalBlend.start,
        "From which fraction of the steps on. Earlier keeps more of the surroundings; the region "
        "is found more surely later. 0 to 0.3.",
    )
    pool: bool = options.flag(
        LocalBlend.pool,
        "Widen the words' maps by one position before the threshold, as in the paper. Off keeps "
        "more of the surroundings.",
        advanced=True,
    )
    words: Words | None = options.words(
        "For blend_words: which words there are and correspond, from Prompt Pair or Add Target.",
        optional=True,
    )
    mask: torch.Tensor | None = options.mask(
        "Where the edit may show (white), of any size. Alone, or as a limit to the words' region.",
    )

    def build(self, model: ModelFacts) -> tuple[LocalBlend, str]:
        """The controller at words, at a mask, or at words within a mask."""
        blend_words, subtract = phrases(self.blend_words), phrases(self.subtract_words)
        words = self.words or ()
        self._check(words, [*blend_words, *subtract])
        columns = tuple(_blend_words(pair, blend_words, subtract) for pair in words)
        if blend_words:
            _check_reachable(columns, blend_words)
        controller = LocalBlend(
            columns if blend_words or subtract else (),
            model.scales,
            self.threshold,
            self.subtract_threshold,
            self.start,
            self.pool,
            mask_pictures(self.mask),
        )
        return controller, ""

    def _check(self, words: Words, listed: Sequence[str]) -> None:
        """Raise PivotError where nothing says where to blend, or what was named is not there."""
        if listed and not words:
            raise PivotError(
                "words to look blend words up in",
                "none",
                "Connect words from Prompt Pair.",
                LocalBlend.title,
            )
        if not listed and self.mask is None:
            listing = ", ".join(
                dict.fromkeys(f"{pair.source.listed}, {pair.target.listed}" for pair in words)
            )
            raise PivotError(
                "words to blend at, words to subtract, or a mask",
                "none",
                "Write the words that name what changes, before and after; there are: "
                f"{listing or 'none connected'}.",
                LocalBlend.title,
            )
        for phrase in listed:
            check_in_pairs(words, phrase)


def _blend_words(pair: PromptPair, listed: Sequence[str], subtract: Sequence[str]) -> BlendWords:
    """The columns of the words that people wrote, in one pair of prompts."""
    lengths = (len(pair.source.tokens), len(pair.target.tokens))
    return BlendWords(*lengths, *columns_in_both(pair, listed), *columns_in_both(pair, subtract))


def _check_reachable(columns: Sequence[BlendWords], listed: Sequence[str]) -> None:
    """Raise PivotError for a target that has none of the words, nor has its source.

    Blending would undo all of its edit.
    """
    for index, each in enumerate(columns):
        if not each.source and not each.target:
            raise PivotError(
                f"words of target prompt {index + 1} or of the source",
                ", ".join(listed),
                "Write a word that this target has.",
                LocalBlend.title,
            )
