"""Where the output of a call goes: along the lane, for as long as the call runs."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from ..lane.worker import CallOutput, WorkerLane

_STREAMS = ("stdout", "stderr")


class RedirectedOutput:
    """Puts streams in the place of ``sys.stdout`` and ``sys.stderr`` that send to a lane.

    Parameters
    ----------
    lane
        Where to send.
    """

    def __init__(self, lane: WorkerLane) -> None:
        self._stdout = CallOutput(lane, "stdout")
        self._stderr = CallOutput(lane, "stderr")
        self._calls: list[int] = []  # each was made while the one before runs
        self._saved: list[tuple[Any, Any]] = []

    def begin(self, call_id: int) -> None:
        """Send what is printed from now on, as output of a call."""
        if self._calls:
            self._flush()
        self._calls.append(call_id)
        self._saved.append((sys.stdout, sys.stderr))
        self._stdout.call_id = self._stderr.call_id = call_id
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def end(self, call_id: int) -> None:
        """Send what is left of a call's output, and go back to what was there before."""
        self._flush()
        if call_id not in self._calls:
            return
        place = self._calls.index(call_id)
        del self._calls[place]
        saved = self._saved.pop(place)
        if place == len(self._calls):
            sys.stdout, sys.stderr = saved
        else:  # a later one still runs, whose turn to go back it will be
            self._saved[place] = saved
        if self._calls:
            self._stdout.call_id = self._stderr.call_id = self._calls[-1]

    def _flush(self) -> None:
        self._stdout.flush()
        self._stderr.flush()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give way for a moment to who changes the streams."""
        if not self._saved:
            yield
            return
        redirected = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._saved[0]
        try:
            yield
        finally:
            self._saved[0] = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = redirected


class RoutedOutput:
    """The same where calls run in several threads at once: each call's text goes its own way.

    Parameters
    ----------
    lane
        Where to send.
    """

    def __init__(self, lane: WorkerLane) -> None:
        self._lane = lane
        self._open: dict[int, tuple[_Pair, _Pair | None]] = {}  # and what was there before

    def begin(self, call_id: int) -> None:
        """Send what the running task prints from now on, as output of a call."""
        for name in _STREAMS:
            stream = getattr(sys, name)
            if not isinstance(stream, _Router):
                setattr(sys, name, _Router(name, stream))
        pair = CallOutput(self._lane, "stdout"), CallOutput(self._lane, "stderr")
        for output in pair:
            output.call_id = call_id
        self._open[call_id] = pair, _current.get()
        _current.set(pair)

    def end(self, call_id: int) -> None:
        """Send what is left of a call's output."""
        pair, before = self._open.pop(call_id, ((), None))
        for output in pair:
            output.flush()
        _current.set(before)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Change nothing: nobody's streams are in the way."""
        yield


_Pair = tuple[CallOutput, CallOutput]

_current: ContextVar[_Pair | None] = ContextVar("output", default=None)


def output_of_call(stream: object) -> CallOutput | None:
    """Return the output of a call that a stream is, or hands on to at the moment; else None."""
    if isinstance(stream, _Router):
        stream = stream._target  # noqa: SLF001 - one idea in two pieces
    return stream if isinstance(stream, CallOutput) else None


class _Router(io.TextIOBase):
    """Stands in for a standard stream, and hands on to that of the running call."""

    def __init__(self, name: str, otherwise: TextIO) -> None:
        self._index = _STREAMS.index(name)
        self._otherwise = otherwise

    @property
    def _target(self) -> Any:
        pair = _current.get()
        return self._otherwise if pair is None else pair[self._index]

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream it hands on to."""
        return str(self._target.encoding)

    def writable(self) -> bool:
        """Whether it can be written to: yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream it hands on to."""
        return int(self._target.fileno())

    def write(self, text: str) -> int:
        """Hand on a text."""
        return int(self._target.write(text))

    def flush(self) -> None:
        """Flush the stream it hands on to."""
        self._target.flush()
