"""A fresh asyncio state for each call: no loop runs and none is set, whatever ran before."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from ..tools.context import call_of_here


class EventLoops:
    """Gives each call the event loop and policy of a fresh process, and restores them after it.

    Before Python 3.14 `asyncio.get_event_loop` makes a loop in the main thread, unless one was set
    before. Only the policy knows whether that was so; therefore each call gets a new policy. A
    policy that the call has not touched, as most do not, is reused by the next call: between calls
    the worker's own loop runs, and no code asks for another.

    Parameters
    ----------
    own
        The loop that is current where no call runs; None for none.
    """

    def __init__(self, own: asyncio.AbstractEventLoop | None) -> None:
        self._own = own
        self._unused_policy: Any = None
        self._in_main_thread = own is not None
        self._calls: list[tuple[Any, Any]] = []  # for each: what was set before, what it got

    def begin(self) -> None:
        """Begin a call, which may be inside another one. No loop runs in this thread now."""
        before = _policy()
        if type(before) is CallPolicy and before.is_untouched:  # as after most calls
            self._calls.append((before, before))
        elif not self._in_main_thread:
            self._calls.append((before, None))
        elif type(before) in _DEFAULT_POLICIES:
            policy = self._unused_policy or CallPolicy()
            self._unused_policy = None
            self._calls.append((before, policy))
            asyncio.set_event_loop_policy(policy)
        else:
            # Other code, perhaps an adapter's module, has set its own policy, which is kept.
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
                self._unused_policy = given
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


def forbid_stop(loop: asyncio.AbstractEventLoop, is_exit_requested: Callable[[], bool]) -> None:
    """Keep coroutine calls from stopping the loop that runs them, which is the worker's own.

    Parameters
    ----------
    loop
        The loop.
    is_exit_requested
        Returns whether a call has requested the worker's exit through IPython's shell.
    """
    loop.stop = partial(_stop, loop.stop, is_exit_requested)  # type: ignore[method-assign]


def _stop(stop: Callable[[], None], is_exit_requested: Callable[[], bool]) -> None:
    if call_of_here() is not None and not is_exit_requested():
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
        """The default policy, for one call; it carries the name of the default class.

        Attributes
        ----------
        is_untouched
            Whether no loop has been set, nor made on demand.
        """

        def __init__(self) -> None:
            super().__init__()
            self.is_untouched = True
            self._made: list[asyncio.AbstractEventLoop] = []

        def get_event_loop(self) -> asyncio.AbstractEventLoop:
            """Return the current loop; in the main thread make one if none was set."""
            was_untouched = self.is_untouched
            loop = super().get_event_loop()
            if was_untouched and not self.is_untouched:
                self._made.append(loop)  # made on demand: no other code can close it
            return loop

        def set_event_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
            """Make a loop the current one."""
            self.is_untouched = False
            super().set_event_loop(loop)

        def close(self) -> None:
            """Close the loops that were made on demand."""
            for loop in self._made:
                if not loop.is_running():
                    loop.close()

    CallPolicy.__name__ = CallPolicy.__qualname__ = asyncio.DefaultEventLoopPolicy.__name__
    _DEFAULT_POLICIES: tuple[type, ...] = (asyncio.DefaultEventLoopPolicy, CallPolicy)
else:

    def _policy() -> Any:
        # The public function warns.
        return asyncio.events._event_loop_policy  # noqa: SLF001

    class CallPolicy:
        """A class without instances: since Python 3.14 no policy is needed."""

    _DEFAULT_POLICIES = ()
