"""The types of variables: a table of what each takes, and that it is kept as it is."""

from __future__ import annotations

import enum
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.errors import ConstraintViolation, VariableTypeError
from snakepit_kernel.sessions.variable_types import CONSTRAINTS, VariableType

NAN, INF = math.nan, math.inf
WRONG, VIOLATES = VariableTypeError, ConstraintViolation


class Color(str, enum.Enum):  # noqa: UP042 - its text is not its value
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Tensor:
    """Something of another library: of no axes, and with a type that is none of NumPy's."""

    ndim = 0
    dtype = SimpleNamespace()

    def __int__(self) -> int:
        return 3

    __float__ = __int__


TABLE = [
    # type, constraints, value, what is kept or the error
    ("string", {}, "a", "a"),
    ("string", {}, "", ""),
    ("string", {}, "\ud800", "\ud800"),
    ("string", {}, np.str_("a"), "a"),
    ("string", {}, Color.RED, "red"),
    ("string", {}, b"a", WRONG),
    ("string", {}, 1, WRONG),
    ("string", {}, None, WRONG),
    ("string", {"min_length": 2}, "a", VIOLATES),
    ("string", {"max_length": 2}, "abc", VIOLATES),
    ("string", {"min_length": 2, "max_length": 2}, "ab", "ab"),
    ("string", {"pattern": "[a-z]+"}, "abc", "abc"),
    ("string", {"pattern": "[a-z]+"}, "abc1", VIOLATES),
    ("string", {"pattern": re.compile("[a-z]+", re.IGNORECASE)}, "ABC", "ABC"),
    ("string", {"pattern": "a$"}, "a\n", VIOLATES),
    ("integer", {}, 1, 1),
    ("integer", {}, 2**70, 2**70),
    ("integer", {}, -(2**70), -(2**70)),
    ("integer", {}, np.int8(3), 3),
    ("integer", {}, np.uint64(2**63), 2**63),
    ("integer", {}, Level.HIGH, 2),
    ("integer", {}, True, WRONG),
    ("integer", {}, np.bool_(True), WRONG),
    ("integer", {}, 1.0, WRONG),
    ("integer", {}, np.float64(1.0), WRONG),
    ("integer", {}, "1", WRONG),
    ("integer", {}, np.array(1), WRONG),
    ("integer", {}, Tensor(), WRONG),
    ("integer", {"min": 0, "max": 2}, 3, VIOLATES),
    ("integer", {"min": 0, "max": 2}, -1, VIOLATES),
    ("integer", {"min": 0, "max": 2}, 2, 2),
    ("integer", {"max": 2**70}, 2**70, 2**70),
    ("integer", {"max": 2**70}, 2**70 + 1, VIOLATES),
    ("integer", {"min": -INF}, -(2**70), -(2**70)),
    ("float", {}, 0.5, 0.5),
    ("float", {}, 1, 1.0),
    ("float", {}, -0.0, -0.0),
    ("float", {}, NAN, NAN),
    ("float", {}, INF, INF),
    ("float", {}, np.float32(0.5), 0.5),
    ("float", {}, np.float64("nan"), NAN),
    ("float", {}, np.int16(4), 4.0),
    ("float", {}, True, WRONG),
    ("float", {}, np.bool_(True), WRONG),
    ("float", {}, 2**70, float(2**70)),
    ("float", {}, 2**53 + 1, WRONG),
    ("float", {}, 10**400, WRONG),
    ("float", {}, 1j, WRONG),
    ("float", {}, "0.5", WRONG),
    ("float", {}, Tensor(), WRONG),
    ("float", {"min": 0}, NAN, VIOLATES),
    ("float", {"max": 1}, INF, VIOLATES),
    ("float", {"min": 0, "max": 2}, 3.0, VIOLATES),
    ("float", {"max": np.float32(0.5)}, 0.5, 0.5),
    ("boolean", {}, True, True),
    ("boolean", {}, np.bool_(False), False),
    ("boolean", {}, 1, WRONG),
    ("boolean", {}, "true", WRONG),
    ("boolean", {}, None, WRONG),
    ("choice", {"choices": ["a", "b"]}, "a", "a"),
    ("choice", {"choices": ["a", "b"]}, "c", VIOLATES),
    ("choice", {"choices": ["a", "b"]}, np.str_("a"), "a"),
    ("choice", {"choices": ["a", "b"]}, ["a"], WRONG),
    ("choice", {"choices": ["a", "b"]}, None, WRONG),
    ("choice", {"choices": [1, 2]}, np.int64(2), 2),
    ("choice", {"choices": [1, 2]}, 1.0, VIOLATES),
    ("choice", {"choices": [1, 2]}, True, VIOLATES),
    ("choice", {"choices": [True]}, 1, VIOLATES),
    ("choice", {"choices": [1.5]}, np.float64(1.5), 1.5),
    ("choice", {"choices": [Color.RED]}, Color.RED, "red"),
    ("choice", {"choices": [Color.RED]}, "red", "red"),
    ("choice", {"choices": {"b", "a"}}, "a", "a"),
    ("list", {}, [1, [2]], [1, [2]]),
    ("list", {}, (1,), WRONG),
    ("list", {}, "ab", WRONG),
    ("list", {"min_length": 1}, [], VIOLATES),
    ("list", {"max_length": 1}, [1, 2], VIOLATES),
    ("dict", {}, {1: "a"}, {1: "a"}),
    ("dict", {}, [(1, 2)], WRONG),
    ("dict", {"max_length": 1}, {1: 1, 2: 2}, VIOLATES),
    ("bytes", {}, b"\0\xff", b"\0\xff"),
    ("bytes", {}, bytearray(b"a"), b"a"),
    ("bytes", {}, memoryview(b"abc")[::2], b"ac"),
    ("bytes", {}, "a", WRONG),
    ("bytes", {"max_length": 1}, b"ab", VIOLATES),
    ("array", {}, np.arange(3), np.arange(3)),
    ("array", {}, np.array(1.5), np.array(1.5)),
    ("array", {}, [1, 2], WRONG),
    ("array", {}, np.float64(1), WRONG),
    ("array", {"shape": (2, None)}, np.zeros((2, 5)), np.zeros((2, 5))),
    ("array", {"shape": (2, -1)}, np.zeros((3, 5)), VIOLATES),
    ("array", {"shape": (2,)}, np.zeros((2, 1)), VIOLATES),
    ("array", {"min": 0}, np.array([0, -1]), VIOLATES),
    ("array", {"min": 0}, np.array([0, NAN]), VIOLATES),
    ("array", {"max": 1}, np.array([]), np.array([])),
    ("array", {"max": 1}, np.array(["a"]), VIOLATES),
    ("array", {"max": 1}, np.array([None, "a"]), VIOLATES),
    ("embedding", {}, [1, 0.5], [1.0, 0.5]),
    ("embedding", {}, (1, 2), [1.0, 2.0]),
    ("embedding", {}, [np.float32(0.5)], [0.5]),
    ("embedding", {}, np.array([1.0, 2.0]), np.array([1.0, 2.0])),
    ("embedding", {}, np.zeros((2, 2)), WRONG),
    ("embedding", {}, np.array(["a"]), WRONG),
    ("embedding", {}, [1, "a"], WRONG),
    ("embedding", {}, [True], WRONG),
    ("embedding", {}, [NAN], WRONG),
    ("embedding", {}, np.array([INF]), WRONG),
    ("embedding", {}, "12", WRONG),
    ("embedding", {}, b"12", WRONG),
    ("embedding", {}, 1.0, WRONG),
    ("embedding", {"shape": 2}, [1, 2], [1.0, 2.0]),
    ("embedding", {"shape": 2}, [1, 2, 3], VIOLATES),
    ("embedding", {"min": 0}, [-1], VIOLATES),
    ("any", {}, None, None),
    ("any", {}, True, True),
    ("any", {}, (1, {2}), (1, {2})),
]


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, float) and math.isnan(one):
        return type(other) is float and math.isnan(other)
    return type(one) is type(other) and one == other


def stored(name: str, constraints: dict[str, object]) -> VariableType:
    """A type as a process reads it that did not register it."""
    made = VariableType.checked(name, constraints)
    return VariableType.from_json(made.name, made.as_json())


@pytest.mark.parametrize(
    ("name", "constraints", "value", "expected"),
    TABLE,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(TABLE)],
)
def test_a_value_is_kept_as_it_is_or_refused(name, constraints, value, expected):
    for kind in (VariableType.checked(name, constraints), stored(name, constraints)):
        if expected is WRONG or expected is VIOLATES:
            with pytest.raises(expected, match="'v'"):
                kind.accept("v", value)
        else:
            assert same(kind.accept("v", value), expected)


def test_the_table_knows_every_type_and_every_constraint():
    assert {row[0] for row in TABLE} == set(CONSTRAINTS)
    used = {(row[0], constraint) for row in TABLE for constraint in row[1]}
    known = {(name, each) for name, those in CONSTRAINTS.items() for each in those}
    assert used <= known
    assert {each for _, each in used} == {each for _, each in known}


@pytest.mark.parametrize(
    ("name", "constraints", "problem"),
    [
        ("flaot", {}, "float"),
        (None, {}, "there is no type None"),
        ("float", {"mni": 0}, "min"),
        ("boolean", {"min": 0}, "no constraint 'min'"),
        ("any", {"shape": (1,)}, "no constraint 'shape'"),
        ("float", {"min": "0"}, "min and max are numbers"),
        ("float", {"min": True}, "min and max are numbers"),
        ("float", {"min": NAN}, "not nan"),
        ("float", {"min": np.float32(NAN)}, "not nan"),
        ("float", {"min": 2, "max": 1}, "min=2 is more than max=1"),
        ("string", {"min_length": 2, "max_length": 1}, "more than max_length"),
        ("string", {"min_length": -1}, "from 0"),
        ("string", {"max_length": 1.5}, "whole numbers"),
        ("string", {"pattern": "("}, "no regular expression"),
        ("string", {"pattern": 1}, "regular expression"),
        ("string", {"pattern": re.compile(b"a")}, "regular expression"),
        ("choice", {}, "need choices"),
        ("choice", {"choices": []}, "at least one"),
        ("choice", {"choices": "ab"}, "are a list"),
        ("choice", {"choices": [[1]]}, "text, numbers or booleans"),
        ("array", {"shape": "2"}, "tuple of lengths"),
        ("array", {"shape": (1.5,)}, "whole number"),
        ("array", {"shape": True}, "whole number"),
        ("embedding", {"shape": (2, 2)}, "one axis"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(name, constraints, problem):
    with pytest.raises((TypeError, ValueError), match=re.escape(problem)):
        VariableType.checked(name, constraints)


def test_choices_from_a_set_are_the_same_in_every_process():
    one = VariableType.checked("choice", {"choices": {"a", "b", "c", "d"}})
    assert one.constraints["choices"] == ["a", "b", "c", "d"]


def test_an_error_never_tells_the_value():
    secret = "hunter2"
    wrong = [
        ("integer", {}),
        ("float", {}),
        ("boolean", {}),
        ("list", {}),
        ("choice", {"choices": ["a"]}),
        ("string", {"pattern": "[0-9]+"}),
        ("string", {"max_length": 1}),
        ("embedding", {}),
        ("array", {}),
    ]
    for name, constraints in wrong:
        with pytest.raises((VariableTypeError, ConstraintViolation)) as caught:
            VariableType.checked(name, constraints).accept("v", secret)
        assert secret not in f"{caught.value} {caught.value!r}"


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text())
BY_TYPE = {
    "string": st.text(),
    "integer": st.integers(),
    "float": st.floats(),
    "boolean": st.booleans(),
    "list": st.lists(NUMBERS),
    "dict": st.dictionaries(st.text(), NUMBERS),
    "bytes": st.binary(),
}
ALL = st.one_of(NUMBERS, st.binary(), st.none(), st.lists(NUMBERS), st.tuples(NUMBERS))


@pytest.mark.parametrize("name", BY_TYPE)
@given(data=st.data())
def test_every_value_of_a_type_is_accepted_as_it_is(name, data):
    value = data.draw(BY_TYPE[name])
    accepted = VariableType(name).accept("v", value)
    assert type(accepted) is type(value)
    assert repr(accepted) == repr(value)  # also nan


@pytest.mark.parametrize("name", sorted({*CONSTRAINTS} - {"choice", "any"}))
@given(value=ALL)
def test_what_a_type_accepts_is_equal_to_what_was_given(name, value):
    try:
        accepted = VariableType(name).accept("v", value)
    except VariableTypeError:
        return
    assert same(accepted, value) or accepted == (list(value) if name == "embedding" else value)


@given(
    low=st.one_of(st.none(), st.integers(), st.floats(allow_nan=False)),
    high=st.one_of(st.none(), st.integers(), st.floats(allow_nan=False)),
    value=st.integers(),
)
def test_bounds_hold_after_they_were_written_down(low, high, value):
    try:
        kind = stored("integer", {"min": low, "max": high})
    except ValueError:
        assert low > high
        return
    fits = (low is None or value >= low) and (high is None or value <= high)
    try:
        assert kind.accept("v", value) == value
        assert fits
    except ConstraintViolation:
        assert not fits
