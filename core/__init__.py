"""Words and contracts that every method stands on. Torch only; never ComfyUI."""
