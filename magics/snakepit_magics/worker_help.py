"""Completion and inspection in cells of ``%%snakepit``: the names are those of the worker."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from IPython.core.completer import SimpleCompletion
from IPython.core.error import UsageError

from snakepit_kernel import Session, SnakepitError
from snakepit_kernel.pool.caller import ask_worker

PATIENCE = 0.3
"""Seconds that a worker may take; then the notebook's own names are shown."""

_TYPES = "_jupyter_types_experimental"
_MAGIC = re.compile(r"\s*%%snakepit(?:[ \t]+(.*))?")


class WorkerHelp:
    """Asks the worker of a cell for completions and descriptions of names.

    Parameters
    ----------
    parse
        Parses the line of the magic.
    session_of
        Returns the session of a cell, from the options in its line.
    """

    def __init__(
        self, parse: Callable[[str], Namespace], session_of: Callable[[Namespace], Session]
    ) -> None:
        self._parse = parse
        self._session_of = session_of

    def complete(self, code: str, position: int) -> tuple[str, list[SimpleCompletion]]:
        """Return the word before the cursor, and its completions; none outside of such a cell.

        Parameters
        ----------
        code
            The cell of the notebook.
        position
            Of the cursor.
        """
        reply = self._ask("complete_request", code, position)
        if reply is None or reply.get("status") != "ok":
            return "", []
        start = _split(code)[1] + reply["cursor_start"]
        found = reply.get("metadata", {}).get(_TYPES) or [{"text": m} for m in reply["matches"]]
        completions = [
            SimpleCompletion(each["text"], type=each.get("type") or None) for each in found
        ]
        return code[start:position], completions

    def inspect(self, code: str, position: int, detail: int) -> dict[str, Any] | None:
        """Return the reply to a request for the description of a name; None to ask elsewhere."""
        reply = self._ask("inspect_request", code, position, detail_level=detail)
        return None if reply is None or reply.get("status") != "ok" else reply

    def _ask(self, kind: str, code: str, position: int, **more: Any) -> dict[str, Any] | None:
        line, start = _split(code)
        if not start or position < start:
            return None
        content = {"code": code[start:], "cursor_pos": position - start, **more}
        try:
            options = self._parse(line)
            if options.shell:
                return None
            return ask_worker(self._session_of(options), kind, content, PATIENCE)
        except (UsageError, SnakepitError, ValueError):  # a line that is not complete; no pool
            return None

    def register(self, kernel: Any) -> None:
        """Let a kernel ask this for descriptions first."""
        own = kernel.do_inspect

        def do_inspect(
            code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()
        ) -> Any:
            found = self.inspect(code, cursor_pos, detail_level)
            return own(code, cursor_pos, detail_level, omit_sections) if found is None else found

        kernel.do_inspect = do_inspect

    @staticmethod
    def unregister(kernel: Any) -> None:
        """Let a kernel ask this no more."""
        vars(kernel).pop("do_inspect", None)


def _split(code: str) -> tuple[str, int]:
    """Return the options of a worker's cell, and where its code begins; 0 for other cells."""
    magic = _MAGIC.match(code)
    if magic is None or code[magic.end() : magic.end() + 1] != "\n":
        return "", 0
    return magic[1] or "", magic.end() + 1
