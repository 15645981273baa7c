"""Failure policies of a pool: heartbeat, crash barrier, retry, circuit breaker. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from ..errors import (
    Attempt,
    BreakerOpen,
    CallTimeout,
    PoolClosed,
    PoolDegraded,
    PoolSaturated,
    QueueTimeout,
    SessionLost,
    StartFailed,
    ToolError,
    WorkerBusy,
    WorkerDied,
    suggest,
)
from ..validation import FOREVER, bounded, check_count, check_seconds

CATEGORIES: Final[Mapping[str, tuple[type[Exception], ...]]] = {
    "died": (WorkerDied,),
    "timeout": (CallTimeout,),
    "queue": (QueueTimeout, PoolSaturated, WorkerBusy),
    "start": (StartFailed, PoolDegraded),
    "tool": (ToolError,),
}
"""The categories of errors that policies name."""

REFUSALS = (PoolClosed, SessionLost, BreakerOpen)
"""Errors of work that a pool refuses, and that is refused again on a retry."""

BACKOFF = (0.05, 0.1, 0.2)
"""Seconds before each attempt after the first; the last value is used for all later ones."""


def category_of(error: BaseException) -> str:
    """Return the category of an error; what user code raised is ``"tool"``.

    Refused and cancelled work have categories of their own, which no policy can name.
    """
    for name, kinds in CATEGORIES.items():
        if isinstance(error, kinds):
            return name
    if not isinstance(error, Exception):
        return "cancelled"
    return "refused" if isinstance(error, REFUSALS) else "tool"


def falls_under(error: BaseException, names: Iterable[str]) -> bool:
    """Whether an error is of one of several categories or named types.

    A type is named by its last part or in full: ``"ConnectionError"``, ``"requests.Timeout"``. For
    an exception of a tool its type in the worker counts.
    """
    if isinstance(error, ToolError):
        types = {error.type_name, error.type_name.rpartition(".")[2]}
        if isinstance(cause := error.__cause__, Exception):
            types |= _names_of(type(cause))
    else:
        types = _names_of(type(error))
    return not types.isdisjoint(names) or category_of(error) in names


def _names_of(kind: type) -> set[str]:
    own = {each for each in kind.__mro__ if each not in {object, Exception, BaseException}}
    return {each.__name__ for each in own} | {f"{each.__module__}.{each.__name__}" for each in own}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Detection of workers that hang or are stopped, though their process lives.

    A working worker is never taken for dead, however long a call takes. A dead one shows no sign
    of life, neither heartbeats from a thread of its own nor use of the CPU, and is stopped or idle.

    Parameters
    ----------
    interval
        Seconds between two checks.
    timeout
        Seconds without a sign of life after which a check counts a missed beat. Default: five times
        the interval.
    misses
        Consecutive missed beats after which the worker is replaced.
    """

    interval: float = 2.0
    timeout: float = 0.0
    misses: int = 3

    def __post_init__(self) -> None:
        if self.timeout == 0 and isinstance(self.interval, int | float):
            object.__setattr__(self, "timeout", 5 * self.interval)
        for name in ("interval", "timeout"):
            _set_seconds(self, f"heartbeat {name}", name)
        check_count("heartbeat misses", self.misses, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashBarrier:
    """Handling of calls whose worker dies, and of workers that an error left unusable.

    Parameters
    ----------
    retries
        Times that a call of an idempotent tool is repeated, on another worker. Calls of other
        tools, functions and cells never are: they may have done half of their work.
    backoff
        Seconds before each of these retries.
    taint_on
        Names of exception types of tools after which a worker gets no more work and is replaced,
        such as the errors that leave a GPU's context unusable.
    """

    retries: int = 1
    backoff: Sequence[float] = BACKOFF
    taint_on: Sequence[str] = ("AcceleratorError", "CUDARuntimeError")

    def __post_init__(self) -> None:
        check_count("crash_barrier retries", self.retries, 0)
        _set_pauses(self, "crash_barrier backoff", self.backoff)
        _set_names(self, "crash_barrier taint_on", "taint_on", self.taint_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which calls are repeated when they fail.

    Calls that may have begun are repeated only for tools declared idempotent; those that failed in
    the queue (``"queue"``) have not begun.

    Parameters
    ----------
    attempts
        Total number of times that a call is made.
    backoff
        Seconds before each attempt after the first; the last one stands for all further.
    on
        Categories of errors, ``"died", "timeout", "queue", "start", "tool"``, or names of exception
        types, such as ``"ConnectionError"``.
    """

    attempts: int = 3
    backoff: Sequence[float] = BACKOFF
    on: Sequence[str] = ("died", "timeout", "queue")

    def __post_init__(self) -> None:
        check_count("retry attempts", self.attempts, 1)
        _set_pauses(self, "retry backoff", self.backoff)
        _set_names(self, "retry on", "on", self.on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When a pool whose calls keep failing refuses work at once, for a while.

    Parameters
    ----------
    failures
        Consecutive failures that open it.
    seconds
        Seconds that it stays open. Then one call is admitted: it closes the breaker if it succeeds,
        and otherwise opens it again.
    on
        What counts as a failure, as for `Retry`.
    """

    failures: int = 5
    seconds: float = 30.0
    on: Sequence[str] = ("died", "timeout", "start", "tool")

    def __post_init__(self) -> None:
        check_count("breaker failures", self.failures, 1)
        _set_seconds(self, "breaker seconds", "seconds")
        _set_names(self, "breaker on", "on", self.on)


P = TypeVar("P", bound=Heartbeat | CrashBarrier | Retry | Breaker)


def check_policy(name: str, kind: type[P], value: object) -> P | None:
    """Return a policy from an option: an instance, a mapping, a number, True, False or None.

    Parameters
    ----------
    name
        Name of the option.
    kind
        Class of the policy.
    value
        The option's value. A number is the first parameter of the policy. True stands for its
        defaults, False and None for no such policy.

    Raises
    ------
    TypeError, ValueError
        It is none of these, or one of its parameters is wrong; the text names it.
    """
    if isinstance(value, kind):
        return value
    if value is None or value is False:
        return None
    if value is True:
        return kind()
    first = fields(kind)[0].name
    if isinstance(value, int | float):
        value = {first: value}
    if isinstance(value, Mapping):
        known = [item.name for item in fields(kind)]
        for key in value:
            if key not in known:
                msg = f"{name} has no {key!r}{suggest(str(key), known)}"
                raise ValueError(msg)
        return kind(**value)
    msg = (
        f"{name} must be a {kind.__name__}, a mapping such as {{{first!r}: …}}, a number "
        f"({first}), True or None, not {value!r}"
    )
    raise TypeError(msg)


def _set_seconds(policy: object, title: str, name: str) -> None:
    given = getattr(policy, name)
    seconds = check_seconds(title, given)
    if seconds is None and given is not None:
        seconds = FOREVER
    if seconds is None:
        msg = f"{title} must be a number of seconds, not {getattr(policy, name)!r}"
        raise TypeError(msg)
    object.__setattr__(policy, name, seconds)


def _set_pauses(policy: object, title: str, pauses: Any) -> None:
    if isinstance(pauses, int | float):
        pauses = (pauses,)
    pauses = tuple(pauses)
    for pause in pauses:
        check_seconds(title, pause, allow_zero=True)
    if not pauses or None in pauses:
        msg = f"{title} must be numbers of seconds, not {pauses!r}"
        raise TypeError(msg)
    checked = tuple(map(bounded, pauses))
    object.__setattr__(policy, "backoff", checked)


def _set_names(policy: object, title: str, name: str, names: Any) -> None:
    listed = (names,) if isinstance(names, str) else tuple(names)
    for each in listed:
        if not isinstance(each, str):
            msg = f"{title} takes categories and names of exception types, not {each!r}"
            raise TypeError(msg)
        if each.islower() and each not in CATEGORIES:
            msg = f"{title}: category {each!r} is not known{suggest(each, CATEGORIES)}"
            raise ValueError(msg)
    object.__setattr__(policy, name, listed)


class CircuitBreaker:
    """State of a circuit breaker: opens after consecutive failures, closes after a success.

    Parameters
    ----------
    policy
        When it opens, and for how long.

    Attributes
    ----------
    failures
        Number of failures since the last success.
    last
        The last failure, in words.
    """

    def __init__(self, policy: Breaker) -> None:
        self.policy = policy
        self.last = ""
        self.failures = 0
        self._opened_at: float | None = None
        self._generation = 0
        self._has_trial = False

    def state(self, now: float) -> str:
        """Return ``"closed"``, ``"open"`` or ``"half-open"``."""
        if self._opened_at is None:
            return "closed"
        return "open" if self.seconds_left(now) > 0 else "half-open"

    def seconds_left(self, now: float) -> float:
        """Return the seconds for which it still refuses all calls."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self.policy.seconds - now)

    def admit(self, now: float) -> int | None:
        """Admit a call; a half-open breaker admits a single one, the trial.

        Returns
        -------
        int or None
            Token to report the call's outcome with; None when the call is refused. Outcomes of
            calls that were admitted before the breaker opened are ignored.
        """
        if self._opened_at is not None:
            if self._has_trial or self.seconds_left(now) > 0:
                return None
            self._has_trial = True
        return self._generation

    def succeed(self, admitted: int) -> None:
        """Record that a call succeeded."""
        if admitted == self._generation:
            self.failures = 0
            self._opened_at = None
            self._has_trial = False

    def fail(self, admitted: int, now: float, reason: str) -> None:
        """Record that a call failed, and why."""
        if admitted != self._generation:
            return
        self.failures += 1
        self.last = reason
        if self._has_trial or self.failures >= self.policy.failures:
            self._opened_at = now
            self._has_trial = False
            self._generation += 1

    def abandon(self, admitted: int) -> None:
        """Record that a call ended without a verdict: the next one may be the trial."""
        if admitted == self._generation:
            self._has_trial = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Retry decisions of a pool, from its crash barrier and its retry policy.

    Parameters
    ----------
    barrier, retry
        The policies; None for none.
    """

    barrier: CrashBarrier | None
    retry: Retry | None

    def pause(
        self,
        error: BaseException,
        earlier: Sequence[Attempt],
        *,
        idempotent: bool,
        seconds_left: float | None,
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None for no further attempt.

        Parameters
        ----------
        error
            Why the last attempt failed.
        earlier
            The attempts before that.
        idempotent
            Whether the call may be made twice.
        seconds_left
            Until the deadline of the call; None when it has none.
        """
        backoff = self._backoff(error, earlier, idempotent=idempotent)
        if backoff is None:
            return None
        pause = backoff[min(len(earlier), len(backoff) - 1)]
        return None if seconds_left is not None and pause >= seconds_left else pause

    def _backoff(
        self, error: BaseException, earlier: Sequence[Attempt], *, idempotent: bool
    ) -> Sequence[float] | None:
        if not isinstance(error, Exception):
            return None
        category = category_of(error)
        if not idempotent and category != "queue":
            return None
        if self.barrier is not None and isinstance(error, WorkerDied):
            crashes = sum(attempt.category == "died" for attempt in earlier)
            if crashes < self.barrier.retries:
                return self.barrier.backoff
        if self.retry is None or len(earlier) + 1 >= self.retry.attempts:
            return None
        return self.retry.backoff if falls_under(error, self.retry.on) else None
