"""Supervised, stateful Python workers for Jupyter.

The public names are imported at their first use: the kernel's own start imports this package and
must not pay for the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .moved import find_moved_modules

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from . import telemetry
    from .errors import (
        Attempt,
        BatchRejected,
        BreakerOpen,
        CallDetails,
        CallTimeout,
        CellError,
        CellsOnly,
        CommandFailed,
        ConstraintViolation,
        EnvironmentFailed,
        InvalidArguments,
        PoolClosed,
        PoolDegraded,
        PoolSaturated,
        ProcessExited,
        ProcessNotFound,
        ProcessNotReady,
        ProgramDamaged,
        ProgramNotFound,
        QueueTimeout,
        QuotaExceeded,
        ReferenceLost,
        SessionLost,
        SessionNotFound,
        ShellBusy,
        ShellClosed,
        SnakepitError,
        StartFailed,
        StoreError,
        SurvivorsError,
        ToolError,
        ToolNotFound,
        ValueTooLarge,
        VariableLocked,
        VariableNotFound,
        VariableTypeError,
        VersionConflict,
        WorkerBusy,
        WorkerDied,
    )
    from .pool.policies import Breaker, CrashBarrier, Heartbeat, Retry
    from .pool.pool import Pool
    from .pool.progress import progress
    from .pool.references import RemoteRef
    from .pool.resources.limits import Limits
    from .pool.results import CallFuture, CellResult, Stream
    from .pool.session import Session
    from .pool.status import PoolStats, PoolStatus, WorkerEnd, WorkerStatus
    from .processes.keep import keep
    from .protocol.encoders import register_encoder
    from .protocol.unserializable import Unserializable
    from .sessions.exports import export_session, import_session
    from .sessions.state import SessionInfo, SessionState, SessionStats, open_session
    from .sessions.values import Change, Program, Variable
    from .sessions.watch import Watch
    from .shells.of_session import processes
    from .shells.process import Process
    from .shells.results import ShellChunk, ShellResult
    from .shells.shell import Shell
    from .telemetry.correlation import correlation_id
    from .tools.adapter import Adapter, tool
    from .tools.context import SessionContext, context

__all__ = [
    "Adapter",
    "Attempt",
    "BatchRejected",
    "Breaker",
    "BreakerOpen",
    "CallDetails",
    "CallFuture",
    "CallTimeout",
    "CellError",
    "CellResult",
    "CellsOnly",
    "Change",
    "CommandFailed",
    "ConstraintViolation",
    "CrashBarrier",
    "EnvironmentFailed",
    "Heartbeat",
    "InvalidArguments",
    "Limits",
    "Pool",
    "PoolClosed",
    "PoolDegraded",
    "PoolSaturated",
    "PoolStats",
    "PoolStatus",
    "Process",
    "ProcessExited",
    "ProcessNotFound",
    "ProcessNotReady",
    "Program",
    "ProgramDamaged",
    "ProgramNotFound",
    "QueueTimeout",
    "QuotaExceeded",
    "ReferenceLost",
    "RemoteRef",
    "Retry",
    "Session",
    "SessionContext",
    "SessionInfo",
    "SessionLost",
    "SessionNotFound",
    "SessionState",
    "SessionStats",
    "Shell",
    "ShellBusy",
    "ShellChunk",
    "ShellClosed",
    "ShellResult",
    "SnakepitError",
    "StartFailed",
    "StoreError",
    "Stream",
    "SurvivorsError",
    "ToolError",
    "ToolNotFound",
    "Unserializable",
    "ValueTooLarge",
    "Variable",
    "VariableLocked",
    "VariableNotFound",
    "VariableTypeError",
    "VersionConflict",
    "Watch",
    "WorkerBusy",
    "WorkerDied",
    "WorkerEnd",
    "WorkerStatus",
    "__version__",
    "context",
    "correlation_id",
    "export_session",
    "import_session",
    "keep",
    "load_ipython_extension",
    "open_session",
    "processes",
    "progress",
    "register_encoder",
    "telemetry",
    "tool",
    "unload_ipython_extension",
]

find_moved_modules()

if not TYPE_CHECKING:
    from . import processes  # an empty package, which costs nothing

    class _Processes(type(processes)):
        """The package `processes`, which is also the function of that name."""

        def __call__(self) -> list[Process]:
            """Return the background processes of all kernels and scripts of this user."""
            from .shells.of_session import processes

            return processes()

        def __reduce__(self) -> tuple[object, ...]:
            from importlib import import_module

            return import_module, (self.__name__,)  # pickled as every module is

    processes.__class__ = _Processes

_MODULES = {
    "Adapter": "tools.adapter",
    "CallFuture": "pool.results",
    "CellResult": "pool.results",
    "Limits": "pool.resources.limits",
    "Pool": "pool.pool",
    "progress": "pool.progress",
    "RemoteRef": "pool.references",
    "Breaker": "pool.policies",
    "CrashBarrier": "pool.policies",
    "Heartbeat": "pool.policies",
    "Retry": "pool.policies",
    "PoolStats": "pool.status",
    "PoolStatus": "pool.status",
    "WorkerEnd": "pool.status",
    "WorkerStatus": "pool.status",
    "Session": "pool.session",
    "SessionContext": "tools.context",
    "Stream": "pool.results",
    "Unserializable": "protocol.unserializable",
    "register_encoder": "protocol.encoders",
    "context": "tools.context",
    "export_session": "sessions.exports",
    "import_session": "sessions.exports",
    "SessionInfo": "sessions.state",
    "SessionState": "sessions.state",
    "SessionStats": "sessions.state",
    "open_session": "sessions.state",
    "Change": "sessions.values",
    "Program": "sessions.values",
    "Variable": "sessions.values",
    "Process": "shells.process",
    "Shell": "shells.shell",
    "ShellChunk": "shells.results",
    "ShellResult": "shells.results",
    "Watch": "sessions.watch",
    "correlation_id": "telemetry.correlation",
    "keep": "processes.keep",
    "tool": "tools.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    if name == "telemetry":
        return importlib.import_module(".telemetry", __name__)
    module = importlib.import_module(f".{_MODULES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the magics to a notebook: ``%load_ext snakepit_kernel``."""
    from snakepit_magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics out again, and end the pools that they opened."""
    from snakepit_magics import unload

    unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Tell Jupyter Server where the extension behind JupyterLab's panel is."""
    return [{"module": "snakepit_kernel.server"}]
