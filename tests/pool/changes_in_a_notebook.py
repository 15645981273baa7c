"""What becomes of classes and functions that a notebook changes while its workers have them.

Run as a program, it prints by name of check what was wrong, or an empty text, as JSON.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import enum
import functools
import json
import sqlite3
import sys
import threading
import time
import traceback
import typing

import attrs
import msgspec
import pydantic

from snakepit_kernel import Adapter, Pool, tool

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def helper():
    return "old"


class Model:
    hits = 0
    table = {"a": 1}
    cache = {}

    def predict(self):
        return helper()

    def remember(self, key):
        Model.cache[key] = True
        return sorted(Model.cache)

    def bump(self):
        Model.hits += 1
        return Model.hits

    @staticmethod
    @functools.lru_cache
    def slow():
        return time.time_ns()


class Trouble(Exception):
    level = 0


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


class Pair(typing.NamedTuple):
    x: int


class Options(typing.TypedDict):
    x: int


@attrs.define
class Classic:
    x: int


class Packed(msgspec.Struct):
    x: int


class Checked(pydantic.BaseModel):
    x: int


@dataclasses.dataclass
class Nested:
    point: Point
    colour: Colour


ARGUMENTS = {
    Point: (Point(1), {"x": 1}),
    Colour: (Colour.RED, "red"),
    Pair: (Pair(1), (1,)),
    Options: ({"x": 1}, {"x": 1}),
    Classic: (Classic(1), {"x": 1}),
    Packed: (Packed(1), {"x": 1}),
    Checked: (Checked(x=1), {"x": 1}),
    Nested: (Nested(Point(1), Colour.RED), {"point": {"x": 1}, "colour": "red"}),
}


class Shop(Adapter):
    @tool
    def kind(self, point: Point, colour: Colour | None = None) -> list[Point]:
        return type(point).__name__, type(colour).__name__


@check
def arguments_of_a_notebooks_classes_fit_and_are_not_spoiled(pool):
    for kind, (value, plain) in ARGUMENTS.items():

        def named(argument):
            return type(argument).__name__, argument

        for annotation in (kind, list[kind], kind | None if kind is not Options else kind):
            named.__annotations__ = {"argument": kind, "return": annotation}
            pool.tool(named)
            assert pool.tools.named(value) == (type(value).__name__, value)
            assert pool.tools.named(plain) == (type(value).__name__, value)
            assert pool.submit(lambda sent: sent, value).result() == value
            assert pool.submit(lambda sent=value: sent).result() == value


@check
def annotations_that_are_texts_mean_what_they_name_in_a_worker_too(pool):
    @pool.tool
    def first(points: list[Point] | None = None) -> Point:
        return points[0]

    assert pool.tools.first([{"x": 3}]) == Point(3)
    hints = pool.submit(typing.get_type_hints, Nested).result()
    assert hints == {"point": Point, "colour": Colour}


@check
def adapters_with_a_notebooks_classes_serve_every_pool(_):
    for _ in range(2):
        with Pool(1, adapter=Shop) as pool:
            assert pool.tools.kind({"x": 2}, "red") == ("Point", "Colour")
            assert pool.tools.kind(Point(1)) == ("Point", "NoneType")
            assert pool.submit(lambda: Point(1)).result() == Point(1)


@check
def receiving_changes_nothing_here(pool):
    global helper
    pool.submit(Model).result()

    def helper():
        return "new"

    assert Model().predict() == "new"
    table, predict = Model.table, Model.predict
    futures = [pool.submit(Model), pool.submit(lambda: Model), pool.submit(Model().predict)]
    Model.hits = 77
    concurrent.futures.wait(futures)
    assert (Model.hits, Model.table, Model.predict) == (77, table, predict)
    assert Model.table is table
    assert futures[1].result() is Model


@check
def exceptions_that_come_back_change_nothing_here(pool):
    def fail():
        Trouble.level = 5
        raise Trouble("told")

    future = pool.submit(fail)
    Trouble.level = 2
    error = future.exception()
    assert type(error) is Trouble
    assert Trouble.level == 2


@check
def a_worker_has_the_newest_definition(pool):
    global helper

    def helper():
        return "first"

    assert pool.submit(Model().predict).result() == "first"

    def helper():
        return "second"

    assert pool.submit(Model().predict).result() == "second"
    Model.table["b"] = 2
    assert pool.submit(lambda: Model.table).result() == {"a": 1, "b": 2}
    predict, Model.predict = Model.predict, lambda self: "patched"
    assert pool.submit(Model().predict).result() == "patched"
    Model.predict = predict
    Model.added = 1
    assert pool.submit(lambda: Model.added).result() == 1
    del Model.added
    assert not pool.submit(lambda: hasattr(Model, "added")).result()


@check
def a_worker_keeps_what_calls_have_put_into_a_class(pool):
    Model.hits = 10
    assert [pool.submit(Model().bump).result() for _ in range(3)] == [11, 12, 13]
    assert Model.hits == 10
    Model.hits = 20
    assert pool.submit(Model().bump).result() == 21
    assert [pool.submit(Model().remember, key).result() for key in "ab"] == [["a"], ["a", "b"]]
    assert Model.cache == {}
    first, second = (pool.submit(lambda: Model.slow()).result() for _ in range(2))
    assert first == second


@check
def methods_share_the_globals_of_the_function_that_came_with_them(pool):
    global counted
    counted = 0

    class Counts:
        def count(self):
            global counted
            counted += 1

    def count_twice():
        Counts().count()
        Counts().count()
        return counted

    assert [pool.submit(count_twice).result() for _ in range(3)] == [2, 2, 2]


@check
def older_definitions_that_come_later_change_nothing(pool):
    class Dated:
        year = 1

    @pool.tool
    def year_of_tool():  # its pickle is older than those that follow
        return Dated.year

    Dated.year = 2
    assert pool.submit(lambda: Dated.year).result() == 2
    pool.tools.year_of_tool()
    assert pool.submit(lambda: Dated.year).result() == 2


@check
def a_class_of_a_worker_that_comes_back_there_is_still_its_own(pool):
    pool.push({})
    pool.run("class Own:\n    seen = 0")
    own = pool.pull(["Own"])["Own"]
    pool.run("Own.seen = 5")
    pool.push({"again": own})
    result = pool.run("again is Own, again.seen")
    assert result.value == (True, 5), result


@check
def threads_that_use_a_class_do_not_disturb_each_other(_):
    class SharedRegion:
        cache = {}

        def slow(self, key):
            before = SharedRegion.slow
            SharedRegion.cache[key] = True
            time.sleep(0.02)
            return SharedRegion.slow is before and key in SharedRegion.cache

    with Pool(1, profile="thread", threads_per_worker=4) as pool:
        futures = [pool.submit(SharedRegion().slow, number) for number in range(60)]
        assert all(future.result() for future in futures)
        assert pool.submit(lambda: len(SharedRegion.cache)).result() == 60


lock = threading.Lock()


def with_lock():
    with lock:
        return 1


def through_another():
    return with_lock()


def closing_over(inner=None):
    inner = threading.Lock()

    def closure():
        return inner

    return closure


class Connected:
    def __init__(self):
        self.connection = sqlite3.connect(":memory:")


class Locked:
    guard = threading.Lock()

    def method(self):
        return lock


@check
def what_cannot_travel_is_named_before_a_worker_is_taken(pool):
    before = pool.stats()
    opened = open(__file__)
    bad = {
        "global 'lock' of function with_lock (line": (with_lock,),
        "of global 'with_lock' of function through_another (line": (through_another,),
        "closure variable 'inner' of function closing_over.<locals>.closure": (closing_over(),),
        "attribute 'connection' of the Connected of value of 'a' of item [1]": (
            len,
            [1, {"a": Connected()}],
        ),
        "attribute 'guard' of class Locked": (len, Locked),
        "global 'lock' of function with_lock (line ": (functools.partial(with_lock),),
        f"the open file {__file__!r} cannot travel": (len, opened),
        "a Pool stays in its process": (lambda: pool,),
    }
    for text, (function, *arguments) in bad.items():
        for attempt in (
            lambda: pool.submit(function, *arguments),
            lambda: pool.map(lambda: None if arguments else function(), [1]),
        ):
            try:
                attempt()
            except TypeError as error:
                assert text in str(error), error
            else:
                assert arguments, text
    try:
        pool.tool(with_lock)
    except TypeError as error:
        assert "global 'lock' of function with_lock" in str(error)
    opened.close()
    assert pool.stats() == before


class _Missing:
    def __reduce__(self):
        return "MISSING"


MISSING = _Missing()


@check
def what_is_pickled_by_a_name_of_the_notebook_travels_by_value(pool):
    def is_missing(value=MISSING):
        return value is MISSING

    assert pool.submit(is_missing).result()
    assert pool.submit(is_missing, MISSING).result()


if __name__ == "__main__":
    outcome = {}
    with Pool(1) as pool:
        for name, function in CHECKS.items():
            try:
                function(pool)
                outcome[name] = ""
            except BaseException:
                outcome[name] = traceback.format_exc()
    json.dump(outcome, sys.stdout)
