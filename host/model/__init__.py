"""The host's model: what it is, its layers, and gradients through it."""
