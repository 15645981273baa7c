"""The endpoints of the extension, below ``/snakepit/``. Only this module imports Jupyter Server.

Files are read, and processes are waited for, in threads: the server's event loop goes on. Who may
use the kernels of the server may use these endpoints: the authorizer is asked for that resource.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from ..pool import commands
from .kernels import Kernel, NotServed

if TYPE_CHECKING:
    from ..pool.monitoring.published_pools import PublishedPool
    from ..shells.process import Process

T = TypeVar("T")

AUTH_RESOURCE = "kernels"

BAD_REQUEST, NOT_FOUND, CONFLICT, UNAVAILABLE = 400, 404, 409, 503


class _Handler(APIHandler):
    auth_resource = AUTH_RESOURCE

    async def _kernels(self) -> list[Kernel]:
        """Return the server's kernels, with the names of their notebooks."""
        sessions: Any = await ensure_async(self.session_manager.list_sessions())
        by_kernel = {session["kernel"]["id"]: session for session in sessions}
        manager = self.kernel_manager
        return [
            _kernel(kernel_id, manager.get_kernel(kernel_id), by_kernel.get(kernel_id, {}))
            for kernel_id in manager.list_kernel_ids()
        ]

    async def _ask(self, question: Callable[[Sequence[Kernel]], T]) -> T:
        """Ask a question about the server's kernels, in a thread."""
        kernels = await self._kernels()
        try:
            return await asyncio.to_thread(question, kernels)
        except NotServed as error:
            raise HTTPError(NOT_FOUND, str(error)) from error
        except OSError as error:  # the runtime directory cannot be used; the text says why
            raise HTTPError(UNAVAILABLE, str(error)) from error


class StateHandler(_Handler):
    """What the server's kernels have."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """Give the pools, workers, sessions, processes and jobs of all kernels."""
        self.finish(json.dumps(await self._ask(_state)))


class PoolHandler(_Handler):
    """One pool."""

    @authenticated
    @authorized
    async def post(self, pool_id: str) -> None:
        """Pass a command on to the pool; the answer comes when it has been obeyed."""
        try:
            command = commands.decode(self.request.body)
        except msgspec.DecodeError as error:
            msg = (
                f"the body is no command: {error}. It is a JSON object such as "
                '{"op": "recycle", "worker": "default-1.1"}'
            )
            raise HTTPError(BAD_REQUEST, msg) from error
        pool = await self._ask(partial(_find_pool, pool_id))
        try:
            await commands.send(pool.folder, command)
        except commands.CommandRefused as error:
            raise HTTPError(CONFLICT, str(error)) from error
        except commands.PoolUnreachable as error:
            raise HTTPError(UNAVAILABLE, str(error)) from error
        self.set_status(204)


class ProcessHandler(_Handler):
    """One background process of a session."""

    @authenticated
    @authorized
    async def delete(self, process_id: str) -> None:
        """End the process and all that it has started."""
        process = await self._ask(partial(_find_process, process_id))
        await asyncio.to_thread(process.kill)
        self.set_status(204)


class LogHandler(_Handler):
    """What a background process has written."""

    @authenticated
    @authorized
    async def get(self, process_id: str) -> None:
        """Give the end of its log."""
        self.finish(json.dumps(await self._ask(partial(_log, process_id))))


# Imported in these, in a thread, with the first request: a server that nobody asks pays nothing.


def _state(kernels: Sequence[Kernel]) -> dict[str, Any]:
    from .served import state_of

    return state_of(kernels)


def _find_pool(pool_id: str, kernels: Sequence[Kernel]) -> PublishedPool:
    from .served import find_pool

    return find_pool(kernels, pool_id)


def _find_process(process_id: str, kernels: Sequence[Kernel]) -> Process:
    from .served import find_process

    return find_process(kernels, process_id)


def _log(process_id: str, kernels: Sequence[Kernel]) -> dict[str, Any]:
    from .served import log_of

    return log_of(kernels, process_id)


def _kernel(kernel_id: str, manager: Any, session: dict[str, Any]) -> Kernel:
    """Return a kernel, from its manager and its session in the server, which may be missing."""
    provisioner = getattr(manager, "provisioner", None)  # a gateway's manager has none
    pid = getattr(provisioner, "pid", None)
    is_notebook = session.get("type") == "notebook"
    kernel = session.get("kernel", {})
    return Kernel(
        id=kernel_id,
        name=session.get("name") or session.get("path") or kernel_id[:8],
        path=session["path"] if is_notebook else None,
        state=kernel.get("execution_state") or getattr(manager, "execution_state", ""),
        pid=pid if isinstance(pid, int) else None,
        run_id=getattr(provisioner, "run_id", ""),
    )


def handlers(base_url: str) -> list[tuple[str, type[APIHandler]]]:
    """Return the endpoints of a server."""
    routes: dict[str, type[APIHandler]] = {
        r"state": StateHandler,
        r"pools/([a-z2-7]+/[^/]+)": PoolHandler,
        r"processes/([^/]+)": ProcessHandler,
        r"processes/([^/]+)/log": LogHandler,
    }
    return [(url_path_join(base_url, "snakepit", path), each) for path, each in routes.items()]
