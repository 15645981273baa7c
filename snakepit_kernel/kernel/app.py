"""The application that sets up and runs a kernel, for a notebook or a pool."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import zmq
from ipykernel.kernelapp import IPKernelApp, kernel_aliases
from traitlets import Dict, List, Type, Unicode
from traitlets.config import Config, catch_config_error

from ..ids import RUN_ID_OPTION
from ..processes import guardian_link
from .iopub import OutputThread
from .kernel import SnakepitKernel
from .sockets import PrivateHeartbeat, make_private, release_in_children
from .streams import WorkerStream

T = TypeVar("T")

LANE_OPTION = "--lane="

SHELL_READY = "the shell is there"
"""The last step of `SnakepitKernelApp.setup_steps` before the connection file must be known."""

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


def run(argv: Sequence[str]) -> None:
    """Run a kernel in this process until it is shut down.

    Parameters
    ----------
    argv
        Its arguments.
    """
    guardian_link.attach_inherited()
    if not _is_worker(argv):
        SnakepitKernelApp.launch_instance(list(argv))
        return
    # By name, because the layer of the worker is above this one.
    importlib.import_module("snakepit_kernel.worker.main").run(argv)


def _is_worker(argv: Sequence[str] | None) -> bool:
    return any(word.startswith(LANE_OPTION) for word in (sys.argv[1:] if argv is None else argv))


class SnakepitKernelApp(IPKernelApp):
    """Sets up and runs a kernel: for a notebook, or with a lane for a pool.

    Attributes
    ----------
    awaits_connection
        The connection file is not known yet when the kernel is set up.
    """

    name = "snakepit-kernel"
    aliases = Dict(
        {
            **kernel_aliases,
            RUN_ID_OPTION.strip("-="): "SnakepitKernelApp.run_id",
            "lane": "SnakepitKernelApp.lane",
            "session": "SnakepitKernelApp.notebook_session",
        }
    )
    kernel_class: Any = Type(SnakepitKernel, klass="ipykernel.kernelbase.Kernel").tag(config=True)
    default_extensions = List(Unicode(), ["storemagic", "snakepit_kernel"]).tag(config=True)

    run_id = Unicode(help="The run that this kernel is; its tag on the command line.").tag(
        config=True
    )
    lane = Unicode(
        help="File descriptors of the lane to a pool and of the page beside it, FD:FD. "
        "Makes this kernel a worker."
    ).tag(config=True)

    notebook_session = Unicode(
        help="Name of the session that the notebook's magics use. Default: from its path."
    ).tag(config=True)

    awaits_connection = False

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        """Set up the kernel."""
        for _ in self.setup_steps(argv):
            pass

    def setup_steps(self, argv: list[str] | None = None) -> Iterator[str]:
        """Set up the kernel step by step; the caller may do other work between the steps.

        The steps are those of `IPKernelApp.initialize`. With `awaits_connection` the Jupyter
        channels are bound last: the caller sets the connection file after `SHELL_READY`.
        """
        if _is_worker(argv):
            # A worker's history is never read; its database and thread cost 10 ms.
            self.config.HistoryManager.enabled = False
            self.default_extensions = []
            self.outstream_class = f"{WorkerStream.__module__}.{WorkerStream.__qualname__}"
        super(IPKernelApp, self).initialize(argv)
        if self.subapp is not None:
            return
        yield "configured"
        self.init_pdb()
        self.init_blackhole()
        self.init_poller()
        self._try(self.init_signal)
        self._is_bound = not self.awaits_connection
        self._ports = {}
        if not self.awaits_connection:
            self.init_connection_file()
        self.init_sockets()
        if not self.awaits_connection:
            self._complete_connection()
        yield "sockets are made"
        self.init_io()
        self.init_kernel()
        yield "the kernel is there"
        if not self.lane:  # before init_path: a file next to the notebook must not shadow it
            importlib.import_module("snakepit_magics")
        self.init_path()
        self.init_shell()
        if self.shell:
            self.init_gui_pylab()
            self.init_extensions()
        yield SHELL_READY
        if self.awaits_connection:
            self.init_connection_file()
            self._log_held_warnings()
            self.kernel.start()  # before clients can connect: the handlers must be installed
            self._bind()
            self._complete_connection()
            self.kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})
        if sys.platform == "linux":
            release_in_children(self._addresses())
        if self.shell:
            self.init_code()
        # The output so far belongs to no request.
        sys.stdout.flush()
        sys.stderr.flush()

    def _complete_connection(self) -> None:
        self.init_heartbeat()
        self.write_connection_file()
        guardian_link.report_ready()  # requests from now on are answered once the main loop runs
        self.log_connection_info()

    def _try(self, initialise: Callable[[], None]) -> None:
        try:
            initialise()
        except Exception:  # as ipykernel does: in a thread there are no signals
            self.log.exception("Unable to initialize signal:")

    def init_signal(self) -> None:
        """Ignore interrupts between cells; a worker's lane handles them differently."""
        if not self.lane:
            super().init_signal()

    def init_path(self) -> None:
        """Let cells import modules next to the notebook, behind the standard library as usual.

        IPython does not where Python runs with ``-P``, which our kernels do only to find their own
        modules. ``ignore_cwd`` or ``PYTHONSAFEPATH`` turns it off.
        """
        if "" in sys.path or self.ignore_cwd or os.environ.get("PYTHONSAFEPATH"):
            return
        packages = {"site-packages", "dist-packages"}
        positions = (at for at, entry in enumerate(sys.path) if Path(entry).name in packages)
        sys.path.insert(next(positions, len(sys.path)), "")

    def init_sockets(self) -> None:
        """Create the channels' sockets.

        Without a connection file their addresses are not known yet: ipykernel's warnings about them
        are held back until there is one.
        """
        self._held_warnings = _HeldWarnings()
        if not self.awaits_connection:
            super().init_sockets()
            return
        self.log.addFilter(self._held_warnings)
        try:
            super().init_sockets()
        finally:
            self.log.removeFilter(self._held_warnings)

    def _log_held_warnings(self) -> None:
        """Log the held warnings, that every user of this machine can connect, if that is true."""
        if self.transport == "tcp" and self.curve_secretkey is None:
            for record in self._held_warnings.records:
                self.log.handle(record)

    def init_iopub(self, context: Any) -> None:
        """Create the IOPub channel as ipykernel does, with a thread of ours."""
        channel = context.socket(zmq.XPUB)
        channel.linger = 1000
        channel.xpub_verbose = True  # a second subscriber gets a welcome message as well
        self._apply_curve_server_options(channel)
        self.iopub_port = self._bind_socket(channel, self.iopub_port)
        self.iopub_thread = OutputThread(channel, self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    # -- channels ------------------------------------------------------------------------------

    def _bind_socket(self, s: zmq.Socket[Any], port: int) -> int:
        """Bind a channel, unless the connection file is still missing."""
        if not self._is_bound:
            return port
        bound: int = super()._bind_socket(s, port)
        if self.transport == "ipc":
            make_private(f"{self.ip}-{bound}")
        return bound

    def init_heartbeat(self) -> None:
        """Start the heartbeat, on a private socket."""
        self.heartbeat = PrivateHeartbeat(
            zmq.Context(),  # its own, as in ipykernel: it must not wait for the GIL
            (self.transport, self.ip, self.hb_port),
            curve_publickey=self.curve_publickey,
            curve_secretkey=self.curve_secretkey,
        )
        self.hb_port = self.heartbeat.port
        self.heartbeat.start()

    def _bind(self) -> None:
        """Bind the channels, each in the thread that may touch its socket."""
        self._is_bound = True
        output = self.iopub_thread
        channels = (
            ("shell", self.shell_socket, self.kernel.shell_stream, self.shell_channel_thread),
            ("control", self.control_socket, self.kernel.control_stream, self.control_thread),
            ("iopub", output.socket, output._xpub_stream, output),  # noqa: SLF001
            ("stdin", self.stdin_socket, None, None),
        )
        bound = {
            name: _in_thread(
                thread, partial(self._bind_channel, sock, stream, getattr(self, f"{name}_port"))
            )
            for name, sock, stream, thread in channels
        }
        for name, port in bound.items():
            setattr(self, f"{name}_port", port.result())
        endpoint = _in_thread(
            self.shell_channel_thread, partial(self.shell_socket.getsockopt, zmq.LAST_ENDPOINT)
        ).result()
        self._apply_curve_client_options(self.debug_shell_socket)
        self.debug_shell_socket.connect(endpoint)

    def bind_shell(self, endpoint: str) -> None:
        """Accept requests at another address, too."""
        _in_thread(self.shell_channel_thread, partial(self.shell_socket.bind, endpoint)).result()

    def unbind_shell(self, endpoint: str) -> None:
        """Stop accepting requests there."""
        _in_thread(self.shell_channel_thread, partial(self.shell_socket.unbind, endpoint)).result()

    def _bind_channel(self, sock: zmq.Socket[Any], stream: Any, port: int) -> int:
        self._apply_curve_server_options(sock)
        port = self._bind_socket(sock, port)
        if stream is not None:
            stream.flush(zmq.POLLIN)  # a message that came before would not be signalled again
        return port

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Parse the command line; a provisioner's without argparse, which takes 13 ms."""
        arguments = sys.argv[1:] if argv is None else argv
        options = _read_provisioner_options(arguments)
        if options is None:
            super().parse_command_line(argv)
        else:
            self.argv = list(arguments)
            self.extra_args = []
            self.update_config(Config({"SnakepitKernelApp": options}))

    def start(self) -> None:
        """Run the kernel until it is shut down."""
        if isinstance(self.kernel, SnakepitKernel):  # another class may be configured
            self.kernel.watch_interrupts()
        super().start()
        self.join_control_thread()

    def _addresses(self) -> set[int | str]:
        """Return the addresses on which this kernel listens."""
        ports = {getattr(self, f"{name}_port") for name in CHANNELS}
        return {f"{self.ip}-{port}" for port in ports} if self.transport == "ipc" else ports

    def join_control_thread(self) -> None:
        """End the control thread before the exit hooks run.

        One of those stops the IOPub thread. The control thread may wait in ``sys.stdout.flush()``
        for an answer of the IOPub thread at that moment, for up to ten seconds: for this reason
        half of all orderly shutdowns without history take 2.6 s in ipykernel 7.4.
        """
        thread = self.control_thread
        if thread is not None and thread.is_alive():
            thread.stop()
            thread.join()


class _HeldWarnings(logging.Filter):
    """Holds back warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Store warnings; let other records pass."""
        if record.levelno != logging.WARNING:
            return True
        self.records.append(record)
        return False


def _in_thread(thread: Any, function: Callable[[], T]) -> Future[T]:
    """Call a function in a thread of ipykernel, or directly if there is none."""
    result: Future[T] = Future()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            result.set_exception(error)

    if thread is None:
        call()
    else:
        thread.io_loop.add_callback(call)
    return result


def _read_provisioner_options(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the traits that a provisioner's own options set; None if there are others."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, is_assignment, value = word.partition("=")
        if word == "-f" and (path := next(words, "-")) and not path.startswith("-"):
            found["connection_file"] = path
        elif is_assignment and name in _PROVISIONER_OPTIONS:
            found[_PROVISIONER_OPTIONS[name]] = value
        else:
            return None
    return found


_PROVISIONER_OPTIONS = {RUN_ID_OPTION.rstrip("="): "run_id", LANE_OPTION.rstrip("="): "lane"}


def arguments_of(command: list[str]) -> list[str]:
    """Return the ``sys.argv`` of a process that was executed with a command."""
    module = command.index("-m")
    return [str(Path(__file__).with_name("__main__.py")), *command[module + 2 :]]
