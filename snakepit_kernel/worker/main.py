"""A worker: serves the calls of its pool on its main thread, or in several threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tornado.ioloop import IOLoop

from .._version import __version__
from ..kernel.app import LANE_OPTION
from ..kernel.streams import WorkerStream
from ..lane import replies
from ..lane.control_page import RECALL_SIGNAL, ControlPage, ControlWords
from ..processes import foreground, idle_lock
from ..processes.os_limits import limit_address_space, limit_cpu, limit_files
from ..protocol import messages
from ..protocol.frames import Frame, pack
from ..telemetry.correlation import METADATA_KEY
from ..tools.context import correlate_cell, enter_cell, enter_slot, enter_worker, is_main_thread
from ..tools.registry import ToolRegistry
from .autoreload import Autoreload
from .descriptors import Descriptors
from .displays import Showing
from .event_loops import protect
from .figures import keep_figures_apart
from .interrupts import InterruptRouter, ThreadInterruptRouter, install
from .kernel_builder import KernelBuilder
from .output import (
    Late,
    RedirectedOutput,
    RoutedOutput,
    StreamKeeper,
    note_streams_of_cells,
    route_streams,
)
from .progress import follow_bars
from .search_path import SearchPath
from .server import CallServer, OnMessage
from .session_isolation import NoIsolation, SessionIsolation
from .threads import hand_on_contexts

if TYPE_CHECKING:
    from ..kernel.kernel import SnakepitKernel

BUILT_AGAIN = 0.01
"""Seconds after which another thread looks again whether the main thread has built the shell."""


def run(argv: Sequence[str]) -> None:
    """Be the worker at the end of a lane, until its owner closes that.

    Parameters
    ----------
    argv
        The kernel's arguments. One is ``--lane=FD,FD…:FD:FD``: the sockets, that of the main thread
        first, the page beside them, and the socket for what is shown late.
    """
    (option,) = (argument for argument in argv if argument.startswith(LANE_OPTION))
    lanes, page, late = option.removeprefix(LANE_OPTION).split(":")
    sockets = [int(number) for number in lanes.split(",")]
    for descriptor in (*sockets, int(page), int(late)):
        os.set_inheritable(descriptor, False)
    descriptors = Descriptors()
    # A crash must say where, in the log, which the pool keeps.
    faulthandler.enable(file=descriptors.logs["stderr"])
    follow_bars()
    keep_figures_apart()
    foreground.install()
    idle_lock.begin_cell()  # until the pool can use us: others prepare themselves later
    main_loop = IOLoop.current()
    loop: asyncio.AbstractEventLoop = main_loop.asyncio_loop  # type: ignore[attr-defined]
    worker = WorkerMain(
        [socket.socket(fileno=n) for n in sockets],
        ControlPage(int(page), len(sockets)),
        loop,
        argv,
        late=Late(socket.socket(fileno=int(late)), descriptors),
        descriptors=descriptors,
    )
    loop.call_soon(worker.open)  # when this runs, the main loop does
    while True:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # of a task that a tool made
            main_loop.start()
            break
    worker.channels.close()


class WorkerMain:
    """Runs what arrives on the lanes: one call at a time on each.

    Parameters
    ----------
    sockets, page
        The worker's ends of the lanes, and the page beside them. The first is served by the main
        thread, each other one by a thread of its own.
    loop
        The main loop.
    argv
        The kernel's arguments.
    late
        Where to send what is shown late.
    descriptors
        Those that the process writes to.

    Attributes
    ----------
    channels
        The rest of the kernel.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        page: ControlPage,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[str],
        *,
        late: Late,
        descriptors: Descriptors,
    ) -> None:
        self._loop = loop
        self._page = page
        self._wants_shell = False
        self._showing = Showing(late)
        self._registry = ToolRegistry()
        self._search_path = SearchPath()
        self._directory = os.getcwd()  # noqa: PTH109 - where the owner was when it began
        self._isolation = SessionIsolation()
        first, *others = sockets
        self._server = CallServer(
            first,
            page,
            0,
            loop,
            self._registry,
            interrupts=InterruptRouter,
            make_output=partial(RedirectedOutput, late=late, descriptors=descriptors),
            finish=self._showing.finish,
            on_message=self._take,
            on_close=self._stop,
            isolation=self._isolation,
        )
        self._threads = [
            _Thread(
                sock, page, number, self._registry, self._take, showing=self._showing, late=late
            )
            for number, sock in enumerate(others, 1)
        ]
        self.channels = KernelBuilder(
            argv,
            loop,
            rests=self._server.lane.rests,
            is_free=lambda: self._server.is_free,
            adopt=self._adopt,
            around=self._isolation.for_all,
        )
        assert isinstance(self._server.output, RedirectedOutput)
        self._output = self._server.output
        note_streams_of_cells()
        route_streams()
        WorkerStream.keeper = StreamKeeper(self._output, descriptors.logs)
        hand_on_contexts(self._showing.as_shown_here)

    def open(self) -> None:
        """Say hello: from now on calls are served."""
        others = [thread.server.interrupts for thread in self._threads]
        self._heeds_interrupt = install(self._server.interrupts, others)
        signal.signal(RECALL_SIGNAL, self._give_back)
        protect(self._loop, self.channels.is_told_to_end)
        self._page.offer_stacks()
        self.channels.offer_shell(self._build_in_call)
        python = "{}.{}".format(*sys.version_info)
        self._send(messages.Hello(os.getpid(), __version__, python))
        self._server.open()

    def _give_back(self, *_: object) -> None:
        """Return the calls that have not begun, on the lanes where that was asked.

        This is a signal handler, in the middle of a call perhaps. An interrupt of that call must
        not end it half way: what has left one list, and is not yet in another, would be lost.
        """
        with self._server.interrupts.held():
            for server in (self._server, *(thread.server for thread in self._threads)):
                server.give_back()
            if self._wants_shell:
                self._wants_shell = False
                self._build_in_call()

    def _adopt(self, kernel: SnakepitKernel) -> None:
        """Take in the kernel that was built around us."""
        kernel.heeds_interrupt = self._heeds_interrupt
        kernel.leave_end_to_owner(lambda: self._send(messages.Quitting()))
        kernel.on_cell = lambda metadata: correlate_cell(str(metadata.get(METADATA_KEY, "")))
        isolation = self._isolation
        kernel.keep_sessions_apart(self._enter_cell, isolation.within, lambda: isolation.current)
        assert kernel.shell is not None
        isolation.adopt(kernel.shell)
        if self._server.autoreload is not None:
            kernel.shell.events.register("post_execute", self._server.autoreload.note_imported)
        note_streams_of_cells()
        self._showing.adopt(kernel)

    def _enter_cell(self, session: str | None) -> None:
        """Go to the surroundings of the session of a cell."""
        enter_cell(session)
        self._output.begin_cell()
        if self._server.autoreload is not None:
            self._server.autoreload.reload_changed()
        self._isolation.enter(session)
        self._isolation.tell()

    def _build_in_call(self) -> None:
        """Build the rest of the kernel in the middle of a call, which must not notice."""
        if not is_main_thread():
            self._have_it_built()
            return
        running = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        asyncio._set_running_loop(self._loop)  # noqa: SLF001
        try:
            with self._server.output.aside():
                self.channels.build_now()
        finally:
            asyncio._set_running_loop(running)  # noqa: SLF001

    def _have_it_built(self) -> None:
        """Have the main thread build it, whatever that does, from another thread.

        Only a signal reaches it in the middle of a call.
        """
        while not self.channels.are_settled:
            self._wants_shell = True
            signal.pthread_kill(threading.main_thread().ident or 0, RECALL_SIGNAL)
            # It comes to nothing in the middle of another part that is being built.
            time.sleep(BUILT_AGAIN)
        self.channels.build_now()  # raises what stood in the way

    def _stop(self) -> None:
        """End this kernel in the polite way, with its exit hooks: the owner closed the lane."""
        # In no context: it may be a call that has seen this, and calls must not stop the loop.
        self._loop.call_soon(self._loop.stop, context=contextvars.Context())

    # -- messages ------------------------------------------------------------------------------

    def _take(self, message: messages.ToWorker, frame: Frame) -> None:
        match message:
            case messages.Configure():
                self._configure(message, frame)
            case messages.Assign(worker=name):
                enter_slot(name)
            case messages.Follow():
                self._follow(message)
            case messages.OpenChannels(id=call_id):
                self._open_channels(call_id)

    def _configure(self, message: messages.Configure, frame: Frame) -> None:
        lane = self._server.lane
        try:
            setup: messages.WorkerSetup = lane.marshaller.load(message, frame)
            self._search_path.follow(setup.import_path)
            enter_worker(setup.pool, setup.worker, self._server.host_calls)
            self._limit(setup.limits)
            failed = {name: problem for name in setup.preload if (problem := _preload(name))}
            codec = dataclasses.replace(setup.codec, on_receipt="keep")  # a notebook's are its own
            for server in (self._server, *(thread.server for thread in self._threads)):
                server.lane.use_codec(codec)
            if setup.autoreload:
                self._autoreload()
            self._registry.load(setup.adapter, has_threads=setup.has_threads)
            for thread in self._threads:
                thread.start()
            if setup.has_threads:
                slot = self._page.slot(0)
                self._output.leave_descriptors_to_cells(lambda: slot.serves_cell)
            else:
                self._isolation.begin()
            if setup.beat_seconds:
                beat(self._page.slot(0), setup.beat_seconds)
            if "address_space_bytes" in setup.limits:
                room = int(setup.limits["address_space_bytes"])
                limit_address_space(os.getpid(), room, finally_so=True)
        except BaseException as error:  # noqa: BLE001 - importing runs any code; the pool must hear of it
            lane.send(replies.with_error(lane.marshaller, message.id, error))
        else:
            self._send(messages.Configured(message.id, self._registry.infos(), failed))
            idle_lock.end_cell()
            self.channels.build_soon()

    def _autoreload(self) -> None:
        """Load edited modules anew from now on."""
        autoreload = Autoreload()
        for server in (self._server, *(thread.server for thread in self._threads)):
            server.autoreload = autoreload

    def _follow(self, message: messages.Follow) -> None:
        """Look for modules and files where the owner does now."""
        with self._server.interrupts.held():
            self._search_path.follow(message.path)
            directory = message.directory
            if directory is None or directory == self._directory:
                return
            self._directory = directory
            # Sessions that have gone elsewhere by themselves stay there.
            with self._isolation.for_all(), contextlib.suppress(OSError):
                os.chdir(directory)

    def _limit(self, limits: Mapping[str, float]) -> None:
        """Set what this process may take, before code of the user runs in it.

        What it takes itself does not count as the user's: so that is taken first.
        """
        if "open_files" in limits:
            limit_files(os.getpid(), int(limits["open_files"]))
        if "address_space_bytes" in limits:
            self.channels.build_now()
            for server in (self._server, *(thread.server for thread in self._threads)):
                server.lane.marshaller.map_memory()
            room = int(limits["address_space_bytes"])
            limit_address_space(os.getpid(), room, finally_so=False)
        if "cpu_seconds" in limits:
            limit_cpu(os.getpid(), limits["cpu_seconds"])

    def _open_channels(self, call_id: int) -> None:
        lane = self._server.lane
        try:
            self.channels.build_now()
        except BaseException as error:  # noqa: BLE001 - users' startup files run any code
            lane.send(replies.with_error(lane.marshaller, call_id, error))
        else:
            lane.send(replies.encode_value(lane.marshaller, call_id, None))

    def _send(self, message: messages.FromWorker) -> None:
        self._server.lane.send(pack(messages.encode(message)))


class _Thread:
    """Serves one lane in a thread of its own, for tools that may run at the same time."""

    def __init__(
        self,
        sock: socket.socket,
        page: ControlPage,
        number: int,
        registry: ToolRegistry,
        on_message: OnMessage,
        *,
        showing: Showing,
        late: Late,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self.server = CallServer(
            sock,
            page,
            number,
            self._loop,
            registry,
            interrupts=ThreadInterruptRouter,
            make_output=partial(RoutedOutput, late=late),
            finish=showing.finish_in_thread,
            on_message=on_message,
            on_close=self._loop.stop,
            isolation=NoIsolation(),
        )
        self._thread = threading.Thread(
            target=self._run, name=f"snakepit-lane-{number}", daemon=True
        )

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def _run(self) -> None:
        protect(self._loop, lambda: False)
        self.server.open()
        while self.server.lane.is_open:
            # An interrupt that comes a moment too late ends nothing.
            with contextlib.suppress(KeyboardInterrupt):
                self._loop.run_forever()


def _preload(name: str) -> str:
    """Import a module; return why that failed, or nothing."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - importing runs any code; a worker works without it
        return f"{type(error).__name__}: {error}"
    return ""


def beat(slot: ControlWords, interval: float) -> None:
    """Count the worker's pulse up from now on, in a thread of its own.

    Parameters
    ----------
    slot
        Where the owner finds it.
    interval
        Seconds between two beats.
    """

    def run() -> None:
        while True:
            slot.pulse += 1
            time.sleep(interval)

    threading.Thread(target=run, name="snakepit-pulse", daemon=True).start()
