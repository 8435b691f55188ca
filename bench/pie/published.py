"""Published figures to stand beside ours: Table 1 of Ju et al. 2023 (arXiv 2310.01506) and copies
of its rows.

Most cells of the paper's own rows were recalled and not verified; `verified` names those that a
public excerpt confirms (Papers with Code). The copies were read whole in the README of ViMAEdit
(iLearn-Lab/TCSVT25-ViMAEdit at 2f9f66ff), which names the editing method alone: that they are
Direct Inversion's rows is our reading of their values.
"""

from __future__ import annotations

import dataclasses

NAMES = ("structure", "psnr", "lpips", "mse", "ssim", "clip_whole", "clip_edited")


@dataclasses.dataclass(frozen=True)
class Published:
    """A row as printed, in the tables' scale; verified: the columns that are not from memory
    alone."""

    inversion: str
    editing: str
    where: str
    values: tuple[float, ...]
    verified: frozenset[str] = frozenset()

    @property
    def status(self) -> str:
        """How far the row can be trusted."""
        if self.verified == frozenset(NAMES):
            return "[web]"
        return (
            f"[mem]; [web]: {', '.join(name for name in NAMES if name in self.verified)}"
            if self.verified
            else "[mem]"
        )


_ALL = frozenset(NAMES)
_SEEN = frozenset(("structure", "psnr", "lpips", "clip_whole"))
ROWS = (
    Published("DDIM", "P2P", "paper", (69.43, 17.87, 208.80, 219.88, 71.14, 25.01, 22.44)),
    Published("Null-text", "P2P", "paper", (13.44, 27.03, 60.67, 35.86, 84.11, 24.75, 21.86)),
    Published("Negative-prompt", "P2P", "paper", (16.17, 26.21, 69.01, 39.73, 83.40, 24.61, 21.87)),
    Published("StyleDiffusion", "P2P", "paper", (11.65, 26.05, 66.10, 38.63, 83.42, 24.78, 21.72)),
    Published("Direct", "P2P", "paper", (11.65, 27.22, 54.55, 32.86, 84.76, 25.02, 22.10), _SEEN),
    Published(
        "Direct", "P2P", "ViMAEdit README", (11.64, 27.19, 54.44, 33.15, 84.71, 25.03, 22.13), _ALL
    ),
    Published("DDIM", "MasaCtrl", "paper", (28.38, 22.17, 106.62, 86.97, 79.67, 23.96, 21.16)),
    Published("Direct", "MasaCtrl", "paper", (24.70, 22.64, 87.94, 81.09, 81.33, 24.38, 21.35)),
    Published(
        "Direct",
        "MasaCtrl",
        "ViMAEdit README",
        (24.47, 22.78, 87.38, 79.91, 81.36, 24.42, 21.38),
        _ALL,
    ),
    Published("DDIM", "P2P-Zero", "paper", (61.68, 20.44, 172.22, 144.12, 74.67, 22.80, 20.54)),
    Published("Direct", "P2P-Zero", "paper", (49.22, 21.53, 138.98, 127.32, 77.05, 23.31, 21.05)),
    Published(
        "Direct",
        "P2P-Zero",
        "ViMAEdit README",
        (51.13, 21.23, 143.87, 135.00, 77.23, 23.36, 21.03),
        _ALL,
    ),
    Published("DDIM", "PnP", "paper", (28.22, 22.28, 113.46, 83.64, 79.05, 25.41, 22.55)),
    Published("Direct", "PnP", "paper", (24.29, 22.46, 106.06, 80.45, 79.68, 25.41, 22.62)),
    Published(
        "Direct", "PnP", "ViMAEdit README", (24.29, 22.64, 106.06, 80.45, 79.68, 25.41, 22.62), _ALL
    ),
)
