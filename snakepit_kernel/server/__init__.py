"""The extension of Jupyter Server that JupyterLab's panel of workers asks.

It knows what the server's own kernels have published, and passes commands on to their pools. Only
`handlers` imports Jupyter Server, and only a server loads that.
"""

from __future__ import annotations

from typing import Any


def _load_jupyter_server_extension(server: Any) -> None:
    """Add the endpoints to a server that begins."""
    from .handlers import handlers

    server.web_app.add_handlers(".*$", handlers(server.web_app.settings["base_url"]))
