"""Arguments are checked against the signature, and each mismatch is named."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import pathlib
import re
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    Required,
    TypedDict,
    TypeVar,
    Union,
)

import annotated_types as at
import msgspec
import numpy as np
import pydantic
import pytest
import typing_extensions
from jsonschema import Draft202012Validator

from snakepit_kernel.tools.arguments import Arguments


def shown(value: object) -> str:
    """Return the name of a parameter, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:40]


def _printed(kind: object) -> str:
    """Return how this Python prints a union: since 3.14 with bars, however it was written."""
    return str(kind).replace("typing.", "")


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Weight(enum.Enum):
    HALF = 0.5


@dataclasses.dataclass
class Line:
    start: Point
    end: Annotated[Point, "far"] = dataclasses.field(default_factory=lambda: Point(1, 1))
    color: Color = Color.RED
    tags: list[str | datetime.date] = dataclasses.field(default_factory=list)
    next: Optional[Line] = None


@dataclasses.dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(f"{self.number} is odd")


class Movie(TypedDict):
    title: str


class Options(TypedDict, total=False):
    name: Required[str]
    level: Level
    points: list[Point]


class Strict(TypedDict):
    name: str
    size: NotRequired[Annotated[int, at.Gt(0)]]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Reader(Protocol):
    def read(self) -> str: ...


class Item(pydantic.BaseModel):
    name: str
    price: float = pydantic.Field(gt=0)
    parts: list[Item] = []


class Order(pydantic.BaseModel):
    item: Item
    color: Color = Color.RED


UserId = NewType("UserId", int)
T = TypeVar("T")


def one(kind: object) -> Callable[..., None]:
    def function(value): ...

    function.__annotations__["value"] = kind
    return function


def check(kind: object, value: object) -> tuple[Any, list[str]]:
    _, kwargs, problems = Arguments.of(one(kind)).bind((), {"value": value})
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
    ids=shown,
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
        (Literal["a", "b"], "c", "Expected one of 'a', 'b', got 'c'"),
        (Literal["a", 1] | None, np.zeros(2), "Expected one of 'a', 1, got array([0., 0.])"),
        (Annotated[int, msgspec.Meta(ge=3)], 2, "Expected `int` >= 3, got 2"),
        (Color, "blue", "Expected one of 'red', got 'blue'"),
        (Movie, {"title": 3}, "Expected `str`, got `int` - at `$.title`"),
        (None, 3, "Expected `None`, got `int`"),
    ],
    ids=shown,
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
    ids=shown,
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
    _, _, problems = Arguments.of(both).bind(args, kwargs)

    assert any(said in problem for problem in problems), problems


def test_an_unknown_argument_is_named_beside_the_signature():
    def price(item: str, amount: int = 1) -> float: ...

    _, _, problems = Arguments.of(price).bind((), {"item": "tea", "amout": 2})

    assert problems[0] == "unknown argument 'amout'"
    assert "(item: str, amount: int = 1)" in problems[1]


def test_every_mismatch_is_named_not_only_the_first():
    def f(a: int, b: str): ...

    _, _, problems = Arguments.of(f).bind((), {"a": "x", "b": 1})

    assert len(problems) == 2


def test_the_schema_describes_types_defaults_and_constraints():
    def f(
        a: Annotated[int, msgspec.Meta(ge=0)], b: Literal["x", "y"] = "x", c: Point | None = None
    ): ...

    schema = Arguments.of(f).schema()

    assert schema["required"] == ["a"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"] == {"type": "integer", "minimum": 0}
    assert schema["properties"]["b"] == {"enum": ["x", "y"], "default": "x"}
    assert schema["$defs"]["Point"]["properties"]["x"] == {"type": "integer"}


def test_a_function_that_hides_its_parameters_takes_anything():
    @functools.lru_cache
    def cached(x: int) -> int: ...

    assert Arguments.of(cached).bind((), {"x": 1})[2] == []
    assert Arguments.of(print).bind((1, 2), {"sep": ""})[2] == []


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (bool, np.bool_(True)),
        (complex, 1.5),
        (list[int], [np.int64(1), 2]),
        (list[float], [1, np.float32(2.0)]),
        (dict[str, dict[str, int]], {"a": Special()}),
        (list[dict[str, int]], [collections.OrderedDict(a=1)]),
        (list[str | datetime.date], ["x", datetime.date(2024, 1, 1)]),
        (list[int | Point], [1, Point(2)]),
        (list[Item], [Item(name="x", price=1)]),
        (Item | None, None),
        (Sequence[int], range(3)),
        (Iterator[int], iter([])),
        (Mapping[str, int], types.MappingProxyType({"a": "not looked into"})),
        (tuple[int, str], (1, "x")),
        (tuple[int, ...], (1, 2, 3)),
        (tuple[()], ()),
        (typing.List, [object()]),  # noqa: UP006
        (typing.Tuple, (1, "x")),  # noqa: UP006
        (list[T], [object()]),
        (T, object()),
        (UserId, 3),
        (type[int], int),
        (np.array, object()),
        (Reader, object()),
        (Level, Level.LOW),
        (Literal[1, True, Color.RED], True),
        (Color | str, "red"),
        (Point | dict, {"x": 1}),
        (Pair, Pair(1)),
        (Movie, {"title": "x"}),
        (Options, {"name": "x"}),
        (Annotated[int, at.Ge(0)], np.int64(5)),
        (Annotated[list[int], at.Len(1, 2)], Special and [1]),
        (Annotated[int | None, at.Gt(0)], None),
        (Annotated[datetime.date, at.Gt(datetime.date(2020, 1, 1))], datetime.date(2024, 1, 1)),
        (Annotated[np.ndarray, at.MinLen(1)], np.zeros(2)),
        (Annotated[int, "a remark", at.Gt], 3),
        (decimal.Decimal, decimal.Decimal("1.5")),
    ],
    ids=shown,
)
def test_what_fits_inside_of_anything_stays_the_very_object(kind, value):
    given, problems = check(kind, value)

    assert problems == []
    assert given is value


@pytest.mark.parametrize(
    ("kind", "value", "becomes"),
    [
        (Level, 2, Level.HIGH),
        (Weight, 0.5, Weight.HALF),
        (list[Level], [1, Level.HIGH], [Level.LOW, Level.HIGH]),
        (dict[Color, Point], {"red": {"x": 1}}, {Color.RED: Point(1)}),
        (Sequence[Point], ({"x": 1},), (Point(1),)),
        (frozenset[int], [1, 2], frozenset({1, 2})),
        (tuple[Point, int], [{"x": 1}, 2], (Point(1), 2)),
        (list[Pair], [[1, "x"]], [Pair(1, "x")]),
        (int | Point, {"x": 1}, Point(1)),
        (Literal[Color.RED], "red", Color.RED),
        (Literal[1], np.int64(1), 1),
        (Options, {"name": "x", "level": 2}, {"name": "x", "level": Level.HIGH}),
        (datetime.date, "2024-01-02", datetime.date(2024, 1, 2)),
        (uuid.UUID, str(uuid.UUID(int=1)), uuid.UUID(int=1)),
        (pathlib.Path, "a/b", pathlib.Path("a/b")),
        (list[Item | int], [{"name": "x", "price": 1}, 2], [Item(name="x", price=1), 2]),
        (Item | None, {"name": "x", "price": 1}, Item(name="x", price=1)),
        (
            Line,
            {"start": {"x": np.int64(1)}, "next": {"start": {"x": 2}}},
            Line(Point(1), next=Line(Point(2))),
        ),
    ],
    ids=shown,
)
def test_plain_data_becomes_what_is_annotated_inside_of_anything(kind, value, becomes):
    given, problems = check(kind, value)

    assert problems == []
    assert given == becomes
    assert type(given) is type(becomes)
    if isinstance(becomes, list | tuple):
        assert list(map(type, given)) == list(map(type, becomes))


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (bytes, "abcd", "Expected `bytes`, got `str`"),
        (Level, True, "Expected one of 1, 2, got True"),
        (list[bool], [1], "Expected `bool`, got `int` - at `$[0]`"),
        (Literal[1], True, "Expected one of 1, got True"),
        (dict[str, int], {"a": "x"}, "Expected `int`, got `str` - at `$['a']`"),
        (tuple[int, str], (1,), "Expected 2 items, got 1"),
        (Point, {"x": 1, "z": 2}, "Unknown field 'z', there are x, y"),
        (Point, {"y": 2}, "Missing field 'x'"),
        (Point, 3, "test_arguments.Point`, got `int`"),
        (Line, {"start": {"x": "1"}}, "Expected `int`, got `str` - at `$.start.x`"),
        (list[Even], [{"number": 3}], "3 is odd - at `$[0]`"),
        (int | Point, {"x": "1"}, "Expected `int`, got `str` - at `$.x`"),
        (int | str, 1.5, f"Expected `{_printed(Union[int, str])}`, got `float`"),  # noqa: UP007
        (Movie, {}, "Missing field 'title'"),
        (Strict, {"name": "x", "size": 0}, "Expected `int` >= 1, got 0 - at `$.size`"),
        (Options, {"name": "x", "points": [{}]}, "Missing field 'x' - at `$.points[0]`"),
        (Pair, ["x"], "Expected `int`, got `str` - at `$[0]`"),
        (set[Point], [{"x": 1}], "unhashable type: 'Point'"),
        (UserId, "x", "Expected `int`, got `str`"),
        (Annotated[int, at.Interval(ge=1, le=3)], 4, "Expected `int` <= 3, got 4"),
        (Annotated[int, at.MultipleOf(3)], 4, "that's a multiple of 3, got 4"),
        (Annotated[str, at.Len(2, 3)], "x", "Expected `str` of length >= 2, got 'x'"),
        (
            list[Annotated[float, at.Lt(1)]],
            [0.5, 1.5],
            "Expected `float` < 1.0, got 1.5 - at `$[1]`",
        ),
        (Annotated[list[int], at.MinLen(1)], [], "Expected `array` of length >= 1, got []"),
        (Annotated[int, pydantic.Field(gt=0, description="d")], 0, "Expected `int` >= 1, got 0"),
        (Annotated[str, pydantic.Field(pattern="^a")], "b", "matching regex '^a', got 'b'"),
        (Item, {"name": "x", "price": -1}, "Input should be greater than 0, got -1 - at `$.price`"),
        (list[Item], [{"name": 3, "price": 1}], "a valid string, got 3 - at `$[0].name`"),
        (Order, {"item": {"name": "x", "price": 1, "parts": [{}]}}, "- at `$.item.parts[0].name`"),
        (Item | None, {"price": 1}, "Field required, got {'price': 1} - at `$.name`"),
    ],
    ids=shown,
)
def test_a_mismatch_inside_of_anything_is_told_with_its_path(kind, value, said):
    _, problems = check(kind, value)

    assert len(problems) == 1
    assert said in problems[0]
    assert "\n" not in problems[0]


def test_an_alias_may_contain_itself():
    tree = typing_extensions.TypeAliasType("tree", "dict[str, tree] | int")
    globals()["tree"] = tree  # where the text of the alias is looked up

    assert check(list[tree], [1, {}])[1] == []


def test_a_default_of_none_admits_none():
    def f(x: int = None): ...  # noqa: RUF013

    assert Arguments.of(f).bind((), {"x": None})[2] == []
    expected = f"Expected `{_printed(Optional[int])}`, got `str`"
    assert expected in Arguments.of(f).bind((), {"x": "1"})[2][0]


def test_an_annotation_that_means_nothing_hides_no_other():
    def f(x: NoSuchType, y: int): ...  # noqa: F821

    assert Arguments.of(f).bind((), {"x": 1, "y": "2"})[2] == [
        "argument 'y': Expected `int`, got `str`"
    ]


def test_annotations_that_are_no_texts_may_mean_nothing_either():
    # Before 3.14 Python evaluates them when the function is defined.
    future = "from __future__ import annotations\n" if sys.version_info < (3, 14) else ""
    namespace: dict[str, Any] = {}
    exec(compile(f"{future}def f(x: NoSuchType, y: int): ...", "f.py", "exec", 0, True), namespace)

    arguments = Arguments.of(namespace["f"])

    assert arguments.bind((), {"x": 1, "y": 2})[2] == []
    assert arguments.bind((), {"x": 1, "y": "2"})[2] == ["argument 'y': Expected `int`, got `str`"]
    assert "NoSuchType" in str(arguments.signature)


class Partly(TypedDict):
    title: str
    extra: NoSuchType  # noqa: F821


def test_a_key_whose_annotation_means_nothing_may_be_given_and_hides_no_other():
    assert check(Partly, {"title": "x", "extra": 1})[1] == []
    assert "Missing field 'extra'" in check(Partly, {"title": "x"})[1][0]
    assert "- at `$.title`" in check(Partly, {"title": 1, "extra": 1})[1][0]


def python_calls(run: Callable[[], object]) -> int:
    """Return how many functions of Python run in it, beside itself."""
    calls = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        run()
    finally:
        sys.setprofile(before)
    return len(calls) - 1


@pytest.mark.parametrize(
    "value", [3, None, "x", 2.5, True, Point(1), Color.RED, np.zeros(1), object()], ids=shown
)
def test_a_call_is_one_look_when_its_classes_were_good_before(value):
    kind = int | str | bool | float | Point | Color | np.ndarray | None
    arguments = Arguments.of(one(Any if type(value) is object else kind))

    assert arguments.bind((), {"value": value})[2] == []
    assert python_calls(lambda: arguments.bind((), {"value": value})) == 1
    assert python_calls(lambda: arguments.bind((), {"value": 1j})) > 1


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (list[int], list(range(1_000))),
        (tuple[int | None, ...], (1, None) * 500),
        (set[str], set(map(str, range(1_000)))),
        (dict[str, int | float], {str(i): i for i in range(1_000)}),
        (dict[Any, Point], {i: Point(i) for i in range(1_000)}),
    ],
    ids=["list", "tuple", "set", "dict", "values of a dict"],
)
def test_items_of_the_very_classes_are_not_checked_one_by_one(kind, value):
    arguments = Arguments.of(one(kind))

    assert python_calls(lambda: arguments.bind((), {"value": value})) < 100
    assert arguments.bind((), {"value": value})[1]["value"] is value


def test_further_keywords_are_checked_by_the_annotation_of_all():
    def f(**more: int): ...

    assert Arguments.of(f).bind((), {"a": 1})[2] == []
    assert "argument 'a': Expected `int`" in Arguments.of(f).bind((), {"a": "1"})[2][0]
    assert Arguments.of(f).schema()["additionalProperties"] == {"type": "integer"}


KINDS = [
    int, str, bool, float, None, Any, object, list[int], dict[str, float], tuple[int, str],
    tuple[int, ...], set[str], frozenset[int], Sequence[int], Mapping[str, int], Optional[int],
    int | None, int | Point, list[str | datetime.date], Literal["a", 1], Literal[True, Color.RED],
    Color, Level, Weight, Point, Line, Movie, Options, Strict, Pair, Item, Order, list[Item],
    Item | None, dict[str, Item | int], np.ndarray, np.ndarray | None, Callable, T, UserId,
    Annotated[int, at.Interval(ge=1, lt=5)], Annotated[list[int], at.Len(1, 2)], Reader,
    Annotated[str, pydantic.Field(min_length=1, description="a name")], pathlib.Path, bytes,
    Annotated[int, msgspec.Meta(ge=0, title="n")], datetime.datetime, decimal.Decimal, np.array,
    Annotated[str | datetime.date, at.Len(1)], type[int], typing.List, Iterator[int],  # noqa: UP006
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_schema_is_json_and_valid_by_the_standard(kind):
    schema = json.loads(json.dumps(Arguments.of(one(kind)).schema(), allow_nan=False))

    Draft202012Validator.check_schema(schema)
    references = [line.split('"')[1] for line in json.dumps(schema, indent=1).split('"$ref": ')[1:]]
    assert all(reference.split("/")[-1] in schema["$defs"] for reference in references)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int | Point, {"x": 1}, {"x": "1"}),
        (list[str | datetime.date], ["x"], [1]),
        (Literal[True, Color.RED], "red", "blue"),
        (Options, {"name": "x", "level": 2}, {"level": 2}),
        (list[Item], [{"name": "x", "price": 1, "parts": []}], [{"name": "x", "price": 0}]),
        (Order, {"item": {"name": "x", "price": 1}}, {"item": {"name": "x", "parts": [{}]}}),
        (dict[str, Item | int], {"a": 1}, {"a": "x"}),
        (Annotated[int, at.Interval(ge=1, lt=5)], 1, 5),
        (Annotated[str, pydantic.Field(min_length=1)], "x", ""),
        (tuple[int, str | datetime.date], [1, "x"], [1]),
    ],
    ids=shown,
)
def test_the_schema_and_the_check_agree(kind, good, bad):
    schema = Draft202012Validator(Arguments.of(one(kind)).schema())

    assert schema.is_valid({"value": good})
    assert check(kind, good)[1] == []
    assert not schema.is_valid({"value": bad})
    assert check(kind, bad)[1] != []


@pytest.mark.parametrize(
    ("default", "described"),
    [
        (None, None),
        ([1, {"a": None}], [1, {"a": None}]),
        ((1, 2), [1, 2]),
        (Color.RED, "red"),
        (Weight.HALF, 0.5),
        (Level.LOW, 1),
        ({Color.RED: Point(1)}, {"red": {"x": 1, "y": 0}}),
        (Item(name="x", price=1), {"name": "x", "price": 1.0, "parts": []}),
        (np.float64(1.5), 1.5),
        (np.int64(2), 2),
        (pathlib.PurePosixPath("a"), "a"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
    ],
    ids=shown,
)
def test_a_default_is_described_as_json(default, described):
    def f(x=default): ...

    assert Arguments.of(f).schema()["properties"]["x"]["default"] == described


@pytest.mark.parametrize("default", [float("nan"), object(), [len]], ids=shown)
def test_a_default_that_json_does_not_have_is_left_out(default):
    def f(x=default): ...

    assert Arguments.of(f).schema()["properties"]["x"] == {}
    assert Arguments.of(f).schema()["required"] == []


def test_two_classes_of_one_name_have_two_definitions():
    other = dataclasses.make_dataclass("Point", [("name", str)])

    def f(a, b, c): ...

    f.__annotations__ = {"a": Point, "b": list[other], "c": Point | None}
    schema = Arguments.of(f).schema()

    assert Draft202012Validator(schema).is_valid({"a": {"x": 1}, "b": [{"name": "n"}], "c": None})
    assert not Draft202012Validator(schema).is_valid({"a": {"x": 1}, "b": [{"x": 1}], "c": None})
    assert schema["$defs"].keys() == {"Point", "Point_2"}


def test_the_docstring_says_what_the_parameters_mean():
    def f(item: str, low: int, high: Annotated[int, msgspec.Meta(description="its own")]):
        """Sum.

        Parameters
        ----------
        item : str
            What to buy,
            and where.
        low, high
            Limits.

        Returns
        -------
        item
            Not this one.
        """

    properties = Arguments.of(f).schema()["properties"]

    assert properties["item"] == {"type": "string", "description": "What to buy, and where."}
    assert properties["low"]["description"] == "Limits."
    assert properties["high"]["description"] == "its own"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_travelled_finds_nothing_wrong_that_is_right_at_home(kind):
    home = Arguments.of(one(kind))
    away = Arguments.restored(home.portable())

    assert str(away.signature) == str(home.signature)
    for value in (1, "a", "red", [1], {"x": 1}, Point(1), None, 2.5, np.zeros(1), {"x": "1"}):
        there, here = (it.bind((), {"value": value})[2] for it in (away, home))
        assert set(there) <= set(here)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "1"),
        (list[int], ["1"]),
        (tuple[int, ...], ("1",)),
        (Optional[int], "1"),
        (dict[str, int | None], {"a": "1"}),
        (Literal["a", 1], "b"),
        (Annotated[int, at.Ge(0)], -1),
        (list[Annotated[str, msgspec.Meta(pattern="^a")]], ["b"]),
        (Color, "blue"),
        (Point, {"x": "1"}),
        (Line, {"start": 1}),
        (Movie, {"title": 1}),
        (Item | None, {"name": 1}),
        (np.ndarray, [1]),
        (None, 1),
        (UserId, "1"),
    ],
    ids=shown,
)
def test_what_travelled_finds_what_is_wrong(kind, value):
    home = Arguments.of(one(kind))

    away = Arguments.restored(home.portable())

    assert away.bind((), {"value": value})[2] == home.bind((), {"value": value})[2] != []


def remote_class(name: str) -> type:
    """A dataclass of a module that is gone when this returns, or has another class of its name."""
    module = sys.modules["remote_module"] = types.ModuleType("remote_module")
    exec(f"import dataclasses\n@dataclasses.dataclass\nclass {name}:\n    x: int", vars(module))
    return getattr(module, name)


def test_a_class_that_is_not_here_is_left_to_the_worker_and_nothing_is_imported():
    def f(p, n: int): ...

    f.__annotations__["p"] = remote_class("Here")
    data = Arguments.of(f).portable()
    assert Arguments.restored(data).bind((), {"p": 1, "n": 1})[2] != []
    del sys.modules["remote_module"]

    away = Arguments.restored(data)

    assert away.bind((), {"p": 1, "n": 1})[2] == []
    assert away.bind((), {"p": 1, "n": "1"})[2] == ["argument 'n': Expected `int`, got `str`"]
    assert away.bind((), {"n": 1})[2][0] == "missing argument 'p'"
    assert "remote_module" not in sys.modules
    assert "p: remote_module.Here, n: int" in str(away.signature)


@pytest.mark.parametrize(
    "tree",
    [
        3,
        [],
        ["from a later version", 1],
        ["class", "builtins", 3, 0],
        ["class", "builtins", "int", -1],
        ["union"],
        ["of", ["any"], ["any"]],
        ["limits", ["any"], {"odd": True}],
    ],
    ids=str,
)
def test_an_annotation_that_cannot_be_restored_is_left_to_the_worker(tree):
    hint = msgspec.msgpack.encode(tree)
    data = msgspec.msgpack.encode(([("x", 1, hint, "int", None)], None))

    away = Arguments.restored(data)

    assert away.bind((), {"x": "1"})[2] == []
    assert away.bind((), {})[2][0] == "missing argument 'x'"
    assert str(away.signature) == "(x: int)"


class Asked:
    def __class_getitem__(cls, item):
        pytest.fail("code of a user was called")


def test_a_class_is_not_asked_for_the_items_it_may_have():
    (((_, _, hint, *_),), _) = msgspec.msgpack.decode(Arguments.of(one(Asked)).portable())
    with_items = msgspec.msgpack.encode(["of", msgspec.msgpack.decode(hint), ["any"]])
    data = msgspec.msgpack.encode(([("x", 1, with_items, None, None)], None))

    assert Arguments.restored(data).bind((), {"x": 1})[2] == []


def test_a_class_that_looks_different_here_is_left_to_the_worker():
    data = Arguments.of(one(remote_class("Edited"))).portable()
    sys.modules["remote_module"].Edited = dataclasses.make_dataclass("Edited", ["y"])

    assert Arguments.restored(data).bind((), {"value": {"x": 1}})[2] == []
    del sys.modules["remote_module"]


def test_a_module_that_makes_its_names_on_demand_is_not_asked():
    data = Arguments.of(one(remote_class("Lazy"))).portable()
    module = sys.modules["remote_module"] = types.ModuleType("remote_module")
    module.__getattr__ = lambda name: pytest.fail(f"asked for {name}")

    assert Arguments.restored(data).bind((), {"value": 3})[2] == []
    del sys.modules["remote_module"]


def test_defaults_and_kinds_of_parameters_travel():
    def f(a: int, /, b: list[int] = [1], *rest: int, c: Color = Color.RED, **more: str): ...  # noqa: B006

    home = Arguments.of(f)
    away = Arguments.restored(home.portable())

    assert str(away.signature) == str(home.signature)
    for args, kwargs in (
        ((1,), {}), ((), {}), ((1, [1], "x"), {}), ((1,), {"c": 1}), ((1,), {"a": "x", "d": 1}),
        ((1,), {"b": [1], "d": "x"}), ((1, [1]), {"b": [1]}),
    ):  # fmt: skip
        assert away.bind(args, kwargs)[2] == home.bind(args, kwargs)[2]
