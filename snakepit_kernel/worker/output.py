"""Where the output of a call goes: along its lane while it runs, beside that when it has ended."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TextIO, cast

from ..kernel.streams import WorkerStream
from ..lane.worker_end import WorkerLane
from ..locks import RLock
from ..processes import children
from ..protocol import messages
from ..protocol.frames import FrameWriter, Segment, pack
from ..tools.context import SessionContext, call_of_here, context_of_here
from .descriptors import Descriptors

OUTPUT_CHUNK = 8192
"""Characters of output from which on they are sent."""

OUTPUT_MOST = 1 << 20
"""Characters of output that one message holds."""

LATE_PATIENCE = 5.0
"""Seconds that the owner may take to read what comes late; then it hears no more of that."""

Name = Literal["stdout", "stderr"]

NAMES: tuple[Name, Name] = ("stdout", "stderr")


class Late:
    """Sends the owner what is shown by calls and cells that have ended.

    Parameters
    ----------
    sock
        The worker's end of the socket that the owner always reads.
    descriptors
        Whose log gets text, too: the owner may know no place for it any more.
    """

    def __init__(self, sock: socket.socket, descriptors: Descriptors) -> None:
        self._socket = sock
        self._socket.settimeout(LATE_PATIENCE)
        descriptors.share_with(sock)
        self._descriptors = descriptors
        self._writer = FrameWriter()
        self._guard = RLock()
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        """Have a forked child send nothing: two processes on one stream would tear it."""
        self._guard = RLock()
        self._socket.close()

    def show(self, message: messages.Late, body: bytes, buffers: Sequence[memoryview] = ()) -> None:
        """Send something."""
        self._send(pack(messages.encode(message), body, buffers))

    def print(self, message: messages.Late, stream: str, text: str) -> None:
        """Send a text."""
        self._descriptors.log(stream, text)
        self.show(message, messages.as_text(stream, text))

    def _send(self, segments: list[Segment]) -> None:
        with self._guard:
            if self._socket.fileno() < 0:
                return
            try:
                self._writer.put(segments)
                while not self._writer.send(self._socket.sendmsg):
                    pass
            except OSError:  # it is gone, or does not read
                self._socket.close()


class CallOutput(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr`` where calls run, and sends what they print.

    Parameters
    ----------
    output
        Where to send it.
    name
        Which of the two it is.
    """

    def __init__(self, output: Output, name: Name) -> None:
        self._output = output
        self._name: Name = name
        self.pieces: list[str] = []
        self._length = 0
        self._kept_for = 0  # the call that has printed them

    @property
    def call_id(self) -> int:
        """The call that whoever asks belongs to."""
        call = call_of_here()
        return self._output.innermost if call is None else call._call_id  # noqa: SLF001

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Text is sent as it is; this is what others ask for."""
        return "utf-8"

    def writable(self) -> bool:
        """Whether it can be written to: yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the process's own stream: a subprocess writes there."""
        stream = sys.__stdout__ if self._name == "stdout" else sys.__stderr__
        if stream is None:
            raise io.UnsupportedOperation
        return stream.fileno()

    def write(self, text: str) -> int:
        """Keep a text until its line ends, or there is enough of it."""
        if not isinstance(text, str):
            msg = f"write() argument must be str, not {type(text).__name__}"
            raise TypeError(msg)
        here = context_of_here()
        output = self._output
        if here is None:
            if not output.innermost:  # a stream of a call that somebody has kept
                return streams_of_cells[self._name].write(text)
            call_id = output.innermost
        elif here._output is output:  # noqa: SLF001 - one idea in two modules
            call_id = here._call_id  # noqa: SLF001
        else:  # of a cell, or of another lane's call
            return _stream_of(here, self._name).write(text)
        with output.guard:
            if call_id != self._kept_for:
                self._send()
                self._kept_for = call_id
            output.take_in()
            self.pieces.append(text)
            self._length += len(text)
            if "\n" in text or "\r" in text or self._length >= OUTPUT_CHUNK:
                self._send()
        return len(text)

    def flush(self) -> None:
        """Send what is kept."""
        with self._output.guard:
            self._output.take_in()
            self._send()

    def _send(self) -> None:
        if not self.pieces:
            return
        pieces, self.pieces, self._length = self.pieces, [], 0
        self._output.print(self._kept_for, self._name, "".join(pieces))

    def drop_pieces(self) -> None:
        """Forget what is kept."""
        self.pieces, self._length = [], 0

    def flush_pieces(self) -> None:
        """Send what is kept, ahead of what was written past it."""
        self._send()

    def send(self, message: messages.Progress) -> None:
        """Send what else a call shows, behind what was sent before; late it has no place."""
        if self._output.runs(message.id):
            self._output.lane.send(pack(messages.encode(message)))


class Output:
    """What the calls of one lane show.

    Parameters
    ----------
    lane, number
        Where to send it, and which of the worker's lanes that is.
    late
        Where to send what comes when the call has ended.
    descriptors
        Those of the process, for a lane whose calls run one at a time.

    Attributes
    ----------
    guard
        Held by who prints, or takes in what was written to the descriptors: one at a time.
    innermost
        The call that has begun last, of those that run; 0 for none.
    """

    def __init__(
        self, lane: WorkerLane, number: int, late: Late, descriptors: Descriptors | None = None
    ) -> None:
        self.lane = lane
        self.guard = RLock()
        self.innermost = 0
        self.stdout = CallOutput(self, "stdout")
        self.stderr = CallOutput(self, "stderr")
        self._number = number
        self._late = late
        self._descriptors = descriptors
        self._calls: list[int] = []  # each was made while the one before runs
        os.register_at_fork(after_in_child=self._begin_in_child)

    def _begin_in_child(self) -> None:
        """Leave to the parent, in a forked child, what is kept, and what the descriptors bring."""
        self.guard = RLock()
        self._descriptors = None
        self.stdout.drop_pieces()
        self.stderr.drop_pieces()

    def begin(self, call_id: int) -> None:
        """Send what a call shows from now on."""
        if self._calls:
            self.flush()
        self._calls.append(call_id)
        self.innermost = call_id

    def end(self, call_id: int) -> None:
        """Send what is left of a call's output; what still comes of it comes late."""
        self.flush()
        if call_id in self._calls:
            self._calls.remove(call_id)
        self.innermost = self._calls[-1] if self._calls else 0

    def runs(self, call_id: int) -> bool:
        """Whether a call has begun here, and not ended."""
        return call_id in self._calls

    def flush(self) -> None:
        """Send what is kept."""
        with self.guard:
            if self._descriptors is not None:
                self._descriptors.take_in()
            if self.stdout.pieces or self.stderr.pieces:
                self.stdout.flush_pieces()
                self.stderr.flush_pieces()

    def synchronize(self) -> None:
        """Show what was written to the process's descriptors so far."""
        with self.guard:
            self.take_in()

    def take_in(self) -> None:
        """Do the same under the guard."""
        if self._descriptors is not None:
            self._descriptors.take_in()

    def print(self, call_id: int, name: Name, text: str) -> None:
        """Send a text of a call."""
        text = messages.sendable(text)
        if children.is_child:  # it has no lane; its parent reads what its subprocesses print
            _write_all((self.stdout if name == "stdout" else self.stderr).fileno(), text.encode())
            return
        for start in range(0, len(text), OUTPUT_MOST):
            part = text[start : start + OUTPUT_MOST]
            if call_id in self._calls:
                self.lane.send(pack(messages.encode(messages.Output(call_id, name, part))))
            else:
                message = messages.Late("stream", lane=self._number, call=call_id)
                self._late.print(message, name, part)

    def show(
        self, call_id: int, kind: str, body: bytes, buffers: Sequence[memoryview] = ()
    ) -> None:
        """Send something rich of a call, behind what it has printed."""
        self.flush()
        if call_id in self._calls:
            message = messages.Shown(call_id, kind)
            self.lane.send(pack(messages.encode(message), body, buffers))
        else:
            late = messages.Late(kind, lane=self._number, call=call_id)
            self._late.show(late, body, buffers)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give way for a moment to who changes the streams of the process."""
        yield


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class RedirectedOutput(Output):
    """The same where one call runs at a time: it finds its streams in ``sys``.

    It has what is written to the process's descriptors, too.
    """

    def __init__(
        self, lane: WorkerLane, number: int, late: Late, descriptors: Descriptors | None = None
    ) -> None:
        super().__init__(lane, number, late, descriptors)
        self._last_call = 0  # since when no cell has begun
        self._saved: list[tuple[Any, Any]] = []
        if descriptors is not None:
            descriptors.give_to(lambda: self.guard, self._take)

    def begin_cell(self) -> None:
        """Give a cell what is written to the descriptors from now on."""
        with self.guard:
            self.take_in()
            self._last_call = 0

    def leave_descriptors_to_cells(self, is_served: Callable[[], bool]) -> None:
        """Show what is written there while a cell runs alone: calls run elsewhere, many at once."""
        self._cell_is_served = is_served
        assert self._descriptors is not None
        self._descriptors.give_to(lambda: self.guard, self._take_for_cells)

    def begin(self, call_id: int) -> None:
        """Send what a call shows from now on."""
        super().begin(call_id)
        self._last_call = call_id
        self._saved.append((sys.stdout, sys.stderr))
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    def end(self, call_id: int) -> None:
        """Send what is left of a call's output, and go back to the streams that were there."""
        if self._calls == [call_id]:  # as mostly
            self.flush()
            sys.stdout, sys.stderr = self._saved.pop()
            self._calls.pop()
            self.innermost = 0
            return
        if call_id in self._calls:
            place = self._calls.index(call_id)
            saved = self._saved.pop(place)
            if place == len(self._calls) - 1:
                sys.stdout, sys.stderr = saved
            else:  # a later one still runs, whose turn to go back it will be
                self._saved[place] = saved
        super().end(call_id)

    def _take(self, name: str, text: str) -> None:
        """Show what was written to a descriptor, where the work that has begun last is shown."""
        if self._last_call:
            self.stdout.flush_pieces()
            self.stderr.flush_pieces()
            if self.innermost:
                self.print(self.innermost, cast("Name", name), text)
            else:
                self._late.show(self._late_message("stream"), messages.as_text(name, text))
        else:
            _print_in_cell(cast("Name", name), text)

    def _take_for_cells(self, name: str, text: str) -> None:
        """Show what was written to a descriptor while a cell runs; the log has it in any case."""
        if self._cell_is_served():
            _print_in_cell(cast("Name", name), text)

    def _late_message(self, kind: str) -> messages.Late:
        return messages.Late(kind, lane=self._number, call=self._last_call)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give way for a moment to who changes the streams of the process."""
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


class RoutedOutput(Output):
    """The same where calls run in several threads at once: each call's text goes its own way."""

    def begin(self, call_id: int) -> None:
        """Send what a call shows from now on."""
        route_streams()
        super().begin(call_id)


streams_of_cells: dict[Name, TextIO] = {}
"""What cells print to, once they can run; until then the streams of the process."""


def route_streams() -> None:
    """Have ``sys.stdout`` and ``sys.stderr`` hand on what a call, or its thread, prints there."""
    for name in NAMES:
        stream = getattr(sys, name)
        if not isinstance(stream, (_Router, WorkerStream, CallOutput)):
            setattr(sys, name, _Router(name, stream))


def note_streams_of_cells() -> None:
    """Take the streams that are there now for those of cells."""
    streams_of_cells.update({name: getattr(sys, name) for name in NAMES})


def output_of_call(stream: object) -> CallOutput | None:
    """Return the output of a call that a stream is, or hands on to at the moment; else None."""
    if isinstance(stream, CallOutput):
        return stream
    if not isinstance(stream, (_Router, WorkerStream)):
        return None
    call = call_of_here()
    return None if call is None else _call_stream(call, cast("Name", stream.name))


def _print_in_cell(name: Name, text: str) -> None:
    stream = streams_of_cells[name]
    if isinstance(stream, WorkerStream):
        stream.write(text)


class StreamKeeper:
    """Tells the streams of cells what of their text belongs to calls.

    Parameters
    ----------
    output
        Of the calls that run one at a time.
    logs
        Descriptors of the worker's log.
    """

    def __init__(self, output: Output, logs: dict[str, int]) -> None:
        self.logs = logs
        self._output = output

    def take(self, name: str, text: str) -> bool:
        """Take a text if it is a call, or its thread, that prints."""
        call = call_of_here()
        stream = None if call is None else _call_stream(call, cast("Name", name))
        if stream is None:
            return False
        stream.write(text)
        return True

    def take_in(self) -> None:
        """Take in what was written to the descriptors so far."""
        self._output.synchronize()


def _call_stream(call: SessionContext, name: Name) -> CallOutput | None:
    output: Output | None = call._output  # noqa: SLF001 - one idea in two modules
    if output is None:
        return None
    return output.stdout if name == "stdout" else output.stderr


def _stream_of(context: SessionContext, name: Name) -> TextIO:
    return cast("TextIO", _call_stream(context, name) or streams_of_cells[name])


class _Router(io.TextIOBase):
    """Stands in for a standard stream, and hands on to that of the running call."""

    def __init__(self, name: Name, otherwise: TextIO) -> None:
        self.name = name
        self._otherwise = otherwise

    @property
    def _target(self) -> Any:
        call = call_of_here()
        return (None if call is None else _call_stream(call, self.name)) or self._otherwise

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

    def __getattr__(self, name: str) -> Any:
        """Have what the process's own stream has: its buffer, for example."""
        return getattr(self._otherwise, name)
