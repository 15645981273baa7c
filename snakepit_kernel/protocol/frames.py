"""Frames: the encoding of messages and their values on a stream of bytes.

A frame is a prefix of 16 bytes (length of the header, number of buffers, length of the body, all
little endian), the length of each buffer, the header (a message), the body (a pickle) and the
buffers (what the pickle holds out of band).

Reader and writer survive an exception between any two of their steps. Ctrl-C may raise
KeyboardInterrupt after a system call has moved bytes and before Python has stored how many; a
stream that loses count is lost. So a count goes straight from the system call into a list
(``list.extend(map(...))`` runs in C, where no signal handler does), and states are replaced by
assignments without a call between them, where CPython runs no handler either. A handler may send
as well, between the creation of the ``map`` and its use: it empties the list that this iterates.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

_PREFIX = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<Q")

STAGING_BYTES = 1 << 16
"""Frames up to this size are read through one buffer that is reused."""

MAX_HEADER_BYTES = 1 << 24
MAX_BUFFERS = 4096
MAX_BYTES = 1 << 32
"""Default limit of a frame's body and buffers together."""

MAX_SEGMENTS = 512
"""Segments in one system call; Linux accepts 1024."""

Segment = bytes | bytearray | memoryview


class FrameError(ValueError):
    """The bytes are not a frame: the peer is not one of ours, or the stream is damaged."""


class Frame(NamedTuple):
    """A received frame.

    Attributes
    ----------
    header
        An encoded message.
    body
        A pickle, or nothing.
    buffers
        What the pickle holds out of band; writable.
    """

    header: bytes | memoryview
    body: bytes | memoryview
    buffers: list[bytearray]


def pack(header: bytes, body: bytes = b"", buffers: Sequence[memoryview] = ()) -> list[Segment]:
    """Lay out a frame as segments for one scattered write. Large parts are not copied."""
    prefix = _PREFIX.pack(len(header), len(buffers), len(body))
    if not buffers and len(body) < STAGING_BYTES:  # the usual case
        return [prefix + header + body]
    lengths = b"".join(_LENGTH.pack(buffer.nbytes) for buffer in buffers)
    if len(body) < STAGING_BYTES:
        return [prefix + lengths + header + body, *buffers]
    return [prefix + lengths + header, body, *buffers]


def header_of(segments: Sequence[Segment]) -> bytes:
    """Return the header of a frame that `pack` has made."""
    first = bytes(segments[0])
    length, buffer_count, _ = _PREFIX.unpack_from(first)
    start = _PREFIX.size + _LENGTH.size * buffer_count
    return first[start : start + length]


class FrameReader:
    """Parser of a stream: receives bytes, returns frames.

    Parameters
    ----------
    max_bytes
        Limit of a frame's body and buffers together. Nothing is allocated for one that announces
        more.
    keeps_frames
        Whether `next_frame` returns the same frame until `unrouted` is set to None: so no frame is
        lost to an exception between two steps of whoever takes it.

    Attributes
    ----------
    at_end
        Whether the stream has ended.
    unrouted
        The frame that was returned last, where frames are kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, *, keeps_frames: bool = False) -> None:
        self.max_bytes = max_bytes
        self.unrouted: Frame | None = None
        self._keeps_frames = keeps_frames
        self._staging = bytearray(STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._start = 0  # of the bytes in the staging buffer that are not consumed
        self._end = 0
        self._large: _LargeFrame | None = None
        self._counts: list[int] = []
        self.at_end = False

    @property
    def is_empty(self) -> bool:
        """Whether all bytes received have been returned as frames, and routed."""
        nothing_left = self._start == self._end and self._large is None and not self._counts
        return nothing_left and self.unrouted is None

    def receive(self, recv_into: Callable[[memoryview], int]) -> None:
        """Make one system call that receives, and account for its bytes.

        Parameters
        ----------
        recv_into
            Receives into a buffer, and returns the number of bytes, 0 at the end of the stream.
            It must be implemented in C (see the module's docstring).
        """
        if self._counts:
            self._account()
        if self._start == self._end and self._large is None:
            self._start = self._end = 0
            room = self._view
        else:
            room = self._free_space()
        counts = self._counts
        fresh: list[int] = []
        counts.extend(map(recv_into, (room,)))
        count = counts[0]
        if count and self._large is None:
            self._counts = fresh
            self._end += count
        else:
            self._account()

    def peek(self) -> tuple[bytes, bytes, int] | None:
        """Return header and body of the next frame, and the argument of `consume`.

        None when it is not there as a whole, is large, or has buffers; `next_frame` gives them all.
        """
        start = self._start + _PREFIX.size
        if self.unrouted is not None or self._counts or self._large is not None:
            return None
        if start > self._end:
            return None
        header_length, buffer_count, body_length = _PREFIX.unpack_from(self._staging, self._start)
        middle = start + header_length
        end = middle + body_length
        if buffer_count or end > self._end:
            return None
        return bytes(self._view[start:middle]), bytes(self._view[middle:end]), end

    def consume(self, end: int) -> None:
        """Remove the frame that `peek` returned."""
        self._start = end

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None.

        Raises
        ------
        FrameError
            The bytes are no frame.
        """
        if self.unrouted is not None:
            return self.unrouted
        if self._counts:
            self._account()
        if self._large is not None:
            return self._next_large_frame(self._large)
        start = self._start
        available = self._end - start
        if available < _PREFIX.size:
            return None
        header_length, buffer_count, body_length = _PREFIX.unpack_from(self._staging, start)
        if header_length > MAX_HEADER_BYTES or buffer_count > MAX_BUFFERS:
            msg = f"a header of {header_length} bytes and {buffer_count} buffers is no frame"
            raise FrameError(msg)
        if buffer_count:
            return self._next_frame_with_buffers(header_length, buffer_count, body_length)
        start += _PREFIX.size
        middle = start + header_length
        end = middle + body_length
        if end <= self._end:
            frame = Frame(bytes(self._view[start:middle]), bytes(self._view[middle:end]), [])
            self._start = end
            self.unrouted = frame if self._keeps_frames else None
            return frame
        self._expect([header_length, body_length], start)
        return None

    def _next_frame_with_buffers(
        self, header_length: int, buffer_count: int, body_length: int
    ) -> Frame | None:
        lengths_at = self._start + _PREFIX.size
        start = lengths_at + _LENGTH.size * buffer_count
        if start > self._end:
            return None
        sizes = struct.unpack_from(f"<{buffer_count}Q", self._staging, lengths_at)
        lengths = [header_length, body_length, *sizes]
        ends = list(accumulate(lengths, initial=start))
        if ends[-1] > self._end:
            self._expect(lengths, start)
            return None
        pieces = [self._view[a:b] for a, b in pairwise(ends)]
        buffers = [bytearray(piece) for piece in pieces[2:]]
        frame = Frame(bytes(pieces[0]), bytes(pieces[1]), buffers)
        self._start = ends[-1]
        self.unrouted = frame if self._keeps_frames else None
        return frame

    def _next_large_frame(self, large: _LargeFrame) -> Frame | None:
        if not large.is_complete:
            return None
        frame = large.frame()
        self._large = None
        self.unrouted = frame if self._keeps_frames else None
        return frame

    def _expect(self, lengths: list[int], start: int) -> None:
        """Read the rest of a frame into its own buffers, if the staging buffer is too small."""
        total = sum(lengths)
        if total - lengths[0] > self.max_bytes:  # here, because small frames do not pass here
            msg = f"{total} bytes are no frame: it may have {self.max_bytes}"
            raise FrameError(msg)
        if start - self._start + total > STAGING_BYTES:
            large = _LargeFrame(lengths, self._view[start : self._end])
            self._large = large
            self._start = self._end = 0

    def _free_space(self) -> memoryview:
        if self._large is not None:
            return self._large.free_space()
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > STAGING_BYTES // 2:
            rest = bytes(self._view[self._start : self._end])
            staging = bytearray(STAGING_BYTES)
            staging[: len(rest)] = rest
            view = memoryview(staging)
            end = len(rest)
            self._staging = staging
            self._view = view
            self._start = 0
            self._end = end
        return self._view[self._end :]

    def _account(self) -> None:
        """Account for the counts of finished system calls."""
        counts = self._counts
        if not counts:
            return
        fresh: list[int] = []
        count = counts[0]
        large = self._large
        if count == 0:
            self._counts = fresh
            self.at_end = True
        elif large is None:
            self._counts = fresh
            self._end += count
        else:
            self._counts = fresh
            large.filled += count


class _LargeFrame:
    """A frame that is read directly into its own buffers."""

    def __init__(self, lengths: list[int], begin: memoryview) -> None:
        self.parts = [bytearray(length) for length in lengths]
        self.total = sum(lengths)
        self.starts = list(accumulate(lengths, initial=0))
        self.filled = 0
        offset = 0
        for part in self.parts:
            piece = begin[offset : offset + len(part)]
            part[: len(piece)] = piece
            offset += len(piece)
        self.filled = offset

    @property
    def is_complete(self) -> bool:
        return self.filled == self.total

    def free_space(self) -> memoryview:
        for part, start in zip(self.parts, self.starts, strict=False):
            if self.filled < start + len(part):
                return memoryview(part)[self.filled - start :]
        msg = "a complete frame has no room"
        raise AssertionError(msg)

    def frame(self) -> Frame:
        header, body, *buffers = self.parts
        return Frame(memoryview(header), memoryview(body), buffers)


class FrameWriter:
    """Queue of frames to send, written to a socket piece by piece.

    Attributes
    ----------
    taken
        How often something was queued.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._outbox: Sequence[Segment] = ()
        self._batch: list[
            Any
        ] = []  # what the next system call sends; emptied by who sends it first
        self._counts: list[int] = []

    def put(self, segments: Sequence[Segment]) -> None:
        """Queue a frame after what is still unsent."""
        if self._counts:
            self._account()
        if not segments:
            return
        self._batch.clear()
        outbox = [*self._outbox, *segments] if self._outbox else segments
        self._outbox = outbox
        self.taken += 1

    def send(self, sendmsg: Callable[[Sequence[Segment]], int]) -> bool:
        """Make one system call that sends; return whether all has been sent.

        Parameters
        ----------
        sendmsg
            Sends segments, and returns the number of bytes it took. It must be implemented in C.
        """
        if self._counts:
            self._account()
        if not self._outbox:
            return True
        self._batch.clear()
        self._batch = batch = [self._outbox[:MAX_SEGMENTS]]
        self._counts.extend(map(sendmsg, batch))
        self._account()
        return not self._outbox

    def send_whole(self, frame: bytes, send: Callable[[bytes, int], int], flags: int = 0) -> bool:
        """Send a frame by one system call; return whether it and all before it was sent.

        Parameters
        ----------
        frame
            The frame; what is not sent of it is sent first the next time.
        send
            Sends bytes, and returns the number that it took. It must be implemented in C.
        flags
            What else it is told.
        """
        if self._counts or self._outbox:
            self.put([frame])
            return False
        size, counts = len(frame), self._counts
        fresh: list[int] = []
        self._batch = batch = [frame]
        self._outbox = (frame,)
        self.taken += 1
        counts.extend(map(send, batch, (flags,)))
        if counts == [size]:
            self._counts = fresh
            self._outbox = ()
            return True
        self._account()
        return not self._outbox

    def _account(self) -> None:
        """Account for the count of a finished system call."""
        counts = self._counts
        if not counts:  # code that interrupted this one has sent, and accounted for it
            return
        fresh: list[int] = []
        rest = _drop_bytes(self._outbox, counts[0])
        self._counts = fresh
        self._outbox = rest


def _drop_bytes(segments: Sequence[Segment], count: int) -> Sequence[Segment]:
    """Return segments less their first bytes."""
    for index, segment in enumerate(segments):
        size = segment.nbytes if isinstance(segment, memoryview) else len(segment)
        if count < size:
            rest = memoryview(segment).cast("B")[count:] if count else segment
            return [rest, *segments[index + 1 :]]
        count -= size
    return ()
