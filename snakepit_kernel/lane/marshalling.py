"""Encoding of values for one lane: large buffers in shared memory, all else in the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ..locks import Lock
from ..protocol import codec, messages
from ..protocol.codec import Codec
from ..protocol.frames import Frame, Segment, header_of, pack
from ..protocol.messages import SharedRegion
from .shared_memory import SHARE_FROM_BYTES, ArenaReader, ArenaWriter, Region

M = TypeVar("M", bound=messages.WithValue)


class Marshaller:
    """Encodes and decodes the values of one end of a lane.

    Parameters
    ----------
    outgoing, incoming
        The arenas of the two directions; None where there is no shared memory.

    Attributes
    ----------
    codec
        Pickles values; replaced in a worker when it is configured.
    is_warm
        Whether shared memory has been allocated that `trim` may release.
    """

    def __init__(self, outgoing: ArenaWriter | None, incoming: ArenaReader | None) -> None:
        self.codec = Codec()
        self.is_warm = False
        self._outgoing = outgoing
        self._incoming = incoming
        self._guard = Lock()  # threads of a tool may send, too

    def pack_value(self, message: messages.WithValue, value: object) -> list[Segment]:
        """Encode a message with a value, all of which can be pickled.

        Raises
        ------
        ValueTooLarge, Exception
            As `Codec.dumps`.
        """
        return self.pack(message, *self.codec.dumps(value))

    def pack(
        self, message: messages.WithValue, body: bytes, buffers: Sequence[memoryview]
    ) -> list[Segment]:
        """Encode a message with a value that is pickled already."""
        if buffers and self._outgoing is not None:
            shared = [self._share(buffer) for buffer in buffers]
            if any(shared):
                message = msgspec.structs.replace(message, shared=shared)
                pairs = zip(buffers, shared, strict=True)
                buffers = [buffer for buffer, place in pairs if place is None]
        return pack(messages.encode(message), body, buffers)

    def load(self, message: messages.WithValue, frame: Frame) -> Any:
        """Restore the value that came with a message; its buffers may be written to."""
        if not message.shared and not frame.buffers:
            return codec.loads(frame.body)
        rest = iter(frame.buffers)
        shared = message.shared or [None] * len(frame.buffers)
        return codec.loads(
            frame.body,
            [next(rest) if place is None else self._view(place) for place in shared],
        )

    def discard(self, message: messages.WithValue) -> None:
        """Release the shared memory of a received message whose value is not needed."""
        for place in message.shared:
            if place is not None:
                self._view(place)

    def reclaim(self, segments: Sequence[Segment]) -> None:
        """Release the shared memory of an encoded message that is not sent."""
        message = messages.decode_for_worker(header_of(segments))
        if isinstance(message, messages.WithValue) and self._outgoing is not None:
            for shared in message.shared:
                if shared is not None and not shared.is_yours:
                    with self._guard:
                        self._outgoing.reclaim(Region(shared.offset, shared.length, shared.ticket))

    def trim(self) -> None:
        """Release unused shared memory to the system; to be called when the lane is idle."""
        if self._outgoing is not None and self.is_warm:
            with self._guard:
                self._outgoing.trim()
                self.is_warm = self._outgoing.held_bytes > 0

    def map_memory(self) -> None:
        """Map the shared memory now, and not when it is first needed."""
        for arena in (self._outgoing, self._incoming):
            if arena is not None:
                arena.map()

    def close(self) -> None:
        """Stop using shared memory. Values that were received stay valid."""
        for arena in (self._outgoing, self._incoming):
            if arena is not None:
                arena.close()
        self._outgoing = self._incoming = None

    def _share(self, buffer: memoryview) -> SharedRegion | None:
        """Put a buffer into shared memory; return its region, or None if it must be sent."""
        if buffer.nbytes < SHARE_FROM_BYTES:
            return None
        assert self._outgoing is not None
        assert self._incoming is not None
        with self._guard:
            found = self._incoming.find(buffer)  # sent by the other end, and returned by reference
            place = found or self._outgoing.place(buffer)
        if place is None:
            return None
        self.is_warm = True
        return SharedRegion(place.offset, place.length, place.ticket, found is not None)

    def _view(self, shared: SharedRegion) -> memoryview:
        arena = self._outgoing if shared.is_yours else self._incoming
        if arena is None:
            msg = f"{shared} came on a lane without shared memory"
            raise ValueError(msg)
        with self._guard:
            return arena.view(Region(shared.offset, shared.length, shared.ticket))
