"""Running an event loop inside a running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from operator import call

Step = Callable[[], object]


def around_another_loop() -> tuple[Step, Step]:
    """Return a function that lets another event loop run in this thread, and one that ends that.

    The loop that runs here is suspended meanwhile: this thread is in one of its callbacks or tasks.
    The running loop is a property of the thread, and since Python 3.14 so is the current task,
    whatever its loop; a loop cannot run while either is set. asyncio provides the functions used
    here for third-party event loops and tasks.

    Both functions run in C: Ctrl-C comes before or after. A caller that uses the first in a ``try``
    and the second in its ``finally`` leaves nothing half done.
    """
    loop = asyncio._get_running_loop()  # noqa: SLF001
    if loop is None:
        return _do_nothing, _do_nothing
    before: list[Step] = [partial(asyncio._set_running_loop, None)]  # noqa: SLF001
    after: list[Step] = [partial(asyncio._set_running_loop, loop)]  # noqa: SLF001
    task = asyncio.current_task(loop)
    if task is not None:
        before.insert(0, partial(asyncio._leave_task, loop, task))  # noqa: SLF001
        after.append(partial(asyncio._enter_task, loop, task))  # noqa: SLF001
    return partial(tuple, map(call, before)), partial(tuple, map(call, after))


def _do_nothing() -> None:
    pass
