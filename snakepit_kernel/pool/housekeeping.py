"""What keeps a Jupyter server from culling a notebook whose pool works in the background.

Jupyter Server culls a kernel that has sent nothing for a while: what counts is any message of the
kernel's iopub channel but those that belong to a cell (``untracked_message_types``). A future that
runs in a worker sends nothing there by itself.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import zmq

logger = logging.getLogger(__name__)

MESSAGE = "snakepit_activity"
"""Type of the message. Clients ignore types that they do not know, and a status would change what
the server takes for the kernel's state: its parent is empty, so it says nothing of any cell."""


def send_activity() -> None:
    """Send a message that only says that this process, if it is a notebook's kernel, is at work."""
    kernel = _kernel()
    if kernel is None:
        return
    topic = kernel._topic(MESSAGE)  # noqa: SLF001 - as its own messages have it
    try:
        kernel.session.send(kernel.iopub_socket, MESSAGE, {}, parent={}, ident=topic)
    except zmq.ZMQError:  # the kernel ends, and has closed its channels
        logger.debug("the kernel sends nothing more", exc_info=True)


def _kernel() -> Any:
    module = sys.modules.get("ipykernel.kernelapp")  # else this is no kernel
    app = module and module.IPKernelApp
    return app.instance().kernel if app and app.initialized() else None
