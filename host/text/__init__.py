"""Prompts through the host's text encoder, and conditioning made of them."""
