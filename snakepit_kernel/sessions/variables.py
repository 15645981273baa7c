"""Variables of a session, as a mapping for users, in the notebook and in workers."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, overload

from ..output.tables import Cell, Table, moment
from ..printable import printable
from ..tracebacks import hide_own_frames, hides_own_frames
from .json_format import (
    FORMAT_VERSION,
    VARIABLES_FORMAT,
    check_format,
    check_trust,
    read_variables,
    written,
)
from .values import Change, Found, SetResult, Variable
from .variable_service import check_key
from .watch import Watch

Key = str | int
Names = list[str]
Find = Callable[[str], Callable[..., Any]]
"""Returns a method of a service, which may be in another process, by its name."""

Watching = Callable[[str], Watch]

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


@hides_own_frames
class Variables(MutableMapping[str, Any]):
    """The variables of a session: typed, constrained, versioned, and durable.

    A mapping of names to values; a variable is registered once, and set as often as you like.
    Each accepted value is durable when the call returns. A variable's id can be used instead of its
    name.

    Parameters
    ----------
    find
        Returns a method of the `VariableService`.
    watch
        Makes a `Watch` for a pattern.
    """

    def __init__(self, find: Find, watch: Watching) -> None:
        self._find = find
        self._watch = watch
        self._value = find("value")  # looked up once: reading must be fast
        self._assign = find("assign")

    # -- one ---------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        type: str,  # noqa: A002 - the word of the field
        value: Any,
        *,
        description: str = "",
        metadata: Mapping[str, Any] | None = None,
        **constraints: Any,
    ) -> Variable:
        """Add a variable.

        Registering it again with the same definition changes nothing: it keeps its value, so that a
        notebook can be run again from the top.

        Parameters
        ----------
        name
            1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
        type
            ``"string"``, ``"integer"``, ``"float"``, ``"boolean"``, ``"choice"``, ``"list"``,
            ``"dict"``, ``"bytes"``, ``"array"``, ``"embedding"`` or ``"any"``.
        value
            Its first value.
        description, metadata
            For people and programs: a text, and a dictionary of JSON values.
        constraints
            ``min``, ``max``, ``choices``, ``pattern``, ``min_length``, ``max_length``, ``shape``,
            as far as the type has them.

        Returns
        -------
        Variable
            The variable as it is now.

        Raises
        ------
        VariableTypeError, ConstraintViolation, ValueTooLarge
            The value is not valid for this type, its constraints, or the size limit.
        TypeError, ValueError
            The name, the type or a constraint is invalid; or there is another variable of that
            name.
        """
        registered: Variable = self._find("register")(
            name,
            type,
            value,
            constraints=constraints,
            description=description,
            metadata=metadata,
        )
        return registered

    def register_many(self, variables: Mapping[str, Any]) -> list[Variable]:
        """Add several variables, all or none.

        Parameters
        ----------
        variables
            By name: ``(type, value)``, or a dictionary with ``type``, ``value`` and the other
            arguments of `register`.

        Raises
        ------
        BatchRejected
            Some are invalid; each is named. None was added.
        """
        registered: list[Variable] = self._find("register_many")(dict(variables))
        return registered

    def __getitem__(self, name: Key) -> Any:
        try:
            return self._value(name)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def __setitem__(self, name: Key, value: Any) -> None:
        try:
            self._assign(name, value)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def set(self, name: Key, value: Any, *, version: int | None = None) -> None:
        """Set the value of a variable.

        Parameters
        ----------
        name, value
            The variable, and the value.
        version
            Set it only if the variable is at this version, that is, unchanged since.

        Raises
        ------
        VariableNotFound
            There is none; `register` adds one.
        VariableTypeError, ConstraintViolation, ValueTooLarge
            The value is not valid for it.
        VariableLocked, VersionConflict
            It is locked, or it has changed since that version.
        """
        try:
            self._assign(name, value, version)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def __delitem__(self, name: Key) -> None:
        if not self.delete(name):
            self._value(name)  # raises

    def delete(self, *names: Key) -> list[str]:
        """Delete variables, with their history; return the names of those that existed.

        Raises
        ------
        VariableLocked
            One of them is locked; none was deleted.
        """
        deleted: list[str] = self._find("delete")(list(map(check_key, names)))
        return deleted

    def info(self, name: Key) -> Variable:
        """Return a variable with its definition and version.

        Raises
        ------
        VariableNotFound
            There is none.
        """
        found: list[Variable] = self._find("fetch")([check_key(name)])
        if not found:
            self._value(name)  # raises
        return found[0]

    def describe(
        self,
        name: Key,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Change the description, or the metadata, of a variable."""
        self._find("describe")(name, description, metadata)

    # -- several -------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        is_key = isinstance(name, str | int) and not isinstance(name, bool)
        return is_key and bool(self._find("has")(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._find("names")())

    def __len__(self) -> int:
        return len(self._find("names")())

    def list(self, pattern: str = "*") -> list[Variable]:
        """Return the variables whose names match a pattern (``temp_*``), oldest first."""
        found: list[Variable] = self._find("matching")(pattern)
        return found

    def get_many(self, names: Iterable[Key]) -> Found:
        """Read several variables at one moment; names that do not exist are listed."""
        found: Found = self._find("get_many")(list(map(check_key, names)))
        return found

    def set_many(
        self,
        values: Mapping[str, Any] | Mapping[Key, Any],
        *,
        atomic: bool = True,
        versions: Mapping[str, int] | Mapping[Key, int] | None = None,
    ) -> SetResult:
        """Set several variables.

        Parameters
        ----------
        values
            By name.
        atomic
            Set all or none. Otherwise the valid ones are set, and the result has the errors of the
            others.
        versions
            Versions that some of them must be at, by name.

        Raises
        ------
        BatchRejected
            ``atomic`` is set, and some cannot be set; each is named.
        """
        done: SetResult = self._find("set_many")(dict(values), dict(versions or {}), atomic=atomic)
        return done

    def export(self, pattern: str = "*") -> dict[str, Any]:
        """Return variables as JSON data, without their history.

        Parameters
        ----------
        pattern
            Pattern of the names.
        """
        variables = [written(variable) for variable in self.list(pattern)]
        return {"format": VARIABLES_FORMAT, "version": FORMAT_VERSION, "variables": variables}

    def import_(
        self, exported: Mapping[str, Any], *, trust: bool = False, what: str = "this"
    ) -> Names:
        """Register, or set, exported variables, all or none; return their names.

        Parameters
        ----------
        exported
            The result of `export`.
        trust
            Read pickles, too, which can run code.
        what
            Its name in errors.

        Raises
        ------
        ValueError
            It is not a result of `export`, or needs ``trust``.
        BatchRejected
            Some cannot be imported; each is named. Nothing was changed.
        """
        check_format(exported, VARIABLES_FORMAT, what)
        check_trust(exported, what, trust=trust)
        try:
            variables = read_variables(exported["variables"])
        except Exception as error:  # a damaged pickle can raise anything
            msg = f"{what} is damaged: {type(error).__name__}: {error}"
            raise ValueError(msg) from error
        self._find("put_many")(variables)
        return [*variables]

    # -- locks and history ---------------------------------------------------------------------

    def lock(self, name: Key, reason: str = "optimizing") -> None:
        """Lock a variable against changes until `unlock`, also by other processes.

        Raises
        ------
        VariableLocked
            It is locked already.
        """
        self._find("lock")(name, reason)

    def unlock(self, name: Key) -> bool:
        """Unlock a variable; return whether it was locked."""
        was_locked: bool = self._find("unlock")(name)
        return was_locked

    def history(self, name: Key) -> Sequence[Change]:
        """Return the last values of a variable, at least 100, the present one last."""
        changes: Sequence[Change] = self._find("history")(name)
        return changes

    def rollback(self, name: Key, version: int) -> Variable:
        """Restore the value that a variable had in a version; return the variable.

        Raises
        ------
        ValueError
            That version is no longer in its history.
        """
        restored: Variable = self._find("rollback")(name, version)
        return restored

    # -- watching ------------------------------------------------------------------------------

    @overload
    def watch(self, pattern: str = "*") -> Watch: ...

    @overload
    def watch(self, pattern: str, callback: Callable[[Change], object]) -> Watch: ...

    def watch(
        self, pattern: str = "*", callback: Callable[[Change], object] | None = None
    ) -> Watch:
        """Watch the changes of variables from now on, by any process.

        Parameters
        ----------
        pattern
            Pattern of the names.
        callback
            Called with each `Change`, in a separate thread. Without one, iterate over the result:
            ``for change in watch`` or ``async for change in watch``.

        Returns
        -------
        Watch
            Close it when it is no longer needed; a context manager.
        """
        watch = self._watch(pattern)
        if callback is not None:
            watch.call(callback)
        return watch

    # -- display -------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Variables {printable(', '.join(self))}>"  # no values: this may be logged

    def _repr_html_(self) -> str:
        return table_of(self.list()).as_page()

    def _ipython_key_completions_(self) -> Names:
        return [*self]


@hides_own_frames
class Attributes:
    """Variables as attributes: ``session.v.temperature = 0.7``.

    Parameters
    ----------
    variables
        The variables.
    """

    __slots__ = ("_variables",)

    def __init__(self, variables: Variables) -> None:
        object.__setattr__(self, "_variables", variables)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        with _as_attribute():
            return self._variables[name]

    def __setattr__(self, name: str, value: Any) -> None:
        with _as_attribute():
            self._variables[name] = value

    def __delattr__(self, name: str) -> None:
        with _as_attribute():
            del self._variables[name]

    def __dir__(self) -> list[str]:
        return [name for name in self._variables if name.isidentifier()]

    def __repr__(self) -> str:
        return repr(self._variables)


@contextlib.contextmanager
def _as_attribute() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise AttributeError(str(error)) from None


MAX_CONSTRAINTS = 500
"""Characters of a variable's constraints in a table."""

MAX_DESCRIPTION = 60
"""Characters of its description; a page has all of them as the cell's title."""

_HEADINGS = ("name", "type", "value", "description", "version", "set by", "updated", "constraints")

_OPTIONAL = {"description", "constraints"}
"""Headings of columns that are left out if they are empty."""


def table_of(variables: Sequence[Variable]) -> Table:
    """Return variables as a table."""
    rows = [dict(zip(_HEADINGS, _row(variable), strict=True)) for variable in variables]
    headings = [
        heading
        for heading in _HEADINGS
        if heading not in _OPTIONAL or any(row[heading] for row in rows)
    ]
    return Table(
        headings=headings,
        rows=[[row[heading] for heading in headings] for row in rows],
        numbers={"version"},
    )


def _row(variable: Variable) -> tuple[str | Cell, ...]:
    constraints = [f"{name}={bound!r}" for name, bound in variable.constraints.items()]
    locked = [f"locked: {variable.locked}"] if variable.locked is not None else []
    description, value = variable.description, shown(variable.value)
    return (
        printable(variable.name),
        printable(variable.type),
        Cell(text=value, title=value),  # a page cuts long texts
        description
        and Cell(
            text=printable(" ".join(description.split()), limit=MAX_DESCRIPTION), title=description
        ),
        str(variable.version),
        printable(variable.source),
        moment(variable.updated),
        printable(", ".join([*constraints, *locked]), limit=MAX_CONSTRAINTS),
    )


def shown(value: Any) -> str:
    """Return a short text of a value, for display."""
    return printable(_SHOWN.repr(value))
