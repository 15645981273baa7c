"""All exceptions of the package, and their tree.

::

    SnakepitError                 an external failure
    ├── PoolSaturated             the queue was full
    ├── QueueTimeout              no worker became free in time        (also TimeoutError)
    ├── CallTimeout               a deadline passed                    (also TimeoutError)
    ├── WorkerBusy                the only workers that could run it are busy, or wait for it
    ├── WorkerDied                a worker's process ended
    ├── SessionLost               the worker that a session is bound to has ended
    ├── PoolClosed                the pool has ended                   (also RuntimeError)
    ├── PoolDegraded              its workers end as soon as they start
    ├── BreakerOpen               too many calls failed in a row
    ├── CellsOnly                 a pool's kernel only runs cells      (also TypeError)
    ├── ToolNotFound              no tool of that name                 (also LookupError)
    ├── InvalidArguments          arguments do not fit the tool        (also ValueError)
    ├── ValueTooLarge             a value exceeds its size limit       (also ValueError)
    ├── SessionNotFound           no session of that name, or no more  (also LookupError)
    ├── QuotaExceeded             a maximum number is reached
    ├── VariableNotFound          no variable of that name             (also KeyError)
    ├── VariableTypeError         a value is not of the variable's type (also ValueError)
    ├── ConstraintViolation       a value breaks a variable's constraint (also ValueError)
    ├── VariableLocked            a variable must not be changed now
    ├── VersionConflict           a variable was changed by somebody else
    ├── BatchRejected             some of several variables cannot be set (also ValueError)
    ├── ProgramNotFound           no program of that name              (also KeyError)
    ├── ProgramDamaged            a program differs from what was stored
    ├── StoreError                the store could not be read or written
    ├── ToolError                 an exception raised by remote code
    │   └── CellError             … by a cell
    ├── ShellClosed               a shell takes no commands any more   (also RuntimeError)
    ├── ShellBusy                 a shell runs another command
    ├── CommandFailed             a command's status is not 0
    ├── ProcessNotFound           no process of that id                (also LookupError)
    ├── ProcessNotReady           a process has not done what was awaited (also TimeoutError)
    ├── ProcessExited             it ended before that
    ├── EnvironmentFailed         an environment of packages could not be made
    ├── StartFailed               a process could not be started
    └── SurvivorsError            processes of a run could not be ended

A mistake of the caller that has nothing to do with a pool is a plain ``ValueError`` or
``TypeError``. Errors carry fields and can be pickled.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .call_details import Attempt, CallDetails
from .printable import counted, printable
from .validation import suggest as suggest  # noqa: PLC0414 - others import it from here

__all__ = [
    "Attempt",
    "BatchRejected",
    "BreakerOpen",
    "CallDetails",
    "CallTimeout",
    "CellError",
    "CellsOnly",
    "CommandFailed",
    "ConstraintViolation",
    "EnvironmentFailed",
    "InvalidArguments",
    "PoolClosed",
    "PoolDegraded",
    "PoolSaturated",
    "ProcessExited",
    "ProcessNotFound",
    "ProcessNotReady",
    "ProgramDamaged",
    "ProgramNotFound",
    "QueueTimeout",
    "QuotaExceeded",
    "SessionLost",
    "SessionNotFound",
    "ShellBusy",
    "ShellClosed",
    "SnakepitError",
    "StartFailed",
    "StoreError",
    "SurvivorsError",
    "ToolError",
    "ToolNotFound",
    "ValueTooLarge",
    "VariableLocked",
    "VariableNotFound",
    "VariableTypeError",
    "VersionConflict",
    "WorkerBusy",
    "WorkerDied",
]


def _printing(tell: Callable[[Any], str]) -> Callable[[Any], str]:
    @functools.wraps(tell)
    def text(self: Any) -> str:
        return printable(tell(self), lines=True)

    return text


class SnakepitError(Exception):
    """Base of all errors that this package raises for external failures.

    Its text is printable, even if fields contain text of other processes: see `printable`.

    Attributes
    ----------
    correlation_id
        Correlation id of its call, the same in worker, host tools and events; empty for none.
    details
        Its call, where that ran and for how long; None for an error that belongs to no call.
    """

    correlation_id: str = ""
    details: CallDetails | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (own := cls.__dict__.get("__str__")) is not None:  # here, so that no class forgets it
            cls.__str__ = _printing(own)  # type: ignore[method-assign]

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class PoolSaturated(SnakepitError):
    """The queue of a pool was full; the work was not accepted."""

    def __init__(self, pool: str, max_queue: int, setting: str = "max_queue") -> None:
        super().__init__(pool, max_queue, setting)
        self.pool = pool
        self.max_queue = max_queue
        self.setting = setting

    def __str__(self) -> str:
        waiting = counted(self.max_queue, "call")
        return (
            f"pool {self.pool!r} has {waiting} waiting already ({self.setting}); wait for some to "
            "end, or give the pool more workers or a longer queue"
        )


class QueueTimeout(SnakepitError, TimeoutError):
    """No worker became free within ``queue_timeout``; the work never ran."""

    def __init__(self, pool: str, waited: float) -> None:
        super().__init__(pool, waited)
        self.pool = pool
        self.waited = waited

    def __str__(self) -> str:
        return (
            f"no worker of pool {self.pool!r} became free within {self.waited:.3g} s "
            "(queue_timeout); the call did not run; give the pool more workers, or the call more "
            "time in the queue"
        )


REPLACED = "the worker was replaced: the variables of its cells are gone"
"""What becomes of a worker that ignores an interrupt, for people."""


class CallTimeout(SnakepitError, TimeoutError):
    """A call's deadline passed; its work was interrupted.

    Attributes
    ----------
    worker
        Name of the worker that ran it, or None when it did not start.
    stacks
        Stacks of all the worker's threads when the deadline passed, as `faulthandler` formats them,
        with the names of cells. The error's text shows the call's own.
    was_replaced
        Whether the worker ignored the interrupt, and was replaced.
    """

    def __init__(
        self,
        what: str,
        timeout: float,
        worker: str | None = None,
        stacks: str = "",
        was_replaced: bool = False,
    ) -> None:
        super().__init__(what, timeout, worker, stacks, was_replaced)
        self.what = what
        self.timeout = timeout
        self.worker = worker
        self.stacks = stacks
        self.was_replaced = was_replaced

    def __str__(self) -> str:
        if self.worker is None:
            return f"{self.what} did not start within its timeout of {self.timeout:.3g} s"
        text = (
            f"{self.what} passed its timeout of {self.timeout:.3g} s "
            f"on worker {self.worker} and was interrupted"
        )
        if self.was_replaced:
            text += f"; it did not respond to that, so {REPLACED}"
        if where := _where(self.stacks):
            text += "; its stack, the innermost call first:\n" + "\n".join(where)
        return text


class WorkerBusy(SnakepitError):
    """The work did not run: it would wait for ever, or for a worker that it must not wait for.

    Attributes
    ----------
    workers
        Names of the workers that could run it.
    session_id
        The session that must not wait for its home (``affinity="strict_fail_fast"``); None when
        all workers that could run it wait for it.
    """

    def __init__(
        self, what: str, pool: str, workers: Sequence[str], session_id: str | None = None
    ) -> None:
        super().__init__(what, pool, tuple(workers), session_id)
        self.what = what
        self.pool = pool
        self.workers = tuple(workers)
        self.session_id = session_id

    def __str__(self) -> str:
        if self.session_id is not None:
            return (
                f"{self.what} did not run: worker {', '.join(self.workers)} of session "
                f"{self.session_id!r} is busy, and the session's affinity is 'strict_fail_fast'; "
                "try again later, or open the session with affinity='strict_queue', which waits"
            )
        return (
            f"{self.what} cannot run in pool {self.pool!r}: it was asked for by a host tool, and "
            f"{', '.join(self.workers)} wait for that host tool to return; give the pool more "
            "workers, or call a tool, which a waiting worker serves"
        )


class WorkerDied(SnakepitError):
    """A worker's process ended while it was still wanted.

    Attributes
    ----------
    worker
        Name of the worker.
    status
        Its exit status; negative for a signal, as in :mod:`subprocess`. ``None`` when unknown.
    output
        The last output of the process, at most 4 KiB.
    reason
        Why its pool ended it, as text; empty when the pool did not.
    """

    def __init__(self, worker: str, status: int | None, output: str = "", reason: str = "") -> None:
        super().__init__(worker, status, output, reason)
        self.worker = worker
        self.status = status
        self.output = output
        self.reason = reason

    def __str__(self) -> str:
        reason = f"{self.reason} and " if self.reason else ""
        text = f"worker {self.worker} {reason}{describe_exit(self.status)}"
        if self.output:
            text += f"; its last output:\n{self.output}"
        return text


class SessionLost(SnakepitError):
    """The worker that a session is bound to has ended; the work did not run.

    Attributes
    ----------
    session_id
        The session.
    worker
        Name of the worker.
    reason
        Why its pool ended it, as text; empty when the pool did not.
    """

    def __init__(self, session_id: str, worker: str, reason: str = "") -> None:
        super().__init__(session_id, worker, reason)
        self.session_id = session_id
        self.worker = worker
        self.reason = reason

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"worker {self.worker} of session {self.session_id!r} has ended{why}, and with it went "
            "what the session had there: the names of its cells, its objects in memory, its "
            "working directory and environment. The session's variables, programs and metadata are "
            "in the store and still there. Open it again, by "
            f"pool.session({self.session_id!r}, …), to go on: then its next call takes another "
            "worker"
        )


class ReferenceLost(SessionLost):
    """The worker that has the value of a `RemoteRef` has ended, and the value with it.

    Attributes
    ----------
    kind
        Type of the value.
    worker
        Name of the worker.
    """

    def __init__(self, kind: str, worker: str) -> None:
        SnakepitError.__init__(self, kind, worker)
        self.kind = kind
        self.session_id = ""
        self.worker = worker
        self.reason = ""

    def __str__(self) -> str:
        return (
            f"worker {self.worker} has ended, and with it went the {self.kind} that this reference "
            "stood for; make it again, by keep() or call(…, keep=True)"
        )


class PoolClosed(SnakepitError, RuntimeError):
    """The pool was shut down, or belongs to another process."""

    def __init__(self, pool: str, reason: str = "it was shut down") -> None:
        super().__init__(pool, reason)
        self.pool = pool
        self.reason = reason

    def __str__(self) -> str:
        return f"pool {self.pool!r} is closed: {self.reason}"


class PoolDegraded(SnakepitError):
    """A pool has no worker left: each ended as soon as it was started. The pool retries.

    Attributes
    ----------
    pool
        Name of the pool.
    problem
        How the last worker ended.
    """

    def __init__(self, pool: str, problem: str) -> None:
        super().__init__(pool, problem)
        self.pool = pool
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"pool {self.pool!r} is degraded: its workers end as soon as they start, and it tries "
            f"again only now and then; mend the cause, or reload() it; the last one: {self.problem}"
        )


class BreakerOpen(SnakepitError):
    """Too many calls of a pool failed in a row; this one was not made.

    Attributes
    ----------
    pool
        Name of the pool.
    failures
        Number of calls that failed in a row.
    seconds
        Seconds until the next attempt.
    last
        The last failure, as text.
    """

    def __init__(self, pool: str, failures: int, seconds: float, last: str) -> None:
        super().__init__(pool, failures, seconds, last)
        self.pool = pool
        self.failures = failures
        self.seconds = seconds
        self.last = last

    def __str__(self) -> str:
        when = f"in {self.seconds:.3g} s" if self.seconds > 0 else "when the one under way ends"
        failures = counted(self.failures, "call")
        return (
            f"the breaker of pool {self.pool!r} is open: {failures} failed one after "
            f"the other; the next one is let through {when}; the last failure: {self.last}"
        )


class CellsOnly(SnakepitError, TypeError):
    """A pool's workers are kernels that run cells only; nothing ran.

    Attributes
    ----------
    what
        The requested operation.
    kernel_name
        The kernelspec of the workers.
    reason
        Why they run cells only.
    remedy
        What to do about it.
    """

    def __init__(self, what: str, kernel_name: str, reason: str, remedy: str) -> None:
        super().__init__(what, kernel_name, reason, remedy)
        self.what = what
        self.kernel_name = kernel_name
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return (
            f"{self.what} is not possible with kernelspec {self.kernel_name!r}, whose workers run "
            f"cells only: {self.reason}; {self.remedy}"
        )


class ToolNotFound(SnakepitError, LookupError):
    """A pool has no tool of that name.

    Attributes
    ----------
    hint
        Why it is gone, and how to get it back; empty when it never existed.
    """

    def __init__(self, tool: str, known: Sequence[str], hint: str = "") -> None:
        super().__init__(tool, tuple(known), hint)
        self.tool = tool
        self.known = tuple(known)
        self.hint = hint

    def __str__(self) -> str:
        if self.hint:
            return f"there is no tool {self.tool!r} now: {self.hint}"
        return f"there is no tool {self.tool!r}{suggest(self.tool, self.known)}"


class InvalidArguments(SnakepitError, ValueError):
    """The arguments do not fit the tool; the tool did not run.

    Attributes
    ----------
    tool
        Name of the tool.
    problems
        One sentence for each wrong, missing or unknown argument.
    """

    def __init__(self, tool: str, problems: Sequence[str]) -> None:
        super().__init__(tool, tuple(problems))
        self.tool = tool
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return f"{self.tool}: {'; '.join(self.problems)}"


class ValueTooLarge(SnakepitError, ValueError):
    """A value exceeds the size limit of a pool's messages, or of a session's variables."""

    def __init__(
        self, limit_bytes: int, setting: str = "max_value_bytes of the pool", what: str = "it"
    ) -> None:
        super().__init__(limit_bytes, setting, what)
        self.limit_bytes = limit_bytes
        self.setting = setting
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} takes more than {self.limit_bytes:,} bytes ({self.setting}); "
            "pass a part of it, a path, or set another limit"
        )


class SessionNotFound(SnakepitError, LookupError):
    """A session does not exist, or no longer exists."""

    def __init__(self, session_id: str, known: Sequence[str] = ()) -> None:
        super().__init__(session_id, tuple(known))
        self.session_id = session_id
        self.known = tuple(known)

    def __str__(self) -> str:
        if self.known:
            return f"there is no session {self.session_id!r}{suggest(self.session_id, self.known)}"
        return (
            f"session {self.session_id!r} is gone: it was deleted, or it was not used for its time "
            "to live (ttl); open it again to begin with an empty one"
        )


class QuotaExceeded(SnakepitError):
    """The maximum number of something is reached; nothing was added."""

    def __init__(self, what: str, limit: int, remedy: str) -> None:
        super().__init__(what, limit, remedy)
        self.what = what
        self.limit = limit
        self.remedy = remedy

    def __str__(self) -> str:
        return f"there are {self.limit:,} {self.what} already, and may be no more; {self.remedy}"


class VariableNotFound(SnakepitError, KeyError):
    """A session has no variable of that name or id."""

    def __init__(self, name: str | int, known: Sequence[str] = ()) -> None:
        super().__init__(name, tuple(known))
        self.name = name
        self.known = tuple(known)

    def __str__(self) -> str:
        adds = "; register() adds one, in a notebook %snakepit set NAME=VALUE"
        remedy = suggest(str(self.name), self.known) if self.known else adds
        return f"there is no variable {self.name!r} in this session{remedy}"


class VariableTypeError(SnakepitError, ValueError):
    """A value is not of the type that a variable was registered with; nothing was changed."""

    def __init__(self, name: str, wanted: str, given: str) -> None:
        super().__init__(name, wanted, given)
        self.name = name
        self.wanted = wanted
        self.given = given

    def __str__(self) -> str:
        return f"variable {self.name!r} takes {self.wanted}, not {self.given}"


class ConstraintViolation(SnakepitError, ValueError):
    """A value breaks a constraint of its variable; nothing was changed.

    Attributes
    ----------
    name
        Name of the variable.
    constraint
        The constraint: ``"min"``, ``"max"``, ``"choices"`` …
    bound
        Its bound.
    problem
        Description of the violation, without the value, which may be a secret.
    """

    def __init__(self, name: str, constraint: str, bound: object, problem: str) -> None:
        super().__init__(name, constraint, bound, problem)
        self.name = name
        self.constraint = constraint
        self.bound = bound
        self.problem = problem

    def __str__(self) -> str:
        return f"variable {self.name!r}: {self.problem} ({self.constraint}={self.bound!r})"


class VariableLocked(SnakepitError):
    """A variable must not be changed until it is unlocked; nothing was changed."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"variable {self.name!r} is locked ({self.reason}); unlock() lets it be changed"


class VersionConflict(SnakepitError):
    """A variable is not at the version that was expected; nothing was changed."""

    def __init__(self, name: str, expected: int, actual: int) -> None:
        super().__init__(name, expected, actual)
        self.name = name
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"variable {self.name!r} is at version {self.actual}, not {self.expected}: it was "
            "changed meanwhile; read it again, and decide again"
        )


class BatchRejected(SnakepitError, ValueError):
    """Some of several variables cannot be set; none of them was.

    Attributes
    ----------
    errors
        The errors, by name of the variable.
    """

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        super().__init__(dict(errors))
        self.errors = dict(errors)

    def __str__(self) -> str:
        listed = "; ".join(str(error) for error in self.errors.values())
        return f"nothing was changed: {listed}"


class ProgramNotFound(SnakepitError, KeyError):
    """There is no program of that name."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, tuple(known))
        self.name = name
        self.known = tuple(known)

    def __str__(self) -> str:
        return f"there is no program {self.name!r}{suggest(self.name, self.known)}"


class ProgramDamaged(SnakepitError):
    """A program differs from what was stored under its name."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"program {self.name!r} is damaged: {self.problem}; store it again"


class StoreError(SnakepitError):
    """The store of sessions could not be read or written; nothing was lost."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"the store of sessions {self.path}: {self.problem}; {self.remedy}"


class ToolError(SnakepitError):
    """An exception raised by remote code: in a worker, or by a host tool.

    Attributes
    ----------
    type_name
        Name of the remote exception's class.
    message
        Its text.
    remote_traceback
        The full remote traceback, with causes, contexts and notes.
    place
        ``"worker"``, or ``"notebook"`` for a host tool.

    ``__cause__`` is the original exception if it could be pickled.
    """

    def __init__(
        self, type_name: str, message: str, remote_traceback: str = "", place: str = "worker"
    ) -> None:
        super().__init__(type_name, message, remote_traceback, place)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback
        self.place = place

    def __str__(self) -> str:
        text = f"{self.type_name}: {self.message}" if self.message else self.type_name
        if self.details is not None:
            text += f"\n\n{self.details}"
        notes = getattr(self, "__notes__", ())
        where = frames_alone(self.remote_traceback, self.type_name, self.message, notes)
        if where:
            text += f"\n\nin the {self.place}:\n{where}"
        return text

    def _render_traceback_(self) -> list[str]:
        """Return the traceback that IPython shows: without ``__cause__``, which only repeats it."""
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is None:
            return traceback.format_exception(self)
        cause = self.__cause__
        is_repeated = (
            cause is not None
            and type(cause).__name__ == self.type_name
            and cause.__traceback__ is None
        )
        try:
            if is_repeated:
                self.__cause__ = None
            shown = shell.InteractiveTB.structured_traceback(type(self), self, self.__traceback__)
        finally:
            if is_repeated:
                self.__cause__ = cause
        return list(shown)


class CellError(ToolError):
    """A cell raised in a worker; shows the worker's own traceback in a notebook.

    Attributes
    ----------
    traceback
        The worker's traceback as IPython formatted it, with colours, one entry a frame.
    """

    def __init__(self, type_name: str, message: str, traceback: Sequence[str] = ()) -> None:
        super().__init__(type_name, message)
        self.args = (type_name, message, tuple(traceback))
        self.traceback = tuple(traceback)

    def _render_traceback_(self) -> list[str]:
        """Return the worker's traceback, which IPython shows instead of that of this process."""
        return list(self.traceback)


class ShellClosed(SnakepitError, RuntimeError):
    """The shell of a session takes no commands any more.

    Attributes
    ----------
    session
        The session.
    reason
        Why.
    """

    def __init__(self, session: str, reason: str) -> None:
        super().__init__(session, reason)
        self.session = session
        self.reason = reason

    def __str__(self) -> str:
        return f"the shell of session {self.session!r} is closed: {self.reason}"


class ShellBusy(SnakepitError):
    """The shell of a session runs a command, and this one was not to wait for it.

    Attributes
    ----------
    session
        The session.
    waiting
        Number of commands that run or wait.
    """

    def __init__(self, session: str, waiting: int) -> None:
        super().__init__(session, waiting)
        self.session = session
        self.waiting = waiting

    def __str__(self) -> str:
        return (
            f"the shell of session {self.session!r} runs a command, and {self.waiting - 1} more "
            "wait; wait as well (queue=True), use another session, or start a process"
        )


class CommandFailed(SnakepitError):
    """A command in a shell has ended with another status than 0.

    Attributes
    ----------
    result
        Its result.
    """

    def __init__(self, result: Any) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        result = self.result
        text = f"a command ended with status {result.returncode}: {result.command[:200]}"
        if result.timed_out:
            text = f"a command was ended after {result.duration:.1f} s: {result.command[:200]}"
        end = result.stderr[-2000:].strip()
        return f"{text}\n{end}" if end else text


class ProcessNotFound(SnakepitError, LookupError):
    """There is no background process of that id or name.

    Attributes
    ----------
    id
        What was asked for.
    known
        Ids of those that there are.
    """

    def __init__(self, id: str, known: Sequence[str] = ()) -> None:  # noqa: A002 - its public name
        super().__init__(id, tuple(known))
        self.id = id
        self.known = tuple(known)

    def __str__(self) -> str:
        return f"there is no process {self.id!r}{suggest(self.id, self.known)}"


class ProcessNotReady(SnakepitError, TimeoutError):
    """A background process has not done in time what was awaited.

    Attributes
    ----------
    id
        The process.
    awaited
        What, in words.
    seconds
        How long.
    log
        The end of its log.
    """

    def __init__(self, id: str, awaited: str, seconds: float, log: str = "") -> None:  # noqa: A002
        super().__init__(id, awaited, seconds, log)
        self.id = id
        self.awaited = awaited
        self.seconds = seconds
        self.log = log

    def __str__(self) -> str:
        text = f"process {self.id} {self.awaited} within {self.seconds:g} s"
        return f"{text}; the end of its log:\n{self.log}" if self.log else text


class ProcessExited(SnakepitError):
    """A background process ended before it did what was awaited.

    Attributes
    ----------
    id
        The process.
    awaited
        What, in words.
    returncode
        Its exit status.
    log
        The end of its log.
    """

    def __init__(self, id: str, awaited: str, returncode: int | None, log: str = "") -> None:  # noqa: A002
        super().__init__(id, awaited, returncode, log)
        self.id = id
        self.awaited = awaited
        self.returncode = returncode
        self.log = log

    def __str__(self) -> str:
        text = f"process {self.id} ended with status {self.returncode}, and {self.awaited}"
        return f"{text}; the end of its log:\n{self.log}" if self.log else text


class EnvironmentFailed(SnakepitError):
    """An environment of packages could not be made for the workers of a pool.

    Attributes
    ----------
    requirements
        What it was to have.
    cause
        What failed.
    output
        What the installer has said about that, at most 4 KiB.
    """

    def __init__(self, requirements: Sequence[str], cause: str, output: str = "") -> None:
        super().__init__(tuple(requirements), cause, output)
        self.requirements = tuple(requirements)
        self.cause = cause
        self.output = output

    def __str__(self) -> str:
        wanted = f" for {', '.join(self.requirements)}" if self.requirements else ""
        text = f"no environment could be made{wanted}: {self.cause}"
        return f"{text}; it says:\n{self.output}" if self.output else text


class StartFailed(SnakepitError):
    """A process could not be started, or never became ready.

    Attributes
    ----------
    what
        What was started.
    cause
        Why it failed.
    output
        The last output of the process, at most 4 KiB.
    """

    def __init__(self, what: str, cause: str, output: str = "") -> None:
        super().__init__(what, cause, output)
        self.what = what
        self.cause = cause
        self.output = output

    def __str__(self) -> str:
        text = f"{self.what} could not start: {self.cause}"
        if self.output:
            text += f"\nits last output:\n{self.output}"
        return text


class SurvivorsError(SnakepitError):
    """Processes of a run are still alive although everything was done to end them.

    Attributes
    ----------
    run_id
        The run they belong to.
    survivors
        One line for each: pid, state, command.
    """

    def __init__(self, run_id: str, survivors: Sequence[str]) -> None:
        super().__init__(run_id, tuple(survivors))
        self.run_id = run_id
        self.survivors = tuple(survivors)

    def __str__(self) -> str:
        listed = "\n".join(f"  {line}" for line in self.survivors)
        return f"processes of run {self.run_id} could not be ended:\n{listed}"


def frames_alone(
    remote_traceback: str, type_name: str, message: str, notes: Iterable[str] = ()
) -> str:
    """Return a formatted traceback without the text of its exception, which is shown anyway.

    Parameters
    ----------
    remote_traceback
        As Python formats it, with causes and notes; it is returned as it is if it does not end in
        the text of the exception.
    type_name, message, notes
        Of the exception.
    """
    text = remote_traceback.rstrip()
    said = "\n".join(
        [f"{type_name}: {message}" if message else type_name, *map(str, notes)]
    ).rstrip()
    before, _, module = text.removesuffix(said).rpartition("\n")
    if not text.endswith(said) or not _MODULE.fullmatch(module):
        return text
    is_alone = before.count(f"{_HEADLINE}\n") + before.endswith(_HEADLINE) == 1
    return before.removeprefix(_HEADLINE).strip("\n") if is_alone else before


_HEADLINE = "Traceback (most recent call last):"
_MODULE = re.compile(r"(?:[\w<>]+\.)*")


def _where(stacks: str) -> list[str]:
    """Return the frames of users' code in the stacks of a worker's threads.

    Frames from the worker's own or IPython's code on are left out.
    """
    shown: list[str] = []
    for block in stacks.split("\n\n"):
        places = [line for line in block.splitlines() if line.startswith(_PLACES)]
        if any(_STARTS_THREADS in place for place in places):
            continue  # a thread that the call has started, not the call itself
        ends = (i for i, place in enumerate(places) if any(o in place for o in _OWN_PLACES))
        end = next(ends, 0)
        shown += places[: min(end, _SHOWN_PLACES)]
    return shown


_PLACES = ("  File ", "  Cell ")
_OWN_PLACES = ("/snakepit_kernel/", "/IPython/core/interactiveshell.py")
_STARTS_THREADS = "/snakepit_kernel/worker/threads.py"
_SHOWN_PLACES = 10


def describe_exit(status: int | None) -> str:
    """Describe how a process ended, given its exit status as in :mod:`subprocess`."""
    if status is None:
        return "died"
    if status >= 0:
        return f"exited with status {status}"
    import signal

    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
