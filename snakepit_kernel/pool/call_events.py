"""Telemetry events of a pool's work items and host calls, and details of their errors."""

from __future__ import annotations

import time
from typing import Self

from .. import telemetry
from ..errors import SnakepitError, ToolError
from ..protocol.messages import HostCall
from ..telemetry.spans import Scalar
from .work_item import HostCallContext, WorkItem

Attributes = dict[str, Scalar]


def report_work(work: WorkItem, outcome: str, pool: str) -> None:
    """Emit the event of a work item that has ended.

    Parameters
    ----------
    work
        The work item.
    outcome
        Name of its counter.
    pool
        Name of the pool.
    """
    now = time.monotonic()
    began = now if work.began is None else work.began
    attributes: Attributes = {
        "kind": work.kind,
        "tool": work.name,
        "pool": pool,
        "outcome": outcome,
        "correlation_id": work.correlation,
        "queue_seconds": began - work.asked,
        "run_seconds": now - began,
    }
    if work.lane is not None:
        attributes["worker"] = work.lane.worker.name
    if work.session is not None:
        attributes["session"] = work.session
    telemetry.emit("call", attributes, seconds=now - work.asked, caller=work.caller)


def describe_error(error: BaseException | None, work: WorkItem, pool: str) -> None:
    """Add to an error of this package which call it is of, where that ran and for how long."""
    if isinstance(error, SnakepitError) and error.details is None:
        error.correlation_id = work.correlation
        error.details = work.details(pool, error)
        if not isinstance(error, ToolError):  # its notes are those of the exception in the worker
            error.add_note(str(error.details))


class HostReport:
    """Context manager around a host call that emits its event at the end.

    Parameters
    ----------
    host_call, call, session
        Context, message and session of the host call.

    Attributes
    ----------
    outcome
        ``"ok"`` or ``"error"``; ``"cancelled"`` when an exception leaves the block.
    """

    __slots__ = ("_began", "_call", "_host_call", "_scope", "_session", "_span", "outcome")

    def __init__(self, host_call: HostCallContext, call: HostCall, session: str | None) -> None:
        self.outcome = "ok"
        self._host_call = host_call
        self._call = call
        self._session = session

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._span: telemetry.Begun | None = None
        if telemetry.is_on():
            self._span = telemetry.begin("host_call", self._host_call.caller)
            self._scope = telemetry.within(self._span)
            self._scope.__enter__()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._span is not None:
            self._scope.__exit__(None, None, None)
            attributes = self._host_call.lane.origin(self._session, self._host_call.correlation)
            attributes["tool"] = self._call.target
            attributes["outcome"] = self.outcome if kind is None else "cancelled"
            seconds = time.monotonic() - self._began
            telemetry.emit("host_call", attributes, seconds=seconds, caller=self._span)
