"""Frames: what goes in comes out, however it is chopped and whatever interrupts it."""

from __future__ import annotations

import random
import signal
import socket
import struct
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.protocol.frames import (
    STAGING_BYTES,
    Frame,
    FrameError,
    FrameReader,
    FrameWriter,
    pack,
)

small = st.binary(max_size=200)
any_size = st.one_of(small, st.integers(1, 3 * STAGING_BYTES).map(lambda n: b"\xa5" * n))
frames = st.tuples(small, any_size, st.lists(any_size, max_size=4))


class Source:
    """Gives bytes in the pieces that a test wants."""

    def __init__(self, data: bytes, pieces: list[int]) -> None:
        self.data = data
        self.pieces = pieces

    def recv_into(self, room: memoryview) -> int:
        count = min(len(room), len(self.data), self.pieces.pop(0) if self.pieces else len(room))
        room[:count] = self.data[:count]
        self.data = self.data[count:]
        return count


def as_bytes(header: bytes, body: bytes, buffers: list[bytes]) -> bytes:
    return b"".join(bytes(part) for part in pack(header, body, [memoryview(b) for b in buffers]))


def plain(frame: Frame) -> tuple[bytes, bytes, list[bytes]]:
    return bytes(frame.header), bytes(frame.body), [bytes(buffer) for buffer in frame.buffers]


def read_all(reader: FrameReader, source: Source) -> list[tuple[bytes, bytes, list[bytes]]]:
    found = []
    while not reader.at_end:
        while (frame := reader.next_frame()) is not None:
            found.append(plain(frame))
        reader.receive(source.recv_into)
    return found


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 100_000), max_size=60))
def test_frames_come_out_as_they_went_in_however_they_are_chopped(sent, pieces):
    data = b"".join(as_bytes(*frame) for frame in sent)

    received = read_all(FrameReader(), Source(data, pieces))

    assert received == [(header, body, list(buffers)) for header, body, buffers in sent]


@given(st.lists(frames, min_size=1, max_size=4), st.lists(st.integers(1, 70_000), max_size=40))
def test_a_writer_sends_every_byte_once_however_little_the_socket_takes(sent, taken):
    writer, written = FrameWriter(), bytearray()

    def sendmsg(segments):
        data = b"".join(bytes(memoryview(segment).cast("B")) for segment in segments)
        count = min(len(data), taken.pop() if taken else len(data))
        written.extend(data[:count])
        return count

    for header, body, buffers in sent:
        writer.put(pack(header, body, [memoryview(b) for b in buffers]))
    while not writer.send(sendmsg):
        pass

    assert bytes(written) == b"".join(as_bytes(*frame) for frame in sent)


def test_buffers_are_writable_where_they_arrive():
    reader = FrameReader()
    source = Source(as_bytes(b"h", b"", [b"abc", bytes(STAGING_BYTES)]), [])
    while (frame := reader.next_frame()) is None:
        reader.receive(source.recv_into)

    frame.buffers[0][0] = 0
    frame.buffers[1][0] = 1

    assert (frame.buffers[0][0], frame.buffers[1][0]) == (0, 1)


def test_bytes_that_are_no_frame_are_refused_before_anything_is_allocated():
    reader = FrameReader()
    reader.receive(Source(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", []).recv_into)

    with pytest.raises(FrameError, match="is no frame"):
        reader.next_frame()


class Interrupt(Exception):
    """Raised by a signal handler at any moment, as Ctrl-C is."""


@pytest.mark.timeout(30)  # a stream that lost count hangs
def test_exceptions_at_any_moment_leave_the_stream_whole():
    """The main thread echoes frames while an alarm raises in it hundreds of times."""
    ours, theirs = socket.socketpair()
    rounds, sizes = 60, (10, 5_000, 200_000)
    payloads = [bytes([n % 251]) * sizes[n % 3] for n in range(rounds)]
    interrupts = 0
    armed = False

    def echo() -> None:
        reader = FrameReader()
        while not reader.at_end:
            while (frame := reader.next_frame()) is not None:
                for part in pack(bytes(frame.header), bytes(frame.body)):
                    theirs.sendall(part)
            reader.receive(theirs.recv_into)

    def ring(*_: object) -> None:
        if armed:
            raise Interrupt

    echoing = threading.Thread(target=echo)
    echoing.start()
    reader, writer, received = FrameReader(), FrameWriter(), []
    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
        for number, payload in enumerate(payloads):
            writer.put(pack(str(number).encode(), payload))
            frame = None
            while frame is None:
                try:
                    armed = True
                    if writer.send(ours.sendmsg):  # what was interrupted is simply taken up again
                        reader.receive(ours.recv_into)
                    armed = False
                except Interrupt:
                    armed = False
                    interrupts += 1
                frame = reader.next_frame()
            received.append(plain(frame)[:2])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        ours.close()
        echoing.join()  # the other thread may have taken the last alarm: that is not pytest's
        signal.signal(signal.SIGALRM, previous)
        theirs.close()

    assert received == [(str(n).encode(), payload) for n, payload in enumerate(payloads)]
    assert interrupts > 10, "the alarm must have rung, or nothing was tested"


@pytest.mark.parametrize("when", ["before its system call", "after its system call"])
@pytest.mark.parametrize("way", ["put and send", "send_whole"])
def test_a_send_may_be_interrupted_by_another_one(way, when):
    """A signal handler or a finalizer prints in the middle of a send: each is sent, and once."""
    writer = FrameWriter()
    sent: list[bytes] = []

    def send(data: bytes, _flags: int = 0) -> int:
        sent.append(data)
        return len(data)

    def sendmsg(segments):
        return send(b"".join(segments))

    class Interrupted(list):
        """The list that system calls put their counts into; the first is interrupted."""

        def extend(self, counts):
            if writer.taken > 1:
                super().extend(counts)
            elif when == "before its system call":
                self.interrupt()
                super().extend(counts)
            else:
                super().extend(counts)
                self.interrupt()

        def interrupt(self):
            writer.put([b" inner"])
            assert writer.send(sendmsg)

    writer._counts = Interrupted()

    if way == "send_whole":
        assert writer.send_whole(b"outer", send)
    else:
        writer.put([b"outer"])
        assert writer.send(sendmsg)
    assert b"".join(sent) == b"outer inner"
    assert writer.send(sendmsg)
    assert b"".join(sent) == b"outer inner"


def announced(header: int, body: int, *buffers: int) -> bytes:
    return struct.pack(f"<IIQ{len(buffers)}Q", header, len(buffers), body, *buffers)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(announced(10, 1 << 40), id="body"),
        pytest.param(announced(10, 1 << 63), id="body that is negative with a sign"),
        pytest.param(announced(10, (1 << 64) - 1), id="largest body"),
        pytest.param(announced(10, 0, 1 << 40), id="buffer"),
        pytest.param(announced(10, 0, 1 << 63, 1 << 63), id="buffers whose sum is 0 in 64 bits"),
        pytest.param(announced(10, 600, *[100] * 5), id="sum of all"),
        pytest.param(announced((1 << 24) + 1, 0), id="header"),
        pytest.param(announced(10, 0)[:4] + b"\xff" * 4 + bytes(8), id="number of buffers"),
    ],
)
def test_a_frame_that_announces_too_much_is_refused_before_anything_is_allocated(data):
    reader = FrameReader(max_bytes=1000)
    reader.receive(Source(data, []).recv_into)

    tracemalloc.start()
    with pytest.raises(FrameError, match="no frame"):
        reader.next_frame()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 50_000


def test_a_frame_of_just_the_size_that_is_allowed_is_read():
    body, buffers = bytes(70_000), [bytes(30_000)] * 2
    data = as_bytes(b"h" * 1000, body, buffers)

    assert read_all(FrameReader(max_bytes=130_000), Source(data, []))[0][1] == body
    with pytest.raises(FrameError):
        read_all(FrameReader(max_bytes=129_999), Source(data, []))


def test_random_prefixes_are_refused_or_waited_for_and_never_allocate_more_than_is_allowed():
    chance = random.Random(20261128)
    refused = 0
    tracemalloc.start()
    for _ in range(3000):
        size = [chance.choice([0, 10, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 63]) for _ in "abc"]
        header, body, buffer = (chance.randrange(each + 1) for each in size)
        count = chance.choice([0, 1, 2, 4096, 4097])
        data = struct.pack("<IIQ", min(header, (1 << 32) - 1), count, body)
        data += struct.pack("<Q", buffer) * min(count, chance.choice([count, 3]))
        reader = FrameReader(max_bytes=1 << 20)
        try:
            reader.receive(Source(data + chance.randbytes(chance.randrange(99)), []).recv_into)
            reader.next_frame()
        except FrameError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert refused > 300
    assert peak < (1 << 24) + (1 << 22)  # a header, and what is allowed beside it
