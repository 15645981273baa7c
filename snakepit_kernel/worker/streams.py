"""Where the chunks of a stream leave the worker, no faster than somebody takes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

from ..lane import replies
from ..lane.control_page import ControlWords
from ..lane.worker_end import WorkerLane
from ..processes import children
from ..protocol import messages
from ..protocol.frames import pack


class StreamSender:
    """Sends the chunks of one stream.

    Parameters
    ----------
    call_id
        The stream's call.
    room
        Chunks that may be sent before there is word that some were taken.
    lane, slot
        Where to send, and where the owner notes that the consumer has left.
    """

    def __init__(self, call_id: int, room: int, lane: WorkerLane, slot: ControlWords) -> None:
        self._room = room
        self._lane = lane
        self._slot = slot
        self._call_id = call_id
        self._message = messages.Chunk(call_id)
        self._header = messages.encode(self._message)
        self._news: asyncio.Event | None = None
        self._is_left = False
        self._sent = 0

    def add_room(self, count: int) -> None:
        """Take in that chunks were taken."""
        self._room += count
        self._tell()

    def leave(self) -> None:
        """Take in that the consumer has left."""
        self._is_left = True
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def drain(self, chunks: Generator[Any, None, Any]) -> None:
        """Send what a generator yields; close it when the consumer leaves."""
        with contextlib.closing(chunks):
            for chunk in chunks:
                self._send(chunk)
                if self._room <= 0:
                    self._lane.wait(self._may_go_on)
                if self._has_left():
                    return

    async def drain_async(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Do the same for an asynchronous generator."""
        self._news = asyncio.Event()
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                self._send(chunk)
                while not self._may_go_on():
                    self._news.clear()
                    await self._news.wait()
                if self._has_left():
                    return

    def _send(self, chunk: object) -> None:
        if children.is_child:
            msg = "a forked child of a stream cannot yield: only its parent is listened to"
            raise RuntimeError(msg)
        self._sent += 1
        try:
            body, buffers = self._lane.marshaller.codec.dumps_what_can_travel(chunk)
        except Exception as error:
            raise replies.cannot_travel(f"chunk {self._sent}", chunk, error) from error
        if buffers:
            self._lane.send(self._lane.marshaller.pack(self._message, body, buffers))
        else:
            self._lane.send(pack(self._header, body))
        self._room -= 1

    def _may_go_on(self) -> bool:
        return self._room > 0 or self._has_left()

    def _has_left(self) -> bool:
        # The page tells while the producer is busy, and reads nothing from the lane.
        return self._is_left or self._slot.left_call == self._call_id
