"""Pictures of the evidence: contact sheets of edits, and quality against cost."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bench.cases import KINDS, Edit
from bench.methods import EDITS, METHODS
from bench.quality import MADE
from bench.summary import Cfg, Line, Row, cfgs_of, find, suited
from tools.pictures import to_image

SIDE, GAP, TEXT = 96, 6, 16
INK, FAINT, WRONG = "#1f2328", "#6e7781", "#cf222e"
MARKS = {
    "none": "o",
    "p2p": "s",
    "p2p_blend": "*",
    "proxnpi": "D",
    "masactrl": "^",
    "proxmasactrl": "v",
}


class Sheet:
    """A page of rows of pictures: columns of strips, each a line of text above some pictures beside
    each other."""

    def __init__(self, columns: int, rows: int, pictures: int, heads: Sequence[str]) -> None:
        self.width, self.height = pictures * SIDE + 3 * GAP, SIDE + TEXT + GAP
        self.page = Image.new(
            "RGB", (columns * self.width + GAP, rows * self.height + TEXT + GAP), "white"
        )
        self.pen, self.font = ImageDraw.Draw(self.page), ImageFont.load_default(size=11)
        for column, head in enumerate(heads):
            self.pen.text((GAP + column * self.width, 2), head, fill=FAINT, font=self.font)

    def put(
        self, column: int, row: int, text: str, color: str, pictures: Sequence[Image.Image]
    ) -> None:
        """A strip at its place."""
        x, y = GAP + column * self.width, TEXT + GAP + row * self.height
        self.pen.text((x, y), text, fill=color, font=self.font)
        for place, picture in enumerate(pictures):
            self.page.paste(
                picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x + place * SIDE, y + TEXT)
            )


def at(lines: Sequence[Line], method: str, control: str, cfg: Cfg) -> dict[str, Line]:
    """The lines of a method, a control and a cfg, by case."""
    chosen = (line for line in lines if (line["method"], line["control"]) == (method, control))
    return {line["case"]: line for line in chosen if cfg in cfgs_of(line)}


def edit_of(line: Line) -> Edit:
    """The case of a line."""
    return KINDS[line["kind"]].cases(int(line["case"][-3:]) + 1)[-1]


def _opened(line: Line) -> Image.Image:
    return Image.open(MADE / line["picture"]).convert("RGB")


def _color(line: Line) -> str:
    return INK if line["edit_success"] else WRONG


def contact_sheet(
    lines: Sequence[Line],
    mine: tuple[str, str, Cfg],
    plain: tuple[str, str, Cfg],
    kinds: Sequence[str],
    each: int = 4,
) -> Image.Image:
    """The best, middle and worst edits by their distance to the true one: source, plain sampling,
    edit, true edit."""
    others = at(lines, *plain)
    ranked = sorted(at(lines, *mine).values(), key=lambda line: -line["truth_psnr"])
    ranked = [line for line in ranked if line["kind"] in kinds]
    middle = (len(ranked) - each) // 2
    groups = {
        "best": ranked[:each],
        "median": ranked[middle : middle + each],
        "worst": ranked[-each:],
    }
    sheet = Sheet(
        3, each, 4, [f"{name}: source, plain sampling, edit, true edit" for name in groups]
    )
    for column, group in enumerate(groups.values()):
        for row, line in enumerate(group):
            edit = edit_of(line)
            made = [_opened(one) for one in (others[line["case"]], line)]
            pictures = [to_image(edit.scene.render()), *made, to_image(edit.truth.render())]
            sheet.put(
                column, row, f"{edit.change}   {line['truth_psnr']:.1f} dB", _color(line), pictures
            )
    return sheet.page


def gallery(lines: Sequence[Line], rows: Sequence[Row], columns: int = 3) -> Image.Image:
    """The first three cases of every kind under the control that suits it: source, edit, true
    edit."""
    sheet = Sheet(columns, len(KINDS), 3, ["source, edit, true edit"] * columns)
    for row, kind in enumerate(KINDS):
        best = suited(rows, kind)
        made = at(lines, "direct", best["control"], best["cfg"])
        for column, edit in enumerate(KINDS[kind].cases(columns)):
            line = made[f"{kind}-{column:03d}"]
            pictures = (to_image(edit.scene.render()), _opened(line), to_image(edit.truth.render()))
            sheet.put(column, row, edit.change, _color(line), pictures)
    return sheet.page


def plot_costs(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Quality against cost: every method and control over all kinds, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for axis, (name, title) in zip(
        axes,
        (("truth_psnr", "dB to the true edit"), ("background_psnr", "dB of the kept part")),
        strict=True,
    ):
        _draw_costs(axis, rows, name)
        axis.set(xlabel="UNet rows of an edit, inversion included", ylabel=title, xscale="log")
        axis.grid(alpha=0.3)
    for color, method in enumerate(METHODS):
        axes[0].plot([], [], "o", color=f"C{color}", label=method)
    for control, mark in MARKS.items():
        axes[1].plot([], [], mark, color="gray", label=control)
    for axis in axes:
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _draw_costs(axis: Any, rows: Sequence[Row], name: str) -> None:
    for color, method in enumerate(METHODS):
        for control in EDITS:
            try:
                row = find(rows, method, control, "all")
            except KeyError:
                continue  # a run of some methods alone
            low, high = row["intervals"][name]
            cost = row["prepare_rows"] + row["rows_per_step"] * row["steps"]
            style = {
                "fmt": MARKS[control],
                "color": f"C{color}",
                "alpha": 0.8,
                "capsize": 2,
                "markersize": 8,
            }
            axis.errorbar(cost, row[name], [[row[name] - low], [high - row[name]]], **style)
