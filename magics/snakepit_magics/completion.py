"""Tab completion after ``%snakepit`` and ``%%snakepit``: a matcher of IPython."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from IPython.core.completer import (
    CompletionContext,
    IPCompleter,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.kernelspec import KernelSpecManager

from snakepit_kernel import Pool
from snakepit_kernel.sessions.state import sessions_of
from snakepit_kernel.sessions.variable_types import CONSTRAINTS
from snakepit_kernel.store.store import open_store

from .job_commands import JobCommands
from .notebook import functions_of
from .parsing import COMMANDS, cell_parser, command_parsers, line_parser
from .session_commands import SessionCommands
from .shell_commands import RAW_COMMANDS, ShellCommands
from .worker_help import WorkerHelp

IDENTIFIER = "snakepit"
"""Name of the matcher, by which IPython's configuration can disable it."""

PRIORITY = 1000.0
"""It is asked first: what it finds is all that there is, and nothing else need be asked."""

_LINE = re.compile(r"\s*(?:[^%\s][^%]*[^%=!<>\s]\s*=|[^%\W]\w*\s*=)?\s*(%?%snakepit)\s(.*)\Z")
"""A line magic, perhaps behind an assignment, or a cell magic."""

Names = Callable[[], Iterable[str]]


class Completable(Protocol):
    """Source of the names to complete: the magics."""

    shell: InteractiveShell
    chosen_pool: str
    sessions: SessionCommands
    shells: ShellCommands
    job_commands: JobCommands

    @property
    def pools(self) -> dict[str, Pool]:
        """The open pools, by name."""


class Completer:
    """Completes commands, options and names in a line.

    Parameters
    ----------
    magics
        Source of the pools, sessions, tools and variables.
    worker_help
        Completes the code of workers' cells.
    """

    def __init__(self, magics: Completable, worker_help: WorkerHelp) -> None:
        self._magics = magics
        self._help = worker_help
        self._options = {
            name: _options_of(parser) for name, parser in command_parsers(line_parser()).items()
        }
        self._cell_options = _options_of(cell_parser())
        self._words: dict[str, tuple[str, Names]] = {
            "call": ("tool", self._tools),
            "tools": ("tool", self._tools),
            "expose": ("function", lambda: functions_of(magics.shell)),
            "push": ("variable", self._variables),
            "stop": ("pool", self._pools),
            "restart": ("pool", self._pools),
            "status": ("pool", self._pools),
            "reload": ("class", self._classes),
            "dashboard": ("pool", self._pools),
            "logs": ("process", lambda: [*self._pools(), *magics.shells.process_names()]),
            "kill": ("process", magics.shells.process_names),
            "use": ("session", self._sessions),
            "set": ("variable", lambda: (f"{name}=" for name in self._session_variables())),
            "get": ("variable", self._session_variables),
            "vars": ("variable", self._session_variables),
            "del": ("variable", self._session_variables),
            "watch": ("variable", self._session_variables),
            "scatter": ("variable", self._variables),
            "wait": ("job", magics.job_commands.names),
            "cancel": ("job", lambda: ["all", *magics.job_commands.names()]),
            "help": ("command", lambda: COMMANDS),
        }
        self._values: dict[str, tuple[str, Names]] = {
            "--session": ("session", self._sessions),
            "--pool": ("pool", self._pools),
            "--delete": ("session", self._sessions),
            "--type": ("type", lambda: CONSTRAINTS),
            "--push": ("variable", self._variables),
            "--adapter": ("class", self._classes),
            "-a": ("class", self._classes),
            "--kernel-name": ("kernel", lambda: KernelSpecManager().find_kernel_specs()),
        }

    def register(self, completer: IPCompleter) -> None:
        """Have IPython ask it, instead of an earlier one."""
        self.unregister(completer)

        @context_matcher(identifier=IDENTIFIER, priority=PRIORITY)
        def match(context: CompletionContext) -> SimpleMatcherResult:
            lines = context.full_text.split("\n")[: context.cursor_line + 1]
            lines[-1] = lines[-1][: context.cursor_position]
            found = self.complete(lines)
            if not found and context.cursor_line:
                position = len("\n".join(lines))
                fragment, completions = self._help.complete(context.full_text, position)
                return SimpleMatcherResult(
                    completions=completions, matched_fragment=fragment, suppress=True
                )
            return SimpleMatcherResult(
                completions=[SimpleCompletion(text, type=kind) for text, kind in found],
                matched_fragment=_fragment(lines[-1]),
                suppress=True,
            )

        completer.custom_matchers.append(match)

    @staticmethod
    def unregister(completer: IPCompleter) -> None:
        """Have IPython ask it no more."""
        completer.custom_matchers[:] = [
            matcher
            for matcher in completer.custom_matchers
            if getattr(matcher, "matcher_identifier", "") != IDENTIFIER
        ]

    def complete(self, lines: list[str]) -> list[tuple[str, str]]:
        """Return the completions of the last word, each with its type.

        Parameters
        ----------
        lines
            The lines of a cell up to the cursor.
        """
        found = _LINE.match(lines[-1])
        if found is None or (found[1] == "%%snakepit" and len(lines) > 1):
            return []
        fragment = _fragment(lines[-1])
        words = found[2][: len(found[2]) - len(fragment)].split()
        candidates = self._candidates(found[1], words, fragment)
        return sorted({(text, kind) for text, kind in candidates if text.startswith(fragment)})

    def _candidates(self, magic: str, words: list[str], fragment: str) -> Iterable[tuple[str, str]]:
        if words and (value := self._values.get(words[-1])) is not None:
            kind, names = value
            return ((name, kind) for name in names())
        if magic == "%%snakepit":
            return _typed("option", self._cell_options)
        if not words:
            return _typed("command", COMMANDS)
        command, *arguments = words
        if arguments and arguments[-1] in {"-r", "--requirements"}:
            return _typed("path", _paths(fragment))
        if command in RAW_COMMANDS and not fragment.startswith("-"):
            return _typed("path", self._magics.shells.paths(fragment))
        options = _typed("option", self._options.get(command, []))
        if command == "call" and arguments:
            return [*self._arguments(arguments[0], fragment), *options]
        kind, names = self._words.get(command, ("", tuple))
        return [*_typed(kind, names()), *options]

    def _arguments(self, tool: str, fragment: str) -> Iterable[tuple[str, str]]:
        """Yield the arguments of a tool, and behind ``NAME=@`` the notebook's variables."""
        name, is_variable, _ = fragment.partition("=@")
        if is_variable:
            yield from _typed("variable", (f"{name}=@{each}" for each in self._variables()))
        pool = self._magics.pools.get(self._magics.chosen_pool)
        if pool is not None and tool in pool.tool_names():
            schema = pool.tools[tool].schema
            yield from _typed("argument", (f"{each}=" for each in schema.get("properties", ())))

    def _pools(self) -> Iterable[str]:
        return self._magics.pools

    def _sessions(self) -> Iterable[str]:
        return [session.id for session in sessions_of(open_store())]

    def _session_variables(self) -> Iterable[str]:
        return self._magics.sessions.state(None).variables

    def _tools(self) -> Iterable[str]:
        pool = self._magics.pools.get(self._magics.chosen_pool)
        return pool.tool_names() if pool is not None else ()

    def _variables(self) -> Iterable[str]:
        hidden = self._magics.shell.user_ns_hidden
        return [
            name
            for name in self._magics.shell.user_ns
            if not name.startswith("_") and name not in hidden
        ]

    def _classes(self) -> Iterable[str]:
        namespace = self._magics.shell.user_ns.items()
        return [name for name, value in namespace if isinstance(value, type) and name[0] != "_"]


def _typed(kind: str, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    return ((name, kind) for name in names)


def _paths(fragment: str) -> Iterable[str]:
    """Return the files and folders whose paths begin so."""
    for path in glob.glob(f"{glob.escape(fragment)}*"):  # noqa: PTH207 - relative as it is typed
        yield f"{path}/" if Path(path).is_dir() else path


def _fragment(line: str) -> str:
    """Return the word before the cursor, which may hold more than IPython's words do."""
    return re.search(r"\S*\Z", line)[0]  # type: ignore[index]  # it matches at the end


def _options_of(parser: object) -> list[str]:
    actions = getattr(parser, "_actions", [])
    return [option for action in actions for option in action.option_strings]
