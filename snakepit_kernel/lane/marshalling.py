"""Values on one lane: large buffers go through shared memory, and everything else in the frame."""

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
    """One end's way to lay out values and to restore them.

    Parameters
    ----------
    outgoing, incoming
        The arenas of the two directions; None where there is no shared memory.

    Attributes
    ----------
    codec
        How values are pickled; set anew when a worker is told.
    is_warm
        Whether memory was taken that `trim` may give back.
    """

    def __init__(self, outgoing: ArenaWriter | None, incoming: ArenaReader | None) -> None:
        self.codec = Codec()
        self.is_warm = False
        self._outgoing = outgoing
        self._incoming = incoming
        self._guard = Lock()  # threads of a tool may send, too

    def pack_value(self, message: messages.WithValue, value: object) -> list[Segment]:
        """Lay out a message with a value, all of which can travel.

        Raises
        ------
        ValueTooLarge, Exception
            As `Codec.dumps`.
        """
        return self.pack(message, *self.codec.dumps(value))

    def pack(
        self, message: messages.WithValue, body: bytes, buffers: Sequence[memoryview]
    ) -> list[Segment]:
        """Lay out a message with a value that is pickled already."""
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

    def drop(self, message: messages.WithValue) -> None:
        """Give back what came with a message that nobody wants."""
        for place in message.shared:
            if place is not None:
                self._view(place)

    def withdraw(self, segments: Sequence[Segment]) -> None:
        """Take back what was laid out and is not sent."""
        message = messages.decode_for_worker(header_of(segments))
        if isinstance(message, messages.WithValue) and self._outgoing is not None:
            for shared in message.shared:
                if shared is not None and not shared.is_yours:
                    with self._guard:
                        self._outgoing.withdraw(Region(shared.offset, shared.length, shared.ticket))

    def trim(self) -> None:
        """Give memory that nothing uses back to the system; when the lane is idle."""
        if self._outgoing is not None and self.is_warm:
            with self._guard:
                self._outgoing.trim()
                self.is_warm = self._outgoing.held_bytes > 0

    def map_memory(self) -> None:
        """Take the address space of the shared memory now, and not when it is first needed."""
        for arena in (self._outgoing, self._incoming):
            if arena is not None:
                arena.map()

    def close(self) -> None:
        """Send through shared memory no more. What was received stays valid."""
        for arena in (self._outgoing, self._incoming):
            if arena is not None:
                arena.close()
        self._outgoing = self._incoming = None

    def _share(self, buffer: memoryview) -> SharedRegion | None:
        """Say where in shared memory a buffer is found by the other end; None if it is not."""
        if buffer.nbytes < SHARE_FROM_BYTES:
            return None
        assert self._outgoing is not None
        assert self._incoming is not None
        with self._guard:
            found = self._incoming.find(buffer)  # what the other end has sent goes back untouched
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
