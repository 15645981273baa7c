"""The end of a pool at which it takes commands from other processes of its user."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ..errors import SnakepitError
from ..files import PRIVATE
from ..loggers import get_logger
from ..processes.run_folders import Folder
from .background_jobs import running_jobs
from .commands import (
    MAX_LINE_BYTES,
    Answer,
    CancelJob,
    Command,
    CommandRefused,
    InterruptWorker,
    KillWorker,
    RecycleWorker,
    StopPool,
    decode,
    encode,
    socket_path,
)
from .workers.replacement import RollingReplacement
from .workers.supervisor import WorkerSupervisor
from .workers.worker import Worker

logger = get_logger(__name__)

REQUEST_PATIENCE = 5.0
"""Seconds in which a client that has connected must have sent its command."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks whether the socket is still there: the end of a login session removes
it with the whole runtime directory, and tells nobody."""

_PEER = struct.Struct("3i")  # pid, uid, gid


class PoolCommands:
    """Obeys commands, in the pool's loop thread.

    Parameters
    ----------
    pool
        Name of the pool.
    supervisor, replacement
        The parts of the pool that have the workers, and replace them.
    publish
        Publishes the pool's status.
    stop
        Begins the end of the pool.
    """

    def __init__(
        self,
        pool: str,
        supervisor: WorkerSupervisor,
        replacement: RollingReplacement,
        *,
        publish: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._replacement = replacement
        self._publish = publish
        self._stop_pool = stop
        self._table: Mapping[type[Command], Callable[[Any], Awaitable[None]]] = {
            InterruptWorker: self._interrupt,
            RecycleWorker: self._recycle,
            KillWorker: self._kill,
            StopPool: self._stop,
            CancelJob: self._cancel,
        }

    async def obey(self, command: Command) -> None:
        """Do what a command says.

        Raises
        ------
        CommandRefused
            It cannot be done; the text says why.
        StartFailed
            The successor of a worker could not start; the worker goes on.
        """
        await self._table[type(command)](command)

    async def _interrupt(self, command: InterruptWorker) -> None:
        worker = self._worker(command.worker)
        if worker.main_lane.holder is None:
            msg = f"worker {worker.name} runs nothing that could be interrupted"
            if worker.is_held:  # Python has no signals for threads
                msg = (
                    f"the calls of worker {worker.name} run in threads: cancel their futures in "
                    "the notebook, or kill the worker"
                )
            raise CommandRefused(msg)
        # The signal alone: the control page may name a call that its own caller interrupts.
        worker.interrupt(0)

    async def _recycle(self, command: RecycleWorker) -> None:
        worker = self._worker(command.worker)
        if self._supervisor.workers.get(worker.slot) is not worker:
            msg = f"worker {worker.name} has a successor already, and finishes its work"
            raise CommandRefused(msg)
        await self._replacement.in_turn(self._replacement.recycle([worker.slot]))
        self._publish()

    async def _kill(self, command: KillWorker) -> None:
        worker = self._worker(command.worker)
        if worker.process.guarded is None:
            msg = f"worker {worker.name} has no process yet, or none any more"
            raise CommandRefused(msg)
        worker.process.end_reason = "was killed by hand"
        self._supervisor.terminate(worker)
        await worker.process.died.wait()
        self._publish()

    def _worker(self, name: str) -> Worker:
        """Return a worker by its name, which no other process of its slot ever has."""
        workers = self._supervisor.at_work()
        for worker in workers:
            if worker.name == name:
                return worker
        names = ", ".join(worker.name for worker in workers) or "none"
        msg = f"pool {self._pool} has no worker {name} any more; its workers: {names}"
        raise CommandRefused(msg)

    async def _stop(self, _: StopPool) -> None:
        self._stop_pool()

    async def _cancel(self, command: CancelJob) -> None:
        if not running_jobs.cancel(command.job):
            msg = f"job {command.job} does not run any more"
            raise CommandRefused(msg)


class CommandServer:
    """Listens at a pool's socket, and passes on what comes there.

    Only processes of this user reach the socket, for it is in a private folder; that the peer is
    one of those is looked at nevertheless.

    Parameters
    ----------
    folder
        The pool's folder.
    obey
        Does what a command says.

    Attributes
    ----------
    has_begun
        Set when it listens, or could not.
    """

    def __init__(self, folder: Folder, obey: Callable[[Command], Awaitable[None]]) -> None:
        self.has_begun = asyncio.Event()
        self._folder = folder
        self._obey = obey

    async def run(self) -> None:
        """Listen until this is cancelled, anew whenever the socket was removed."""
        problem = ""
        while True:
            try:
                await self._listen_while_present()
            except OSError as error:  # such as a full disk; the pool works without the socket
                if str(error) != problem:  # else it would be logged each second
                    problem = str(error)
                    logger.warning("a pool takes no commands of other processes: %s", problem)
            self.has_begun.set()
            await asyncio.sleep(LOOK_INTERVAL)

    async def _listen_while_present(self) -> None:
        path = socket_path(self._folder.present())
        server = await asyncio.start_unix_server(
            self._serve, path, limit=MAX_LINE_BYTES, start_serving=False
        )
        async with server:
            path.chmod(PRIVATE)
            await server.start_serving()
            self.has_begun.set()
            while path.exists():  # noqa: ASYNC110 - a removed file tells nobody
                await asyncio.sleep(LOOK_INTERVAL)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            if _user_of(writer) != os.geteuid():
                return
            async with asyncio.timeout(REQUEST_PATIENCE):
                line = await reader.readline()
            writer.write(encode(Answer(await self._outcome(line))) + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:  # it has left, sends nothing, or too long a line
            logger.debug("a client of a pool's socket: %s", error)
        finally:
            writer.close()

    async def _outcome(self, line: bytes) -> str:
        """Obey; return why that was not possible, or nothing."""
        try:
            await self._obey(decode(line))
        except msgspec.DecodeError as error:
            return f"this is no command: {error}"
        except (CommandRefused, SnakepitError) as error:
            return str(error)
        except Exception:
            logger.exception("a command failed")
            return "the command failed; the log of the pool's process says how"
        return ""


def _user_of(writer: asyncio.StreamWriter) -> int:
    """Return the user id of the process at the other end."""
    peer = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
    )
    uid: int = _PEER.unpack(peer)[1]
    return uid
