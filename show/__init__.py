"""What is drawn: plots, grids, overlays. Torch and Pillow; never ComfyUI."""
