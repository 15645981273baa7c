"""Commands of ``%snakepit`` for sessions: variables, copies, exports."""

from __future__ import annotations

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel import (
    SessionNotFound,
    SessionState,
    SnakepitError,
    VariableTypeError,
    Watch,
    export_session,
    import_session,
    open_session,
)
from snakepit_kernel.printable import duration, printable
from snakepit_kernel.sessions.state import sessions_of
from snakepit_kernel.sessions.variables import Variables
from snakepit_kernel.store.store import Store, open_store

from .notebook import NotebookSession
from .parsing import arguments_of, literal
from .session_views import SessionList, StatsView, VariableList, print_change, type_for

WARN_BEFORE = 3 * 86400.0
"""Seconds before the end of a session from which on there is a warning of it."""

CONSTRAINT_OPTIONS = ("min", "max", "choices", "pattern", "min_length", "max_length", "shape")


class SessionCommands:
    """The commands that work on stored sessions, without a pool.

    Parameters
    ----------
    shell
        The notebook's shell.

    Attributes
    ----------
    chosen
        The session that commands use by default; None for the notebook's own.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._pid = os.getpid()
        self.chosen: str | None = None
        self._notebook = NotebookSession(shell)
        self._own: str | None = None
        self._made: set[str] = set()  # the notebook's sessions that did not exist before
        self._news: list[str] = []
        self._seen: set[str] = set()
        self._store: Store | None = None
        self._watches: dict[tuple[str, str], Watch] = {}

    def run(self, options: Namespace) -> Any:
        """Run one of ``SESSION_COMMANDS``."""
        return getattr(self, f"_{options.command}")(options)

    def name_of(self, name: str | None) -> str:
        """Return a session's name: by default the chosen one, or the notebook's."""
        return name or self.chosen or self._own_name()

    def _own_name(self) -> str:
        own = self._notebook.find()
        if own.name != self._own:
            self._own = own.name
            if open_store().sessions.find(own.name) is None:
                self._made.add(own.name)
            if own.doubtful is not None:
                self._news.append(
                    f"this notebook has the new session {own.name}: {own.doubtful} belongs to "
                    "another file that was here, or to an earlier version of this one; "
                    f"%snakepit use {own.doubtful} chooses it"
                )
        return own.name

    def state(self, name: str | None) -> SessionState:
        """Return the state of a session; no pool is needed for that."""
        found = open_session(self.name_of(name))
        self._store = found.store  # kept open: opening takes longer than using it
        if name is None:
            self.look_at(found)
        return found

    def look_at(self, state: SessionState) -> None:
        """Note, once for each session, that its end is near."""
        if state.id in self._seen:
            return
        self._seen.add(state.id)
        expires = state.expires
        if expires is None or expires.timestamp() - time.time() > WARN_BEFORE:
            return
        if state.store.sessions.has_content(state.number):
            self._news.append(
                f"session {state.id} ends {duration(state.ttl or 0.0)} after its last use, on "
                f"{expires:%Y-%m-%d at %H:%M}; %snakepit use --ttl 30d keeps it longer"
            )

    def print_news(self) -> None:
        """Print what has to be told once: a new session in place of another one, an end."""
        while self._news:
            print(self._news.pop(0))  # noqa: T201 - output of the magic

    def use(self, options: Namespace) -> None:
        """Choose a session, and set how long it lives without being used."""
        if options.session is None and options.ttl is None:
            return
        state = self.state(options.session)  # checks the name
        if options.ttl is not None:
            state = open_session(state.id, ttl=options.ttl)
            lives = "for ever" if state.ttl is None else f"{duration(state.ttl)} from its last use"
            print(f"session {state.id} lives {lives}")  # noqa: T201
        if options.session is not None:
            self.chosen = options.session

    def close(self) -> None:
        """Close the watches; remove the notebook's session if it is new here, and empty."""
        if os.getpid() != self._pid:
            return  # a forked child, in which exit hooks run as well
        for watch in self._watches.values():
            watch.close()
        with contextlib.suppress(SnakepitError):  # a sweep will remove it
            while self._made:
                open_store().sessions.delete_if_empty(self._made.pop())

    # -- sessions ------------------------------------------------------------------------------

    def _sessions(self, options: Namespace) -> SessionList | None:
        if options.delete is not None:
            self._delete_session(options.delete)
            return None
        chosen = self.state(None)
        return SessionList(sessions_of(chosen.store), chosen.id)

    def _delete_session(self, name: str) -> None:
        store = open_store()
        row = store.sessions.find(name)
        if row is None:
            raise UsageError(str(SessionNotFound(name, [s.id for s in sessions_of(store)])))
        open_session(name).delete()
        print(f"session {name} is gone")  # noqa: T201
        if name == self.chosen:
            self.chosen = None

    def _fork(self, options: Namespace) -> None:
        before = self.state(None)
        before.fork(options.session)
        self.chosen = options.session
        print(f"session {options.session} is a copy of {before.id}, and chosen now")  # noqa: T201

    def _export(self, options: Namespace) -> None:
        count = export_session(self.state(options.session), options.file)
        print(f"{count} entries written to {options.file}")  # noqa: T201

    def _import(self, options: Namespace) -> None:
        count = import_session(self.state(options.session), options.file, trust=options.trust)
        print(f"{count} entries read from {options.file}")  # noqa: T201

    def _stats(self, options: Namespace) -> StatsView:
        state = self.state(options.session)
        return StatsView(state.id, state.stats())

    # -- variables -----------------------------------------------------------------------------

    def _set(self, options: Namespace) -> None:
        variables = self.state(options.session).variables
        values = arguments_of(options.assignments, self._shell.user_ns, "set")
        constraints = {name: getattr(options, name) for name in CONSTRAINT_OPTIONS}
        if constraints["choices"] is not None:
            constraints["choices"] = list(map(literal, constraints["choices"]))
        about = {name: given for name, given in constraints.items() if given is not None}
        present = {found.name: found for found in map(variables.info, values.keys() & variables)}
        new = {
            name: {
                "type": options.type or ("choice" if "choices" in about else type_for(value)),
                "value": value,
                "description": options.description or "",
                **about,
            }
            for name, value in values.items()
            if name not in present or about or options.type not in {None, present[name].type}
        }
        if len(new) == 1:  # its own error is clearer than that of a batch
            ((name, about),) = new.items()
            variables.register(name, about.pop("type"), about.pop("value"), **about)
        else:
            variables.register_many(new)
        if options.description is not None:
            for name in values:
                variables.describe(name, options.description)
        changed = {name: values[name] for name in present}
        if len(changed) == 1:  # its own error is clearer than that of a batch
            self._change(variables, changed)
        else:
            variables.set_many(changed)

    def _change(self, variables: Variables, changed: Mapping[str, Any]) -> None:
        try:
            variables.update(changed)
        except VariableTypeError as error:
            msg = (
                f"{error}; %snakepit del {error.name} lets the next %snakepit set register it "
                "with another type"
            )
            raise UsageError(printable(msg)) from error

    def _get(self, options: Namespace) -> Any:
        variables = self.state(options.session).variables
        if len(options.names) == 1:
            return variables[options.names[0]]
        found = variables.get_many(options.names)
        for name in found.missing:
            variables[name]  # raises
        return found.found

    def _vars(self, options: Namespace) -> VariableList:
        return VariableList(self.state(options.session).variables.list(options.pattern))

    def _del(self, options: Namespace) -> None:
        variables = self.state(options.session).variables
        missing = variables.get_many(options.names).missing
        for name in missing:
            variables[name]  # raises
        variables.delete(*options.names)

    def _watch(self, options: Namespace) -> None:
        state = self.state(options.session)
        key = state.id, options.pattern
        before = self._watches.pop(key, None)
        if before is not None:
            before.close()
        if not options.stop:
            self._watches[key] = state.variables.watch(options.pattern, print_change)
        elif before is None:
            print(f"nothing like {options.pattern} is watched")  # noqa: T201
