"""A line of text on a node while it works."""

from __future__ import annotations

from collections.abc import Callable


def progress_text(node_id: str | None) -> Callable[[str], None]:
    """A function that shows a line on a node of the web page, where there is a server."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None or node_id is None or not hasattr(server, "send_progress_text"):
        return lambda text: None
    return lambda text: server.send_progress_text(text, node_id)
