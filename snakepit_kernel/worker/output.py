"""Output of calls in a worker: sent over the lane while a call runs, over a second socket later."""

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
from ..printable import sendable
from ..processes import children
from ..protocol import messages
from ..protocol.frames import FrameWriter, Segment, pack
from ..tools.context import SessionContext, call_of_here, context_of_here
from .descriptors import Descriptors

OUTPUT_CHUNK = 8192
"""Characters of buffered output at which it is sent."""

MAX_OUTPUT_CHARACTERS = 1 << 20
"""Characters of output in one message, at most."""

LATE_TIMEOUT = 5.0
"""Seconds that the owner may take to read late output; after that no more is sent."""

Name = Literal["stdout", "stderr"]

NAMES: tuple[Name, Name] = ("stdout", "stderr")


class LateSender:
    """Sends the owner the output of calls and cells that have ended.

    Parameters
    ----------
    sock
        The worker's end of the socket that the owner always reads.
    descriptors
        Its log gets the text, too: the owner may have no cell to show it in any more.
    """

    def __init__(self, sock: socket.socket, descriptors: Descriptors) -> None:
        self._socket = sock
        self._socket.settimeout(LATE_TIMEOUT)
        descriptors.send_read_ends(sock)
        self._descriptors = descriptors
        self._writer = FrameWriter()
        self._guard = RLock()
        os.register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        """Close the socket in a forked child: two writers would corrupt the stream."""
        self._guard = RLock()
        self._socket.close()

    def show(self, message: messages.Late, body: bytes, buffers: Sequence[memoryview] = ()) -> None:
        """Send a display message."""
        self._send(pack(messages.encode(message), body, buffers))

    def print(self, message: messages.Late, stream: str, text: str) -> None:
        """Log and send a text."""
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
            except OSError:  # the owner is gone, or does not read
                self._socket.close()


class CallOutput(io.TextIOBase):
    """Replacement of ``sys.stdout`` or ``sys.stderr`` for calls, which sends what they print.

    Parameters
    ----------
    output
        Sends it.
    name
        The stream that it replaces.
    """

    def __init__(self, output: Output, name: Name) -> None:
        self._output = output
        self._name: Name = name
        self.pieces: list[str] = []
        self._length = 0
        self._pieces_call = 0  # the call that has printed the pieces

    @property
    def call_id(self) -> int:
        """The call that the calling code belongs to."""
        call = call_of_here()
        return self._output.innermost if call is None else call._call_id  # noqa: SLF001

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The nominal encoding: text is sent as it is."""
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
        """Buffer a text until its line ends, or `OUTPUT_CHUNK` characters are there."""
        if not isinstance(text, str):
            msg = f"write() argument must be str, not {type(text).__name__}"
            raise TypeError(msg)
        here = context_of_here()
        output = self._output
        if here is None:
            if not output.innermost:  # the call has ended, and other code has kept its stream
                return cell_streams[self._name].write(text)
            call_id = output.innermost
        elif here._output is output:  # noqa: SLF001 - one idea in two modules
            call_id = here._call_id  # noqa: SLF001
        else:  # from a cell, or a call of another lane
            return _stream_of(here, self._name).write(text)
        with output.guard:
            if call_id != self._pieces_call:
                self._send()
                self._pieces_call = call_id
            output.take_in()
            self.pieces.append(text)
            self._length += len(text)
            if "\n" in text or "\r" in text or self._length >= OUTPUT_CHUNK:
                self._send()
        return len(text)

    def flush(self) -> None:
        """Send what is buffered."""
        with self._output.guard:
            self._output.take_in()
            self._send()

    def _send(self) -> None:
        if not self.pieces:
            return
        pieces, self.pieces, self._length = self.pieces, [], 0
        self._output.print(self._pieces_call, self._name, "".join(pieces))

    def discard_pieces(self) -> None:
        """Discard what is buffered."""
        self.pieces, self._length = [], 0

    def flush_pieces(self) -> None:
        """Send what is buffered, before text that was written to the descriptor."""
        self._send()

    def send(self, message: messages.Progress) -> None:
        """Send the state of a progress bar, if its call still runs."""
        if self._output.runs(message.id):
            self._output.lane.send(pack(messages.encode(message)))


class Output:
    """Output of the calls of one lane: text, displays and progress.

    Parameters
    ----------
    lane, number
        The lane, and its number among the worker's lanes.
    late
        Sends output of calls that have ended.
    descriptors
        Captured text of the process, for a lane whose calls run one at a time.

    Attributes
    ----------
    guard
        Lock held while text is printed or read from the descriptors.
    innermost
        The running call that has begun last; 0 for none.
    """

    def __init__(
        self,
        lane: WorkerLane,
        number: int,
        late: LateSender,
        descriptors: Descriptors | None = None,
    ) -> None:
        self.lane = lane
        self.guard = RLock()
        self.innermost = 0
        self.stdout = CallOutput(self, "stdout")
        self.stderr = CallOutput(self, "stderr")
        self._number = number
        self._late = late
        self._descriptors = descriptors
        self._calls: list[int] = []  # running, each nested in the one before
        os.register_at_fork(after_in_child=self._reset_in_child)

    def _reset_in_child(self) -> None:
        """Discard the buffers in a forked child, and the descriptors: they are the parent's."""
        self.guard = RLock()
        self._descriptors = None
        self.stdout.discard_pieces()
        self.stderr.discard_pieces()

    def begin(self, call_id: int) -> None:
        """Begin to send the output of a call."""
        if self._calls:
            self.flush()
        self._calls.append(call_id)
        self.innermost = call_id

    def end(self, call_id: int) -> None:
        """Send the rest of a call's output; what follows is late output."""
        self.flush()
        if call_id in self._calls:
            self._calls.remove(call_id)
        self.innermost = self._calls[-1] if self._calls else 0

    def runs(self, call_id: int) -> bool:
        """Whether a call has begun on this lane, and not ended."""
        return call_id in self._calls

    def flush(self) -> None:
        """Send what is buffered."""
        with self.guard:
            if self._descriptors is not None:
                self._descriptors.read_available()
            if self.stdout.pieces or self.stderr.pieces:
                self.stdout.flush_pieces()
                self.stderr.flush_pieces()

    def synchronize(self) -> None:
        """Show the text written to the process's descriptors so far."""
        with self.guard:
            self.take_in()

    def take_in(self) -> None:
        """Do the same as `synchronize`; the caller holds the guard."""
        if self._descriptors is not None:
            self._descriptors.read_available()

    def print(self, call_id: int, name: Name, text: str) -> None:
        """Send text that a call has printed."""
        text = sendable(text)
        if children.is_child:  # it has no lane; the parent reads what it writes to the descriptor
            _write_all((self.stdout if name == "stdout" else self.stderr).fileno(), text.encode())
            return
        for start in range(0, len(text), MAX_OUTPUT_CHARACTERS):
            part = text[start : start + MAX_OUTPUT_CHARACTERS]
            if call_id in self._calls:
                self.lane.send(pack(messages.encode(messages.Output(call_id, name, part))))
            else:
                message = messages.Late("stream", lane=self._number, call=call_id)
                self._late.print(message, name, part)

    def show(
        self, call_id: int, kind: str, body: bytes, buffers: Sequence[memoryview] = ()
    ) -> None:
        """Send a display message of a call, after the text it has printed."""
        self.flush()
        if call_id in self._calls:
            message = messages.Shown(call_id, kind)
            self.lane.send(pack(messages.encode(message), body, buffers))
        else:
            late = messages.Late(kind, lane=self._number, call=call_id)
            self._late.show(late, body, buffers)

    @contextlib.contextmanager
    def original_streams(self) -> Iterator[None]:
        """Restore the original streams of the process for a moment; here they are in place."""
        yield


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class RedirectedOutput(Output):
    """Output of calls that run one at a time: ``sys.stdout`` and ``sys.stderr`` are replaced.

    It includes text written to the process's descriptors.
    """

    def __init__(
        self,
        lane: WorkerLane,
        number: int,
        late: LateSender,
        descriptors: Descriptors | None = None,
    ) -> None:
        super().__init__(lane, number, late, descriptors)
        self._last_call = 0  # 0 once a cell has begun after it
        self._saved: list[tuple[Any, Any]] = []
        if descriptors is not None:
            descriptors.set_consumer(lambda: self.guard, self._show_text)

    def begin_cell(self) -> None:
        """Show in the cell what is written to the descriptors from now on."""
        with self.guard:
            self.take_in()
            self._last_call = 0

    def show_descriptors_in_cells(self, is_served: Callable[[], bool]) -> None:
        """Show descriptor text only while a cell runs: concurrent calls run in other threads."""
        self._is_cell_served = is_served
        assert self._descriptors is not None
        self._descriptors.set_consumer(lambda: self.guard, self._show_text_in_cell)

    def begin(self, call_id: int) -> None:
        """Begin to send the output of a call, and replace the streams."""
        super().begin(call_id)
        self._last_call = call_id
        self._saved.append((sys.stdout, sys.stderr))
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    def end(self, call_id: int) -> None:
        """Send the rest of a call's output, and restore the streams."""
        if self._calls == [call_id]:  # the usual case
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
            else:  # a later call still runs, and will restore them
                self._saved[place] = saved
        super().end(call_id)

    def _show_text(self, name: str, text: str) -> None:
        """Show text written to a descriptor with the call or cell that has begun last."""
        if self._last_call:
            self.stdout.flush_pieces()
            self.stderr.flush_pieces()
            if self.innermost:
                self.print(self.innermost, cast("Name", name), text)
            else:
                self._late.show(self._late_message("stream"), messages.as_text(name, text))
        else:
            _print_in_cell(cast("Name", name), text)

    def _show_text_in_cell(self, name: str, text: str) -> None:
        """Show text written to a descriptor while a cell runs; it is logged in any case."""
        if self._is_cell_served():
            _print_in_cell(cast("Name", name), text)

    def _late_message(self, kind: str) -> messages.Late:
        return messages.Late(kind, lane=self._number, call=self._last_call)

    @contextlib.contextmanager
    def original_streams(self) -> Iterator[None]:
        """Restore the original streams of the process for a moment."""
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
    """Output of calls that run in several threads at once: each call has its own streams."""

    def begin(self, call_id: int) -> None:
        """Begin to send the output of a call."""
        route_streams()
        super().begin(call_id)


cell_streams: dict[Name, TextIO] = {}
"""The streams that cells print to, once they can run; until then those of the process."""


def route_streams() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` forward what a call, or its thread, prints."""
    for name in NAMES:
        stream = getattr(sys, name)
        if not isinstance(stream, (_StreamRouter, WorkerStream, CallOutput)):
            setattr(sys, name, _StreamRouter(name, stream))


def record_cell_streams() -> None:
    """Record the present streams as those of cells."""
    cell_streams.update({name: getattr(sys, name) for name in NAMES})


def output_of_call(stream: object) -> CallOutput | None:
    """Return the output of a call that a stream is, or forwards to at the moment; else None."""
    if isinstance(stream, CallOutput):
        return stream
    if not isinstance(stream, (_StreamRouter, WorkerStream)):
        return None
    call = call_of_here()
    return None if call is None else _call_stream(call, cast("Name", stream.name))


def _print_in_cell(name: Name, text: str) -> None:
    stream = cell_streams[name]
    if isinstance(stream, WorkerStream):
        stream.write(text)


class StreamKeeper:
    """Diverts text from the streams of cells that calls have printed there.

    Parameters
    ----------
    output
        The output of the calls that run one at a time.
    logs
        Descriptors of the worker's log.
    """

    def __init__(self, output: Output, logs: dict[str, int]) -> None:
        self.logs = logs
        self._output = output

    def take(self, name: str, text: str) -> bool:
        """Write a text to its call's output, if a call or its thread prints; return whether so."""
        call = call_of_here()
        stream = None if call is None else _call_stream(call, cast("Name", name))
        if stream is None:
            return False
        stream.write(text)
        return True

    def take_in(self) -> None:
        """Show the text written to the descriptors so far."""
        self._output.synchronize()


def _call_stream(call: SessionContext, name: Name) -> CallOutput | None:
    output: Output | None = call._output  # noqa: SLF001 - one idea in two modules
    if output is None:
        return None
    return output.stdout if name == "stdout" else output.stderr


def _stream_of(context: SessionContext, name: Name) -> TextIO:
    return cast("TextIO", _call_stream(context, name) or cell_streams[name])


class _StreamRouter(io.TextIOBase):
    """Replacement of a standard stream, which forwards to that of the running call."""

    def __init__(self, name: Name, default: TextIO) -> None:
        self.name = name
        self._default = default

    @property
    def _target(self) -> Any:
        call = call_of_here()
        return (None if call is None else _call_stream(call, self.name)) or self._default

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the target stream."""
        return str(self._target.encoding)

    def writable(self) -> bool:
        """Whether it can be written to: yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the target stream."""
        return int(self._target.fileno())

    def write(self, text: str) -> int:
        """Forward a text."""
        return int(self._target.write(text))

    def flush(self) -> None:
        """Flush the target stream."""
        self._target.flush()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the process's own stream: its buffer, for example."""
        return getattr(self._default, name)
