"""A stream, as users hold it."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from numbers import Real
from types import TracebackType
from typing import Any, Self

from ..output.display import Display
from ..output.progress_bars import Settings


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

    def show(self) -> Any:
        """Take the stream to its end, and show it as it comes.

        A chunk that is a dictionary with a number from 0 to 1 as ``"progress"`` moves one bar; what
        else is in it stands beside the bar. All other chunks are displayed in a notebook, and
        printed elsewhere.

        Returns
        -------
        object
            The last chunk that did not move the bar; None when there was none.

        Raises
        ------
        ToolError, CallTimeout, WorkerDied
            As for taking the chunks one by one. Ctrl-C leaves the stream, too.
        """
        with self, LiveView() as view:
            for chunk in self:
                view.take(chunk)
        return view.last

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


class LiveView:
    """Shows the chunks of a stream as they come, see `Stream.show`. To be used in a ``with``.

    Attributes
    ----------
    last
        The last chunk that did not move the bar.
    """

    def __init__(self) -> None:
        self.last: Any = None
        self._display = Display()

    def take(self, chunk: Any) -> None:
        """Show a chunk."""
        progress = _progress_of(chunk)
        if progress is None:
            self.last = chunk
            self._display.value(chunk)
        else:
            self._display.move(0, _bar_at(progress, chunk))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.close()


_TOLD_ALONE = {"message", "desc"}
"""What stands beside a bar without its name."""


def _progress_of(chunk: object) -> float | None:
    """Return how far a chunk says that its stream is; None for one that is a value."""
    number = chunk.get("progress") if isinstance(chunk, dict) else None
    if not isinstance(number, Real) or isinstance(number, bool):
        return None
    progress = float(number)
    # The sum of many small steps may be a little more than 1. 45 is no part of 1, nor is nan.
    return min(progress, 1.0) if 0 <= progress <= 1 + 1e-6 else None


def _bar_at(progress: float, chunk: Mapping[str, Any]) -> Settings:
    told = [
        str(value) if name in _TOLD_ALONE else f"{name}={_short(value)}"
        for name, value in chunk.items()
        if name != "progress" and value is not None
    ]
    return {
        "n": progress,
        "total": 1.0,
        "postfix": ", ".join(told) or None,
        "bar_format": "{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]",
    }


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
