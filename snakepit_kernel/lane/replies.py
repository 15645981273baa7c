"""Encoding and decoding of a call's reply: its value, or its exception."""

from __future__ import annotations

import traceback
from typing import Any, Literal

from ..errors import InvalidArguments, ToolError, ToolNotFound, ValueTooLarge, frames_alone
from ..printable import sendable
from ..protocol import messages
from ..protocol.frames import Frame, Segment, pack
from ..protocol.sources import with_cell_names
from ..tracebacks import hide_own_frames
from .marshalling import Marshaller

MAX_TEXT = 1 << 20
"""Characters of an exception's text, or traceback, that are sent."""

Place = Literal["worker", "notebook"]


class Interrupted(Exception):
    """The other end has reported that the call was interrupted."""

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback


class RemoteTraceback(Exception):
    """The text of a worker's traceback, shown as the cause of the exception itself.

    Parameters
    ----------
    text
        The traceback, without the exception, which is shown below it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in the worker:\n{self.text}"


# -- encoding --------------------------------------------------------------------------------------


def encode_value(
    marshaller: Marshaller, call_id: int, value: object, *, lingers: bool = False
) -> list[Segment]:
    """Encode the answer of a call that returned; a value that cannot be pickled is a failure."""
    try:
        pickled = marshaller.codec.dumps_with_markers(value)
    except Exception as error:  # noqa: BLE001 - pickling runs any code
        problem = not_picklable_error("the result", value, error)
        problem.__cause__ = error
        return with_error(marshaller, call_id, problem, lingers=lingers)
    return marshaller.pack(messages.Result(call_id, lingers), *pickled)


def not_picklable_error(what: str, value: object, error: Exception) -> Exception:
    """Return the error for a value that cannot be pickled, with the reason."""
    kind = type(value)
    text = f"{what}, a {kind.__module__}.{kind.__qualname__}, cannot travel: {error}"
    return (ValueError if isinstance(error, ValueTooLarge) else TypeError)(text)


def with_error(
    marshaller: Marshaller,
    call_id: int,
    error: BaseException,
    *,
    before_running: bool = False,
    is_own: bool = False,
    lingers: bool = False,
) -> list[Segment]:
    """Encode the answer of a call that raised.

    Parameters
    ----------
    marshaller
        That of the lane.
    call_id
        The call.
    error
        What it raised.
    before_running
        Whether the call was rejected before any of its code ran.
    is_own
        Whether the call was not interrupted: a KeyboardInterrupt is one that it raised itself.
    lingers
        Whether the call has left threads or tasks that may show more.
    """
    kind: Literal["raised", "interrupted", "arguments", "tool"] = "raised"
    problems: list[str] = []
    if isinstance(error, KeyboardInterrupt) and not is_own:
        kind = "interrupted"
    elif before_running and isinstance(error, InvalidArguments):
        kind, problems = "arguments", [_shortened(problem) for problem in error.problems]
    elif before_running and isinstance(error, ToolNotFound):
        kind, problems = "tool", list(error.known)
    message = messages.Failure(
        id=call_id,
        kind=kind,
        type_name=type(error).__name__,
        message=_text_of(error),
        traceback=_traceback_of(error, before_running=before_running),
        problems=problems,
        lingers=lingers,
    )
    try:
        return marshaller.pack_value(message, error)
    except Exception:  # noqa: BLE001 - exceptions often hold what cannot be pickled; text can
        return pack(messages.encode(message))


def _text_of(error: BaseException) -> str:
    try:
        if isinstance(error, ToolError):  # its own traceback is part of the one that is sent
            return _shortened(f"{error.type_name}: {error.message}")
        return _shortened(str(error))
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error
        return "(its text cannot be shown)"


def _traceback_of(error: BaseException, *, before_running: bool) -> str:
    """Format a traceback without the frames of this package."""
    try:
        hide_own_frames(error, is_expected=before_running)
        formatted = traceback.TracebackException.from_exception(error)
        _cut_remote_causes(formatted, error)
        return _shortened(with_cell_names("".join(formatted.format())))
    except Exception:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: (its traceback cannot be shown)\n"


def _cut_remote_causes(formatted: traceback.TracebackException, error: BaseException) -> None:
    """Remove the causes of an error from another process: its own text contains them.

    Else a traceback that goes back and forth would double its length each time.
    """
    place: traceback.TracebackException | None = formatted
    cause: BaseException | None = error
    while place is not None and cause is not None:
        if isinstance(cause, ToolError) and cause.remote_traceback:
            place.__cause__ = None
            return
        follows_cause = cause.__cause__ is not None
        place = place.__cause__ if follows_cause else place.__context__
        cause = cause.__cause__ if follows_cause else cause.__context__


def _shortened(text: str) -> str:
    """Shorten a text to its beginning and end, so that it fits into a message."""
    text = sendable(text)
    left_out = len(text) - MAX_TEXT
    if left_out <= 0:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n… {left_out} characters …\n{text[-half:]}"


# -- decoding --------------------------------------------------------------------------------------


def decode_error(
    marshaller: Marshaller,
    message: messages.Failure,
    frame: Frame,
    name: str,
    place: Place,
    *,
    raise_original: bool = False,
) -> BaseException:
    """Return the exception of a failure.

    Parameters
    ----------
    marshaller
        That of the lane.
    message, frame
        The failure, and the exception itself if it could be pickled.
    name
        What was called.
    place
        Where it ran.
    raise_original
        Return the exception itself if it was sent, as executors do; else a `ToolError`. Not a
        KeyboardInterrupt: here it would be taken for one of this process.
    """
    match message.kind:
        case "interrupted":
            return Interrupted(message.traceback)
        case "arguments":
            return InvalidArguments(name, message.problems)
        case "tool":
            refusal = _original(marshaller, message, frame)  # may say why the tool is gone
            if isinstance(refusal, ToolNotFound):
                return refusal
            return ToolNotFound(name, message.problems)
    original = _original(marshaller, message, frame)
    notes = list(getattr(original, "__notes__", ()))
    if raise_original and original is not None and not isinstance(original, KeyboardInterrupt):
        text = frames_alone(message.traceback, message.type_name, message.message, notes)
        original.__cause__ = RemoteTraceback(text) if text else None
        return original
    error = ToolError(message.type_name, message.message, message.traceback, place)
    error.__cause__ = original
    for note in notes:
        error.add_note(note)
    return error


def decode_value(
    marshaller: Marshaller, message: messages.WithValue, frame: Frame, name: str
) -> Any:
    """Decode the value of an answer.

    Raises
    ------
    ToolError
        It cannot be restored here.
    """
    try:
        return marshaller.load(message, frame)
    except Exception as error:
        raise cannot_restore(name, error) from error


def cannot_restore(name: str, error: Exception) -> ToolError:
    """Return the error that says that a result cannot be restored here."""
    text = f"the result of {name} cannot be restored here: {error}"
    told = ToolError(type(error).__name__, text)
    told.__cause__ = error
    return told


def _original(
    marshaller: Marshaller, message: messages.Failure, frame: Frame
) -> BaseException | None:
    if not frame.body:
        return None
    try:
        original = marshaller.load(message, frame)
    except Exception:  # noqa: BLE001 - an exception's class may do anything; its text remains
        return None
    return original if isinstance(original, BaseException) else None
