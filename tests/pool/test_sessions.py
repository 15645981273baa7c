"""Sessions of a pool: what the notebook and its workers keep together."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import inspect
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import snakepit_kernel
from snakepit_kernel import (
    Adapter,
    BatchRejected,
    CallTimeout,
    ConstraintViolation,
    Pool,
    ProgramNotFound,
    Session,
    SessionLost,
    SessionNotFound,
    StoreError,
    ToolError,
    ToolNotFound,
    ValueTooLarge,
    VariableLocked,
    VariableNotFound,
    VariableTypeError,
    VersionConflict,
    context,
    open_session,
    tool,
)

Do = Callable[[Any], Any]


class Desk(Adapter):
    """Its tools do what they are told, with the context of the call."""

    thread_safe = True

    @tool
    def do(self, what) -> Any:
        return what(self.context)

    @tool
    async def ado(self, what) -> Any:
        await asyncio.sleep(0)
        return what(self.context)

    @tool
    def stream(self, what):
        yield what(self.context)

    @tool
    async def astream(self, what):
        yield what(self.context)

    @tool
    def session_id(self) -> str | None:
        return self.context.session_id


for _item in (Desk, *filter(inspect.isfunction, vars(Desk).values())):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


async def _first(stream: Any) -> Any:
    async with contextlib.aclosing(stream) as chunks:
        return await anext(chunks)


def _in_context(what: Do) -> Any:
    return what(snakepit_kernel.context())


_in_context.__module__ = "__main__"


def by_cell(session: Session, what: Do, **options: Any) -> Any:
    session.push({"what": what})
    code = "import snakepit_kernel; what(snakepit_kernel.context())"
    result = session.run(code, on_message=lambda _: None, **options)
    if result.error is not None:
        raise result.error
    return result.value


WAYS: dict[str, Callable[[Session, Do], Any]] = {
    "call": lambda session, what: session.call("do", {"what": what}),
    "acall": lambda session, what: asyncio.run(session.acall("do", {"what": what})),
    "async tool": lambda session, what: session.call("ado", {"what": what}),
    "async tool, acall": lambda session, what: asyncio.run(session.acall("ado", {"what": what})),
    "stream": lambda session, what: next(iter(session.stream("stream", {"what": what}))),
    "astream": lambda session, what: asyncio.run(
        _first(session.astream("astream", {"what": what}))
    ),
    "cell": by_cell,
    "future": lambda session, what: session.submit(_in_context, what).result(),
}


@pytest.fixture(scope="module", params=["process", "thread"])
def opened(
    open_for_all: Callable[..., Pool],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pool:
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    return _opened(open_for_all, request.param, store)


@pytest.fixture(scope="module")
def opened_once(
    open_for_all: Callable[..., Pool], tmp_path_factory: pytest.TempPathFactory
) -> Pool:
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    return _opened(open_for_all, "process", store)


def _opened(open_for_all: Callable[..., Pool], profile: str, store: Path) -> Pool:
    options = {"threads_per_worker": 2} if profile == "thread" else {}
    pool = open_for_all(adapter=Desk, profile=profile, name="desk", store=store, **options)
    session = pool.session("first")
    # As many connections as tests use at a time: they stay open with the pool.
    table = session.state.store._database
    with ThreadPoolExecutor(4) as threads:
        barrier = threading.Barrier(4)
        list(threads.map(lambda _: (barrier.wait(), table._idle.append(table._connect())), "1234"))
    return pool


def _new_session(pool: Pool, request: pytest.FixtureRequest) -> Iterator[Session]:
    name = f"s{abs(hash(request.node.nodeid))}"
    yield pool.session(name)
    with contextlib.suppress(SessionNotFound):
        pool.session(name).delete()


@pytest.fixture
def session(opened: Pool, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session, of a pool of either profile."""
    yield from _new_session(opened, request)


@pytest.fixture
def one(opened_once: Pool, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session of a pool whose worker does one call at a time."""
    yield from _new_session(opened_once, request)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store" / "sessions.sqlite")


def worker_of(session: Session) -> str:
    return session.call("do", {"what": lambda context: context.worker})


# -- what a session is -----------------------------------------------------------------------------


def test_a_tool_sees_the_id_of_its_session_and_none_without_one(opened_once):
    """Acceptance case 35."""
    assert opened_once.session("abc").call("session_id") == "abc"
    assert opened_once.call("session_id") is None


def test_fifty_threads_that_open_a_session_have_the_same_one(open_pool, store):
    """Acceptance case 34."""
    pool = open_pool(adapter=Desk, store=store)
    barrier = threading.Barrier(50)

    def open_it(number: int) -> Session:
        barrier.wait(20)
        return pool.session("one", metadata={"by": number})

    with ThreadPoolExecutor(50) as threads:
        sessions = list(threads.map(open_it, range(50)))

    assert len(set(sessions)) == 1
    assert len({session.state.number for session in sessions}) == 1
    assert [info.id for info in pool.sessions()] == ["one"]
    assert sessions[0].metadata["by"] in range(50)


def test_a_strict_session_that_has_lost_its_home_keeps_what_it_has_in_the_store(open_pool, store):
    """Acceptance case 33, and what is left."""
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s", affinity="strict_queue")
    session.call("do", {"what": lambda context: context.programs.update(model=[1])})
    session.variables.register("x", "integer", 1)
    session.submit(os._exit, 3).exception(10)

    with pytest.raises(SessionLost):
        session.call("session_id")

    again = pool.session("s", affinity="strict_queue")
    read = again.call("do", {"what": lambda c: (c.variables["x"], c.programs["model"])})
    assert read == (1, [1])


# -- both sides see the same -----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_worker_sets_the_notebook_reads_at_once_and_a_watcher_is_told(session, way):
    """Acceptance case 40."""
    session.variables.register("temperature", "float", 0.7, min=0, max=2)

    def work(context: Any) -> float:
        before = context.variables["temperature"]
        context.variables["temperature"] = 1.25
        return before

    with session.variables.watch("temp*") as watch:
        assert way(session, work) == 0.7
        assert session.variables["temperature"] == 1.25
        change = watch.get(5)

    assert (change.name, change.value, change.version) == ("temperature", 1.25, 2)
    assert change.source == worker_of(session) == session.variables.info("temperature").source


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_the_notebook_keeps_a_worker_reads_and_changes(session, way):
    session.variables.register("x", "integer", 1)
    session.programs["model"] = {"weights": [1, 2]}
    session.metadata["note"] = "mine"

    def work(context: Any) -> Any:
        context.variables["x"] += 1
        context.programs["model"] = {"weights": [*context.programs["model"]["weights"], 3]}
        context.programs["new"] = "by the worker"
        context.metadata["note"] += ", and the worker's"
        return sorted(context.programs)

    assert way(session, work) == ["model", "new"]
    assert session.variables["x"] == 2
    assert session.programs["model"] == {"weights": [1, 2, 3]}
    assert session.programs.info("new").source == worker_of(session)
    assert dict(session.metadata) == {"note": "mine, and the worker's"}


SHAPES: dict[str, Do] = {
    "length": lambda c: len(c.variables),
    "names": lambda c: list(c.variables),
    "is in": lambda c: ("x" in c.variables, "none" in c.variables),
    "get": lambda c: (c.variables.get("x"), c.variables.get("none", 7)),
    "items": lambda c: dict(c.variables),
    "update": lambda c: c.variables.update(x=5, y=6.5),
    "setdefault": lambda c: c.variables.setdefault("x", 9),
    "pop": lambda c: (c.variables.pop("x"), list(c.variables)),
    "by id": lambda c: c.variables[c.variables.info("x").id],
    "list": lambda c: [(v.name, v.type, v.value, v.version) for v in c.variables.list("*")],
    "wildcard": lambda c: [v.name for v in c.variables.list("x*")],
    "info": lambda c: [
        getattr(c.variables.info("x"), name) for name in ("constraints", "description", "metadata")
    ],
    "get_many": lambda c: c.variables.get_many(["y", "none"]),
    "set_many": lambda c: c.variables.set_many({"x": 3, "y": 4.0}),
    "set_many, one by one": lambda c: c.variables.set_many({"x": 3, "y": 9.5}, atomic=False).ok,
    "set_many, versions": lambda c: c.variables.set_many({"x": 3}, versions={"x": 1}).versions,
    "set, version": lambda c: (c.variables.set("x", 4, version=1), c.variables["x"]),
    "register": lambda c: c.variables.register("z", "string", "a", pattern="[a-z]").version,
    "register again": lambda c: c.variables.register("x", "integer", 8, max=10).value,
    "register_many": lambda c: [
        v.name for v in c.variables.register_many({"a": ("list", []), "b": ("dict", {})})
    ],
    "delete": lambda c: (c.variables.delete("x", "none"), list(c.variables)),
    "history": lambda c: (
        c.variables.update(x=2),
        [(v.value, v.version, v.kind) for v in c.variables.history("x")],
    ),
    "rollback": lambda c: (c.variables.update(x=2), c.variables.rollback("x", 1).version),
    "lock": lambda c: (c.variables.lock("x"), c.variables.info("x").locked),
    "unlock": lambda c: (c.variables.lock("x"), c.variables.unlock("x"), c.variables.unlock("x")),
    "describe": lambda c: (
        c.variables.describe("x", "what it is"),
        c.variables.info("x").description,
    ),
    "repr": lambda c: repr(c.variables),
    "html": lambda c: "<td" in c.variables._repr_html_(),
    "programs": lambda c: (sorted(c.programs), len(c.programs), "model" in c.programs),
    "program": lambda c: c.programs["model"],
    "program, put": lambda c: c.programs.put("new", 1, metadata={"a": 1}).metadata,
    "program, info": lambda c: c.programs.info("model").checksum,
    "program, deleted": lambda c: (c.programs.pop("model"), list(c.programs)),
    "metadata": lambda c: (dict(c.metadata), len(c.metadata), c.metadata.pop("note")),
}  # fmt: skip


@pytest.mark.parametrize("work", SHAPES.values(), ids=SHAPES)
def test_a_worker_gets_the_same_answers_as_the_notebook(one, opened_once, work):
    other = opened_once.session(f"{one.session_id}-b")
    for session in (one, other):
        session.variables.register("x", "integer", 1, max=10, description="how many")
        session.variables.register("y", "float", 2.5, max=9)
        session.programs["model"] = [1, 2]
        session.metadata["note"] = "mine"

    there, here = one.call("do", {"what": work}), work(other)

    assert there == here
    assert dict(one.variables) == dict(other.variables)
    assert dict(one.programs) == dict(other.programs)
    assert dict(one.metadata) == dict(other.metadata)
    other.delete()


class Point:
    """A class of the notebook."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None


Point.__module__ = "__main__"

VALUES = [
    *(None, True, 2**70, float("nan"), float("inf"), "t\u00e9xt", b"\0\xff", (1, "a"), {1, 2}),
    *(datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), decimal.Decimal("0.1"), Point(3)),
    *(np.arange(6.0).reshape(2, 3), np.float32(2.5), pd.DataFrame({"a": [1, 2]})),
    {"nested": [(1, {2: b"3"}), None, Point(4)]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_with_its_type_from_notebook_to_worker_and_back(one, value):
    """Acceptance case 42, through variables and programs."""
    one.variables.register("there", "any", value)
    one.variables.register("back", "any", None)

    def work(context: Any) -> str:
        context.variables["back"] = context.variables["there"]
        context.programs["back"] = context.variables["there"]
        return type(context.variables["there"]).__name__

    assert one.call("do", {"what": work}) == type(value).__name__
    for got in (one.variables["back"], one.programs["back"]):
        assert type(got) is type(value)
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(got, value)
        else:
            np.testing.assert_equal(got, value)


def test_host_tools_that_use_the_session_and_the_worker_see_each_others_changes(session):
    session.variables.register("steps", "list", [])

    def note(who: str) -> list[str]:
        session.variables["steps"] = [*session.variables["steps"], who]
        return session.variables["steps"]

    session.host_tool(note)

    def work(context: Any) -> list[str]:
        context.variables["steps"] = ["worker"]
        context.host_tools.note(who="notebook")
        context.variables["steps"] = [*context.variables["steps"], "worker"]  # has seen the first
        return context.call_host_tool("note", {"who": "notebook"})

    assert session.call("do", {"what": work}) == ["worker", "notebook"] * 2


def test_an_async_tool_sees_what_its_host_tool_has_just_set(one):
    one.variables.register("x", "integer", 1)

    @one.host_tool
    async def step() -> None:
        one.variables["x"] += 1

    async def work() -> list[int]:
        context = snakepit_kernel.context()
        seen = []
        for _ in range(5):
            seen.append(context.variables["x"])
            await context.acall_host_tool("step")
        return seen

    assert one.submit(work).result() == [1, 2, 3, 4, 5]


def test_a_worker_watches_what_the_notebook_changes(session):
    session.variables.register("x", "integer", 0)

    def begin() -> None:
        for value in (1, 2, 3):
            session.variables["x"] = value

    session.host_tool(begin)

    def work(context: Any) -> list[int]:
        with context.variables.watch("x") as watch:
            context.call_host_tool("begin")
            return [watch.get(5).value for _ in range(3)]

    assert session.call("do", {"what": work}) == [1, 2, 3]


def test_a_worker_watches_in_its_event_loop_and_by_a_callback(one):
    one.variables.register("x", "integer", 0)

    async def work() -> list[int]:
        context, called = snakepit_kernel.context(), asyncio.Event()
        loop, seen = asyncio.get_running_loop(), []

        def take(change: Any) -> None:
            seen.append(change.value)
            loop.call_soon_threadsafe(called.set)

        with context.variables.watch("x") as watch, context.variables.watch("x", take):
            context.variables["x"] = 5
            async with asyncio.timeout(5):
                change = await anext(aiter(watch))
                await called.wait()
        return [change.value, *seen]

    assert one.submit(work).result() == [5, 5]


# -- errors ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[type[Exception], Do]] = {
    "type": (VariableTypeError, lambda c: c.variables.update(x="one")),
    "bound": (ConstraintViolation, lambda c: c.variables.update(x=11)),
    "pattern": (
        ConstraintViolation,
        lambda c: c.variables.register("name", "string", "A", pattern="[a-z]"),
    ),
    "set of none": (VariableNotFound, lambda c: c.variables.update(y=1)),
    "get of none": (VariableNotFound, lambda c: c.variables["y"]),
    "get of none by id": (VariableNotFound, lambda c: c.variables[12345678]),
    "info of none": (VariableNotFound, lambda c: c.variables.info("y")),
    "delete of none": (VariableNotFound, lambda c: c.variables.__delitem__("y")),
    "lock": (VariableLocked, lambda c: (c.variables.lock("x"), c.variables.update(x=2))),
    "lock twice": (VariableLocked, lambda c: (c.variables.lock("x"), c.variables.lock("x"))),
    "version": (VersionConflict, lambda c: c.variables.set("x", 2, version=7)),
    "batch": (BatchRejected, lambda c: c.variables.set_many({"x": 11, "y": 1})),
    "batch of new": (
        BatchRejected,
        lambda c: c.variables.register_many({"a": ("integer", "1"), "b": ("integer", 1)}),
    ),
    "size": (ValueTooLarge, lambda c: c.variables.register("big", "any", b"0" * 2_000_000)),
    "unknown type": (ValueError, lambda c: c.variables.register("z", "integr", 1)),
    "unknown constraint": (ValueError, lambda c: c.variables.register("z", "integer", 1, most=1)),
    "other definition": (ValueError, lambda c: c.variables.register("x", "float", 1.0)),
    "name": (ValueError, lambda c: c.variables.register("a b", "integer", 1)),
    "key": (TypeError, lambda c: c.variables[1.5]),
    "rollback": (ValueError, lambda c: c.variables.rollback("x", 9)),
    "unpicklable": (
        TypeError,
        lambda c: c.variables.register("z", "any", threading.Lock()),
    ),
    "unpicklable, set": (TypeError, lambda c: c.variables.update(any=threading.Lock())),
    "unpicklable program": (
        TypeError,
        lambda c: c.programs.update(z=threading.Lock()),
    ),
    "unpicklable note": (TypeError, lambda c: c.metadata.update(z=threading.Lock())),
    "program": (ProgramNotFound, lambda c: c.programs["none"]),
    "program, deleted": (ProgramNotFound, lambda c: c.programs.__delitem__("none")),
    "program, name": (ValueError, lambda c: c.programs.put("a b", 1)),
    "program, ttl": (ValueError, lambda c: c.programs.put("a", 1, ttl=3)),
    "note": (KeyError, lambda c: c.metadata["none"]),
    "note, deleted": (KeyError, lambda c: c.metadata.__delitem__("none")),
    "note, name": (TypeError, lambda c: c.metadata.__setitem__(3, 1)),
    "note, size": (ValueTooLarge, lambda c: c.metadata.update(big=b"0" * 2_000_000)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "work"), WRONG.values(), ids=WRONG)
def test_a_worker_gets_the_error_that_the_notebook_gets(one, opened_once, kind, work):
    other = opened_once.session(f"{one.session_id}-b")
    for session in (one, other):
        session.variables.register("x", "integer", 1, max=10)
        session.variables.register("any", "any", 1)

    def caught(context: Any) -> tuple[type, str, bool]:
        try:
            work(context)
        except Exception as error:
            return type(error), str(error), error.__cause__ is None
        return type(None), "nothing was raised", True

    there = one.call("do", {"what": caught})

    assert there[:2] == caught(other)[:2]
    assert there[0] is kind
    assert "__session__" not in there[1]
    before = [(v.name, v.value, v.version) for v in one.variables.list()]
    assert before == [(v.name, v.value, v.version) for v in other.variables.list()]
    other.delete()


def test_a_constraint_that_is_broken_changes_nothing_and_is_named(session):
    """Acceptance case 36, from a worker."""
    session.variables.register("temperature", "float", 0.7, min=0, max=2)

    with pytest.raises(ToolError) as caught:
        session.call("do", {"what": lambda context: context.variables.update(temperature=3.0)})

    cause = caught.value.__cause__
    assert isinstance(cause, ConstraintViolation)
    assert str(cause) == "variable 'temperature': the value must be at most 2 (max=2)"
    assert (cause.name, cause.constraint, cause.bound) == ("temperature", "max", 2)
    info = session.variables.info("temperature")
    assert (info.value, info.version) == (0.7, 1)


def test_a_batch_with_one_bad_value_sets_none_and_names_each_bad_one(session):
    """Acceptance case 37, from a worker."""
    session.variables.register_many({"a": ("integer", 1), "b": ("float", 1.0), "c": ("list", [])})

    values = {"a": 2, "b": "two", "c": 3}
    with pytest.raises(ToolError) as caught:
        session.call("do", {"what": lambda context: context.variables.set_many(values)})

    assert isinstance(caught.value.__cause__, BatchRejected)
    assert sorted(caught.value.__cause__.errors) == ["b", "c"]
    assert dict(session.variables) == {"a": 1, "b": 1.0, "c": []}


# -- reading again ---------------------------------------------------------------------------------


def test_a_call_never_begins_with_an_old_value(session):
    session.variables.register("x", "integer", 0)

    for value in range(60):
        session.variables["x"] = value
        assert session.call("do", {"what": lambda context: context.variables["x"]}) == value


def test_a_long_call_sees_a_change_within_a_tenth_of_a_second(one):
    one.variables.register("x", "integer", 0)

    def work(context: Any) -> float:
        while context.variables["x"] == 0:
            pass
        return time.time()

    reads = one.stats().reads
    future = one.submit(_in_context, work)
    while one.stats().reads == reads:
        time.sleep(0.001)  # a read tells nobody; the value is as new as can be now
    one.variables["x"] = 1
    changed = time.time()

    assert future.result(10) - changed < 0.1 + 0.15


def test_a_call_that_reads_again_and_again_does_not_ask_each_time(one):
    one.variables.register("x", "integer", 0)

    def work(context: Any) -> int:
        for _ in range(2000):
            context.variables["x"]
        return 2000

    before = one.stats().reads
    one.call("do", {"what": work})
    assert 1 <= one.stats().reads - before < 200


def test_what_a_worker_does_to_a_value_that_it_has_read_is_not_read_again(session):
    session.variables.register("x", "list", [1])
    session.variables.register("d", "dict", {"a": [1]})

    def work(context: Any) -> tuple[list[int], dict[str, list[int]]]:
        context.variables["x"].append(2)
        context.variables["x"].append(3)
        context.variables["d"]["a"].append(2)
        return context.variables["x"], context.variables["d"]

    assert session.call("do", {"what": work}) == ([1], {"a": [1]})


def test_a_call_reads_what_it_has_written(session):
    session.variables.register("x", "integer", 0)

    def work(context: Any) -> list[int]:
        seen = []
        for value in range(5):
            context.variables["x"] = value
            seen.append(context.variables["x"])
            context.variables.set_many({"x": value + 100})
            seen.append(context.variables["x"])
        return seen

    assert session.call("do", {"what": work}) == [n + m for n in range(5) for m in (0, 100)]


# -- anonymous work --------------------------------------------------------------------------------


def test_a_call_of_no_session_has_no_variables_and_says_how_to_get_them(opened_once):
    with pytest.raises(ToolError) as caught:
        opened_once.call("do", {"what": lambda context: context.variables["x"]})

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.message == (
        "this call belongs to no session, and has no variables; "
        'make it by pool.session("NAME").call(…)'
    )


@pytest.mark.parametrize("part", ["metadata", "variables"])
def test_a_cell_of_no_session_has_none_either(opened_once, part):
    with pytest.raises(snakepit_kernel.CellError, match=f"no session, and has no {part}"):
        by_cell(opened_once, lambda context: list(getattr(context, part)))


def test_calls_of_no_session_share_the_global_programs(opened_once, one):
    opened_once.call("do", {"what": lambda context: context.programs.update(shared=[1])})

    assert opened_once.programs["shared"] == [1]
    assert opened_once.call("do", {"what": lambda context: context.programs["shared"]}) == [1]
    assert "shared" not in one.programs
    assert opened_once.programs.info("shared").expires is not None
    del opened_once.programs["shared"]


def test_a_pool_that_only_works_for_nobody_never_touches_the_store(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)

    assert pool.call("session_id") is None
    assert pool.submit(pow, 2, 3).result() == 8

    assert not Path(store).parent.exists()


# -- big ones --------------------------------------------------------------------------------------


def test_an_array_of_a_megabyte_fits_into_a_variable_both_ways(session):
    array = np.random.default_rng(0).random(130_000)
    session.variables.register("there", "array", array)
    session.variables.register("back", "array", np.zeros(1), shape=[None])

    def work(context: Any) -> float:
        context.variables["back"] = context.variables["there"] * 2
        return float(context.variables["there"].sum())

    assert session.call("do", {"what": work}) == float(array.sum())
    assert (session.variables["back"] == array * 2).all()


def test_a_program_of_50_megabytes_goes_from_a_worker_to_the_notebook_and_back(one):
    def make(context: Any) -> None:
        import numpy

        context.programs.put("model", numpy.arange(6_250_000, dtype="int64"), metadata={"n": 1})

    one.call("do", {"what": make})

    info = one.programs.info("model")
    assert info.size_bytes > 50_000_000
    assert info.source == worker_of(one)
    assert int(one.programs["model"][-1]) == 6_249_999
    assert one.call("do", {"what": lambda context: int(context.programs["model"].sum())}) == sum(
        range(6_250_000)
    )


def test_a_pool_may_allow_larger_variables_for_notebook_and_workers_alike(open_pool, store):
    pool = open_pool(adapter=Desk, store=store, max_variable_bytes=3_000_000)
    session = pool.session("s")
    session.variables.register("x", "bytes", b"0" * 2_500_000)

    def work(context: Any) -> int:
        context.variables["x"] = b"1" * 2_900_000
        return len(context.variables["x"])

    assert session.call("do", {"what": work}) == 2_900_000
    for do in (session.call, lambda _, a: a["what"](session)):
        with pytest.raises((ToolError, ValueTooLarge), match=r"more than 3,000,000 bytes"):
            do("do", {"what": lambda c: c.variables.update(x=b"1" * 3_000_001)})


# -- what has ended --------------------------------------------------------------------------------


def test_a_with_of_the_context_closes_what_was_opened_in_it(session):
    session.variables.register("x", "integer", 1)

    def work(context: Any) -> list[str]:
        with context:
            watch = context.variables.watch("x")
            before = repr(watch)
        return [before, repr(watch), repr(list(watch))]

    assert session.call("do", {"what": work}) == [
        "<Watch of 'x', open>",
        "<Watch of 'x', closed>",
        "[]",
    ]


def test_a_thread_that_its_call_has_left_behind_cannot_write_any_more(one):
    one.variables.register("x", "integer", 1)

    def leave(context: Any) -> None:
        import builtins

        go_on, said = threading.Event(), []

        def write() -> None:
            go_on.wait(20)
            for attempt in (
                lambda: context.variables.update(x=2),
                lambda: context.variables["x"],
                lambda: context.programs.update(x=2),
                lambda: context.metadata.update(x=2),
            ):
                try:
                    attempt()
                except RuntimeError as error:
                    said.append(str(error))

        thread = threading.Thread(target=write)
        thread.start()
        builtins.left_behind = go_on, thread, said

    def look(_: Any) -> list[str]:
        import builtins

        go_on, thread, said = builtins.left_behind
        go_on.set()
        thread.join(10)
        return said

    one.call("do", {"what": leave})
    said = one.call("do", {"what": look})

    assert len(said) == 4
    assert all("session" in text and "has ended" in text for text in said)
    assert "__session__" not in "".join(said)
    assert one.variables["x"] == 1
    assert not one.programs
    assert not one.metadata


def test_calls_that_end_while_a_thread_of_theirs_asks_do_not_hold_up_the_next(one):
    one.variables.register("x", "integer", 0)

    def leave(context: Any) -> None:
        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                while True:
                    context.variables.info("x")

        threading.Thread(target=ask).start()
        context.variables.info("x")

    for _ in range(40):
        one.call("do", {"what": leave}, timeout=10)
        assert one.call("ado", {"what": lambda context: context.variables["x"]}, timeout=10) == 0


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_a_worker_that_was_given_up_cannot_write_any_more(open_pool, store, profile):
    pool = open_pool(adapter=Desk, store=store, profile=profile, grace=0.3)
    session = pool.session("s")
    session.variables.register("x", "integer", 0)

    def deaf(context: Any) -> None:
        import signal

        with contextlib.suppress(ValueError):  # in a thread of its own there is nothing to mask
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        while True:
            with contextlib.suppress(BaseException):
                context.variables["x"] += 1

    with pytest.raises(CallTimeout) as caught:
        session.call("do", {"what": deaf}, timeout=0.4)

    after = session.variables["x"]
    assert caught.value.was_replaced
    assert after > 0
    with session.variables.watch() as watch, pytest.raises(TimeoutError):
        watch.get(0.5)
    assert session.variables["x"] == after


def test_a_session_that_was_deleted_while_it_works_is_gone_for_its_work_too(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s")
    session.variables.register("x", "integer", 1)
    begun, deleted = threading.Event(), threading.Event()

    @pool.host_tool
    def meet() -> None:
        begun.set()
        deleted.wait(10)

    def work(context: Any) -> list[str]:
        context.variables["x"]
        context.call_host_tool("meet")
        said = []
        for attempt in (
            lambda: context.variables["x"],
            lambda: context.variables.update(x=2),
            lambda: context.variables.register("y", "integer", 1),
            lambda: context.programs.update(model=1),
            lambda: context.programs["model"],
            lambda: context.metadata.update(note=1),
            lambda: list(context.variables),
        ):
            try:
                attempt()
            except Exception as error:
                said.append(type(error).__name__)
        return said

    future = session.submit(_in_context, work)
    assert begun.wait(10)
    session.delete()
    deleted.set()

    assert future.result(10) == ["SessionNotFound"] * 7
    assert pool.sessions() == []
    with pytest.raises(SessionNotFound):
        session.call("session_id")


def test_work_of_a_session_that_was_made_anew_begins_with_nothing(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s")
    session.run("mine = 1")
    session.variables.register("x", "integer", 1)
    session.delete()

    again = pool.session("s")

    assert list(again.variables) == []
    assert again.run("'mine' in globals()").value is False
    with pytest.raises(SessionNotFound):
        session.variables["x"]


def test_a_session_that_has_expired_is_gone_and_opens_anew_with_nothing(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s", ttl=0.4)
    session.variables.register("x", "integer", 1)
    session.host_tool(_answer)
    session.run("mine = 1")
    expires = session.state.expires
    assert expires is not None
    time.sleep(expires.timestamp() - time.time() + 0.5)  # it is time itself that ends it

    with pytest.raises(SessionNotFound, match="session 's' is gone"):
        session.variables["x"]
    with pytest.raises(SessionNotFound):
        session.call("session_id")
    again = pool.session("s")

    assert list(again.variables) == []
    assert again.run("'mine' in globals()").value is False
    assert list(again.host_tools) == []
    with pytest.raises(ToolError, match="there is no tool '_answer'; there are none"):
        again.call("do", {"what": lambda context: context.call_host_tool("_answer")})


def test_a_session_that_works_for_longer_than_its_time_does_not_expire(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s", ttl=1.5)
    session.variables.register("x", "integer", 1)

    session.submit(time.sleep, 3.5).result(10)

    assert session.variables["x"] == 1


# -- several ---------------------------------------------------------------------------------------


def test_a_fork_is_a_copy_that_goes_its_own_way(one, opened_once):
    one.variables.register("x", "integer", 1, max=5)
    one.variables["x"] = 2
    one.programs["model"] = np.zeros(100_000)
    one.metadata["note"] = "mine"

    fork = one.fork(f"{one.session_id}-fork")
    fork.call("do", {"what": lambda context: context.variables.update(x=3)})
    fork.programs["model"] = 1
    fork.metadata["note"] = "other"

    assert (one.variables["x"], fork.variables["x"]) == (2, 3)
    assert fork.variables.info("x").constraints == {"max": 5}
    assert one.programs["model"].shape == (100_000,)
    assert one.metadata["note"] == "mine"
    with pytest.raises(ValueError, match="there is a session"):
        one.fork(fork.session_id)
    fork.delete()
    assert one.variables["x"] == 2


def test_two_pools_on_one_store_share_its_sessions(open_pool, store):
    one, other = (open_pool(adapter=Desk, store=store, name=name) for name in ("one", "other"))
    one.session("s").variables.register("x", "integer", 1)
    one.session("s").call("do", {"what": lambda context: context.variables.update(x=2)})

    def work(context: Any) -> int:
        context.variables["x"] += 1
        return context.variables["x"]

    assert other.session("s").call("do", {"what": work}) == 3
    assert one.session("s").variables.info("x").source == "other-1.1"
    assert [info.id for info in one.sessions()] == [info.id for info in other.sessions()] == ["s"]
    assert open_session("s", store=store).variables["x"] == 3


def test_two_pools_with_stores_of_their_own_share_nothing(open_pool, tmp_path):
    one, other = (open_pool(adapter=Desk, store=tmp_path / f"{n}.sqlite") for n in "ab")
    one.session("s").variables.register("x", "integer", 1)

    assert list(other.session("s").variables) == []


def test_two_sessions_of_one_worker_never_see_each_others_variables(one, opened_once):
    other = opened_once.session(f"{one.session_id}-b")
    one.variables.register("x", "integer", 1)
    other.variables.register("x", "integer", 2)

    def read(context: Any) -> Any:
        return context.worker, context.variables["x"], len(context.programs)

    worker = worker_of(one)
    for _ in range(3):
        assert one.call("do", {"what": read}) == (worker, 1, 0)
        assert other.call("do", {"what": read}) == (worker, 2, 0)
    other.delete()


# -- the store -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "kind", "said"),
    [
        (3, TypeError, "store must be a path or a URL, not int"),
        ("postgresql://host/base", ValueError, "'postgresql' is not known"),
        ("", ValueError, "is not the path of a file"),
        ("/tmp", ValueError, "is not the path of a file"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_starts(store, kind, said, living):
    with pytest.raises(kind, match=said):
        Pool(1, store=store)
    assert living() == []


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1"])
def test_a_limit_of_variables_that_cannot_be_is_refused(limit):
    with pytest.raises((TypeError, ValueError), match="max_variable_bytes"):
        Pool(1, max_variable_bytes=limit)


@pytest.mark.parametrize("below", ["file/sessions.sqlite", "file/deeper/sessions.sqlite"])
def test_a_store_that_cannot_be_made_fails_sessions_clearly_and_nothing_else(
    open_pool, tmp_path, below
):
    (tmp_path / "file").write_text("in the way")
    pool = open_pool(adapter=Desk, store=tmp_path / below)

    for attempt in (lambda: pool.session("s"), pool.sessions, lambda: list(pool.programs)):
        with pytest.raises(
            StoreError, match=r"the store of sessions .*file.*set SNAKEPIT_DATA_DIR"
        ):
            attempt()
    with pytest.raises(ToolError) as caught:
        pool.call("do", {"what": lambda context: list(context.programs)})

    assert isinstance(caught.value.__cause__, StoreError)
    assert pool.call("session_id") is None
    assert pool.submit(pow, 2, 3).result() == 8
    assert pool.run("1 + 1").value == 2


@contextlib.contextmanager
def full_disk(free_bytes: int = 0) -> Iterator[None]:
    """Let no file of this process become larger than that, which is how a full disk begins."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_store_that_cannot_grow_refuses_writes_clearly_and_everything_else_goes_on(
    open_pool, store
):
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s")
    session.variables.register("x", "bytes", b"0")

    def fill(context: Any) -> str:
        try:
            context.variables["x"] = b"1" * 500_000
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "written"

    with full_disk(100_000):
        with pytest.raises(StoreError, match="the store of sessions"):
            session.variables["x"] = b"1" * 500_000
        with pytest.raises(StoreError):
            session.programs["model"] = b"1" * 500_000
        assert session.call("do", {"what": fill}).startswith("StoreError: the store of sessions")
        assert pool.call("session_id") is None
        assert pool.submit(pow, 2, 3).result() == 8
        assert session.variables["x"] == b"0"

    assert session.call("do", {"what": fill}) == "written"
    assert len(session.variables["x"]) == 500_000
    assert list(session.programs) == []
    assert session.state.store.check() == []


# -- host tools of an earlier kernel ---------------------------------------------------------------


def _answer() -> int:
    return 42


def test_a_host_tool_that_went_with_a_kernel_is_named_and_comes_back_when_exposed(open_pool, store):
    before = open_pool(adapter=Desk, store=store)
    before.session("s").host_tool(_answer)
    before.terminate()  # to its session this is what the end of a kernel is
    pool = open_pool(adapter=Desk, store=store)
    session = pool.session("s")

    def ask(context: Any) -> Any:
        try:
            return context.host_tools._answer()
        except ToolNotFound as error:
            return str(error), error.hint != "", error.known

    said, has_hint, known = session.call("do", {"what": ask})
    assert said == (
        "there is no tool '_answer' now: session 's' had it before its kernel was restarted, or in "
        "another pool; expose it again, by session.host_tool(_answer) or "
        "%snakepit expose _answer --session s"
    )
    assert has_hint
    assert known == ()
    with pytest.raises(ToolError) as caught:
        session.call("do", {"what": lambda context: context.call_host_tool("_answer")})
    assert isinstance(caught.value.__cause__, ToolNotFound)
    assert str(caught.value.__cause__) == said

    session.host_tool(_answer)
    assert session.call("do", {"what": ask}) == 42


def test_a_host_tool_that_another_session_had_is_not_hinted_at(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    pool.session("a").host_tool(_answer)

    for session in (pool.session("b"), pool):
        with pytest.raises(ToolError, match="there is no tool '_answer'; there are none"):
            session.call("do", {"what": lambda context: context.call_host_tool("_answer")})


def test_a_cell_is_of_its_own_session_whoever_has_had_the_kernel_built(open_pool, store):
    pool = open_pool(adapter=Desk, store=store)
    first, second = pool.session("first"), pool.session("second")
    first.push({"x": 1})  # the first that needs a shell, in the middle of a call
    first.variables.register("x", "integer", 1)
    second.variables.register("x", "integer", 2)

    for session in (first, second, first):
        seen = by_cell(session, lambda context: (context.session_id, context.variables["x"]))
        assert seen == (session.session_id, session.variables["x"])


def test_the_context_of_a_cell_is_that_of_its_session(one):
    one.variables.register("x", "integer", 1)
    one.run("import snakepit_kernel; snakepit_kernel.context().variables['x'] = 2")

    assert one.variables["x"] == 2
    assert context is snakepit_kernel.context
