"""Values: equal value and type on the other side."""

from __future__ import annotations

import datetime
import decimal
import math
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.protocol.codec import OUT_OF_BAND_BYTES, Codec, is_plain, loads
from snakepit_kernel.protocol.frames import MAX_BUFFERS

dumps = Codec().dumps

atoms = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=5),
        st.frozensets(st.integers(), max_size=5),
    ),
    max_leaves=20,
)


def travel(value: object) -> object:
    body, buffers = dumps(value)
    return loads(body, [bytearray(buffer) for buffer in buffers])


def shape(value: object) -> object:
    """A value with the type of each of its parts: True and 1 differ, [] and () too."""
    if isinstance(value, dict):
        return (dict, [(shape(k), shape(v)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), [shape(item) for item in value])
    return (type(value), value)


@given(values)
def test_plain_and_nested_values_keep_value_and_type(value):
    assert shape(travel(value)) == shape(value)


@pytest.mark.parametrize(
    "value",
    [
        2**70,
        -(2**53) - 1,
        math.inf,
        {1, "a", None},
        datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        decimal.Decimal("1.10"),
        complex(1, -2),
        range(3),
        bytearray(b"x"),
        {"nested": [(None, {True: 2.5})]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_the_standard_library_keep_value_and_type(value):
    assert shape(travel(value)) == shape(value)


def test_nan_stays_nan():
    assert math.isnan(travel(math.nan))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10),
        np.zeros(0),
        np.array(5.0),
        np.arange(12).reshape(3, 4).T,
        np.arange(100_000)[::2],
        np.array([{"a": 1}, None], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays_keep_value_type_and_shape(array):
    returned = travel(array)

    assert returned.dtype == array.dtype
    assert returned.shape == array.shape
    np.testing.assert_array_equal(returned, array)


def test_a_data_frame_keeps_its_columns_and_types():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": pd.to_datetime(["2026", "2027"])})

    pd.testing.assert_frame_equal(travel(frame), frame)


def test_large_arrays_travel_beside_the_pickle_and_small_ones_inside():
    large = np.ones(OUT_OF_BAND_BYTES)
    small = np.ones(10)

    body, buffers = dumps([large, small])

    assert [buffer.nbytes for buffer in buffers] == [large.nbytes]
    assert len(body) < 1000


def test_more_arrays_than_a_frame_has_buffers_travel_all_the_same():
    arrays = [np.full(OUT_OF_BAND_BYTES // 8, n, dtype="i8") for n in range(MAX_BUFFERS + 5)]

    body, buffers = dumps(arrays)
    returned = loads(body, [bytearray(buffer) for buffer in buffers])

    assert len(buffers) == MAX_BUFFERS
    assert [array[0] for array in returned] == list(range(MAX_BUFFERS + 5))


def test_what_cannot_be_pickled_is_refused_where_it_is():
    with pytest.raises(TypeError, match=r"_thread\.lock"):
        dumps({"lock": threading.Lock()})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((), True),
        ({"a": [1, (None, "x")]}, True),
        ([object()], False),
        ({"f": len}, False),
        ([[[[[1]]]]], False),
        (list(range(1000)), False),
        ({(1, 2): 3}, False),
        (np.float64(1), False),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0][:30],
)
def test_the_shortcut_is_taken_for_small_plain_values_only(value, plain):
    assert is_plain(value) is plain


def test_code_that_travels_by_value_keeps_the_name_of_its_file():
    names: dict = {"__name__": "__main__"}
    source = (
        "def outer():\n    def inner(): pass\n    return inner\nclass Kind:\n    def do(self): pass"
    )
    exec(compile(source, "<ipython-input-3>", "exec"), names)

    outer, kind = travel((names["outer"], names["Kind"]))

    for function in (outer, outer(), kind.do):
        assert function.__code__.co_filename == "<ipython-input-3>"
