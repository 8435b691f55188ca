"""Train the second world's model: `python -m bench.second autoencoder|diffusion|decoder|pack`."""

from __future__ import annotations

from bench.second.world import SECOND
from toy.train import main

if __name__ == "__main__":
    main(SECOND, "python -m bench.second")
