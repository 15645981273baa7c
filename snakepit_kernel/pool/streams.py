"""A stream, as users hold it."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Self


class Stream(Iterator[Any]):
    """The chunks of a streaming tool, in order.

    The tool starts when the first chunk is asked for. It is never further ahead than the room that
    the stream was given. Whoever leaves a stream before its end, by ``break``, `close` or by
    letting go of it, closes the generator in the worker, whose ``finally`` runs then.

    Parameters
    ----------
    chunks
        The generator that drives it.
    is_awkward
        Asked whether this thread must not wait for a worker.
    """

    def __init__(self, chunks: Generator[Any, None, None], is_awkward: Callable[[], bool]) -> None:
        self._chunks = chunks
        self._is_awkward = is_awkward

    def __next__(self) -> Any:
        return next(self._chunks)

    def close(self) -> None:
        """Leave the stream; return when the generator in the worker is closed."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if inspect.getgeneratorstate(self._chunks) != inspect.GEN_SUSPENDED:
            return  # it has ended, or never begun
        if self._is_awkward():  # the garbage collector may run in any thread
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._chunks.close, daemon=True).start()
        else:
            self._chunks.close()
