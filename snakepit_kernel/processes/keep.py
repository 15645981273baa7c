"""Processes that deliberately outlive the run that started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..locks import RLock
from .tags import KEEP_VARIABLE, kept, number_of, read_mark, set_mark

_lock = RLock()
_depth = 0
_before: tuple[str | None, int | None] = (None, None)


def is_keeping() -> bool:
    """Whether this process runs a block of `keep` now."""
    return _depth > 0


@contextmanager
def keep() -> Iterator[None]:
    """Let what is started inside the block outlive the kernel.

    It, and what it starts itself, is spared when the run ends. ``snakepit status`` lists it, and
    ``snakepit reap --kept`` ends it once its run is over. A program that is started with
    ``SNAKEPIT_KEEP=1`` in its environment is kept in the same way.

    The block holds for the whole process: what other threads start meanwhile is kept, too. This
    process itself is not.

    Examples
    --------
    >>> with keep():
    ...     server = subprocess.Popen([sys.executable, "-m", "http.server"])
    """
    global _depth, _before  # noqa: PLW0603 - like environment and limits, they are per process
    with _lock:
        if _depth == 0:
            # Two marks: the variable for what is executed, the limit for what is only forked.
            mark = read_mark(os.getpid())
            former = set_mark(kept(mark)) if number_of(mark) is not None else None
            _before = (os.environ.get(KEEP_VARIABLE), former)
            os.environ[KEEP_VARIABLE] = "1"
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                variable, former = _before
                if variable is None:
                    os.environ.pop(KEEP_VARIABLE, None)
                else:
                    os.environ[KEEP_VARIABLE] = variable
                if former is not None:
                    set_mark(former)
