"""Values on their way to a worker and back, by every path there is."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import math
import os
import pathlib
import signal
import threading
import uuid
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from snakepit_kernel import Pool, ToolError, Unserializable, WorkerDied, register_encoder


def notebook_values() -> dict[str, Any]:
    """What only this process knows: defined in a function, as in a cell."""

    class Plain:
        def __init__(self, x: object) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self) and vars(self) == vars(other)

        __hash__ = None

    class Slotted:
        __slots__ = ("x",)

        def __init__(self, x: object) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self) and self.x == other.x

        __hash__ = None

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        y: list

    class Colour(enum.Enum):
        RED = 1
        BLUE = (1, 2)

    class Text(str):
        __slots__ = ()

    class Table(dict):
        pass

    return {
        "plain": Plain([1, {2}]),
        "slotted": Slotted((1,)),
        "dataclass": Point(1, [2]),
        "enum": Colour.BLUE,
        "str subclass": Text("a"),
        "dict subclass": Table(a=1),
        "class": Plain,
        "nested": {"a": [Plain(Slotted(Colour.RED))], "b": (Point(1, []),)},
    }


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - as users write it
Pair.__module__ = "__main__"

VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "big": 2**70,
    "bigger": -(10**400),
    "inf": -math.inf,
    "complex": 1 + 2j,
    "text": "é\U0001f40d\x00",
    "surrogate": "a\udc80",
    "bytes": b"\x00\xff" * 10_000,
    "bytearray": bytearray(b"abc"),
    "tuple": (1, (2, [3])),
    "set": {1, "a", (2,)},
    "frozenset": frozenset({1}),
    "range": range(1, 9, 2),
    "slice": slice(1, None, 2),
    "dict": {1: "a", (2,): None, None: {}},
    "ordered": OrderedDict(b=1, a=2),
    "counter": Counter("aab"),
    "deque": deque([1, 2], maxlen=5),
    "ellipsis": ...,
    "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    "date": datetime.date(2026, 1, 2),
    "delta": datetime.timedelta(days=1, microseconds=3),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "path": pathlib.PurePosixPath("/a/b"),
    "exception": None,
    "long list": list(range(1000)),
    "deep": [[[[[[[[1]]]]]]]],
    "builtin": len,
    **notebook_values(),
}
del VALUES["exception"]

ARRAYS: dict[str, np.ndarray] = {
    "empty": np.zeros((0, 3)),
    "0-d": np.array(5.0),
    "ints": np.arange(10),
    "large": np.arange(100_000.0).reshape(100, 1000),
    "fortran": np.asfortranarray(np.arange(200_000.0).reshape(400, 500)),
    "strided": np.arange(400_000.0)[::3],
    "reversed": np.arange(100_000)[::-1],
    "column": np.arange(400_000.0).reshape(1000, 400)[:, 7],
    "structured": np.array([(1, 2.5, "a")] * 40_000, dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")]),
    "object": np.array([1, "a", None, (2,)], dtype=object),
    "text": np.array(["a", "bcd"] * 50_000),
    "bool": np.ones(300_000, dtype=bool),
    "datetime": np.arange("2020-01-01", "2020-03-01", dtype="M8[D]"),
    "big endian": np.arange(50_000, dtype=">i8"),
    "complex": np.ones(50_000, dtype=complex),
}

FRAMES: dict[str, Any] = {
    "frame": pd.DataFrame({"a": range(50_000), "b": ["x"] * 50_000, "c": np.ones(50_000)}),
    "categories": pd.DataFrame({"a": pd.Categorical(["x", "y"] * 10)}),
    "times": pd.DataFrame({"t": pd.date_range("2026-01-01", periods=5, tz="UTC")}),
    "series": pd.Series([1, None, 3], name="s"),
    "multi": pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "x"), (2, "y")])),
    "empty": pd.DataFrame(),
}


@pytest.fixture(scope="module")
def opened(open_for_all: Callable[..., Pool]) -> Pool:
    return open_for_all()


@pytest.fixture
def pool(opened: Pool) -> Iterator[Pool]:
    died = opened.stats().died

    @opened.tool
    def echo(value: object) -> object:
        return value

    @opened.tool
    def chunks(value: object):
        yield value

    @opened.tool
    def by_host(value: object) -> object:
        from snakepit_kernel import context

        return context().host_tools.back(value=value)

    @opened.host_tool
    def back(value: object) -> object:
        return value

    yield opened
    stats = opened.stats()
    assert (stats.running, stats.queued, stats.died) == (0, 0, died)


def push_and_pull(pool: Pool, value: object) -> object:
    pool.push({"it": value})
    return pool.pull("it")["it"]


PATHS: dict[str, Callable[[Pool, Any], Any]] = {
    "call": lambda pool, value: pool.call("echo", {"value": value}),
    "acall": lambda pool, value: asyncio.run(pool.acall("echo", {"value": value})),
    "submit": lambda pool, value: pool.submit(lambda x: x, value).result(),
    "chunk": lambda pool, value: next(iter(list(pool.stream("chunks", {"value": value})))),
    "host call": lambda pool, value: pool.call("by_host", {"value": value}),
    "push, pull": push_and_pull,
    "cell": lambda pool, value: pool.run("it", push={"it": value}, pull=["it"]).pulled["it"],
}


@pytest.mark.parametrize("path", PATHS)
def test_values_keep_value_and_type_by_every_path(pool, path):
    """Acceptance case 42."""
    for name, value in VALUES.items():
        got = PATHS[path](pool, value)
        assert got == value, name
        assert type(got) is type(value), name
    nan = PATHS[path](pool, math.nan)
    assert math.isnan(nan)
    assert PATHS[path](pool, lambda x: 3 * x)(4) == 12


@pytest.mark.parametrize("path", PATHS)
def test_arrays_keep_content_type_and_shape_by_every_path(pool, path):
    for name, array in ARRAYS.items():
        got = PATHS[path](pool, array)
        np.testing.assert_array_equal(got, array, err_msg=name, strict=True)
        assert got.dtype == array.dtype, name
        got[...] = 1  # whatever its size: it is the receiver's own
    frozen = np.arange(10)
    frozen.flags.writeable = False
    assert not PATHS[path](pool, frozen).flags.writeable


@pytest.mark.parametrize("path", PATHS)
def test_frames_equal_by_every_path(pool, path):
    for frame in FRAMES.values():
        got = PATHS[path](pool, frame)
        equal = pd.testing.assert_series_equal
        if isinstance(frame, pd.DataFrame):
            equal = pd.testing.assert_frame_equal
        equal(got, frame)


def test_what_is_shared_inside_a_value_stays_shared(pool):
    inner, array = [1], np.zeros(100_000)
    for path in PATHS.values():
        got = path(pool, {"a": inner, "b": inner, "c": array, "d": array})
        assert got["a"] is got["b"]
        assert got["c"] is got["d"]
    circle: list[Any] = [1]
    circle.append(circle)
    got = PATHS["call"](pool, circle)
    assert got[1] is got


def test_an_array_that_comes_back_by_reference_keeps_its_content(pool):
    first = pool.call("echo", {"value": np.full(10**6, 1.0)})
    kept = [pool.call("echo", {"value": np.full(10**6, float(n))}) for n in range(2, 8)]
    for _ in range(5):
        pool.call("echo", {"value": np.full(10**6, 99.0)})

    assert (first == 1).all()
    for number, array in enumerate(kept, 2):
        assert (array == number).all()
    again = pool.call("echo", {"value": first[10:20_000]})
    assert (again == 1).all()


def test_what_is_written_to_an_array_is_seen_by_nobody_else(pool):
    @pool.tool
    def change(value: object) -> object:
        value[:2] = 7
        import builtins

        builtins.changed = value
        return value

    @pool.tool
    def look() -> object:
        import builtins

        return builtins.changed

    sent = np.zeros(10**6)
    got = pool.call("change", {"value": sent})
    assert (sent == 0).all()
    assert got[:3].tolist() == [7, 7, 0]
    got[:] = 5
    kept = pool.call("look")
    assert kept[:3].tolist() == [7, 7, 0]
    back = pool.call("echo", {"value": got})  # by reference if it were as it came
    assert (back == 5).all()
    untouched = pool.call("echo", {"value": np.ones(10**6)})
    twice = [pool.call("echo", {"value": untouched}) for _ in range(2)]
    twice[0][:] = 9
    assert (twice[1] == 1).all()
    assert (untouched == 1).all()
    frame = pool.call("echo", {"value": pd.DataFrame({"a": np.zeros(10**6)})})
    frame.loc[0, "a"] = 1
    assert frame["a"].sum() == 1


def test_a_worker_that_keeps_an_array_keeps_its_content(pool):
    @pool.tool
    def keep(value: object) -> None:
        import builtins

        builtins.kept = value

    @pool.tool
    def look() -> tuple:
        import builtins

        return float(builtins.kept.min()), float(builtins.kept.max())

    pool.call("keep", {"value": np.full(10**6, 5.0)})
    for _ in range(5):
        pool.call("echo", {"value": np.zeros(10**6)})
    gc.collect()
    assert pool.call("look") == (5.0, 5.0)
    pool.call("keep", {"value": None})


def test_more_arrays_than_an_arena_holds_go_another_way(open_pool):
    pool = open_pool()
    pool.submit(_shrink_arena, 4 << 20).result()
    kept = [pool.submit(np.full, 2 << 17, float(n)).result(10) for n in range(12)]

    for number, array in enumerate(kept):
        assert (array == number).all()


def _shrink_arena(room: int) -> None:
    import gc as collector

    from snakepit_kernel.lane.shared_memory import ArenaWriter

    for each in collector.get_objects():
        if type(each) is ArenaWriter and each._is_ready():
            each._warm = each._warm[: room // 4096]


_shrink_arena.__module__ = "__main__"


def test_views_outlive_their_worker_and_their_pool(open_pool):
    pool = open_pool()
    arrays = [pool.submit(np.full, 10**6, float(n)).result() for n in range(3)]
    with pytest.raises(WorkerDied):
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result(10)
    arrays.append(pool.submit(np.full, 10**6, 3.0).result(10))
    pool.terminate()
    gc.collect()

    for number, array in enumerate(arrays):
        assert (array == number).all()


# -- what cannot travel ----------------------------------------------------------------------------


def make_mixed() -> dict:
    import threading

    class Holder:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __repr__(self) -> str:
            return "Holder(password='hunter2', path='/tmp')"

        def __reduce__(self) -> Any:
            raise TypeError("stay here")

    return {
        "ok": [1, 2],
        "lock": threading.Lock(),
        "deep": [({"h": Holder()},)],
        "f": (x for x in ()),
    }


make_mixed.__module__ = "__main__"


@pytest.mark.parametrize("policy", ["type", "repr", "error"])
@pytest.mark.parametrize("path", ["call", "submit", "chunk", "host call", "pull"])
def test_what_cannot_travel_leaves_a_marker_in_its_place(open_for_all_policies, policy, path):
    pool = open_for_all_policies(policy)

    def get() -> Any:
        if path == "submit":
            return pool.submit(make_mixed).result()
        if path == "chunk":
            return next(iter(pool.stream("chunk")))
        if path == "pull":
            pool.submit(_set_in_namespace, make_mixed).result()
            return pool.pull("it")["it"]
        return pool.call("give" if path == "call" else "take")

    if policy == "error" and path != "host call":
        with pytest.raises((ToolError, TypeError), match="cannot travel"):
            get()
        return
    got = get()
    if path == "host call":
        assert got == "Unserializable" if policy != "error" else "TypeError" in got
        return
    assert got["ok"] == [1, 2]
    assert got["lock"].type_name == "_thread.lock"
    assert isinstance(got["f"], Unserializable)
    holder = got["deep"][0][0]["h"]
    assert holder.type_name.endswith("Holder")
    assert (holder.text is None) == (policy == "type")
    assert "hunter2" not in repr(got)
    if policy == "repr":
        assert "password=***" in holder.text
        assert "/tmp" in holder.text


def _set_in_namespace(make: Any) -> None:
    from IPython import get_ipython

    get_ipython().user_ns["it"] = make()


_set_in_namespace.__module__ = "__main__"


@pytest.fixture(scope="module")
def open_for_all_policies(open_for_all: Callable[..., Pool]) -> Callable[[str], Pool]:
    pools: dict[str, Pool] = {}

    def get(policy: str) -> Pool:
        if policy not in pools:
            pool = pools[policy] = open_for_all(unserializable=policy, name=policy)
            make = make_mixed
            pool.tool(_named("give", make))

            @pool.tool
            def chunk():
                yield make()

            @pool.host_tool
            def lock() -> Any:
                return threading.Lock()

            @pool.tool
            def take() -> str:
                from snakepit_kernel import ToolError, context

                try:
                    return type(context().host_tools.lock()).__name__
                except ToolError as error:
                    return error.type_name

        return pools[policy]

    for policy in ("type", "repr", "error"):
        get(policy)
    return get


def _named(name: str, function: Callable[[], Any]) -> Callable[[], Any]:
    def give() -> Any:
        return function()

    give.__name__ = name
    return give


@pytest.fixture(scope="module")
def small(open_for_all: Callable[..., Pool]) -> Pool:
    pool = open_for_all(max_value_bytes=10_000_000, name="small")

    @pool.tool
    def give(n: int) -> bytes:
        return b"x" * n

    @pool.tool
    def array(n: int) -> Any:
        import numpy

        return numpy.zeros(n, dtype="u1")

    @pool.tool
    def take(value: object) -> int:
        return len(value)

    @pool.tool
    def pass_on(n: int) -> int:
        from snakepit_kernel import context

        return context().host_tools.take(value=b"x" * n)

    @pool.tool
    def fetch(n: int) -> int:
        from snakepit_kernel import context

        return len(context().host_tools.give(n=n))

    @pool.host_tool
    def take(value: object) -> int:
        return len(value)

    @pool.host_tool
    def give(n: int) -> bytes:
        return b"x" * n

    return pool


N = 11_000_000

TOO_LARGE: dict[str, tuple[Callable[[Pool], Any], str]] = {
    "argument": (
        lambda pool: pool.call("take", {"value": b"x" * N}),
        "argument 'value' of take cannot travel to a worker: it takes more than 10,000,000 bytes",
    ),
    "array": (
        lambda pool: pool.call("take", {"value": np.zeros(N, dtype="u1")}),
        "argument 'value' of take cannot travel to a worker: it takes more than",
    ),
    "result": (lambda pool: pool.call("give", {"n": N}), "the result, a builtins.bytes, cannot"),
    "result array": (lambda pool: pool.call("array", {"n": N}), "the result, a numpy.ndarray"),
    "future": (lambda pool: pool.submit(bytes, N).result(), "the result, a builtins.bytes, cannot"),
    "submit": (
        lambda pool: pool.submit(len, b"x" * N),
        "len or one of its arguments cannot travel",
    ),
    "host argument": (
        lambda pool: pool.call("pass_on", {"n": N}),
        "argument 'value' of host tool 'take' cannot travel to the notebook: it takes more than",
    ),
    "host result": (
        lambda pool: pool.call("fetch", {"n": N}),
        "the result, a builtins.bytes, cannot travel: it takes more",
    ),
    "push": (lambda pool: pool.push({"it": b"x" * N}), "cannot travel to a worker: it takes more"),
    "pushed to a cell": (
        lambda pool: pool.run("1", push={"it": b"x" * N}),
        "variable 'it' of the cell cannot travel to a worker: it takes more",
    ),
}


@pytest.mark.parametrize("path", TOO_LARGE)
def test_a_value_above_the_limit_is_refused_with_its_name_and_costs_nothing(small, path):
    go, said = TOO_LARGE[path]
    pid = small.submit(os.getpid).result()

    with pytest.raises((ToolError, ValueError)) as caught:
        go(small)

    assert said in str(caught.value)
    assert small.submit(os.getpid).result(5) == pid
    assert small.call("take", {"value": b"x" * 9_000_000}) == 9_000_000


def test_a_variable_for_a_cell_that_cannot_travel_is_named(pool):
    with pytest.raises(TypeError, match="variable 'bad' of the cell cannot travel to a worker"):
        pool.run("1", push={"good": 1, "bad": threading.Lock()})
    assert pool.run("1 + 1").value == 2


def test_an_encoder_of_the_notebook_works_both_ways_and_can_be_replaced(pool):
    class Handle:
        def __init__(self, name: str) -> None:
            self.name = name
            self.lock = threading.Lock()

    register_encoder(Handle, lambda handle: handle.name, Handle)

    @pool.tool
    def name_of(handle: object) -> str:
        return handle.name

    handle = Handle("a")
    assert pool.call("name_of", {"handle": handle}) == "a"
    for path in PATHS.values():
        got = path(pool, [handle])
        assert (type(got[0]), got[0].name) == (Handle, "a")
    register_encoder(Handle, lambda handle: handle.name * 2, Handle)
    assert pool.call("name_of", {"handle": handle}) == "aa"
