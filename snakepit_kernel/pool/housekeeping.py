"""Keeps a Jupyter server from culling a notebook whose pool works in the background.

Jupyter Server culls a kernel that has sent nothing for a while: what counts is any message of the
kernel's iopub channel but those that belong to a cell (``untracked_message_types``). A future that
runs in a worker sends no such message.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import zmq

logger = logging.getLogger(__name__)

MESSAGE = "snakepit_activity"
"""Type of the message. Clients ignore unknown types, but a status message would change the state
that the server shows for the kernel. Its parent is empty, so that it belongs to no cell."""


def send_activity() -> None:
    """Send a message that counts as activity of this process, if it is a notebook's kernel."""
    kernel = _kernel()
    if kernel is None:
        return
    topic = kernel._topic(MESSAGE)  # noqa: SLF001 - the topic format of its own messages
    try:
        kernel.session.send(kernel.iopub_socket, MESSAGE, {}, parent={}, ident=topic)
    except zmq.ZMQError:  # the kernel exits, and has closed its channels
        logger.debug("the kernel sends nothing more", exc_info=True)


def _kernel() -> Any:
    module = sys.modules.get("ipykernel.kernelapp")  # not loaded: this process is no kernel
    app = module and module.IPKernelApp
    return app.instance().kernel if app and app.initialized() else None
