"""Words and contracts that every method stands on. Torch, and safetensors for files; never
ComfyUI."""
