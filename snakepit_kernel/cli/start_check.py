"""The doctor's live check: starts a kernel, runs a cell, shuts it down, searches for leftovers."""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import SnakepitError
from ..processes.run_registry import Registry
from ..processes.sweep import tagged_processes
from ..transport import reached
from .findings import Finding, ok, problem
from .installation_checks import KERNEL

START_PATIENCE = 60.0
"""Seconds that the kernel may take to become ready."""

CELL_PATIENCE = 20.0
"""Seconds that the cell may take."""


def check_start() -> Iterator[Finding]:
    """Start a kernel as Jupyter does, run ``1 + 1``, shut it down, and search for leftovers."""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import KernelManager

    name = "start"
    began = time.monotonic()
    manager = KernelManager(kernel_name=KERNEL)
    with tempfile.TemporaryFile() as output:
        try:
            run_id, way = _start(manager, output)
            way = f"{way}, reached by {reached(manager.connection_file)}"
            answer = _one_plus_one(manager)
        except NoSuchKernel:
            yield problem(name, "there is no kernelspec to start", "see the finding on kernelspec")
            return
        # jupyter_client's errors for a kernel that dies, and for one that does not answer.
        except (RuntimeError, TimeoutError, queue.Empty, OSError, SnakepitError) as error:
            text = f"a kernel could not be used: {str(error) or type(error).__name__}"
            said = f"its last output: {_last_line(output)}"
            yield problem(name, f"{text}; {said}", "mend what it says, or see the other findings")
            return
        finally:
            if manager.has_kernel:
                manager.shutdown_kernel()
    took = time.monotonic() - began
    wrong = list(_findings(run_id, answer, _left_behind(run_id, manager.connection_file)))
    yield from wrong
    if not wrong:
        yield ok(name, f"a kernel {way}, ran 1 + 1 and left nothing, in {took:.2f} s")


def _start(manager: Any, output: IO[bytes]) -> tuple[str, str]:
    """Start the kernel; return its run id, empty without our provisioner, and how it started."""
    manager.start_kernel(stdout=output, stderr=output)
    process = getattr(manager.provisioner, "guarded", None)
    if process is None:
        return "", "started"
    reason = process.not_forked_because
    way = "was forked from a template" if reason is None else f"was executed, because {reason}"
    return manager.provisioner.run_id, way


def _one_plus_one(manager: Any) -> str:
    """Run a cell; return its value or its error as text."""
    client = manager.client()
    client.start_channels(hb=False)
    try:
        client.wait_for_ready(timeout=START_PATIENCE)
        reply = client.execute(
            "", user_expressions={"sum": "1 + 1"}, reply=True, timeout=CELL_PATIENCE
        )
    finally:
        client.stop_channels()
    value = reply["content"].get("user_expressions", {}).get("sum", {})
    return str(value.get("data", {}).get("text/plain", value.get("evalue", "not known to it")))


def _findings(run_id: str, answer: str, left: list[str]) -> Iterator[Finding]:
    name = "start"
    if not run_id:
        text = f"kernel {KERNEL!r} started without our provisioner: what it starts is not ended"
        yield problem(name, text, "see the finding on kernelspec")
    if answer != "2":
        text = f"the kernel says that 1 + 1 is {answer}"
        yield problem(name, text, "look what its startup files do: ipython locate profile")
    if left:
        text = f"the kernel left behind: {'; '.join(left)}"
        yield problem(name, text, "end it by hand, and report this as a bug of snakepit", left)


def _left_behind(run_id: str, connection_file: str) -> list[str]:
    """Return descriptions of the leftovers of a kernel that was shut down."""
    processes = [item for item in tagged_processes() if item.run_id == run_id]
    return [
        *(f"process {item.identity.pid} {item.command}" for item in processes),
        *(f"run {run.run_id} in the registry" for run in Registry().runs() if run.run_id == run_id),
        *([connection_file] if Path(connection_file).exists() else []),
    ]


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "none"
