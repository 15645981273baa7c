"""The template's program: it imports what kernels need, and runs a kernel in each forked child.

``python -m snakepit_kernel.kernel --template`` is what `snakepit_kernel.processes.template` starts.
"""

from __future__ import annotations

import importlib
import io
import os
import socket
import sys
import threading
import types

from ..processes import guardian_link, idle_lock
from ..processes.identity import ProcessIdentity
from ..processes.template import import_variables
from ..processes.template_process import Launch, TemplateProcess
from . import app, prestart

MODULES = (
    "snakepit_kernel.worker.main",  # by name: a layer above; a kernel with a lane needs it
    "snakepit_magics",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
)
"""Modules that kernels would import when they start."""

PREBUILT = ("snakepit_magics.parsing:line_parser", "snakepit_magics.parsing:cell_parser")
"""Functions with cached results, called once for all kernels."""


def main(arguments: list[str]) -> int:
    """Serve an owner until it is gone; in a forked child, run the kernel."""
    options = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    for module in MODULES:
        importlib.import_module(module)
    for name in PREBUILT:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)()
    environment = dict(os.environ)
    channel = socket.socket(fileno=int(options["channel"]))
    channel.set_inheritable(False)
    shared = os.memfd_create("snakepit-activity", os.MFD_CLOEXEC)
    template = TemplateProcess(channel, ProcessIdentity.parse(options["owner"]), shared)
    launch = template.serve()
    if launch is None:
        return 0
    return run_kernel(launch, environment)


def run_kernel(launch: Launch, imported_with: dict[str, str]) -> int:
    """Run the kernel in this process, as if it had been executed."""
    guardian_link.attach(launch.link, import_variables(imported_with))
    idle_lock.attach(launch.idle_lock)
    refresh_process()
    sys.argv[:] = app.arguments_of(launch.command)
    if launch.standby:
        prestart.run(launch)
    else:
        app.run(sys.argv[1:])
    return 0


def refresh_process() -> None:
    """Renew the per-process state of Python and its libraries after the fork."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    for stream in (sys.__stdout__, sys.__stderr__):
        if isinstance(stream, io.TextIOWrapper):
            in_lines = stream is sys.__stderr__ or stream.isatty()  # unless it is unbuffered
            stream.reconfigure(line_buffering=in_lines and not stream.write_through)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        process = sys.modules["multiprocessing.process"]
        process.current_process().authkey = os.urandom(32)
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # noqa: SLF001 - Python 3.11 keeps the parent's
