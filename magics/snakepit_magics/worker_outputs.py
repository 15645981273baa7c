"""Rendering of what one cell shows in several workers: each output with its worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from snakepit_kernel import CellError, CellResult
from snakepit_kernel.pool.partition import workers_named

from .rendering import show

BAR_INTERVAL = 1.0
"""Seconds between the states of a progress bar of text that are shown before its line ends."""

INTERRUPT = KeyboardInterrupt.__name__


class WorkersView:
    """Shows the iopub messages of a cell in several workers, each with the number of its worker.

    Text is shown by whole lines, such as ``[stdout:1] text``, so that lines of workers do not mix.
    Of a line that is written again and again, as progress bars are, the present state is shown from
    time to time. An error is shown when it comes; one that another worker has had already is shown
    in one line. Messages may come from several threads.

    `Caller.run_all` adds the number of the worker to messages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest: dict[tuple[int, str], str] = {}  # of lines that have not ended
        self._written: dict[tuple[int, str], float] = {}  # when a line was last shown
        self._last_line: dict[int, str] = {}
        self._ended: set[int] = set()
        self._errors: dict[str, int] = {}  # the worker that was the first to have it
        self._failed: set[int] = set()  # workers whose error is shown, or held back
        self._interrupts: list[tuple[int, CellError]] = []

    def show(self, message: dict[str, Any]) -> None:
        """Show a message."""
        worker, content = message["worker"], message["content"]
        with self._lock:
            match message["msg_type"]:
                case "stream":
                    self._add_text(worker, content["name"], content["text"])
                case "status":
                    if content["execution_state"] == "idle":
                        self._end_lines(worker)
                        self._ended.add(worker)
                case "error":
                    error = CellError(content["ename"], content["evalue"], content["traceback"])
                    self._add_error(worker, error)
                case "display_data" | "execute_result" | "update_display_data":
                    self._end_lines(worker)
                    self._show_data(worker, message)
                case "clear_output":
                    pass  # it would clear the output of all workers
                case _:
                    show(message)

    def end(self, results: Mapping[int, CellResult]) -> None:
        """Show what was held back, and the errors of which no message has told."""
        with self._lock:
            for worker, error in self._interrupts:
                self._show_error(worker, error)
            for worker, result in results.items():
                self._end_lines(worker)
                if result.error is not None and worker not in self._failed:
                    self._show_error(worker, result.error)

    def end_interrupted(self) -> None:
        """Show what was held back, but for interrupts: the interrupt here tells of them."""
        with self._lock:
            for worker, _ in list(self._rest):
                self._end_lines(worker)

    # -- text ----------------------------------------------------------------------------------

    def _add_text(self, worker: int, stream: str, text: str) -> None:
        key = worker, stream
        *lines, rest = (self._rest.pop(key, "") + text).split("\n")
        is_bar = "\r" in rest
        now = time.monotonic()
        if rest and worker in self._ended:  # of a thread that goes on: nothing may follow
            lines.append(rest)
        elif is_bar and now - self._written.get(key, now - BAR_INTERVAL) >= BAR_INTERVAL:
            lines.append(rest)
            self._rest[key] = "\r"
        elif rest:
            self._rest[key] = "\r" + _shown(rest) if is_bar else rest
        if lines:
            self._written[key] = now
            self._write(worker, stream, [_shown(line) for line in lines])

    def _end_lines(self, worker: int) -> None:
        """Show the lines that a worker has not ended."""
        for key in [key for key in self._rest if key[0] == worker]:
            rest = _shown(self._rest.pop(key))
            if rest:
                self._write(*key, [rest])

    def _write(self, worker: int, stream: str, lines: list[str]) -> None:
        self._last_line[worker] = lines[-1]
        text = "".join(f"[{stream}:{worker}] {line}\n" for line in lines)
        _echo(stream, text)

    # -- results and displays ------------------------------------------------------------------

    def _show_data(self, worker: int, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        label = f"[{'result' if kind == 'execute_result' else 'display'}:{worker}]"
        data = content["data"]
        if set(data) == {"text/plain"}:
            text = data["text/plain"]
            data = {"text/plain": f"{label}{chr(10) if chr(10) in text else ' '}{text}"}
            show({**message, "content": {**content, "data": data}})
            return
        if kind != "update_display_data":  # which has its place, below the label of the first
            _echo("stdout", f"{label}\n")
        show(message)

    # -- errors --------------------------------------------------------------------------------

    def _add_error(self, worker: int, error: CellError) -> None:
        self._end_lines(worker)
        self._failed.add(worker)
        if error.type_name == INTERRUPT:
            self._interrupts.append((worker, error))
        else:
            self._show_error(worker, error)

    def _show_error(self, worker: int, error: CellError) -> None:
        told = _told(error)
        if not error.traceback and self._last_line.get(worker) == told:
            return  # IPython has printed it in the worker
        text = "\n".join(error.traceback) or told
        first = self._errors.setdefault(text, worker)
        if first == worker:
            _echo("stderr", f"[error:{worker}]\n{text}\n")
        else:
            _echo("stderr", f"[error:{worker}] {told} (as in worker {first})\n")


def summarize_errors(results: Mapping[int, CellResult]) -> CellError | None:
    """Return one error that says in how many workers, and in which, a cell has failed.

    It has the name of the workers' exceptions, if that is one name. None if no cell has failed.
    """
    workers: dict[str, list[int]] = {}
    for worker, result in results.items():
        if result.error is not None:
            workers.setdefault(result.error.type_name, []).append(worker)
    if not workers:
        return None
    count = sum(map(len, workers.values()))
    where = ", ".join(f"{name} in {workers_named(each)}" for name, each in workers.items())
    name = next(iter(workers)) if len(workers) == 1 else CellError.__name__
    text = f"the cell failed in {count} of {len(results)} workers: {where}"
    return CellError(name, text, [f"{name}: {text}"])


def _told(error: CellError) -> str:
    return f"{error.type_name}: {error.message}" if error.message else error.type_name


def _shown(line: str) -> str:
    """Return what a terminal shows of a line at last: what follows the last carriage return."""
    return line.rstrip("\r").rpartition("\r")[2]


def _echo(stream: str, text: str) -> None:
    show({"msg_type": "stream", "content": {"name": stream, "text": text}, "metadata": {}})
