"""Variables as users hold them."""

from __future__ import annotations

import datetime
import decimal
import importlib
import logging
import math
import pickle
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from snakepit_kernel.errors import (
    BatchRejected,
    ConstraintViolation,
    SessionNotFound,
    StoreError,
    ValueTooLarge,
    VariableLocked,
    VariableNotFound,
    VariableTypeError,
    VersionConflict,
)
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.store import open_store

# -- one ---------------------------------------------------------------------------------------


def test_a_registered_variable_is_known_with_all_that_was_said(session):
    before = datetime.datetime.now().astimezone()
    made = session.variables.register(
        "temperature", "float", 1, description="how wild", metadata={"a": [1]}, min=0, max=2.0
    )
    assert made == session.variables.info("temperature") == session.variables.info(made.id)
    assert (made.name, made.type, made.value, made.version) == ("temperature", "float", 1.0, 1)
    assert made.constraints == {"min": 0, "max": 2.0}
    assert (made.description, made.metadata, made.source) == ("how wild", {"a": [1]}, "script")
    assert made.locked is None
    assert before <= made.created == made.updated


def test_a_value_that_breaks_a_constraint_changes_nothing(session):
    session.variables.register("temperature", "float", 0.7, min=0, max=2)
    with pytest.raises(ConstraintViolation, match=r"'temperature': .*at most 2 \(max=2\)"):
        session.variables["temperature"] = 3.0
    with pytest.raises(VariableTypeError, match="takes a number, not str"):
        session.variables["temperature"] = "1"
    assert session.variables["temperature"] == 0.7
    assert session.variables.info("temperature").version == 1


def test_a_first_value_that_breaks_a_constraint_adds_nothing(session):
    with pytest.raises(ConstraintViolation):
        session.variables.register("n", "integer", 3, max=2)
    assert list(session.variables) == []


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "ä", "a" * 65, 1, None])
def test_a_name_that_cannot_be_is_refused(session, name):
    with pytest.raises((TypeError, ValueError)):
        session.variables.register(name, "integer", 1)
    assert list(session.variables) == []


def test_a_variable_can_be_registered_again_as_what_it_is_and_keeps_its_value(session):
    session.variables.register("n", "integer", 1, min=0, max=9)
    session.variables["n"] = 5
    again = session.variables.register("n", "integer", 1, max=9, min=0)
    assert (again.value, again.version) == (5, 2)


def test_a_variable_cannot_be_registered_again_as_something_else(session):
    session.variables.register("n", "integer", 1, max=9)
    for kind, bounds in (("float", {"max": 9}), ("integer", {}), ("integer", {"max": 8})):
        with pytest.raises(ValueError, match="registered already, as integer with max=9"):
            session.variables.register("n", kind, 1, **bounds)
    assert session.variables.info("n").version == 1


def test_several_are_registered_all_or_none(session):
    session.variables.register("there", "integer", 1)
    with pytest.raises(BatchRejected) as caught:
        session.variables.register_many(
            {"a": ("integer", 1), "b": ("integer", "x"), "c": ("flaot", 1), "d": 5}
        )
    assert set(caught.value.errors) == {"b", "c", "d"}
    with pytest.raises(BatchRejected) as caught:
        session.variables.register_many({"a": ("integer", 1), "there": ("float", 1)})
    assert set(caught.value.errors) == {"there"}
    assert list(session.variables) == ["there"]

    session.variables.register_many(
        {"a": ("integer", 1), "e": {"type": "string", "value": "x", "max_length": 1}}
    )
    assert list(session.variables) == ["there", "a", "e"]
    assert session.variables.info("e").constraints == {"max_length": 1}


def test_a_variable_is_read_and_set_by_its_id_and_as_an_attribute(session):
    made = session.variables.register("n", "integer", 1)
    session.variables[made.id] = 2
    assert (session.v.n, session.variables[made.id]) == (2, 2)
    session.v.n = 3
    assert session.variables["n"] == 3
    del session.v.n
    assert not hasattr(session.v, "n")
    with pytest.raises(AttributeError):
        session.v.n = 1


@pytest.mark.parametrize("key", ["nope", 77, 2**70, -1, "\ud800", "a\0b", ""])
def test_a_variable_that_is_not_there_is_named(session, key):
    session.variables.register("n", "integer", 1)
    for use in (
        lambda: session.variables[key],
        lambda: session.variables.info(key),
        lambda: session.variables.set(key, 1),
        lambda: session.variables.__delitem__(key),
        lambda: session.variables.lock(key),
        lambda: session.variables.unlock(key),
        lambda: session.variables.history(key),
        lambda: session.variables.rollback(key, 1),
        lambda: session.variables.describe(key, "x"),
    ):
        with pytest.raises(VariableNotFound):
            use()
    assert key not in session.variables
    assert session.variables.get_many([key, "n"]).missing == [key]
    assert session.variables.delete(key) == []


@pytest.mark.parametrize("key", [None, 1.5, True, ("a",), b"a"])
def test_what_cannot_name_a_variable_is_refused(session, key):
    session.variables.register("n", "integer", 1)
    for use in (
        lambda: session.variables[key],
        lambda: session.variables.set(key, 5),
        lambda: session.variables.set_many({key: 5}),
        lambda: session.variables.get_many([key]),
        lambda: session.variables.delete(key),
    ):
        with pytest.raises(TypeError, match="named by text or by its id"):
            use()
    assert session.variables["n"] == 1


def test_a_variable_of_a_similar_name_is_suggested(session):
    session.variables.register("temperature", "float", 1)
    with pytest.raises(VariableNotFound, match="temperature"):
        session.variables["temprature"]


def test_the_mapping_behaves_like_one(session):
    variables = session.variables
    variables.register_many({"b": ("integer", 1), "a": ("integer", 2)})
    assert (len(variables), list(variables), dict(variables)) == (2, ["b", "a"], {"b": 1, "a": 2})
    assert "b" in variables
    assert variables.get("c", 7) == 7
    variables.update({"a": 5})
    assert variables.pop("a") == 5
    variables.clear()
    assert dict(variables) == {}
    with pytest.raises(VariableNotFound):
        variables["new"] = 1


def test_description_and_metadata_can_be_changed_without_a_new_version(session):
    session.variables.register("n", "integer", 1, description="old", metadata={"k": 1})
    session.variables.describe("n", "new")
    info = session.variables.info("n")
    assert (info.description, info.metadata, info.version) == ("new", {"k": 1}, 1)
    session.variables.describe("n", metadata={"k": 2})
    assert session.variables.info("n").metadata == {"k": 2}
    with pytest.raises(TypeError, match="JSON"):
        session.variables.describe("n", metadata={"k": object()})


# -- several -----------------------------------------------------------------------------------


def test_a_pattern_lists_those_that_match_the_oldest_first(session):
    for name in ("temp_b", "other", "temp_a", "Temp_c"):
        session.variables.register(name, "integer", 1)
    assert [v.name for v in session.variables.list("temp_*")] == ["temp_b", "temp_a"]
    assert [v.name for v in session.variables.list()] == ["temp_b", "other", "temp_a", "Temp_c"]
    assert session.variables.list("nothing") == []


def test_many_are_read_at_one_moment_with_what_is_missing(session):
    made = session.variables.register("a", "integer", 1)
    session.variables.register("b", "integer", 2)
    found = session.variables.get_many(["b", "nope", made.id, "b"])
    assert found.found == {"b": 2, made.id: 1}
    assert found.missing == ["nope"]


def test_more_are_read_and_set_at_once_than_a_statement_may_name(session):
    names = [f"v{number}" for number in range(1200)]
    session.variables.register_many(dict.fromkeys(names, ("integer", 0)))
    done = session.variables.set_many(dict.fromkeys(names, 1))
    assert len(done.versions) == 1200
    assert sum(session.variables.get_many(names).found.values()) == 1200


def test_a_batch_with_one_that_is_bad_changes_nothing_and_names_every_bad_one(session):
    session.variables.register("a", "integer", 1)
    session.variables.register("b", "integer", 1, max=5)
    session.variables.register("locked", "integer", 1)
    session.variables.lock("locked", "tuning")
    with pytest.raises(BatchRejected) as caught:
        session.variables.set_many({"a": 2, "b": 9, "nope": 1})
    assert set(caught.value.errors) == {"b", "nope"}
    with pytest.raises(BatchRejected) as caught:
        session.variables.set_many({"a": 2, "locked": 2, "b": 2}, versions={"b": 7})
    assert {name: type(error) for name, error in caught.value.errors.items()} == {
        "locked": VariableLocked,
        "b": VersionConflict,
    }
    assert [v.version for v in session.variables.list()] == [1, 1, 1]
    assert [change.kind for change in session.variables.history("a")] == ["registered"]


def test_a_batch_that_is_not_atomic_sets_what_it_can(session):
    session.variables.register_many({"a": ("integer", 1), "b": ("integer", 1), "c": ("integer", 1)})
    session.variables.lock("c")
    done = session.variables.set_many({"a": 2, "b": "x", "c": 2, "nope": 1}, atomic=False)
    assert not done.ok
    assert done.versions == {"a": 2}
    assert set(done.errors) == {"b", "c", "nope"}
    assert dict(session.variables) == {"a": 2, "b": 1, "c": 1}


def test_a_version_for_a_variable_that_is_not_set_is_a_mistake(session):
    made = session.variables.register("a", "integer", 1)
    with pytest.raises(ValueError, match="but no value"):
        session.variables.set_many({made.id: 2}, versions={"a": 9})
    assert session.variables["a"] == 1


@pytest.mark.parametrize("atomic", [True, False])
def test_a_variable_that_another_registered_anew_can_be_set_with_others(session, store, atomic):
    other = open_session("s", store=store)
    other.variables.register_many({"a": ("integer", 1), "b": ("integer", 1)})
    session.variables.set_many({"a": 2, "b": 2})
    other.variables.delete("a")
    other.variables.register("a", "string", "x")

    done = session.variables.set_many({"a": "y", "b": 3}, atomic=atomic)

    assert done.ok
    assert dict(session.variables) == {"a": "y", "b": 3}


@pytest.mark.parametrize("atomic", [True, False])
def test_a_variable_that_another_registered_anew_has_the_type_that_it_has_now(
    session, store, atomic
):
    other = open_session("s", store=store)
    other.variables.register_many({"a": ("integer", 1), "b": ("integer", 1)})
    session.variables.set_many({"a": 2, "b": 2})
    other.variables.delete("a")
    other.variables.register("a", "any", 0)
    assert session.variables.set_many({"a": 2, "b": 3}, atomic=atomic).ok
    session.variables["a"] = "text"
    assert other.variables["a"] == "text"
    other.variables.delete("a")
    with pytest.raises(VariableNotFound):
        session.variables["a"] = 1
    other.variables.register("a", "integer", 1)
    with pytest.raises(VariableTypeError):
        session.variables["a"] = "text"


# -- versions, locks, history ------------------------------------------------------------------


def test_compare_and_set_refuses_what_others_have_changed(session):
    session.variables.register("n", "integer", 0)
    session.variables.set("n", 1, version=1)
    with pytest.raises(VersionConflict) as caught:
        session.variables.set("n", 9, version=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert session.variables["n"] == 1


def test_a_locked_variable_refuses_every_change(session, store):
    other = open_session("s", store=store)
    session.variables.register("n", "integer", 0)
    session.variables.lock("n", "tuning")
    for change in (
        lambda: other.variables.set("n", 1),
        lambda: other.variables.delete("n"),
        lambda: other.variables.rollback("n", 1),
        lambda: other.variables.lock("n", "mine"),
        session.variables.clear,
    ):
        with pytest.raises(VariableLocked, match="tuning"):
            change()
    assert other.variables.info("n").locked == "tuning"
    assert other.variables.unlock("n")
    assert not other.variables.unlock("n")
    session.variables["n"] = 1


def test_one_locked_variable_keeps_all_from_being_deleted(session):
    session.variables.register_many({"a": ("integer", 1), "b": ("integer", 1)})
    session.variables.lock("b")
    with pytest.raises(VariableLocked):
        session.variables.delete("a", "b")
    assert list(session.variables) == ["a", "b"]


def test_the_history_tells_who_changed_what(session):
    session.variables.register("n", "integer", 0)
    session.variables["n"] = 1
    back = session.variables.rollback("n", 1)
    told = [
        (change.version, change.kind, change.value) for change in session.variables.history("n")
    ]
    assert told == [(1, "registered", 0), (2, "updated", 1), (3, "rolled back", 0)]
    assert (back.value, back.version) == (0, 3)
    with pytest.raises(ValueError, match="no version 9 any more; there are: 1, 2, 3"):
        session.variables.rollback("n", 9)


def test_at_least_100_values_are_kept_and_not_many_more(session):
    session.variables.register("n", "integer", 0)
    for number in range(350):
        session.variables["n"] = number
    versions = [change.version for change in session.variables.history("n")]
    assert 100 <= len(versions) <= 200
    assert versions == [*range(versions[0], 352)]


def test_the_history_of_large_values_is_cut_to_their_size(session):
    session.variables.register("b", "bytes", b"")
    for number in range(40):
        session.variables["b"] = bytes([number]) * 900_000
    history = session.variables.history("b")
    assert sum(len(change.value) for change in history) < 12_000_000
    assert history[-1].value == session.variables["b"] == bytes([39]) * 900_000
    assert len(history) >= 2


def test_a_deleted_variable_has_no_past(session):
    session.variables.register("n", "integer", 1)
    session.variables["n"] = 2
    first = session.variables.info("n").id
    assert session.variables.delete("n", "nope") == ["n"]
    again = session.variables.register("n", "integer", 7)
    assert (again.version, len(session.variables.history("n"))) == (1, 1)
    assert again.id != first


# -- limits and secrets ------------------------------------------------------------------------


def test_a_value_beyond_the_limit_is_refused_and_named(session, store):
    session.variables.register("b", "bytes", b"")
    session.variables["b"] = b"x" * ((1 << 20) - 100)
    with pytest.raises(ValueTooLarge, match="variable 'b'"):
        session.variables["b"] = b"x" * (1 << 20)
    with pytest.raises(BatchRejected, match="variable 'b'"):
        session.variables.set_many({"b": b"x" * (1 << 20)})
    assert len(session.variables["b"]) == (1 << 20) - 100
    large = open_session("s", store=store, max_variable_bytes=1 << 22)
    large.variables["b"] = b"x" * (1 << 20)


def test_a_value_that_cannot_be_pickled_is_named(session):
    session.variables.register("f", "any", None)
    with pytest.raises(TypeError, match="variable 'f', a _io.TextIOWrapper, cannot be stored"):
        session.variables["f"] = sys.__stdout__
    assert session.variables["f"] is None


def test_no_value_appears_in_a_log_an_error_or_a_text(session, store, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "hunter2"
    told: list[object] = []
    v = session.variables
    v.register("a", "any", secret)
    v.register("s", "string", secret, max_length=9)
    v.register("i", "integer", 1)
    v.lock("a")
    with v.watch() as watch:
        v["s"] = secret
        told += [watch, watch.get(5)]
    for use in (
        lambda: v.set("a", secret),
        lambda: v.set("i", secret),
        lambda: v.set("s", secret * 3),
        lambda: v.set("s", secret, version=99),
        lambda: v.set("nope", secret),
        lambda: v.register("s", "string", secret * 2),
        lambda: v.register("i", "integer", secret),
        lambda: v.register("x", "choice", secret, choices=["a"]),
        lambda: v.set_many({"a": secret, "s": secret}),
        lambda: v.set_many({"i": secret, "nope": secret}),
        lambda: v.register_many({"q": secret}),
        lambda: v.rollback("s", 99),
        lambda: session.programs.put("p", secret, metadata=object()),
    ):
        with pytest.raises((ValueError, TypeError, KeyError, VariableLocked, VersionConflict)) as e:
            use()
        told += [e.value, repr(e.value), e.value.__context__, e.value.__cause__]
    told += [v, v.info("a"), v.list(), v.history("s"), session, session.v, session.metadata]
    told += [session.stats(), v.set_many({"i": secret}, atomic=False).errors]
    assert secret not in "".join(f"{item!s} {item!r}" for item in told)
    assert secret not in caplog.text


def test_the_table_of_variables_shows_values_cut_and_escaped(session):
    session.variables.register("a", "string", "<b>" + "x" * 500, description='say "hi"')
    html = session.variables._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "x" * 100 not in html


def test_variables_of_a_session_that_was_deleted_are_gone(session, store):
    session.variables.register("n", "integer", 1)
    other = open_session("s", store=store)
    session.delete()
    for use in (
        lambda: other.variables["n"],
        lambda: other.variables.set("n", 1),
        lambda: other.variables.register("m", "integer", 1),
        other.variables.list,
        lambda: other.variables.set_many({"n": 1}),
    ):
        with pytest.raises((SessionNotFound, BatchRejected)):
            use()
    again = open_session("s", store=store)
    assert list(again.variables) == []


# -- any ---------------------------------------------------------------------------------------


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.x == self.x

    __hash__ = None


def of_main() -> Any:
    """Give an object of a class that a notebook has defined."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(
        "class Of:\n    def __eq__(self, o): return type(o) is type(self) and o.x == self.x", space
    )
    made = space["Of"]()
    made.x = [1]
    return made


VALUES = [
    None,
    True,
    2**70,
    -0.0,
    math.inf,
    (1, (2,)),
    {1, 2},
    frozenset({1}),
    b"\0",
    bytearray(b"a"),
    1 + 2j,
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    datetime.timedelta(1),
    decimal.Decimal("1.10"),
    Path("/tmp"),
    range(3),
    Point(3),
    of_main(),
    {"nested": [({"a": {1.5, None}}, b"x"), of_main()]},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_any_value_comes_back_equal_and_of_its_type(session, value):
    session.variables.register("v", "any", value)
    found = session.variables["v"]
    assert found == value
    assert type(found) is type(value)


def test_nan_arrays_and_frames_come_back_as_they_were(session):
    session.variables.register("v", "any", math.nan)
    assert math.isnan(session.variables["v"])
    for array in (np.arange(6.0).reshape(2, 3), np.array(["a"]), np.zeros((0, 2), "i2")):
        session.variables["v"] = array
        np.testing.assert_array_equal(session.variables["v"], array)
        assert session.variables["v"].dtype == array.dtype
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    session.variables["v"] = {"nested": [frame]}
    pd.testing.assert_frame_equal(session.variables["v"]["nested"][0], frame)


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.decimals(allow_nan=False),
        st.datetimes(),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=4),
    ),
    max_leaves=12,
)


def test_whatever_can_be_pickled_comes_back(session):
    session.variables.register("v", "any", None)

    @given(PLAIN)
    @settings(max_examples=60, deadline=None)
    def check(value: object) -> None:
        session.variables["v"] = value
        found = session.variables["v"]
        assert found == value
        assert repr(found) == repr(value)  # also the types inside
        assert pickle.dumps(found) is not None

    check()


# -- against a model ---------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
NUMBER = st.integers(-9, 9)


def test_a_batch_names_all_that_is_wrong_also_what_another_has_deleted(tmp_path):
    store = open_store(tmp_path / "sessions.sqlite")
    one, other = (open_session("s", store=store).variables for _ in range(2))
    one.register("a", "integer", 0)
    one["a"] = 1
    other.delete("a")

    with pytest.raises(BatchRejected) as caught:
        one.set_many({"a": 1, "b": 2})

    store.close()
    assert set(caught.value.errors) == {"a", "b"}


class Machine(RuleBasedStateMachine):
    """Two handles of one session, against a dictionary of histories."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "sessions.sqlite"
        self.model: dict[str, list[int]] = {}
        self.locked: set[str] = set()
        self.open()

    def open(self) -> None:
        self.store = open_store(self.path)
        self.handles = [open_session("s", store=self.store).variables for _ in range(2)]

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(name=NAMES, value=NUMBER, who=st.integers(0, 1))
    def register(self, name: str, value: int, who: int) -> None:
        made = (
            self.handles[who].register(name, "integer", value, min=-9, max=8) if value < 9 else None
        )
        if made is None:
            with pytest.raises(ConstraintViolation):
                self.handles[who].register(name, "integer", value, min=-9, max=8)
            return
        self.model.setdefault(name, [value])
        assert made.value == self.model[name][-1]

    @rule(name=NAMES, value=NUMBER, who=st.integers(0, 1))
    def set(self, name: str, value: int, who: int) -> None:
        error = self.expected(name, value)
        if error is None:
            self.handles[who][name] = value
            self.model[name].append(value)
        else:
            with pytest.raises(error):
                self.handles[who][name] = value

    def expected(self, name: str, value: int) -> type[Exception] | None:
        if name not in self.model:
            return VariableNotFound
        if value > 8:
            return ConstraintViolation
        return VariableLocked if name in self.locked else None

    @rule(name=NAMES, value=st.integers(-9, 8), version=st.integers(1, 6), who=st.integers(0, 1))
    def compare_and_set(self, name: str, value: int, version: int, who: int) -> None:
        error = self.expected(name, value)
        if error is None and len(self.model[name]) != version:
            error = VersionConflict
        if error is None:
            self.handles[who].set(name, value, version=version)
            self.model[name].append(value)
        else:
            with pytest.raises(error):
                self.handles[who].set(name, value, version=version)

    @rule(
        values=st.dictionaries(NAMES, NUMBER, min_size=1),
        atomic=st.booleans(),
        who=st.integers(0, 1),
    )
    def set_many(self, values: dict[str, int], atomic: bool, who: int) -> None:
        bad = {name for name, value in values.items() if self.expected(name, value)}
        if atomic and bad:
            with pytest.raises(BatchRejected) as caught:
                self.handles[who].set_many(values)
            early = {name for name in bad if name not in self.locked or values[name] > 8}
            assert set(caught.value.errors) in (bad, early)
            return
        done = self.handles[who].set_many(values, atomic=atomic)
        assert set(done.errors) == bad
        for name in values.keys() - bad:
            self.model[name].append(values[name])
            assert done.versions[name] == len(self.model[name])

    @rule(name=NAMES, who=st.integers(0, 1))
    def delete(self, name: str, who: int) -> None:
        if name in self.locked:
            with pytest.raises(VariableLocked):
                self.handles[who].delete(name)
            return
        assert self.handles[who].delete(name) == [name] * (name in self.model)
        self.model.pop(name, None)

    @rule(name=NAMES, who=st.integers(0, 1))
    def lock(self, name: str, who: int) -> None:
        if name not in self.model or name in self.locked:
            with pytest.raises((VariableNotFound, VariableLocked)):
                self.handles[who].lock(name)
        else:
            self.handles[who].lock(name)
            self.locked.add(name)

    @rule(name=NAMES, who=st.integers(0, 1))
    def unlock(self, name: str, who: int) -> None:
        if name in self.model:
            assert self.handles[who].unlock(name) == (name in self.locked)
            self.locked.discard(name)

    @rule(name=NAMES, version=st.integers(1, 6), who=st.integers(0, 1))
    def rollback(self, name: str, version: int, who: int) -> None:
        past = self.model.get(name)
        if past is None or name in self.locked or version > len(past):
            with pytest.raises((VariableNotFound, VariableLocked, ValueError)):
                self.handles[who].rollback(name, version)
        else:
            self.handles[who].rollback(name, version)
            past.append(past[version - 1])

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @invariant()
    def both_see_what_the_model_holds(self) -> None:
        for variables in self.handles:
            assert dict(variables) == {name: past[-1] for name, past in self.model.items()}
            assert {v.name for v in variables.list() if v.locked} == self.locked
        for name, past in self.model.items():
            assert [change.value for change in self.handles[0].history(name)] == past


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_variables_behave_as_a_dictionary_of_histories = Machine.TestCase


def test_a_value_whose_class_is_gone_is_named_and_hides_no_other(tmp_path, monkeypatch):
    (tmp_path / "shop_of_yore.py").write_text("class Tea: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("shop_of_yore")
    session = open_session("yore", store=tmp_path / "s.sqlite")
    session.variables.register("tea", "any", shop.Tea())
    session.variables.register("price", "float", 2.5)
    session.programs["brew"] = shop.Tea()
    session.metadata["cup"] = shop.Tea()
    monkeypatch.delitem(sys.modules, "shop_of_yore")
    (tmp_path / "shop_of_yore.py").unlink()
    importlib.invalidate_caches()

    for read in (lambda: session.variables["tea"], lambda: session.programs["brew"]):
        with pytest.raises(StoreError, match=r"cannot be restored here.*shop_of_yore"):
            read()
    tea, price = session.variables.list()
    assert price.value == 2.5
    assert "No module named 'shop_of_yore'" in repr(tea.value)
    assert "shop_of_yore" in repr(session.metadata["cup"])


def test_looking_whether_a_variable_is_there_is_no_reading_of_it(tmp_path):
    session = open_session("one", store=tmp_path / "s.sqlite")
    number = session.variables.register("x", "integer", 1).id

    assert "x" in session.variables
    assert number in session.variables
    assert "y" not in session.variables
    assert number + 1 not in session.variables
    assert True not in session.variables
    assert session.stats().reads == 0


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *(("constraints", text) for text in ("{\ufffd", "[]", '{"min": "a"}', "[" * 100_000, "1")),
        *(("metadata", text) for text in ("{\ufffd", "[]", "{x}")),
        ("type", "integfr"),
    ],
)
def test_a_variable_whose_row_is_damaged_can_be_read_and_hides_no_other(
    session, store, column, text
):
    for name in ("a", "b"):
        session.variables.register(name, "integer", 1, metadata={"unit": "m"}, min=0)
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute(f"UPDATE variables SET {column} = ? WHERE name = 'a'", (text,))

    again = open_session(session.id, store=store).variables

    assert [(variable.name, variable.value) for variable in again.list()] == [("a", 1), ("b", 1)]
    assert again["a"] == 1
    if column == "metadata":
        again.set("a", 2)
    else:
        with pytest.raises(StoreError, match="the type of variable 'a' is damaged.*register"):
            again.set("a", 2)
        result = again.set_many({"a": 2, "b": 2}, atomic=False)
        assert result.versions == {"b": 2}
        assert isinstance(result.errors["a"], StoreError)
        with pytest.raises(ValueError, match="a"):
            again.register("a", "integer", 3)
        again.delete("a")
        again.register("a", "integer", 3)
    again.set("b", 4)
    assert again["b"] == 4
