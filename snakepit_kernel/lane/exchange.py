"""One call's conversation on a lane, whoever reads the lane for it."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable
from typing import Any

from ..errors import InvalidArguments, ToolError, ToolNotFound
from ..protocol import messages, values
from ..protocol.frames import Frame, Segment, pack

_PLACE = re.compile(r'  File "(?P<file>.+)", line (?P<line>\d+), in ')

OnOutput = Callable[[str, str], None]


class Interrupted(Exception):
    """The worker says that the call was interrupted."""

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback


class RemoteTraceback(Exception):
    """The text of a worker's traceback, shown as the cause of the exception itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class Exchange:
    """A call from its request to its reply.

    Parameters
    ----------
    call_id
        The call's id on its lane.
    name
        What is called, for errors.
    on_output
        Gets ``(stream, text)`` of what the call prints; by default it is printed here.
    raise_original
        Raise the remote exception itself where it can travel, as executors do; else a `ToolError`.

    Attributes
    ----------
    is_answered
        Whether the answer is here.
    """

    __slots__ = (
        "_exception",
        "_on_output",
        "_raise_original",
        "_value",
        "call_id",
        "is_answered",
        "name",
    )

    def __init__(
        self,
        call_id: int,
        name: str,
        *,
        on_output: OnOutput | None = None,
        raise_original: bool = False,
    ) -> None:
        self.call_id = call_id
        self.name = name
        self.is_answered = False
        self._on_output = on_output or echo
        self._raise_original = raise_original
        self._value: Any = None
        self._exception: BaseException | None = None

    def take(self, frame: Frame) -> bool:
        """Take in a frame; say whether the call has its answer.

        A late answer to an earlier call, one that was given up, is dropped.
        """
        message = messages.decode_from_worker(frame.header)
        if isinstance(message, messages.Hello) or message.id != self.call_id:
            return False
        if isinstance(message, messages.Output):
            self._on_output(message.stream, message.text)
            return False
        # Before it is restored: who is interrupted there must not wait for another one.
        self.is_answered = True
        match message:
            case messages.Result():
                self._restore(frame)
            case messages.Configured():
                self._value = message
            case messages.Failure():
                self._exception = self._failure(message, frame)
        return True

    def outcome(self) -> Any:
        """Return the call's value, or raise its exception."""
        if self._exception is not None:
            raise self._exception
        return self._value

    def _restore(self, frame: Frame) -> None:
        try:
            self._value = values.loads(frame.body, frame.buffers)
        except Exception as error:  # noqa: BLE001 - unpickling runs any code; it is this call's answer
            self._exception = ToolError(
                type(error).__name__,
                f"the result of {self.name} cannot be restored here: {error}",
            )
            self._exception.__cause__ = error

    def _failure(self, message: messages.Failure, frame: Frame) -> BaseException:
        match message.kind:
            case "interrupted":
                return Interrupted(message.traceback)
            case "arguments":
                return InvalidArguments(self.name, message.problems)
            case "tool":
                return ToolNotFound(self.name, message.problems)
        text = with_sources(message.traceback)
        original = _original(frame)
        if original is not None and self._raise_original:
            original.__cause__ = RemoteTraceback(text)
            return original
        error = ToolError(message.type_name, message.message, text)
        error.__cause__ = original
        for note in getattr(original, "__notes__", ()):
            error.add_note(note)
        return error


def _original(frame: Frame) -> BaseException | None:
    if not frame.body:
        return None
    try:
        original = values.loads(frame.body, frame.buffers)
    except Exception:  # noqa: BLE001 - an exception's class may do anything; its text is there
        return None
    return original if isinstance(original, BaseException) else None


def with_sources(traceback: str) -> str:
    """Add to a worker's traceback the source lines that only this process knows.

    The worker knows the number of a line in a function of the notebook, but has not its text.
    """
    lines = traceback.splitlines()
    shown = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        shown.append(line)
        place = _PLACE.match(line)
        if place is not None and not following.startswith("    "):
            source = linecache.getline(place["file"], int(place["line"])).strip()
            shown += [f"    {source}"] if source else []
    return "\n".join(shown)


def request(message: messages.ToWorker, value: object) -> list[Segment]:
    """Lay out a message and its value for sending."""
    body, buffers = values.dumps(value)
    return pack(messages.encode(message), body, buffers)


def echo(stream: str, text: str) -> None:
    """Print what a call printed."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    if target is not None:
        target.write(text)
