"""Sending of a stream's chunks from the worker, with credit-based flow control."""

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
    credit
        Chunks that may be sent before the consumer grants more.
    lane, control
        The lane, and its words, in which the owner records that the consumer has left.
    """

    def __init__(self, call_id: int, credit: int, lane: WorkerLane, control: ControlWords) -> None:
        self._credit = credit
        self._lane = lane
        self._control = control
        self._call_id = call_id
        self._message = messages.Chunk(call_id)
        self._header = messages.encode(self._message)
        self._wakeup: asyncio.Event | None = None
        self._is_cancelled = False
        self._sent = 0

    def add_credit(self, count: int) -> None:
        """Add the credit for chunks that the consumer has taken."""
        self._credit += count
        self._wake()

    def cancel(self) -> None:
        """Stop sending: the consumer has left."""
        self._is_cancelled = True
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()

    def drain(self, chunks: Generator[Any, None, Any]) -> None:
        """Send what a generator yields; close it when the consumer leaves."""
        with contextlib.closing(chunks):
            for chunk in chunks:
                self._send(chunk)
                if self._credit <= 0:
                    self._lane.wait(self._may_proceed)
                if self._has_consumer_left():
                    return

    async def drain_async(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Do the same as `drain` for an asynchronous generator."""
        self._wakeup = asyncio.Event()
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                self._send(chunk)
                while not self._may_proceed():
                    self._wakeup.clear()
                    await self._wakeup.wait()
                if self._has_consumer_left():
                    return

    def _send(self, chunk: object) -> None:
        if children.is_child:
            msg = "a forked child of a stream cannot yield: only its parent is listened to"
            raise RuntimeError(msg)
        self._sent += 1
        try:
            body, buffers = self._lane.marshaller.codec.dumps_with_markers(chunk)
        except Exception as error:
            raise replies.not_picklable_error(f"chunk {self._sent}", chunk, error) from error
        if buffers:
            self._lane.send(self._lane.marshaller.pack(self._message, body, buffers))
        else:
            self._lane.send(pack(self._header, body))
        self._credit -= 1

    def _may_proceed(self) -> bool:
        return self._credit > 0 or self._has_consumer_left()

    def _has_consumer_left(self) -> bool:
        # The page is read as well: a busy producer reads nothing from the lane.
        return self._is_cancelled or self._control.left_call == self._call_id
