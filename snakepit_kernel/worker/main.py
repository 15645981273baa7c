"""Main program of a worker process: serves its pool's calls in one thread or several."""

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
from typing import TYPE_CHECKING, Any

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
from ..protocol.sources import sources
from ..telemetry.correlation import METADATA_KEY
from ..tools.context import correlate_cell, enter_cell, enter_worker, is_main_thread, rename_worker
from ..tools.registry import ToolRegistry
from .autoreload import Autoreload
from .comms import CommSessions
from .descriptors import Descriptors
from .displays import DisplayRouter
from .event_loops import forbid_stop
from .figures import isolate_figures
from .inputs import check_input, explain_missing_input
from .interrupts import InterruptRouter, ThreadInterruptRouter, install
from .kernel_builder import KernelBuilder
from .name_advice import add_name_advice
from .output import (
    LateSender,
    RedirectedOutput,
    RoutedOutput,
    StreamKeeper,
    record_cell_streams,
    route_streams,
)
from .progress import patch_tqdm
from .search_path import SearchPath
from .server import CallServer, OnMessage
from .session_isolation import NoIsolation, SessionIsolation
from .threads import propagate_contexts

if TYPE_CHECKING:
    from ..kernel.kernel import SnakepitKernel

RECHECK_SECONDS = 0.01
"""Seconds between two checks, by another thread, that the main thread has built the shell."""


def run(argv: Sequence[str]) -> None:
    """Run a worker until its owner closes the lane.

    Parameters
    ----------
    argv
        The kernel's arguments. One is ``--lane=FD,FD…:FD:FD``: the sockets, that of the main thread
        first, the control page, and the socket for late output.
    """
    (option,) = (argument for argument in argv if argument.startswith(LANE_OPTION))
    lanes, page, late = option.removeprefix(LANE_OPTION).split(":")
    sockets = [int(number) for number in lanes.split(",")]
    for descriptor in (*sockets, int(page), int(late)):
        os.set_inheritable(descriptor, False)
    descriptors = Descriptors()
    # A crash must leave its stack in the log, which the pool keeps.
    faulthandler.enable(file=descriptors.logs["stderr"])
    patch_tqdm()
    isolate_figures()
    explain_missing_input()
    foreground.install()
    idle_lock.begin_cell()  # until the pool can use this worker: others prepare later
    main_loop = IOLoop.current()
    loop: asyncio.AbstractEventLoop = main_loop.asyncio_loop  # type: ignore[attr-defined]
    worker = WorkerMain(
        [socket.socket(fileno=n) for n in sockets],
        ControlPage(int(page), len(sockets)),
        loop,
        argv,
        late=LateSender(socket.socket(fileno=int(late)), descriptors),
        descriptors=descriptors,
    )
    loop.call_soon(worker.open)  # runs when the main loop does
    while True:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # of a task that a tool made
            main_loop.start()
            break
    worker.channels.close()


class WorkerMain:
    """Serves the lanes of one worker: one call at a time on each.

    Parameters
    ----------
    sockets, page
        The worker's ends of the lanes, and their control page. The first lane is served by the main
        thread, each other one by a thread of its own.
    loop
        The main loop.
    argv
        The kernel's arguments.
    late
        Sends output of calls and cells that have ended.
    descriptors
        Captures what is written to the process's descriptors.

    Attributes
    ----------
    channels
        Builds the rest of the kernel.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        page: ControlPage,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[str],
        *,
        late: LateSender,
        descriptors: Descriptors,
    ) -> None:
        self._loop = loop
        self._page = page
        self._is_build_requested = False
        self._registry = ToolRegistry()
        self._search_path = SearchPath()
        self._directory = os.getcwd()  # noqa: PTH109 - the owner's when the worker started
        self._isolation = SessionIsolation()
        self._comms = CommSessions(lambda: self._isolation.current)
        self._displays = DisplayRouter(late, self._comms)
        first, *others = sockets
        self._server = CallServer(
            first,
            page,
            0,
            loop,
            self._registry,
            interrupts=InterruptRouter,
            make_output=partial(RedirectedOutput, late=late, descriptors=descriptors),
            finish=self._displays.finish,
            on_message=self._handle,
            on_close=self._stop,
            isolation=self._isolation,
        )
        self._threads = [
            _Thread(
                sock, page, number, self._registry, self._handle, displays=self._displays, late=late
            )
            for number, sock in enumerate(others, 1)
        ]
        self.channels = KernelBuilder(
            argv,
            loop,
            is_idle=self._server.lane.is_idle,
            is_free=lambda: self._server.is_free,
            on_complete=self._connect_kernel,
            within=self._isolation.for_all_sessions,
        )
        assert isinstance(self._server.output, RedirectedOutput)
        self._output = self._server.output
        record_cell_streams()
        route_streams()
        WorkerStream.keeper = StreamKeeper(self._output, descriptors.logs)
        propagate_contexts(self._displays.current_cell)

    def open(self) -> None:
        """Send hello and begin to serve calls."""
        others = [thread.server.interrupts for thread in self._threads]
        self._accepts_interrupt = install(self._server.interrupts, others)
        signal.signal(RECALL_SIGNAL, self.return_unstarted)
        forbid_stop(self._loop, self.channels.is_exit_requested)
        self._page.offer_stacks()
        self.channels.patch_shell_access(self._build_in_call)
        python = "{}.{}".format(*sys.version_info)
        self._send(messages.Hello(os.getpid(), __version__, python))
        self._server.open()

    def return_unstarted(self, *_: object) -> None:
        """Return unstarted calls to the owner, on the lanes where it has asked for them.

        This is a signal handler, perhaps in the middle of a call. An interrupt of that call must
        not end it half way: a call that has left one list, and is not yet in another, would be
        lost.
        """
        with self._server.interrupts.deferred():
            for server in (self._server, *(thread.server for thread in self._threads)):
                server.return_unstarted()
            if self._is_build_requested:
                self._is_build_requested = False
                self._build_in_call()

    def _connect_kernel(self, kernel: SnakepitKernel) -> None:
        """Connect the kernel that has been built to the parts of this worker."""
        kernel.accepts_interrupt = self._accepts_interrupt
        kernel.leave_end_to_owner(lambda: self._send(messages.Quitting()))
        kernel.on_cell = lambda metadata: correlate_cell(str(metadata.get(METADATA_KEY, "")))
        isolation = self._isolation
        kernel.on_error = lambda error: add_name_advice(
            error, isolation, self._registry, is_of_cell=True
        )
        kernel.isolate_sessions(
            self._enter_cell,
            isolation.within,
            lambda: isolation.current,
            self._comms.session_of,
        )
        kernel.check_input = check_input
        assert kernel.shell is not None
        # Names are looked up in the live objects, in milliseconds. Jedi takes a third of a second
        # the first time, longer than the notebook waits for a worker.
        kernel.shell.Completer.use_jedi = False
        isolation.attach_shell(kernel.shell)
        _name_cells_of_notebook(kernel.shell.compile)
        if self._server.autoreload is not None:
            kernel.shell.events.register("post_execute", self._server.autoreload.note_imported)
        record_cell_streams()
        self._displays.attach(kernel)

    def _enter_cell(self, session: str | None) -> None:
        """Prepare for a cell: its session, its output, edited modules."""
        enter_cell(session)
        self._output.begin_cell()
        if self._server.autoreload is not None:
            self._server.autoreload.reload_changed()
        self._isolation.switch_to(session)
        self._isolation.print_notice()

    def _build_in_call(self) -> None:
        """Build the rest of the kernel in the middle of a call, without affecting that call."""
        if not is_main_thread():
            self._request_build()
            return
        running = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        asyncio._set_running_loop(self._loop)  # noqa: SLF001
        try:
            with self._server.output.original_streams():
                self.channels.build_now()
        finally:
            asyncio._set_running_loop(running)  # noqa: SLF001

    def _request_build(self) -> None:
        """Let the main thread build the kernel, whatever it runs; called in another thread.

        Only a signal reaches the main thread in the middle of a call.
        """
        while not self.channels.is_settled:
            self._is_build_requested = True
            signal.pthread_kill(threading.main_thread().ident or 0, RECALL_SIGNAL)
            # The signal has no effect while another part is being built.
            time.sleep(RECHECK_SECONDS)
        self.channels.build_now()  # raises the error if it failed

    def _stop(self) -> None:
        """Stop the kernel, running its exit hooks: the owner closed the lane."""
        # In an empty context: a call may be running here, and calls must not stop the loop.
        self._loop.call_soon(self._loop.stop, context=contextvars.Context())

    # -- messages ------------------------------------------------------------------------------

    def _handle(self, message: messages.ToWorker, frame: Frame) -> None:
        match message:
            case messages.Configure():
                self._configure(message, frame)
            case messages.Assign(worker=name):
                rename_worker(name)
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
            self._set_limits(setup.limits)
            failed = {name: problem for name in setup.preload if (problem := _preload(name))}
            codec = dataclasses.replace(setup.codec, on_receipt="keep")  # for the notebook only
            for server in (self._server, *(thread.server for thread in self._threads)):
                server.lane.use_codec(codec)
            if setup.autoreload:
                self._autoreload()
            self._registry.load(setup.adapter, has_threads=setup.has_threads)
            for thread in self._threads:
                thread.start()
            if setup.has_threads:
                control = self._page.control(0)
                self._output.show_descriptors_in_cells(lambda: control.serves_cell)
            else:
                self._isolation.begin()
            if setup.beat_seconds:
                beat(self._page.control(0), setup.beat_seconds)
            if "address_space_bytes" in setup.limits:
                room = int(setup.limits["address_space_bytes"])
                limit_address_space(os.getpid(), room, finally_so=True)
        except BaseException as error:  # noqa: BLE001 - imports run any code; the pool gets the error
            lane.send(replies.with_error(lane.marshaller, message.id, error))
        else:
            self._send(messages.Configured(message.id, self._registry.infos(), failed))
            idle_lock.end_cell()
            self.channels.build_soon()

    def _autoreload(self) -> None:
        """Reload edited modules from now on."""
        autoreload = Autoreload()
        for server in (self._server, *(thread.server for thread in self._threads)):
            server.autoreload = autoreload

    def _follow(self, message: messages.Follow) -> None:
        """Adopt the owner's present search path and working directory."""
        with self._server.interrupts.deferred():
            self._search_path.follow(message.path)
            directory = message.directory
            if directory is None or directory == self._directory:
                return
            self._directory = directory
            # Sessions that have changed their directory themselves keep it.
            with self._isolation.for_all_sessions(), contextlib.suppress(OSError):
                os.chdir(directory)

    def _set_limits(self, limits: Mapping[str, float]) -> None:
        """Limit the resources of this process, before user code runs in it.

        What the worker itself needs does not count against the limit: it is allocated first.
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
    """Serves one lane in its own thread, for tools that may run at the same time."""

    def __init__(
        self,
        sock: socket.socket,
        page: ControlPage,
        number: int,
        registry: ToolRegistry,
        on_message: OnMessage,
        *,
        displays: DisplayRouter,
        late: LateSender,
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
            finish=displays.finish_in_thread,
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
        forbid_stop(self._loop, lambda: False)
        self.server.open()
        while self.server.lane.is_open:
            # An interrupt that comes a moment too late must end nothing.
            with contextlib.suppress(KeyboardInterrupt):
                self._loop.run_forever()


def _name_cells_of_notebook(compiler: Any) -> None:
    """Let IPython's tracebacks name the cells of the notebook whose functions run here."""
    own_name = compiler.format_code_name

    def format_code_name(file: str) -> tuple[str, ...] | None:
        label = sources.received_label(file)
        return tuple(label.split(" ", 1)) if label else own_name(file)

    compiler.format_code_name = format_code_name


def _preload(name: str) -> str:
    """Import a module; return why that failed, or an empty string."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - imports run any code; a worker works without it
        return f"{type(error).__name__}: {error}"
    return ""


def beat(control: ControlWords, interval: float) -> None:
    """Increment the worker's pulse regularly, in its own thread.

    Parameters
    ----------
    control
        The words in which the owner reads it.
    interval
        Seconds between two beats.
    """

    def run() -> None:
        while True:
            control.pulse += 1
            time.sleep(interval)

    threading.Thread(target=run, name="snakepit-pulse", daemon=True).start()
