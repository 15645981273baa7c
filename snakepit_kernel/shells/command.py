"""A command that bash runs: its beginning, its output, its end, and its interruption."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping
from typing import IO

from ..processes.identity import ProcessIdentity
from .bash import Bash
from .outputs import DetachedOutput, OnOutput

DRAIN_SECONDS = 0.03
"""Seconds after the end of a command in which a process may still close its output."""

KILL_AFTER = 0.5
"""Seconds after an interrupt until what the command started is killed."""

ABANDON_AFTER = 1.0
"""Seconds after an interrupt until bash itself is killed."""

UNWIND_INTERVAL = 0.2
"""Seconds between two signals to bash to give up its command."""


class Command:
    """A command that runs in a shell.

    Parameters
    ----------
    bash
        The shell.
    number
        Its number.

    Attributes
    ----------
    reply
        Its status, once bash has told it.
    late
        The outputs that it has left to background processes.
    """

    def __init__(self, bash: Bash, number: int) -> None:
        self.number = number
        self.late: list[DetachedOutput] = []
        self.reply: asyncio.Future[int]
        self._bash = bash
        self._known: set[ProcessIdentity] = set()

    def begin(
        self,
        text: bytes,
        *,
        cwd: str | None,
        env: Mapping[str, str | None],
        stdin: IO[bytes] | bytes | None,
        on_output: OnOutput,
    ) -> None:
        """Begin it.

        Raises
        ------
        OSError
            Its files cannot be written. Nothing runs.
        """
        self._known = self._bash.processes()
        for output in self._bash.outputs:
            output.begin(on_output)
        self.reply = self._bash.run(self.number, text, cwd=cwd, env=env, stdin=stdin)

    async def wait(self) -> int:
        """Wait for its end; return its status.

        Raises
        ------
        EOFError
            The shell has ended.
        NotRun
            Bash could not set a variable of its environment.
        Wedged
            The shell waits for its next line, and has not reported the end.
        """
        return await asyncio.shield(self.reply)  # a time-out must not cancel it

    async def finish(self) -> None:
        """Read the rest of its output."""
        outputs = self._bash.outputs
        for output in outputs:
            output.drain()
        if not all(output.is_over for output in outputs):
            await self._drain_late()
        for output in outputs:
            output.pause()

    async def _drain_late(self) -> None:
        """Wait a moment for processes that end with it, such as those of ``> >(tee)``."""
        ended = asyncio.Event()

        def look() -> None:
            if all(output.is_over for output in self._bash.outputs):
                ended.set()

        for output in self._bash.outputs:
            if not output.is_over:
                output.await_end(look)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), DRAIN_SECONDS)

    def detach(self) -> bool:
        """Leave its output to what still writes there; return whether something does."""
        late = [output.detach() for output in self._bash.outputs if not output.is_over]
        self.late = [each for each in late if each is not None]
        return bool(self.late)

    def discard(self) -> None:
        """Drop the rest of its output, for which nobody waits any more."""
        for output in self._bash.outputs:
            output.discard()

    async def interrupt(self) -> None:
        """Interrupt it until it ends: first politely, in the end by killing the shell."""
        began = time.monotonic()
        unwound = -UNWIND_INTERVAL
        signum = signal.SIGTERM
        while not self.reply.done():
            passed = time.monotonic() - began
            if passed > ABANDON_AFTER:
                self._bash.kill()
            elif passed > KILL_AFTER:
                signum = signal.SIGKILL
            if passed - unwound > UNWIND_INTERVAL:
                unwound = passed
                self._bash.unwind()
            self._signal(signum)
            await asyncio.wait([self.reply], timeout=0.002 if passed < 0.05 else 0.02)
        heedless = self._signal(signum)
        self._bash.end_unwinding()
        if heedless:
            until = began + KILL_AFTER - time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, until), self._kill, heedless)

    def _kill(self, heedless: list[ProcessIdentity]) -> None:
        """Kill what lives of it, long after the interrupt: it does not heed SIGTERM."""
        for process in self._bash.left_by(self.number, heedless):
            with contextlib.suppress(PermissionError, ProcessLookupError):
                process.signal(signal.SIGKILL)

    def _signal(self, signum: int) -> list[ProcessIdentity]:
        """Signal what the command has started; return it."""
        processes = self._bash.started_by(self.number, self._known)
        for process in processes:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                process.signal(signum)
                if signum == signal.SIGTERM:
                    process.signal(signal.SIGCONT)
        return processes
