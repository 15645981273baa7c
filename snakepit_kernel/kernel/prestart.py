"""The standby kernel's program: it is set up except for its connection file and environment."""

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
from .app import SHELL_READY, SnakepitKernelApp, arguments_of

WARM_UP_PATIENCE = 2.0
"""Seconds that a warm-up may take before it fails."""


def run(launch: Launch) -> None:
    """Prepare a kernel, wait for its assignment, and run it.

    It is prepared while no other one is and no cell runs, or at once when it is needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is no cell to interrupt
    app = SnakepitKernelApp.instance()
    app.awaits_connection = True
    steps = app.setup_steps(sys.argv[1:])
    lock = IdleLock()
    lock.acquire(guardian_link.has_message)
    for step in steps:
        if step == SHELL_READY:
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
    for _ in steps:
        pass
    app.start()


def warm_up(app: SnakepitKernelApp) -> None:
    """Answer a first request and run a first cell, without a trace: the first ones are slow."""
    app.kernel.start()
    assert app.context is not None
    client = app.context.socket(zmq.DEALER)
    stream = ZMQStream(client, IOLoop.current())
    replies: asyncio.Queue[object] = asyncio.Queue()
    stream.on_recv(replies.put_nowait)
    endpoint = "inproc://warm-up"
    app.bind_shell(endpoint)
    client.connect(endpoint)

    async def talk() -> None:
        execute = {"code": "1 + 1", "silent": True, "store_history": False}
        for kind, content in (("kernel_info_request", {}), ("execute_request", execute)):
            app.session.send(stream, kind, content)
            await replies.get()

    try:
        IOLoop.current().run_sync(talk, timeout=WARM_UP_PATIENCE)
    finally:
        stream.close(linger=0)
        app.unbind_shell(endpoint)
    app.kernel.shell.display_formatter.format(2)
