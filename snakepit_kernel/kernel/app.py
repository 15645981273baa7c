"""The kernel's application."""

from __future__ import annotations

import faulthandler
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from ipykernel.kernelapp import IPKernelApp, kernel_aliases
from tornado.ioloop import IOLoop
from traitlets import Dict, List, Type, Unicode
from traitlets.config import Config

from ..ids import RUN_ID_OPTION
from ..processes import link
from .kernel import SnakepitKernel
from .sockets import release_in_children

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


class SnakepitKernelApp(IPKernelApp):
    """Starts a kernel: for a notebook, or with a lane, for a pool."""

    name = "snakepit-kernel"
    aliases = Dict(
        {
            **kernel_aliases,
            RUN_ID_OPTION.strip("-="): "SnakepitKernelApp.run_id",
            "lane": "SnakepitKernelApp.lane",
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

    def initialize(self, argv: list[str] | None = None) -> None:
        """Set up the kernel, and the worker's end of the lane if there is one."""
        link.hold_inherited()
        if self._is_worker(argv):
            # A crash must say where, on the real stderr, which the pool keeps.
            if sys.__stderr__ is not None:
                faulthandler.enable(file=sys.__stderr__)
            # Nobody asks a worker for its history; its database and thread cost 10 ms.
            self.config.HistoryManager.enabled = False
            self.default_extensions = []
        super().initialize(argv)
        if sys.platform == "linux" and self.kernel is not None:  # which it is not after --help
            release_in_children(self._addresses())

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Read the command line; the usual one without argparse, which takes 13 ms."""
        arguments = sys.argv[1:] if argv is None else argv
        usual = _read_usual(arguments)
        if usual is None:
            super().parse_command_line(argv)
        else:
            self.argv = list(arguments)
            self.extra_args = []
            self.update_config(Config({"SnakepitKernelApp": usual}))

    def start(self) -> None:
        """Run the kernel until it is shut down."""
        if self.lane:
            # By name, because the layer of tools stands above this one.
            importlib.import_module("snakepit_kernel.tools.worker").serve(self.kernel, self.lane)
        IOLoop.current().add_callback(link.say_ready)  # when this runs, the main loop does
        super().start()
        self._join_control_thread()

    def _addresses(self) -> set[int | str]:
        """Return where this kernel listens."""
        ports = {getattr(self, f"{name}_port") for name in CHANNELS}
        return {f"{self.ip}-{port}" for port in ports} if self.transport == "ipc" else ports

    def _join_control_thread(self) -> None:
        """End the control thread before the exit hooks run.

        One of those stops the IOPub thread. The control thread may at that moment wait in
        ``sys.stdout.flush()`` for an answer of the IOPub thread, and would for ten seconds:
        half of all polite shutdowns without history take 2.6 s in ipykernel 7.4 for this reason.
        """
        thread = self.control_thread
        if thread is not None and thread.is_alive():
            thread.stop()
            thread.join()

    @staticmethod
    def _is_worker(argv: list[str] | None) -> bool:
        arguments: list[Any] = sys.argv[1:] if argv is None else argv
        return any(str(argument).startswith("--lane=") for argument in arguments)


def _read_usual(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the traits that a provisioner's own options set; None if there are others."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, is_assignment, value = word.partition("=")
        if word == "-f" and (path := next(words, "-")) and not path.startswith("-"):
            found["connection_file"] = path
        elif is_assignment and name in _USUAL_OPTIONS:
            found[_USUAL_OPTIONS[name]] = value
        else:
            return None
    return found


_USUAL_OPTIONS = {RUN_ID_OPTION.rstrip("="): "run_id", "--lane": "lane"}
