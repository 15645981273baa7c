"""A kernel that is kept ready: everything is there but its connection file and its surroundings."""

from __future__ import annotations

import signal
import sys

from jupyter_client.session import Session
from tornado.ioloop import IOLoop

from ..processes import link
from ..processes.activity import Turn
from ..processes.forking import Launch, settle
from .app import SHELL_IS_THERE, SnakepitKernelApp
from .template import arguments_of


def run(launch: Launch) -> None:
    """Prepare a kernel, wait until somebody needs one, and be that.

    It is prepared when no other is, and no cell runs; or at once when it is needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is no cell to interrupt
    app = SnakepitKernelApp.instance()
    parts = app.stages(sys.argv[1:])
    turn = Turn()
    turn.wait(link.is_called)
    for part in parts:
        if part == SHELL_IS_THERE:
            break
        turn.wait(link.is_called)
    turn.wait(link.is_called)
    if not link.is_called(0.0):
        rehearse(app)
    turn.end()
    place = link.wait_for_place()
    try:
        settle(launch, place)
    except OSError as error:
        link.report_failure(error)
        sys.exit(1)
    sys.argv[:] = app.argv = arguments_of(launch.command)
    del app.argv[0]
    app.connection_file = place["connection_file"]
    for _ in parts:
        pass
    app.start()


def rehearse(app: SnakepitKernelApp) -> None:
    """Do once, with no trace, what the first requests will ask for: the first time takes longer."""
    kernel = app.kernel
    session = Session(key=b"rehearsal")
    request = session.serialize(session.msg("kernel_info_request", kernel.kernel_info))
    session.deserialize(session.feed_identities(request)[1])
    IOLoop.current().run_sync(lambda: kernel.do_execute("1 + 1", silent=True, store_history=False))
    kernel.shell.display_formatter.format(2)
