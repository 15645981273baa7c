"""Values of plain types are only data in the store; a pickle that is planted there does not run."""

from __future__ import annotations

import math
import pickle
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel import SessionState, StoreError, Unserializable, ValueTooLarge
from snakepit_kernel.protocol.codec import Codec
from snakepit_kernel.sessions.stored import restored_from, stored
from snakepit_kernel.store.variable_table import Update

PLAIN: dict[str, tuple[str, Any]] = {
    "text": ("string", "héllo\n\0"),
    "half_a_pair": ("string", "a\ud800b"),
    "integer": ("integer", -7),
    "largest_word": ("integer", (1 << 64) - 1),
    "long": ("integer", -(3**500)),
    "float": ("float", 0.1),
    "nan": ("float", math.nan),
    "inf": ("float", -math.inf),
    "zero": ("float", -0.0),
    "boolean": ("boolean", True),
    "bytes": ("bytes", b"\x80\x05.\xff"),
    "list": ("list", [1, 2.0, "x", None, True, b"y", [[]], {"a": 1 << 70, "b": "\udcff"}]),
    "dict": ("dict", {"é": [1.5, {"n": None}], "": 0}),
    "embedding": ("embedding", [0.5, 1.0]),
    "vector": ("embedding", np.array([0.5, 1.0], ">f4")),
    "array": ("array", np.arange(12, dtype="<i2").reshape(3, 4)),
    "columns": ("array", np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "empty": ("array", np.zeros((0, 3), "c16")),
    "dates": ("array", np.array(["2026-11-01", "NaT"], "M8[ns]")),
    "words": ("array", np.array(["a", "bc"])),
    "plain_any": ("any", {"a": [1, "x"]}),
}
PICKLED: dict[str, tuple[str, Any]] = {
    "tuple": ("any", (1, "x")),
    "keys": ("dict", {1: "a", "b": 2}),
    "shared": ("list", [[1]] * 2),
    "decimal": ("list", [Decimal("1.5")]),
    "objects": ("array", np.array([None, 1], dtype=object)),
    "masked": ("array", np.ma.masked_array([1, 2], [True, False])),
}
REFUSING = ("string", "integer", "float", "boolean", "choice", "bytes", "embedding")

VALUES: dict[str, Any] = {"string": "x", "choice": 1, "bytes": b"x", "embedding": [0.5]}


def body_of(session: SessionState, name: str) -> bytes:
    with sqlite3.connect(session.store.path) as connection:
        select = "SELECT value FROM changes WHERE name = ? ORDER BY revision DESC LIMIT 1"
        (body,) = connection.execute(select, (name,)).fetchone()
    connection.close()
    assert isinstance(body, bytes)
    return body


def write(session: SessionState, name: str, body: bytes) -> None:
    """Put a value into the store as an earlier version has done, or somebody else."""
    variable = session.variables.info(name)
    session.store.variables.set(session.number, Update(variable.id, name, body), "another")


def same(found: Any, value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return (
            type(found) is type(value)
            and found.dtype.str == value.dtype.str
            and found.shape == value.shape
            and found.flags.f_contiguous == value.flags.f_contiguous
            and found.flags.writeable
            and found.tobytes() == value.tobytes()
        )
    return repr(found) == repr(value) and type(found) is type(value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_value_of_plain_data_is_stored_without_a_pickle_and_comes_back_exactly(
    session: SessionState, name: str
) -> None:
    type_name, value = PLAIN[name]
    session.variables.register(name, type_name, value)

    assert body_of(session, name)[:1] != b"\x80"
    assert same(session.variables[name], value)
    assert same(session.variables.list()[0].value, value)
    assert same(session.variables.history(name)[0].value, value)


@pytest.mark.parametrize("name", PICKLED)
def test_what_is_no_plain_data_is_pickled_and_comes_back(session: SessionState, name: str) -> None:
    type_name, value = PICKLED[name]
    session.variables.register(name, type_name, value)

    assert body_of(session, name)[:1] == b"\x80"
    assert repr(session.variables[name]) == repr(value)


def test_a_list_that_holds_one_list_twice_still_does(session: SessionState) -> None:
    shared: list[int] = [1]
    recursive: list[Any] = [shared, shared]
    recursive.append(recursive)
    session.variables.register("x", "list", recursive)

    found = session.variables["x"]
    assert found[0] is found[1]
    assert found[2] is found


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_every_value_of_plain_data_comes_back_exactly(value: Any) -> None:
    body = stored(value, Codec())
    assert repr(restored_from(body, "any")) == repr(value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_value_that_an_earlier_version_has_pickled_is_read(
    session: SessionState, name: str
) -> None:
    type_name, value = PLAIN[name]
    session.variables.register(name, type_name, value)
    write(session, name, pickle.dumps(value, protocol=5))

    assert same(session.variables[name], value)
    assert same(session.variables.list()[0].value, value)
    assert same(session.variables.history(name)[-1].value, value)


class Planted:
    """Leaves a file where its pickle is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("type_name", REFUSING)
def test_a_planted_pickle_does_not_run_however_the_variable_is_read(
    session: SessionState, tmp_path: Path, type_name: str
) -> None:
    constraints = {"choices": [1]} if type_name == "choice" else {}
    value = VALUES.get(type_name, True if type_name == "boolean" else 1)
    variables = session.variables
    variables.register("x", type_name, value, **constraints)
    mark = tmp_path / "mark"
    with variables.watch() as changes:
        write(session, "x", pickle.dumps(Planted(mark)))
        change = changes.get(timeout=5)

    with pytest.raises(StoreError, match=r"'x' cannot be restored.*refers to .*touch.*not run"):
        variables["x"]
    read = [
        *(variable.value for variable in variables.list()),
        variables.register("x", type_name, value, **constraints).value,
        variables.get_many(["x"]).found["x"],
        variables.info("x").value,
        variables.history("x")[-1].value,
        change.value,
    ]
    assert all(isinstance(value, Unserializable) for value in read)
    assert "Unserializable" in variables._repr_html_()
    assert not mark.exists()
    variables["x"] = value  # the rightful user goes on
    assert variables["x"] == value


def test_a_pickle_of_another_kind_of_data_is_refused(session: SessionState) -> None:
    session.variables.register("x", "float", 1.0)
    write(session, "x", pickle.dumps(["1.0"]))
    with pytest.raises(StoreError, match="a list stands where a variable of type float"):
        session.variables["x"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="no value"),
        pytest.param(b"\xc1\xd9\xff", id="half a value"),
        pytest.param(b"\xc1\xc7\x02\x63ab", id="unknown form"),
        pytest.param(b"\xc1" + b"\x91" * 100_000, id="deep"),
        pytest.param(stored(np.zeros(3), Codec()).replace(b"<f8", b"|O8"), id="array of objects"),
    ],
)
def test_a_damaged_value_is_named(session: SessionState, body: bytes) -> None:
    session.variables.register("x", "any", 1)
    write(session, "x", body)
    with pytest.raises(StoreError, match="variable 'x' cannot be restored"):
        session.variables["x"]


@pytest.mark.parametrize(
    "value",
    ["a" * 300, b"a" * 300, [0] * 300, ["a" * 100] * 3, {"a": list(range(300))}, 1 << 3000],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_is_too_large_is_refused_on_the_way(value: Any) -> None:
    with pytest.raises(ValueTooLarge):
        stored(value, Codec(max_bytes=200))
    with pytest.raises(ValueTooLarge):
        stored(np.zeros(1000), Codec(max_bytes=200))
