"""Service of a session's variables, in the owner's process, for the notebook and its workers.

Arguments and results of its methods can be pickled, so that workers can call them over their lanes.
The users' class (`Variables`) is built on it, and the same at both ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from ..errors import (
    BatchRejected,
    ConstraintViolation,
    SessionNotFound,
    SnakepitError,
    StoreError,
    VariableLocked,
    VariableNotFound,
    VariableTypeError,
)
from ..ids import check_name
from ..protocol.codec import Codec
from ..store.variable_table import Key, NewVariable, Update, VariableDiffers, VariableRow
from ..telemetry import correlation_id, emit, is_on
from .handle import SessionHandle
from .stored import restored_from
from .values import (
    MAX_VARIABLE_BYTES,
    Change,
    Found,
    SetResult,
    Variable,
    cannot_restore,
    change_of,
    encode,
    facts_of,
    json_of,
    variable_of,
)
from .variable_types import VariableType

MAX_DEFINITIONS = 10_000
"""Variables of a session whose definitions are cached."""


class VariableService:
    """Serves the variables of a session to notebook and workers.

    Parameters
    ----------
    session
        The session.
    max_bytes
        Maximum size of one value.

    Attributes
    ----------
    reads
        Number of reads of each variable in this process.
    """

    REMOTE: Final = frozenset(
        {
            *(
                "value",
                "has",
                "fetch",
                "get_many",
                "names",
                "matching",
                "history",
                "changes",
                "revision",
            ),
            *("register", "register_many", "put_many", "assign", "set_many", "delete", "rollback"),
            *("lock", "unlock", "describe"),
        }
    )
    """Methods that workers may call."""

    WRITES: Final = frozenset(
        {"register", "register_many", "put_many", "assign", "set_many", "delete", "rollback"}
    )
    """Methods that get the writer's name."""

    def __init__(self, session: SessionHandle, max_bytes: int = MAX_VARIABLE_BYTES) -> None:
        self._session = session
        self._number = session.row.number
        self._table = session.store.variables
        self._value = session.store.variables.value
        self.max_bytes = max_bytes
        self._codec = Codec(max_bytes=max_bytes)
        self._definitions: dict[str, tuple[int, VariableType]] = {}
        self.reads = session.store.reads[self._number]

    # -- reading -------------------------------------------------------------------------------

    def value(self, name: Key) -> Any:
        """Return the value of a variable."""
        self._session.touch()
        began = time.perf_counter() if is_on() else 0.0
        found = self._value(self._number, name) if isinstance(name, str) else None
        if found is None:
            try:
                row = self._row(name)
            except VariableNotFound:
                self._emit("get", began, name, found=False)
                raise
            name, found = row.name, (row.value, row.type)
        body, type_name = found
        self.reads[str(name)] += 1
        if began:
            self._emit("get", began, name, size_bytes=len(body), found=True)
        try:
            return restored_from(body, type_name)
        except Exception as error:
            raise self._cannot_restore(name, error) from error

    def has(self, key: Key) -> bool:
        """Whether there is such a variable; that does not count as a read."""
        self._session.touch()
        return self._table.has(self._number, check_key(key))

    def fetch(self, keys: Sequence[Key]) -> list[Variable]:
        """Return the variables that exist, oldest first."""
        self._session.touch()
        rows = self._table.find(self._number, keys)
        self.reads.update(row.name for row in rows)
        if not rows:
            self._session.check()
        return [variable_of(row) for row in rows]

    def get_many(self, keys: Iterable[Key]) -> Found:
        """Return the values of variables, and the keys that do not exist."""
        began = time.perf_counter()
        wanted = list(dict.fromkeys(keys))
        known = {variable.id: variable for variable in self.fetch(wanted)}
        names = {variable.name: variable.value for variable in known.values()}
        by_id = {variable.id: variable.value for variable in known.values()}
        found: dict[Key, Any] = {}
        missing: list[Key] = []
        for key in wanted:
            values: Mapping[Any, Any] = names if isinstance(key, str) else by_id
            if key in values:
                found[key] = values[key]
            else:
                missing.append(key)
        self._emit("batch_get", began, count=len(wanted), found=len(found), missing=len(missing))
        return Found(found, missing)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a pattern, oldest first."""
        self._session.touch()
        names = self._table.names(self._number)
        if not names:
            self._session.check()
        return [name for name in names if pattern == "*" or fnmatchcase(name, pattern)]

    def matching(self, pattern: str) -> list[Variable]:
        """Return the variables whose names match a pattern, oldest first."""
        return self.fetch(self.names(pattern))

    def history(self, key: Key) -> list[Change]:
        """Return the values that a variable had, the present one last."""
        return [change_of(row) for row in self._table.history(self._number, self._row(key).id)]

    def revision(self) -> int:
        """Return the number of the last change of all."""
        return self._table.revision()

    def changes(self, after: int, limit: int, pattern: str) -> tuple[list[Change], int]:
        """Return the changes after a revision, and the revision to continue from."""
        rows = self._table.changes(self._number, after, limit)
        if any(not row.name for row in rows):
            raise SessionNotFound(self._session.row.id)
        seen = max((row.revision for row in rows), default=after)
        return [change_of(row) for row in rows if fnmatchcase(row.name, pattern)], seen

    # -- writing -------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        type_name: str,
        value: Any,
        *,
        constraints: Mapping[str, Any],
        description: str = "",
        metadata: Mapping[str, Any] | None = None,
        source: str,
    ) -> Variable:
        """Add a variable, or return the existing one if its definition is the same."""
        new = self._new(
            name,
            type_name,
            value,
            constraints=constraints,
            description=description,
            metadata=metadata,
        )
        try:
            return self._register([new], source)[0]
        except VariableDiffers as present:
            raise ValueError(_difference(present)) from None

    def register_many(self, wanted: Mapping[str, Any], *, source: str) -> list[Variable]:
        """Add variables, all or none."""
        errors: dict[str, Exception] = {}
        new = []
        for name, spec in wanted.items():
            try:
                new.append(self._new(name, **_spec(name, spec)))
            except (SnakepitError, TypeError, ValueError) as error:
                errors[str(name)] = error
        if errors:
            raise BatchRejected(errors)
        try:
            return self._register(new, source)
        except VariableDiffers as present:
            difference = ValueError(_difference(present))
            raise BatchRejected({present.name: difference}) from None

    def put_many(self, wanted: Mapping[str, Any], *, source: str) -> None:
        """Add variables, or set existing ones, all or none."""
        self._session.check()
        present = {row.name: row for row in self._table.find(self._number, list(wanted))}
        new: list[NewVariable] = []
        updates: list[Update] = []
        errors: dict[str, Exception] = {}
        for name, spec in wanted.items():
            try:
                variable = self._new(name, **_spec(name, spec))
            except (SnakepitError, TypeError, ValueError) as error:
                errors[str(name)] = error
                continue
            new.append(variable)  # an existing definition is compared with it
            if name in present:
                updates.append(Update(present[name].id, name, variable.value))
        if errors:
            raise BatchRejected(errors)
        try:
            self._table.register(self._number, new, source, updates)
        except VariableDiffers as other:
            raise BatchRejected({other.name: ValueError(_difference(other))}) from None
        except (VariableLocked, VariableNotFound) as error:
            raise BatchRejected({str(error.name): error}) from error

    def _new(
        self,
        name: str,
        type_name: str,
        value: Any,
        *,
        constraints: Mapping[str, Any],
        description: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> NewVariable:
        check_name("variable", name)
        kind = VariableType.checked(type_name, constraints)
        return NewVariable(
            name=name,
            type=kind.name,
            constraints=kind.as_json(),
            description=str(description),
            metadata=json_of(metadata),
            value=self._encode(name, self._accept(name, kind, value)),
        )

    def _register(self, new: Sequence[NewVariable], source: str) -> list[Variable]:
        self._session.touch()
        began = time.perf_counter()
        added = self._table.register(self._number, new, source)
        rows = {row.name: row for row in self._table.find(self._number, [v.name for v in new])}
        for variable in new:
            if variable.name not in rows:
                self._session.check()
                raise VariableNotFound(variable.name)  # deleted concurrently
        if is_on():
            total = self._table.count(self._number)
            for variable in new:
                if variable.name in added:
                    size = {"size_bytes": len(variable.value), "total": total}
                    self._emit("registered", began, variable.name, type=variable.type, **size)
        return [variable_of(rows[variable.name]) for variable in new]

    def assign(
        self, name: Key, value: Any, version: int | None = None, *, source: str
    ) -> int | None:
        """Set a variable; return its new version if the old one was given."""
        self._session.touch()
        began = time.perf_counter() if is_on() else 0.0
        for _ in range(2):
            variable, (number, kind), was_known = self._definition(name)
            try:
                body = self._encode(variable, self._accept(variable, kind, value))
                self._table.set(self._number, Update(number, variable, body, version), source)
            except VariableNotFound:
                self._definitions.pop(variable, None)  # deleted, and perhaps registered again
                if not was_known:
                    raise self._missing(name) from None
            except _REJECTIONS:
                if not (was_known and self._drop_outdated([variable])):
                    raise
            else:
                if began:
                    self._emit("updated", began, variable, type=kind.name, size_bytes=len(body))
                return None if version is None else version + 1
        raise self._missing(name)

    def set_many(
        self,
        values: Mapping[Key, Any],
        versions: Mapping[Key, int],
        *,
        atomic: bool,
        source: str,
    ) -> SetResult:
        """Set variables in one transaction."""
        self._session.touch()
        began = time.perf_counter()
        for key in versions:
            if key not in values:
                msg = f"there is a version for variable {key!r}, but no value"
                raise ValueError(msg)
        unknown = [key for key in map(check_key, values) if not self._knows(key)]
        updates, errors = self._updates(values, versions, unknown)
        known = [str(key) for key in values if key not in unknown]
        perhaps_outdated = [n for n in known if atomic or isinstance(errors.get(n), _REJECTIONS)]
        if errors and self._drop_outdated(perhaps_outdated):
            return self.set_many(values, versions, atomic=atomic, source=source)
        if atomic and errors:  # the first phase: each value is checked, and none is set
            self._emit("batch_update", began, count=len(values), failed=len(errors), atomic=True)
            raise BatchRejected(errors)
        done, refused = self._table.set_many(self._number, updates, source, atomic=atomic)
        gone = {name for name, why in refused.items() if isinstance(why, VariableNotFound)}
        for name in gone:
            self._definitions.pop(name, None)
        stale = gone.intersection(values).difference(unknown)
        if stale:  # deleted, and perhaps registered again: the cached definition was outdated
            rest = {key: value for key, value in values.items() if atomic or key in stale}
            kept = {key: version for key, version in versions.items() if key in rest}
            again = self.set_many(rest, kept, atomic=atomic, source=source)
            if atomic:
                return again
            done |= again.versions
            refused = {name: why for name, why in refused.items() if name not in stale}
            errors |= again.errors
        failed = len(errors) + len(refused)
        self._emit("batch_update", began, count=len(values), failed=failed, atomic=atomic)
        if atomic and refused:
            raise BatchRejected(refused)
        return SetResult(done, {**errors, **refused})

    def _updates(
        self, values: Mapping[Key, Any], versions: Mapping[Key, int], unknown: Sequence[Key]
    ) -> tuple[list[Update], dict[str, Exception]]:
        """Check several values; return the updates of valid ones, and the errors of the others."""
        rows = {row.name: row for row in self._table.find(self._number, unknown)}
        ids = {row.id: row.name for row in rows.values()}
        updates: list[Update] = []
        errors: dict[str, Exception] = {}
        for key, value in values.items():
            name = ids.get(key, "") if isinstance(key, int) else key
            try:
                if name in rows:
                    self._definitions[name] = self._decode_definition(rows[name])
                elif name not in self._definitions:
                    raise self._missing(key)
                number, kind = self._definitions[name]
                body = self._encode(name, self._accept(name, kind, value))
                updates.append(Update(number, name, body, versions.get(key)))
            except (SnakepitError, TypeError) as error:
                errors[str(key)] = error
        return updates, errors

    def delete(self, keys: Sequence[Key], *, source: str) -> list[str]:
        """Delete variables and their history; return the names of those that existed."""
        self._session.touch()
        began = time.perf_counter()
        rows = self._table.find(self._number, keys)
        for row in rows:
            self._definitions.pop(row.name, None)
        deleted = self._table.delete(self._number, {row.id: row.name for row in rows}, source)
        for row in rows:
            self._emit("deleted", began, row.name, type=row.type, size_bytes=len(row.value))
        return deleted

    def lock(self, key: Key, reason: str) -> None:
        """Lock a variable against changes, for a reason."""
        row = self._row(key)
        if not self._table.lock(self._number, row.id, reason):
            raise VariableLocked(row.name, self._row(key).locked or reason)

    def unlock(self, key: Key) -> bool:
        """Unlock a variable; return whether it was locked."""
        return self._table.lock(self._number, self._row(key).id, None)

    def describe(
        self, key: Key, description: str | None, metadata: Mapping[str, Any] | None
    ) -> None:
        """Change the description or metadata of a variable."""
        row = self._row(key)
        written = row.description if description is None else str(description)
        noted = row.metadata if metadata is None else json_of(metadata)
        self._table.describe(self._number, row.id, written, noted)

    def rollback(self, key: Key, version: int, *, source: str) -> Variable:
        """Restore an earlier value of a variable."""
        row = self._row(key)
        history = self._table.history(self._number, row.id)
        for change in history:
            if change.version == version and change.value is not None:
                update = Update(row.id, row.name, change.value, row.version, "rolled back")
                self._table.set(self._number, update, source)
                return variable_of(self._row(key))
        kept = ", ".join(str(change.version) for change in history)
        msg = f"variable {row.name!r} has no version {version} any more; there are: {kept}"
        raise ValueError(msg)

    # -- details -------------------------------------------------------------------------------

    def _emit(
        self, event: str, began: float, name: Key = "", **attributes: str | float | bool
    ) -> None:
        """Emit an event about an operation, never with a value."""
        if is_on():
            if name != "":
                attributes["name"] = name
            known = self._definitions.get(str(name))
            if known is not None:
                attributes.setdefault("type", known[1].name)
            seconds = time.perf_counter() - began
            attributes["session"] = self._session.row.id
            attributes["correlation_id"] = correlation_id()
            emit(f"variable.{event}", attributes, seconds=seconds)

    def _accept(self, name: str, kind: VariableType, value: Any) -> Any:
        """Convert a value to the variable's type; emit an event if it is rejected."""
        began = time.perf_counter() if is_on() else 0.0
        try:
            return kind.accept(name, value)
        except VariableTypeError as error:
            self._emit("validation_failed", began, name, type=kind.name, given=error.given)
            raise
        except ConstraintViolation as error:
            facts = {"type": kind.name, "constraint": error.constraint}
            self._emit("constraint_violation", began, name, **facts)
            raise

    def _encode(self, name: str, value: Any) -> bytes:
        return encode("variable", name, value, self._codec, "max_variable_bytes")

    def _knows(self, key: Key) -> bool:
        return isinstance(key, str) and key in self._definitions

    def _definition(self, key: Key) -> tuple[str, tuple[int, VariableType], bool]:
        """Return the name and definition of a variable, and whether they were cached."""
        if isinstance(key, str) and key in self._definitions:
            return key, self._definitions[key], True
        row = self._row(key)
        if len(self._definitions) >= MAX_DEFINITIONS:
            self._definitions.clear()
        found = self._definitions[row.name] = self._decode_definition(row)
        return row.name, found, False

    def _drop_outdated(self, names: Sequence[str]) -> bool:
        """Drop outdated definitions of variables from the cache; return whether there were any."""
        present = {row.name: row.id for row in self._table.find(self._number, names)}
        known = [name for name in names if name in self._definitions]
        old = [name for name in known if self._definitions[name][0] != present.get(name)]
        for name in old:
            del self._definitions[name]
        return bool(old)

    def _row(self, key: Key) -> VariableRow:
        rows = self._table.find(self._number, [check_key(key)])
        if not rows:
            raise self._missing(key)
        return rows[0]

    def _decode_definition(self, row: VariableRow) -> tuple[int, VariableType]:
        """Decode the definition of a variable from its row, which may be damaged."""
        try:
            return row.id, VariableType.from_json(row.type, row.constraints)
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(
                str(self._session.store.path),
                f"the type of variable {row.name!r} is damaged: {error}",
                "delete the variable and register it again; its value can still be read",
            ) from error

    def _cannot_restore(self, name: Key, error: Exception) -> StoreError:
        return cannot_restore(self._session.store.path, f"variable {name!r}", error)

    def _missing(self, key: Key) -> VariableNotFound:
        self._session.check()
        return VariableNotFound(key, self._table.names(self._number))


_REJECTIONS = (VariableTypeError, ConstraintViolation)


def check_key(key: object) -> Key:
    """Return a key if it can name a variable.

    Raises
    ------
    TypeError
        It is neither a name nor an id.
    """
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
        return key
    msg = f"a variable is named by text or by its id, not by {type(key).__name__}"
    raise TypeError(msg)


def _spec(name: str, spec: Any) -> dict[str, Any]:
    """Parse the definition of one of several variables: ``(type, value)``, or a dictionary."""
    if isinstance(spec, tuple) and len(spec) == 2:
        return {"type_name": spec[0], "value": spec[1], "constraints": {}}
    if isinstance(spec, Mapping) and {"type", "value"} <= set(spec):
        rest = {key: value for key, value in spec.items() if key not in _OPTIONS}
        return {
            "type_name": spec["type"],
            "value": spec["value"],
            "description": spec.get("description", ""),
            "metadata": spec.get("metadata"),
            "constraints": rest,
        }
    msg = f"variable {name!r} is given as (type, value), or as a dictionary with type and value"
    raise TypeError(msg)


_OPTIONS = {"type", "value", "description", "metadata"}


def _difference(present: VariableDiffers) -> str:
    """Describe why a variable cannot be registered: its definition differs from the present one."""
    constraints = facts_of(present.constraints)
    listed = ", ".join(f"{key}={value!r}" for key, value in constraints.items())
    return (
        f"variable {present.name!r} is registered already, as {present.type}"
        f"{f' with {listed}' if listed else ''}; delete it first"
    )
