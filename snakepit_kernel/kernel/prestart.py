"""A kernel that is kept ready: everything is there but its connection file and its surroundings."""

from __future__ import annotations

import asyncio
import signal
import sys

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from ..processes import guardian_link
from ..processes.idle_lock import IdleLock
from ..processes.template_process import Launch, apply_attributes
from .app import SHELL_IS_THERE, SnakepitKernelApp, arguments_of

REHEARSAL_SECONDS = 2.0
"""Seconds that a rehearsal may take before it is given up."""


def run(launch: Launch) -> None:
    """Prepare a kernel, wait until somebody needs one, and be that.

    It is prepared when no other is, and no cell runs; or at once when it is needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is no cell to interrupt
    app = SnakepitKernelApp.instance()
    app.awaits_connection = True
    parts = app.setup_steps(sys.argv[1:])
    lock = IdleLock()
    lock.acquire(guardian_link.has_message)
    for part in parts:
        if part == SHELL_IS_THERE:
            break
        lock.acquire(guardian_link.has_message)
    lock.acquire(guardian_link.has_message)
    if not guardian_link.has_message(0.0):
        warm_up(app)
    lock.release()
    assignment = guardian_link.wait_for_assignment()
    try:
        apply_attributes(launch, assignment)
    except OSError as error:
        guardian_link.report_failure(error)
        sys.exit(1)
    sys.argv[:] = app.argv = arguments_of(launch.command)
    del app.argv[0]
    app.connection_file = assignment["connection_file"]
    for _ in parts:
        pass
    app.start()


def warm_up(app: SnakepitKernelApp) -> None:
    """Answer a first request and run a first cell, with no trace: they take longer than others."""
    app.kernel.start()
    assert app.context is not None
    client = app.context.socket(zmq.DEALER)
    stream = ZMQStream(client, IOLoop.current())
    replies: asyncio.Queue[object] = asyncio.Queue()
    stream.on_recv(replies.put_nowait)
    endpoint = "inproc://rehearsal"
    app.bind_shell(endpoint)
    client.connect(endpoint)

    async def talk() -> None:
        execute = {"code": "1 + 1", "silent": True, "store_history": False}
        for kind, content in (("kernel_info_request", {}), ("execute_request", execute)):
            app.session.send(stream, kind, content)
            await replies.get()

    try:
        IOLoop.current().run_sync(talk, timeout=REHEARSAL_SECONDS)
    finally:
        stream.close(linger=0)
        app.unbind_shell(endpoint)
    app.kernel.shell.display_formatter.format(2)
