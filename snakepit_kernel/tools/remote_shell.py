"""The shell and the background processes of a session, in a worker: the owner runs them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from ..shells.of_session import ProcessList
from ..shells.process import Process
from ..shells.results import ShellChunk, ShellResult
from ..tracebacks import hide_own_frames, hides_own_frames

Ask = Callable[..., Any]
AskAsync = Callable[..., Awaitable[Any]]

_numbers = itertools.count(1)


@hides_own_frames
class RemoteShell:
    """The shell of the session that a call or cell belongs to.

    It is the same shell as that of the session in the notebook, whose process runs the commands:
    they wait for each other. A command ends with the call or cell that has begun it.

    Parameters
    ----------
    ask
        Calls the owner, with a method of the shell and its arguments.
    ask_async
        Does the same without blocking the event loop.
    """

    def __init__(self, ask: Ask, ask_async: AskAsync) -> None:
        self._ask = ask
        self._ask_async = ask_async

    # -- running commands ----------------------------------------------------------------------

    def run(self, command: str, **options: Any) -> ShellResult:
        """Run a command, and wait for its end; parameters and errors are those of `Shell.run`.

        ``cwd`` is seen from the worker's working directory; a file that is given as ``stdin`` is
        read here.
        """
        result: ShellResult = self._only("run", command, options)
        return result

    async def arun(self, command: str, **options: Any) -> ShellResult:
        """Run a command as `run` does, without blocking the event loop.

        Cancelling the task interrupts the command.
        """
        async with contextlib.aclosing(self._aitems("run", command, options)) as items:
            result: ShellResult = await anext(items)
            return result

    def stream(self, command: str, **options: Any) -> Generator[ShellChunk, None, None]:
        """Run a command, and yield what it writes as it comes; `last` is its result afterwards.

        Closing the generator interrupts the command, and so does the end of the call or cell.
        """
        return self._items("stream", command, options)

    def astream(self, command: str, **options: Any) -> AsyncGenerator[ShellChunk, None]:
        """Run a command as `stream` does, without blocking the event loop."""
        return self._aitems("stream", command, options)

    def interrupt(self) -> bool:
        """Interrupt the running command: its status is 130. Return whether one ran."""
        return bool(self._ask("interrupt"))

    # -- looking -------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The session."""
        return str(self._ask("attribute", "session_id"))

    @property
    def last(self) -> ShellResult | None:
        """The result of the last command that has ended."""
        found: ShellResult | None = self._ask("attribute", "last")
        return found

    @property
    def cwd(self) -> str:
        """Its working directory after the last command."""
        return str(self._ask("attribute", "cwd"))

    @property
    @hides_own_frames
    def env(self) -> dict[str, str]:
        """The variables that it exports."""
        return dict(self._only("env", "", {}))

    @property
    def is_busy(self) -> bool:
        """Whether a command runs."""
        return bool(self._ask("attribute", "is_busy"))

    @property
    def queue_length(self) -> int:
        """Number of commands that wait."""
        return int(self._ask("attribute", "queue_length"))

    @property
    def is_open(self) -> bool:
        """Whether it takes commands."""
        return bool(self._ask("attribute", "is_open"))

    def late_output(self, number: int) -> bytes:
        """Return the end of what background processes of a command have written after its end."""
        return bytes(self._ask("late_output", number))

    def __repr__(self) -> str:
        return f"<RemoteShell of session {self.session_id!r}: {'busy' if self.is_busy else 'idle'}>"

    # -- details -------------------------------------------------------------------------------

    def _only(self, kind: str, command: str, options: Mapping[str, Any]) -> Any:
        (item,) = self._items(kind, command, options)
        return item

    @hides_own_frames
    def _items(
        self, kind: str, command: str, options: Mapping[str, Any]
    ) -> Generator[Any, None, None]:
        begun = _Begun(kind, command, options)
        try:
            while not begun.is_over:
                yield from begun.receive(self._ask(*begun.request))
        finally:
            if not begun.is_over:
                with contextlib.suppress(RuntimeError, ConnectionError):
                    self._ask(*begun.leave)  # refused after the end of the call, which has done it

    async def _aitems(
        self, kind: str, command: str, options: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        begun = _Begun(kind, command, options)
        try:
            while not begun.is_over:
                for item in begun.receive(await self._ask_async(*begun.request)):
                    yield item
        except BaseException as error:
            hide_own_frames(error)
            raise
        finally:
            if not begun.is_over:
                with contextlib.suppress(RuntimeError, ConnectionError):
                    await self._ask_async(*begun.leave)


class _Begun:
    """A command that the owner runs for this worker: what is to be asked next.

    Attributes
    ----------
    request, leave
        What to ask for its next items, and to end it.
    is_over
        Whether there is no more.
    """

    def __init__(self, kind: str, command: str, options: Mapping[str, Any]) -> None:
        number = next(_numbers)
        self.request: tuple[Any, ...] = ("begin", number, kind, command, _sendable(options))
        self.leave = ("leave", number)
        self.is_over = False
        self._then = ("proceed", number)

    def receive(self, answer: tuple[list[Any], bool]) -> list[Any]:
        """Note an answer of the owner's; return the items in it."""
        items, self.is_over = answer
        self.request = self._then
        return items


@hides_own_frames
class RemoteProcesses(ProcessList):
    """The background processes of the session that a call or cell belongs to.

    They belong to the notebook, and go on when the call, the cell or the worker ends.

    Parameters
    ----------
    ask
        Calls the owner, with a method and its arguments.
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask

    def start(self, command: str, **options: Any) -> Process:
        """Start a command in the background.

        Parameters and errors are those of `SessionProcesses.start`.
        """
        process: Process = self._ask("start", command, **_sendable(options))
        return process

    def list(self) -> list[Process]:
        """Return the session's processes, oldest first; those that have ended as well."""
        found: list[Process] = self._ask("list")
        return found


def _sendable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a command as the owner can take them."""
    sent = dict(options)
    if isinstance(cwd := sent.get("cwd"), str | os.PathLike):
        sent["cwd"] = str(Path(cwd).expanduser().absolute())  # the owner's directory is another
    if (read := getattr(sent.get("stdin"), "read", None)) is not None:
        sent["stdin"] = read()
    if isinstance(env := sent.get("env"), Mapping):
        sent["env"] = dict(env)
    return sent
