"""Supervised, stateful Python workers for Jupyter.

The public names are imported when they are first used: the kernel's own start imports this package
and must not pay for the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from . import telemetry
    from .errors import (
        CallTimeout,
        CellError,
        InvalidArguments,
        PoolClosed,
        PoolSaturated,
        QueueTimeout,
        SessionLost,
        SnakepitError,
        StartFailed,
        SurvivorsError,
        ToolError,
        ToolNotFound,
        ValueTooLarge,
        WorkerBusy,
        WorkerDied,
    )
    from .pool.futures import CallFuture
    from .pool.pool import Pool
    from .pool.results import CellResult
    from .pool.session import Session
    from .pool.status import PoolStats, PoolStatus
    from .pool.streams import Stream
    from .processes.keeping import keep
    from .protocol.encoders import register_encoder
    from .protocol.unserializable import Unserializable
    from .telemetry.correlation import correlation_id
    from .tools.adapter import Adapter, tool
    from .tools.context import SessionContext, context

__all__ = [
    "Adapter",
    "CallFuture",
    "CallTimeout",
    "CellError",
    "CellResult",
    "InvalidArguments",
    "Pool",
    "PoolClosed",
    "PoolSaturated",
    "PoolStats",
    "PoolStatus",
    "QueueTimeout",
    "Session",
    "SessionContext",
    "SessionLost",
    "SnakepitError",
    "StartFailed",
    "Stream",
    "SurvivorsError",
    "ToolError",
    "ToolNotFound",
    "Unserializable",
    "ValueTooLarge",
    "WorkerBusy",
    "WorkerDied",
    "__version__",
    "context",
    "correlation_id",
    "keep",
    "load_ipython_extension",
    "register_encoder",
    "telemetry",
    "tool",
    "unload_ipython_extension",
]

_HOMES = {
    "Adapter": "tools.adapter",
    "CallFuture": "pool.futures",
    "CellResult": "pool.results",
    "Pool": "pool.pool",
    "PoolStats": "pool.status",
    "PoolStatus": "pool.status",
    "Session": "pool.session",
    "SessionContext": "tools.context",
    "Stream": "pool.streams",
    "Unserializable": "protocol.unserializable",
    "register_encoder": "protocol.encoders",
    "context": "tools.context",
    "correlation_id": "telemetry.correlation",
    "keep": "processes.keeping",
    "tool": "tools.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    if name == "telemetry":
        return importlib.import_module(".telemetry", __name__)
    module = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
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
