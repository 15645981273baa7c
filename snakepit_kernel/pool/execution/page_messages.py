"""Delivers the page's messages to widgets and other comms of workers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from typing import Any

from ...errors import SnakepitError
from ...locks import Condition
from ...loggers import get_logger
from ...output.comms import PageMessage
from ...output.display import echo, flush, publish, send_error
from ..work_item import WorkItem, current_host_call
from ..workers.jupyter import ShellRequest
from ..workers.worker import Worker
from .work_runner import WorkRunner

logger = get_logger(__name__)

NAME = "a widget"
"""Name of the work in status displays."""


class PageMessages:
    """Delivers messages of the page to the workers of a pool, each worker's in their order.

    A message waits until its worker is at rest, like a cell; then it runs in the session whose code
    has opened the comm. A worker that has messages has a thread for them.

    Parameters
    ----------
    work
        Runs the requests.
    """

    def __init__(self, work: WorkRunner) -> None:
        self._work = work
        self._changed = Condition()
        self._queues: dict[Worker, deque[PageMessage]] = {}
        self._undone: Counter[str | None] = Counter()  # messages, by session

    def deliver(self, worker: Worker, message: PageMessage) -> None:
        """Deliver a message soon, in another thread."""
        with self._changed:
            self._undone[message.session] += 1
            if worker in self._queues:
                self._queues[worker].append(message)
                return
            self._queues[worker] = deque([message])
        name = f"snakepit-page-{worker.name}"
        try:
            threading.Thread(target=self._run, args=(worker,), name=name, daemon=True).start()
        except RuntimeError:  # there are no more threads
            self._run(worker)

    def _run(self, worker: Worker) -> None:
        while True:
            with self._changed:
                queue = self._queues[worker]
                if not queue:
                    del self._queues[worker]
                    return
                message = queue.popleft()
            try:
                message.context.run(self._handle, worker, message)
            except Exception:  # of a front end that has gone, for example; the others are delivered
                logger.warning("a message of the page to %s failed", worker.name, exc_info=True)
            finally:
                message.on_handled()
                with self._changed:
                    self._undone -= Counter([message.session])
                    self._changed.notify_all()

    def _handle(self, worker: Worker, message: PageMessage) -> None:
        work = WorkItem(
            NAME,
            None,
            session=message.session,
            timeout=None,
            queue_timeout=None,
            bound=None,
            purpose="cell",
            slot=worker.slot,
        )
        work.only = worker.main_lane
        work.moves_session = False  # its cells go on where they were
        request = ShellRequest(
            kind=message.kind,
            content=message.content,
            metadata=message.metadata,
            buffers=message.buffers,
            message_id=message.message_id,
            is_answered=False,
            on_message=show,
        )
        try:
            self._work.run_request(work, request)
        except (SnakepitError, ValueError) as error:  # ValueError: its slot was removed
            echo("stderr", f"What was done to a widget is lost: {error}\n")

    def settle(self, session: str | None, deadline: float | None = None) -> None:
        """Wait until the messages to a session are handled: what follows finds their effect.

        Ctrl-C ends the wait, and interrupts what is being handled.

        Parameters
        ----------
        session
            The session.
        deadline
            `time.monotonic` at which to stop waiting.
        """
        if session not in self._undone or current_host_call() is not None:
            return  # a host tool that a handler calls must not wait for the handler
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            with self._changed:
                self._changed.wait_for(lambda: session not in self._undone, left)
        except KeyboardInterrupt:
            self._interrupt(session)
            raise

    async def settle_async(self, session: str | None) -> None:
        """Do the same as `settle`, without blocking the event loop."""
        if session in self._undone:
            await asyncio.to_thread(self.settle, session)

    def _interrupt(self, session: str | None) -> None:
        for worker in list(self._queues):
            holder = worker.main_lane.holder
            if not isinstance(holder, WorkItem) or holder.name != NAME:
                continue
            if holder.session == session:
                worker.main_lane.interrupt(worker.main_lane.new_call_id())


def show(message: dict[str, Any]) -> None:
    """Show an iopub message of a worker as it comes."""
    content, kind = message["content"], message["msg_type"]
    if kind == "error":
        send_error(content)
        return
    publish(kind, content, message["metadata"], message.get("buffers") or ())
    if kind == "stream":
        flush(content["name"])
