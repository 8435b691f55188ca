"""Pivot Edit: training-free, text-driven editing of real images in ComfyUI."""

WEB_DIRECTORY = "./web"
"""Where the host finds the help pages of nodes."""


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """ComfyUI's V3 entry point."""
    from .nodes import PivotEditExtension

    return PivotEditExtension()
