"""Event loops as a call finds them: none runs, none was made, whatever came before."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from ..tools.context import call_of_here


class EventLoops:
    """Gives each call the current event loop and policy of a fresh process, and takes them back.

    Before Python 3.14 `asyncio.get_event_loop` makes a loop in the main thread, unless one was set
    before. Only the policy knows whether that was so: each call gets another one. It stays there
    for the next if the call has not touched it, as most do not: between calls the worker's own loop
    runs, and nobody asks for another.

    Parameters
    ----------
    own
        The loop that is current where no call runs; None for none.
    """

    def __init__(self, own: asyncio.AbstractEventLoop | None) -> None:
        self._own = own
        self._untouched: Any = None
        self._in_main_thread = own is not None
        self._calls: list[tuple[Any, Any]] = []  # what was there before each, and what it got

    def begin(self) -> None:
        """Begin a call, which may be inside another one. No loop runs in this thread now."""
        before = _policy()
        if type(before) is CallPolicy and before.is_untouched:  # as after most calls
            self._calls.append((before, before))
        elif not self._in_main_thread:
            self._calls.append((before, None))
        elif type(before) in _USUAL:
            policy = self._untouched or CallPolicy()
            self._untouched = None
            self._calls.append((before, policy))
            asyncio.set_event_loop_policy(policy)
        else:
            # Whatever made the policy another one, an adapter's module perhaps, it is to be kept.
            self._calls.append((before, _current() if self._calls else self._own))
            asyncio.set_event_loop(None)

    def end(self) -> None:
        """End the call that began last."""
        before, given = self._calls.pop()
        if given is before:
            if _policy() is not before or not before.is_untouched:
                before.close()
                asyncio.set_event_loop_policy(CallPolicy())
        elif not self._in_main_thread:
            _restore_policy(before)
            asyncio.set_event_loop(None)
        elif isinstance(given, CallPolicy):
            if given.is_untouched and not self._calls and _policy() is given:
                return  # the next call finds it
            asyncio.set_event_loop_policy(before)
            if given.is_untouched:
                self._untouched = given
            else:
                given.close()
        else:
            _restore_policy(before)
            asyncio.set_event_loop(given)

    def begin_awaited(self) -> Any:
        """Begin a call that this thread's own loop runs; return what `end_awaited` needs."""
        return _policy()

    def end_awaited(self, before: Any) -> None:
        """End such a call."""
        _restore_policy(before)
        if self._own is None or asyncio.get_running_loop() is self._own:
            asyncio.set_event_loop(self._own)


def protect(loop: asyncio.AbstractEventLoop, is_told_to_end: Callable[[], bool]) -> None:
    """Let no call stop the loop that runs it, when it is a coroutine: it is the worker's own.

    Parameters
    ----------
    loop
        The loop.
    is_told_to_end
        Asked whether a call has ended the worker in the way that there is for that.
    """
    loop.stop = partial(_stop, loop.stop, is_told_to_end)  # type: ignore[method-assign]


def _stop(stop: Callable[[], None], is_told_to_end: Callable[[], bool]) -> None:
    if call_of_here() is not None and not is_told_to_end():
        msg = "a call cannot stop the event loop that runs it: it is the worker's own"
        raise RuntimeError(msg)
    stop()


def _restore_policy(before: Any) -> None:
    if _policy() is not before:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(before)


def _current() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_event_loop()
    except RuntimeError:
        return None


if sys.version_info < (3, 14):
    _policy: Callable[[], Any] = asyncio.get_event_loop_policy

    class CallPolicy(asyncio.DefaultEventLoopPolicy):
        """The usual policy, for one call; who looks at its name finds the usual one.

        Attributes
        ----------
        is_untouched
            Whether nobody has set a loop, or had one made.
        """

        def __init__(self) -> None:
            super().__init__()
            self.is_untouched = True
            self._made: list[asyncio.AbstractEventLoop] = []

        def get_event_loop(self) -> asyncio.AbstractEventLoop:
            """Return the current loop; in the main thread one is made if none was set."""
            was_untouched = self.is_untouched
            loop = super().get_event_loop()
            if was_untouched and not self.is_untouched:
                self._made.append(loop)  # for whoever asked: nobody else can close it
            return loop

        def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
            """Make a loop the current one."""
            self.is_untouched = False
            super().set_event_loop(loop)

        def close(self) -> None:
            """Close the loop that was made for who asked for the current one."""
            for loop in self._made:
                if not loop.is_running():
                    loop.close()

    CallPolicy.__name__ = CallPolicy.__qualname__ = asyncio.DefaultEventLoopPolicy.__name__
    _USUAL: tuple[type, ...] = (asyncio.DefaultEventLoopPolicy, CallPolicy)
else:

    def _policy() -> Any:
        # There is no other way to look: the public one warns.
        return asyncio.events._event_loop_policy  # noqa: SLF001

    class CallPolicy:
        """There are none."""

    _USUAL = ()
