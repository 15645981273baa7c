"""Tab completion after ``%snakepit`` and ``%%snakepit``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel import Pool
from snakepit_kernel.sessions.state import sessions_of
from snakepit_kernel.sessions.variable_types import CONSTRAINTS
from snakepit_kernel.store.store import open_store

from .jobs import Job
from .notebook import functions_of
from .parsing import COMMANDS, cell_parser, command_parsers, line_parser
from .session_commands import SessionCommands
from .shell_commands import RAW_COMMANDS, ShellCommands


class Completable(Protocol):
    """Source of the names to complete: the magics."""

    shell: InteractiveShell
    chosen_pool: str
    sessions: SessionCommands
    shells: ShellCommands
    jobs: dict[int, Job]

    @property
    def pools(self) -> dict[str, Pool]:
        """The open pools, by name."""


class Completer:
    """Completes commands, options and names in a line.

    Parameters
    ----------
    magics
        Source of the pools, sessions, tools and variables.
    """

    def __init__(self, magics: Completable) -> None:
        self._magics = magics
        self._options = {
            name: _options_of(parser) for name, parser in command_parsers(line_parser()).items()
        }
        self._cell_options = _options_of(cell_parser())
        self._words: dict[str, Callable[[], Iterable[str]]] = {
            "call": self._tools,
            "tools": self._tools,
            "expose": lambda: functions_of(magics.shell),
            "push": self._variables,
            "stop": self._pools,
            "restart": self._pools,
            "status": self._pools,
            "reload": self._classes,
            "dashboard": self._pools,
            "logs": lambda: [*self._pools(), *magics.shells.process_names()],
            "kill": magics.shells.process_names,
            "use": self._sessions,
            "set": lambda: (f"{name}=" for name in self._session_variables()),
            "get": self._session_variables,
            "vars": self._session_variables,
            "del": self._session_variables,
            "watch": self._session_variables,
            "cancel": lambda: map(str, magics.jobs),
            "help": lambda: COMMANDS,
        }
        self._values: dict[str, Callable[[], Iterable[str]]] = {
            "--session": self._sessions,
            "--pool": self._pools,
            "--delete": self._sessions,
            "--type": lambda: CONSTRAINTS,
            "--push": self._variables,
            "--adapter": self._classes,
            "-a": self._classes,
        }

    def complete(self, line: str, symbol: str) -> list[str]:
        """Return the completions of the last word.

        Parameters
        ----------
        line
            The line up to the cursor.
        symbol
            The word before the cursor.
        """
        before = line[: len(line) - len(symbol)].split()
        if not before:
            return []
        magic, *words = before
        if magic.startswith("%%"):
            candidates = self._after(words, self._cell_options, lambda: ())
        elif not words:
            candidates = list(COMMANDS)
        else:
            command = words[0]
            if command in RAW_COMMANDS and not symbol.startswith("-") and words[-1] != "--session":
                return sorted(self._magics.shells.paths(symbol))
            usual = self._words.get(command, lambda: ())
            candidates = self._after(words, self._options.get(command, []), usual)
        return sorted(word for word in candidates if word.startswith(symbol))

    def _after(
        self, words: list[str], options: list[str], usual: Callable[[], Iterable[str]]
    ) -> list[str]:
        value = self._values.get(words[-1]) if words else None
        return list(value()) if value is not None else [*usual(), *options]

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
        return [name for name in self._magics.shell.user_ns if not name.startswith("_")]

    def _classes(self) -> Iterable[str]:
        namespace = self._magics.shell.user_ns.items()
        return [name for name, value in namespace if isinstance(value, type) and name[0] != "_"]


def _options_of(parser: object) -> list[str]:
    actions = getattr(parser, "_actions", [])
    return [option for action in actions for option in action.option_strings]
