"""Arguments of tools, checked in the owner's process before a worker is taken."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import InvalidArguments
from ..protocol.messages import ToolInfo
from ..tools.arguments import Arguments


class Validator:
    """Checks arguments by what the workers say of their tools.

    Nothing is imported for it. What cannot be judged here is left to the worker, which checks again
    and converts; the arguments travel as they were given.
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
            if not self._arguments(info).bind(args, kwargs)[2]:
                return
            # A module that was reloaded since has other classes now: the verdict is theirs.
            self._restored.pop(info.checks, None)
            problems = self._arguments(info).bind(args, kwargs)[2]
        except Exception:  # noqa: BLE001 - a class of the user's may do anything; its worker will tell
            return
        if problems:
            raise InvalidArguments(info.name, problems)

    def signature(self, info: ToolInfo) -> inspect.Signature:
        """Return the signature of a tool; its annotations and defaults can be read only."""
        return self._arguments(info).signature

    def _arguments(self, info: ToolInfo) -> Arguments:
        arguments = self._restored.get(info.checks)
        if arguments is None:
            arguments = self._restored[info.checks] = Arguments.restored(info.checks)
        return arguments
