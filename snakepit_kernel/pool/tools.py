"""Tools of a pool: definitions from the notebook, shared functions, and argument checks."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, overload

from ..errors import InvalidArguments, ToolNotFound
from ..protocol import messages
from ..protocol.codec import Codec, cannot_travel
from ..protocol.encoders import encoders
from ..protocol.frames import Segment, pack
from ..protocol.messages import Define, Encode, Prepare, Release, ShowLines, ToolInfo
from ..protocol.sources import sources
from ..tools.arguments import Arguments
from ..tracebacks import hide_own_frames, hides_own_frames
from .import_path import search_path, search_path_frames
from .workers.worker import PooledLane


class ToolDefinitions:
    """The notebook's functions that are tools of a pool, pickled, each with a version.

    Parameters
    ----------
    codec
        Pickles them.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = replace(codec, resolves_annotations=True)  # workers check arguments as well
        self._frames: dict[str, tuple[int, list[Segment]]] = {}
        self.infos: dict[str, ToolInfo] = {}
        self.validator = Validator()

    def add(self, info: ToolInfo, function: Callable[..., Any]) -> None:
        """Add a function, or replace it."""
        body, buffers = self._codec.dumps(function)
        version = self._frames[info.name][0] + 1 if info.name in self._frames else 1
        self._frames[info.name] = (version, pack(messages.encode(Define(info.name)), body, buffers))
        self.infos[info.name] = info

    def missing(self, lane: PooledLane, name: str) -> list[Segment]:
        """Return the frames that a worker needs before it can call a tool; empty for none."""
        definition = self._frames.get(name)
        if definition is None or lane.defined.get(name) == definition[0]:
            if _is_up_to_date(lane):
                return []
            return preamble(lane)
        lane.defined[name] = definition[0]
        return [*preamble(lane), *definition[1]]


class SharedFunction:
    """A function that many calls run: pickled once, and sent once on each lane.

    When it is garbage collected, the workers that have it are notified before their next request.

    Parameters
    ----------
    codec
        Pickles it.
    function
        The function.
    name
        Its name in errors.

    Attributes
    ----------
    name
        Its name in errors.
    number
        Number by which calls refer to it.

    Raises
    ------
    TypeError, ValueError
        It cannot be pickled, or is too large.
    """

    def __init__(self, codec: Codec, function: Callable[..., Any], name: str) -> None:
        try:
            self._pickled = codec.dumps(function)
        except Exception as error:
            raise cannot_travel(
                codec, name, getattr(function, "args", [function]), error
            ) from error
        self.name = name
        self.number = next(_numbers)
        self._lanes: weakref.WeakSet[PooledLane] = weakref.WeakSet()
        weakref.finalize(self, _release, self.number, self._lanes).atexit = False

    def missing(self, lane: PooledLane) -> list[Segment]:
        """Return the frames that a worker needs before it can run the function."""
        frames = preamble(lane)
        if lane.defined.get(self._lane_key):
            return frames
        self._lanes.add(lane)
        lane.defined[self._lane_key] = 1
        return [*frames, *lane.marshaller.pack(Prepare(self.number), *self._pickled)]

    @property
    def _lane_key(self) -> str:
        return f"#{self.number}"  # which is no valid name of a tool


_numbers = itertools.count(1)


def _release(number: int, lanes: weakref.WeakSet[PooledLane]) -> None:
    for lane in lanes:
        lane.released.append(number)


def _is_up_to_date(lane: PooledLane) -> bool:
    """Whether a worker needs no preamble before its next request."""
    is_ready = lane.encoders == len(encoders.known) and not lane.forgets and not lane.released
    has_lines = lane.sources == len(sources.files)
    return is_ready and has_lines and lane.search_path_version == search_path.version()


def preamble(lane: PooledLane) -> list[Segment]:
    """Return the frames that a worker needs before its next request of any kind."""
    if _is_up_to_date(lane):
        return []
    known = encoders.known
    frames = search_path_frames(lane)
    missing, lane.encoders = known[lane.encoders :], len(known)
    marshaller = lane.marshaller
    for each in missing:
        try:
            frames += marshaller.pack_value(Encode(), each)
        except TypeError:
            if not marshaller.codec.cannot_send_code_reason:
                raise
            # A worker with another Python cannot get it: the call that needs it raises an error.
    if lane.released:
        numbers = [lane.released.popleft() for _ in range(len(lane.released))]
        frames += pack(messages.encode(Release(numbers)))
        for number in numbers:
            lane.defined.pop(f"#{number}", None)
    for forget in list(lane.forgets):
        frames += pack(messages.encode(forget))
        lane.forgotten = forget.number
    number, lane.sources = lane.sources, len(sources.files)
    if files := sources.after(number):
        frames += pack(messages.encode(ShowLines(files)))
    return frames


class ToolCaller(Protocol):
    """A caller of tools: a pool or a session."""

    _definitions: ToolDefinitions

    def tool_names(self) -> list[str]:
        """Return the names of all tools."""

    def _find_tool(self, name: str) -> ToolInfo: ...

    def _call(self, tool: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def _stream(self, tool: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


@hides_own_frames
class ToolMethods:
    """The tools of a pool as methods.

    Parameters
    ----------
    caller
        A pool or a session.
    """

    def __init__(self, caller: ToolCaller) -> None:
        self._caller = caller

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            info = self._caller._find_tool(name)  # noqa: SLF001 - one idea in two classes
        except ToolNotFound as error:
            raise AttributeError(str(error)) from None

        validator = self._caller._definitions.validator  # noqa: SLF001

        run = self._caller._stream if info.streams else self._caller._call  # noqa: SLF001

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(name, args, kwargs)
            except BaseException as error:
                hide_own_frames(error)
                raise

        call.__name__ = call.__qualname__ = name
        call.__doc__ = info.description
        call.__signature__ = validator.signature(info)  # type: ignore[attr-defined]
        return call

    def __getitem__(self, name: str) -> ToolInfo:
        return self._caller._find_tool(name)  # noqa: SLF001

    def __iter__(self) -> Any:
        return iter(self._caller.tool_names())

    def __len__(self) -> int:
        return len(self._caller.tool_names())

    def __dir__(self) -> list[str]:
        return [name for name in self._caller.tool_names() if name.isidentifier()]

    def _ipython_key_completions_(self) -> list[str]:
        return self._caller.tool_names()

    def __repr__(self) -> str:
        names = self._caller.tool_names()
        lines = [f"{name}{self[name].signature}" for name in names]
        return "\n".join(lines) or "no tools"


class ToolsAttribute:
    """The tools as methods: ``pool.tools.price(item="tea")``. Tab completes their names.

    This is no property, since IPython completes nothing behind one: it does not run its code.
    """

    @overload
    def __get__(self, caller: None, owner: type) -> ToolsAttribute: ...

    @overload
    def __get__(self, caller: ToolCaller, owner: type) -> ToolMethods: ...

    def __get__(self, caller: ToolCaller | None, owner: type) -> ToolsAttribute | ToolMethods:
        return self if caller is None else ToolMethods(caller)


class Validator:
    """Checks arguments against the signatures that workers report for their tools.

    Nothing is imported for it. What cannot be checked here is left to the worker, which checks all
    and converts; the arguments are sent as they were given.
    """

    def __init__(self) -> None:
        self._restored: dict[bytes, Arguments] = {}

    def check(self, info: ToolInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check the arguments of a call.

        Raises
        ------
        InvalidArguments
            They do not fit.
        """
        try:
            known = self._restored.get(info.checks) or self._arguments(info)
            if not known.bind(args, kwargs)[2]:
                return
            # A module that was reloaded since has other classes now: check against those.
            self._restored.pop(info.checks, None)
            problems = self._arguments(info).bind(args, kwargs)[2]
        except Exception:  # noqa: BLE001 - a user's class may raise anything; the worker will report it
            return
        if problems:
            raise InvalidArguments(info.name, problems)

    def signature(self, info: ToolInfo) -> inspect.Signature:
        """Return the signature of a tool; its annotations and defaults are for display only."""
        return self._arguments(info).signature

    def _arguments(self, info: ToolInfo) -> Arguments:
        arguments = self._restored.get(info.checks)
        if arguments is None:
            arguments = self._restored[info.checks] = Arguments.restored(info.checks)
        return arguments
