"""The first exchange with a worker: versions are checked, and it is told what to load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..._version import __version__
from ...errors import StartFailed, ToolError
from ...lane.exchange import Exchange
from ...lane.owner_end import LaneClosed, OwnerLane
from ...loggers import get_logger
from ...printable import printable
from ...protocol.messages import Configure, Configured, Hello, WorkerSetup
from .process import WorkerProcess

if TYPE_CHECKING:
    from ..config import PoolConfig

logger = get_logger(__name__)


class Handshake:
    """Tells a worker its setup, and gets what tools it has.

    Parameters
    ----------
    lane
        The main lane of the worker.
    process
        Its process.
    config
        The pool's options.
    """

    def __init__(self, lane: OwnerLane, process: WorkerProcess, config: PoolConfig) -> None:
        self._lane = lane
        self._process = process
        self._config = config
        self._exchange = Exchange(lane.new_call_id(), "configuring the worker")
        lane.on_hello = self._check_hello

    def put(self, setup: WorkerSetup) -> None:
        """Put the request on the lane, before the launch: the worker reads it when it is up."""
        lane = self._lane
        codec = replace(
            self._config.codec, resolves_annotations=True
        )  # annotations of an adapter's tools
        lane.put(lane.marshaller.pack(Configure(self._exchange.call_id), *codec.dumps(setup)))
        if self._config.group is None:
            lane.send_ready()

    async def reply(self) -> Configured:
        """Wait until the worker has loaded the pool's tools, and return its reply.

        Raises
        ------
        StartFailed
            It has ended, or cannot be used.
        """
        try:
            await self._await_reply()
            configured: Configured = self._exchange.outcome()
        except LaneClosed:
            raise await self._process.ended_early() from None
        except ToolError as error:
            cause = f"adapter {self._config.adapter!r} cannot be used: {error}"
            raise self._process.start_failed(cause) from error.__cause__
        for module, problem in configured.failed_preloads.items():
            text = printable(problem, lines=True)
            logger.warning("%s could not preload %s: %s", self._process.label, module, text)
        return configured

    async def _await_reply(self) -> None:
        lane, exchange = self._lane, self._exchange
        lane.begin(exchange)
        try:
            while not exchange.is_answered:
                await lane.converse(exchange)
        finally:
            lane.end(exchange)

    def _check_hello(self, hello: Hello) -> None:
        """Check the worker's versions of snakepit_kernel and of Python.

        Raises
        ------
        StartFailed
            It runs another version of this package, or of Python than was expected.
        """
        if hello.version != __version__:
            cause = (
                f"it has snakepit-kernel {hello.version}, and this process {__version__}; install "
                "the same version in its environment"
            )
            raise StartFailed(self._process.title, cause)
        expected = ".".join(map(str, self._config.kernel.python))
        if hello.python != expected:
            cause = (
                f"it runs Python {hello.python}, and was taken for Python {expected}; let the "
                "kernelspec name its interpreter as the first word of argv"
            )
            raise StartFailed(self._process.title, cause)
