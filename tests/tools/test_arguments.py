"""Arguments are checked against the signature, and each misfit is named."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Optional, TypedDict

import msgspec
import numpy as np
import pytest

from snakepit_kernel.tools.arguments import Arguments


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str


def one(kind: object) -> Callable[..., None]:
    def function(value): ...

    function.__annotations__["value"] = kind
    return function


def check(kind: object, value: object) -> tuple[Any, list[str]]:
    _, kwargs, problems = Arguments(one(kind)).bind((), {"value": value})
    return kwargs["value"], problems


class Special(dict):
    pass


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 3),
        (int, 2**70),
        (int, np.int64(3)),
        (float, 1.5),
        (float, 1),
        (float, np.float32(1.5)),
        (bool, True),
        (str, "x"),
        (dict, Special(a=1)),
        (dict[str, int], collections.OrderedDict(a=1)),
        (list[int], [1, 2]),
        (Sequence, range(3)),
        (Sequence[int], (1, 2)),
        (Callable, len),
        (np.ndarray, np.zeros(2)),
        (np.ndarray | list, [1]),
        (int | str, "x"),
        (Optional[int], None),
        (Literal["a", "b"], "b"),
        (Annotated[int, msgspec.Meta(ge=3)], 3),
        (Color, Color.RED),
        (Point, Point(1)),
        (Any, object()),
        ("NoSuchType", object()),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_value_that_fits_arrives_as_it_is(kind, value):
    given, problems = check(kind, value)

    assert problems == []
    assert given is value or (type(given) is type(value) and given == value)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (int, "3", "Expected `int`, got `str`"),
        (int, True, "Expected `int`, got `bool`"),
        (int, 1.5, "Expected `int`, got `float`"),
        (float, "1.5", "Expected `float`, got `str`"),
        (str, 3, "Expected `str`, got `int`"),
        (list[int], [1, "a"], "Expected `int`, got `str` - at `$[1]`"),
        (Sequence, 3, "Expected `Sequence`, got `int`"),
        (np.ndarray, [1], "Expected `numpy.ndarray`, got `list`"),
        (int | Point, "x", "got `str`"),
        (Literal["a", "b"], "c", "Invalid enum value 'c'"),
        (Annotated[int, msgspec.Meta(ge=3)], 2, "Expected `int` >= 3"),
        (Color, "blue", "Invalid enum value 'blue'"),
        (Movie, {"title": 3}, "Expected `str`, got `int` - at `$.title`"),
        (None, 3, "Expected `null`, got `int`"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_value_that_does_not_fit_is_named_with_what_was_expected(kind, value, said):
    _, problems = check(kind, value)

    assert len(problems) == 1
    assert problems[0].startswith("argument 'value': ")
    assert said in problems[0]


@pytest.mark.parametrize(
    ("kind", "value", "becomes"),
    [
        (Point, {"x": 1, "y": 2}, Point(1, 2)),
        (Color, "red", Color.RED),
        (list[Point], [{"x": 1}], [Point(1)]),
        (list[int], (1, 2), [1, 2]),
    ],
    ids=lambda v: str(v)[:40],
)
def test_plain_data_becomes_what_the_annotation_says(kind, value, becomes):
    given, problems = check(kind, value)

    assert problems == []
    assert given == becomes


def both(a: int, b: str = "x", *rest: int, c: float, **more: int) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"c": 1.0}, "missing argument 'a'"),
        ((1,), {}, "missing argument 'c'"),
        ((1, "x", 2, "three"), {"c": 1.0}, "argument 'rest': Expected `int`, got `str`"),
        ((1,), {"a": 2, "c": 1.0}, "multiple values for argument 'a'"),
    ],
)
def test_arguments_that_do_not_fit_the_signature_are_named(args, kwargs, said):
    _, _, problems = Arguments(both).bind(args, kwargs)

    assert any(said in problem for problem in problems), problems


def test_an_unknown_argument_is_named_beside_the_signature():
    def price(item: str, amount: int = 1) -> float: ...

    _, _, problems = Arguments(price).bind((), {"item": "tea", "amout": 2})

    assert problems[0] == "unknown argument 'amout'"
    assert "(item: str, amount: int = 1)" in problems[1]


def test_every_misfit_is_named_not_only_the_first():
    def f(a: int, b: str): ...

    _, _, problems = Arguments(f).bind((), {"a": "x", "b": 1})

    assert len(problems) == 2


def test_the_schema_describes_types_defaults_and_constraints():
    def f(
        a: Annotated[int, msgspec.Meta(ge=0)], b: Literal["x", "y"] = "x", c: Point | None = None
    ): ...

    schema = Arguments(f).schema()

    assert schema["required"] == ["a"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"] == {"type": "integer", "minimum": 0}
    assert schema["properties"]["b"] == {"enum": ["x", "y"], "default": "x"}
    assert schema["$defs"]["Point"]["properties"]["x"] == {"type": "integer"}


def test_a_function_that_hides_its_parameters_takes_anything():
    @functools.lru_cache
    def cached(x: int) -> int: ...

    assert Arguments(cached).bind((), {"x": 1})[2] == []
    assert Arguments(print).bind((1, 2), {"sep": ""})[2] == []
