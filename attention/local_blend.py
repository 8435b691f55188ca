"""Local blend of Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626, sec. 4): edit only where
words are looked at.

After each step, `x <- x_source + mask (x - x_source)`. The mask is where the words' maps exceed a
share of their range, in the source or in the target. They are summed over the steps so far, of
which late ones count more. They are folded: one-hot values through fused attention, edits included.
The paper's own rule is `pool` (METHODS 3.7): a share of the greatest value, of maps that are
widened and summed alike. A user's mask works alone or limits the words' one.
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
    LEAST_SHARE,
    MOST_SHARE,
    Columns,
    Groups,
    MapSum,
    Results,
    in_share,
    key_of,
    mask_pictures,
    region,
    resize,
    word_maps,
)
from ..core.options import NodeText
from ..core.pictures import cut_mask
from ..core.words import (
    PromptPair,
    WordColumns,
    WordList,
    Words,
    columns_of_list,
    word_list,
)


@dataclasses.dataclass(frozen=True)
class BlendWords:
    """One target's words in both prompts, each as it was written and with its token columns."""

    source_length: int
    """The number of columns of the source prompt."""
    target_length: int
    """The number of columns of the target prompt."""
    source: tuple[WordColumns, ...]
    """Where to edit. None in both prompts means everywhere."""
    target: tuple[WordColumns, ...]
    source_subtract: tuple[WordColumns, ...] = ()
    """Where not to edit."""
    target_subtract: tuple[WordColumns, ...] = ()


@dataclasses.dataclass(eq=False)
class BlendState:
    """What a run remembers."""

    maps: MapSum
    limits: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The user's masks at the latent's size, by picture."""
    masks: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The masks that were used last, by row."""
    checked: set[Row] = dataclasses.field(default_factory=set)
    """The rows whose words have been seen to be looked at somewhere."""


HALF_LIFE = 0.2
"""After which fraction of the steps a map counts half as much: early maps show the layout only."""


@dataclasses.dataclass(frozen=True, eq=False)
class LocalBlend(Controller):
    """Sets target latents to the source's outside of a mask, after every step."""

    title: ClassVar[str] = "Local Blend"
    sets_latents: ClassVar[bool] = True
    words: tuple[BlendWords, ...] = ()
    """The words of each target, or none where the user's mask works alone."""
    scales: tuple[int, ...] = (4,)
    """The scales that the model has attention at."""
    threshold: float = 0.4
    """The share of a map's range from which on a place is edited (`python -m bench.masks`)."""
    subtract_threshold: float = 0.4
    """The share from which on it is not, of words to subtract."""
    start: float = 0.2
    """The first step that is blended, as a fraction of the steps."""
    pool: bool = False
    """Whether the rule is the paper's. Maps of all steps count alike and are widened by a 3x3
    maximum, and thresholds are shares of their greatest value."""
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
        return BlendState(MapSum(None if self.pool else HALF_LIFE))

    def __call__(self, call: AttentionCall, attend: Attend, state: BlendState) -> torch.Tensor:
        if self.works(call.site, call.place):
            state.maps.add(call, word_maps(call, self._groups(), state.maps.values))
        return attend(call)

    def _groups(self) -> Groups:
        """The words whose maps are read: of the source every target's, of a target its own."""
        source = [word for words in self.words for word in (*words.source, *words.source_subtract)]
        groups: Groups = {("source", 0): (self.words[0].source_length, _columns(source))}
        for index, words in enumerate(self.words):
            listed = (*words.target, *words.target_subtract)
            groups["target", index] = (words.target_length, _columns(listed))
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
        words = self._words_mask(row, source, x, state) if self.words else None
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
        self, row: Row, source: Row, x: torch.Tensor, state: BlendState
    ) -> torch.Tensor:
        """The mask [H, W] of the latents x that a target's words give, 1 where they are looked
        at."""
        if row.target >= len(self.words):
            raise PivotError(
                f"words for {row.target + 1} target prompts",
                f"{len(self.words)}",
                "Connect the words that belong to these target prompts.",
                self.title,
            )
        words = self.words[row.target]
        listed = (words.source, words.target, words.source_subtract, words.target_subtract)
        maps = self._maps(words, row, source, state.maps)
        if row not in state.checked:  # once a run, because it waits for the device
            state.checked.add(row)
            for names, each in zip(listed, maps, strict=True):
                self._check_looked_at(names, each)
        size = (x.shape[-2], x.shape[-1])
        inside = torch.full(size, not (words.source or words.target), device=x.device)
        edit, keep = ([each for each in half if each.shape[-1]] for half in (maps[:2], maps[2:]))
        if edit:
            inside |= self._looked_at(edit, size, self.threshold, True).to(x.device)
        if keep:
            inside &= ~self._looked_at(keep, size, self.subtract_threshold, False).to(x.device)
        return inside.float()

    def _maps(
        self, words: BlendWords, row: Row, source: Row, maps: MapSum
    ) -> tuple[torch.Tensor, ...]:
        """The summed maps [h, w, words] of a target's words: to edit at in the source and in the
        target, then to subtract."""
        # the source's maps are those of all targets, one after the other
        first = sum(
            len(each.source) + len(each.source_subtract) for each in self.words[: row.target]
        )
        edit, keep = len(words.source), len(words.source_subtract)
        source_maps = self._map(maps, source, first + edit + keep if edit + keep else 0)
        edit_at, end = len(words.target), len(words.target) + len(words.target_subtract)
        target_maps = self._map(maps, row, end)
        return (
            source_maps[..., first : first + edit],
            target_maps[..., :edit_at],
            source_maps[..., first + edit : first + edit + keep],
            target_maps[..., edit_at:end],
        )

    def _map(self, maps: MapSum, row: Row, words: int) -> torch.Tensor:
        """A row's summed maps [h, w, words or more], which may be missing only where it has no
        words."""
        summed = maps.sums.get(key_of(row))
        if summed is not None:
            return summed
        if words == 0:
            return torch.zeros(1, 1, 0)
        raise PivotError(
            "word maps of the whole picture, for the source and every target",
            "none: prompts with an area or mask bounds see a part of it, or a patch replaces the "
            "UNet",
            "Remove the area from the conditioning and limit the edit by a mask at Local Blend, or "
            "remove the patch.",
            self.title,
        )

    def _check_looked_at(self, words: Sequence[WordColumns], maps: torch.Tensor) -> None:
        """Raise PivotError naming a word whose map is negative everywhere, which names no place."""
        if not words:
            return
        low, high = maps.amin((0, 1)).tolist(), maps.amax((0, 1)).tolist()
        for (name, _), least, greatest in zip(words, low, high, strict=True):
            if least < 0.0 and greatest <= 0.0:
                raise PivotError(
                    "words that the model looks for somewhere",
                    f"{name!r}, whose attention is negative everywhere",
                    "Name other words of the object here, or give this word a positive weight in "
                    "word_weights.",
                    self.title,
                )

    def _looked_at(
        self, maps: Sequence[torch.Tensor], size: tuple[int, int], threshold: float, widen: bool
    ) -> torch.Tensor:
        """Where any of some maps [h, w, words], words together, exceeds a threshold: [H, W]."""
        each = torch.stack([words.sum(-1) for words in maps])
        if not self.pool:
            return region(each, size, threshold).any(0)
        if widen:
            each = torch.nn.functional.max_pool2d(each, 3, 1, 1)
        # nearest, and the threshold afterwards, as in the paper's code
        each = torch.nn.functional.interpolate(each[None], size)[0]
        return (each > threshold * each.amax((-2, -1), True)).any(0)

    def finish(self, samples: torch.Tensor, rows: tuple[Row, ...], state: BlendState) -> None:
        """Keeps the masks that were used last, to be shown."""
        samples = samples.cpu()
        for index, mask in state.masks.items():
            self.results.put(samples[index], mask.cpu())

    def remark(self, state: BlendState) -> tuple[str, ...]:
        """Which share of the picture the edit shows in, and what to change where it is hardly any
        or nearly all."""
        return (self.describe(list(state.masks.values())),) if state.masks else ()

    def describe(self, masks: Sequence[torch.Tensor]) -> str:
        """What masks [H, W] of this blend did, and what to change where they hardly blend."""
        shares = [float(mask.mean()) for mask in masks]
        few, most = self._advice()
        said = f"The edit shows in {in_share(masks)} of the picture"
        if min(shares) < LEAST_SHARE:
            return f"{said}: next to nothing is edited; {few}."
        if max(shares) > MOST_SHARE:
            return f"{said}: next to nothing is kept; {most}."
        return f"{said}."

    def _advice(self) -> tuple[str, str]:
        """What to change where the mask is nearly empty, and where it is nearly full."""
        if not self.words:
            return "the mask is black nearly everywhere", "the mask is white nearly everywhere"
        if not any(words.source or words.target for words in self.words):
            return (
                "raise subtract_threshold, or subtract fewer words",
                "lower subtract_threshold, or name all words of the object in subtract_words",
            )
        return (
            "lower threshold, or name all words of the object in blend_words",
            "raise threshold, name the object's own words in blend_words, or connect a mask",
        )


def _columns(words: Sequence[WordColumns]) -> tuple[Columns, ...]:
    return tuple(columns for _, columns in words)


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
        "What changes, before and after. All words that name it show best where it is, e.g. "
        "`striped, red, ball`. Words of either prompt; a replaced word stands for its counterpart "
        "too. Or each prompt's own: `source: cat, target: dog`. May be empty with subtract_words "
        "or a mask.",
    )
    subtract_words: str = options.text(
        "",
        "What must not change although it lies there, e.g. `hat`. Alone: everything else may "
        "change, as for a new background. Usually empty.",
    )
    threshold: float = options.fraction(
        LocalBlend.threshold,
        "Which share of the words' attention range still belongs to the region. Higher makes it "
        "smaller; 0.3 to 0.6.",
    )
    subtract_threshold: float = options.fraction(
        LocalBlend.subtract_threshold,
        "The same for subtract_words. Higher subtracts less; 0.3 to 0.6.",
    )
    start: float = options.fraction(
        LocalBlend.start,
        "From which fraction of the steps on. Earlier keeps more of the surroundings; the region "
        "is found more surely later. 0 to 0.3.",
    )
    pool: bool = options.flag(
        LocalBlend.pool,
        "The paper's own rule: the words' maps widened by one position, and thresholds as shares "
        "of their greatest value; there 0.3. Off: shares of the maps' range.",
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
        blend_words = word_list(self.blend_words, "blend_words", LocalBlend.title)
        subtract = word_list(self.subtract_words, "subtract_words", LocalBlend.title)
        words = self.words or ()
        self._check(words, blend_words, subtract)
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

    def _check(self, words: Words, *lists: WordList) -> None:
        """Raise PivotError where nothing says where to blend, or what was named is not there."""
        listed = any(lists)
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
        for each in lists:
            each.check(words)


def _blend_words(pair: PromptPair, listed: WordList, subtract: WordList) -> BlendWords:
    """The columns of the words that people wrote, in one pair of prompts."""
    lengths = (len(pair.source.tokens), len(pair.target.tokens))
    return BlendWords(*lengths, *columns_of_list(pair, listed), *columns_of_list(pair, subtract))


def _check_reachable(columns: Sequence[BlendWords], listed: WordList) -> None:
    """Raise PivotError for a target that has none of the words, nor has its source.

    Blending would undo all of its edit.
    """
    for index, each in enumerate(columns):
        if not each.source and not each.target:
            raise PivotError(
                f"words of target prompt {index + 1} or of the source",
                listed.text,
                "Write a word that this target has.",
                LocalBlend.title,
            )
