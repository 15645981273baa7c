"""Parts of a sequence: cut for workers, and joined again."""

from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from snakepit_kernel.pool.partition import join, split, workers_named

SEQUENCES = [
    *([1, 2, 3, 4, 5, 6, 7], ("a", "b"), "hello", b"hello", [], ()),
    *(range(0, 20, 3), range(9, 0, -2), range(0)),
    *(np.arange(10).reshape(5, 2), np.zeros((0, 3)), np.ma.array([1, 2, 3], mask=[0, 1, 0])),
    *(pd.DataFrame({"x": range(5)}, index=[10.5, 20.5, 30.5, 40.5, 50.5]), pd.Series(list("abc"))),
]


@pytest.mark.parametrize("whole", SEQUENCES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_have_almost_one_length_and_make_the_sequence_again(whole, count):
    parts = split(whole, count)

    sizes = [len(part) for part in parts]
    assert len(parts) == count
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    joined = join("x", dict(enumerate(parts, 1)))
    assert type(joined) is type(whole)
    if isinstance(whole, pd.DataFrame | pd.Series):
        assert joined.equals(whole)
    elif isinstance(whole, np.ndarray):
        assert joined.tolist() == whole.tolist()  # None where it is masked
    else:
        assert joined == whole


@pytest.mark.parametrize(
    "value",
    [{1: 2}, collections.defaultdict(list), {1, 2}, iter([1]), 5],
    ids=lambda each: type(each).__name__,
)
def test_what_has_no_order_or_no_length_cannot_be_cut(value):
    with pytest.raises(TypeError, match=f"a frame, not {type(value).__name__}$"):
        split(value, 2)


def test_ranges_that_do_not_follow_each_other_give_a_list():
    assert join("x", {1: range(3), 2: range(5, 7)}) == [0, 1, 2, 5, 6]
    assert join("x", {1: range(0), 2: range(2), 3: range(2, 4)}) == range(4)


class Point(NamedTuple):
    x: int
    y: int


def test_what_cannot_be_joined_gives_the_value_of_each_worker():
    assert join("x", {1: 1.5, 2: None}) == [1.5, None]
    assert join("x", {1: np.float64(1), 2: np.array(2)}) == [1, 2]
    assert join("x", {1: Point(1, 2), 2: Point(3, 4)}) == [(1, 2), (3, 4)]


def test_values_of_several_kinds_are_an_error_that_names_the_workers():
    said = "'x' cannot be joined: it is of type list in worker 1, and of type int in worker 3"
    with pytest.raises(TypeError, match=said):
        join("x", {1: [1], 2: [], 3: 3})
    with pytest.raises(TypeError, match="of type int in worker 1, and of type tuple in worker 2"):
        join("x", {1: 3, 2: ()})


def test_workers_are_named_in_words():
    assert [workers_named(each) for each in ([2], [1, 3], [1, 2, 4])] == [
        "worker 2",
        "workers 1 and 3",
        "workers 1, 2 and 4",
    ]
