"""References to values that stay in their worker."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sqlite3
import threading

import pytest

from snakepit_kernel import Pool, ReferenceLost, SessionLost

from .conftest import wait_for_all_sockets


class Model:
    """A model that cannot travel, because it holds a lock."""

    def __init__(self, weight=2):
        self.weight = weight
        self.lock = threading.Lock()
        self.items = {"a": 1}

    def predict(self, value):
        return self.weight * value

    async def apredict(self, value):
        return self.weight * value

    def other(self):
        return Model(self.weight + 1)

    def pid(self):
        return os.getpid()

    def fail(self):
        raise KeyError("no such thing")

    def __len__(self):
        return 3

    def __getitem__(self, key):
        return self.items[key]

    def __setitem__(self, key, value):
        self.items[key] = value

    def __delitem__(self, key):
        del self.items[key]

    def __contains__(self, key):
        return key in self.items

    def __iter__(self):
        return iter(range(2500))

    def __call__(self, value):
        return value + self.weight


def weight_of(model):
    return model.weight, os.getpid()


def insert_and_fail(database):
    with database:
        database.execute.keep("insert into t values (8)")
        raise ZeroDivisionError


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2) as pool:
        pool.run_all("1")  # builds the channels of their cells
        wait_for_all_sockets()
        yield pool


@pytest.fixture
def model(pool):
    return pool.keep(Model)


def test_methods_attributes_and_items_are_used_in_the_worker(model):
    assert model.predict(21) == 42
    assert model.predict(value=5) == 10
    assert model.apredict(3) == 6
    assert model.weight == 2
    model.weight = 5
    assert model.predict(2) == 10
    assert model(1) == 6
    assert len(model) == 3
    assert model["a"] == 1
    model["b"] = 2
    assert "b" in model
    del model["b"]
    assert "b" not in model
    assert bool(model)
    assert "predict" in dir(model)
    assert repr(model).startswith("<RemoteRef to Model in worker default-")


def test_iteration_gives_every_item_in_order(model):
    assert list(model) == list(range(2500))


def test_errors_are_those_of_the_value(model):
    with pytest.raises(KeyError, match="no such thing"):
        model.fail()
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing
    with pytest.raises(KeyError):
        _ = model["none"]


def test_as_an_argument_it_is_the_value_and_the_call_goes_to_its_worker(pool, model):
    home = model.pid()

    assert [pool.submit(weight_of, model).result() for _ in range(6)] == [(2, home)] * 6
    assert pool.submit(weight_of, model=model).result() == (2, home)
    assert list(pool.map(weight_of, [model] * 3)) == [(2, home)] * 3


def test_what_a_method_gives_can_stay_as_well(model):
    other = model.other.keep()

    assert other.weight == 3
    assert other.pid() == model.pid()


def test_two_that_are_in_different_workers_cannot_be_arguments_of_one_call(pool):
    models = [pool.keep(Model) for _ in range(6)]
    by_pid = {each.pid(): each for each in models}
    while len(by_pid) < 2:
        futures = [pool.submit(threading.Event().wait, 0.2), pool.submit(os.getpid)]
        by_pid.setdefault((each := pool.keep(Model)).pid(), each)
        for future in futures:
            future.result()
    first, second = by_pid.values()

    with pytest.raises(ValueError, match="in several workers"):
        pool.submit(max, first, second)


def test_another_pool_refuses_it(pool, model):
    with Pool(workers=1, name="other") as other, pytest.raises(ValueError, match="belongs to pool"):
        other.submit(weight_of, model)


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_pickled_or_copied_by_hand(model, way):
    with pytest.raises(TypeError, match="stays in its process, except as an argument"):
        way(model)


def test_fetch_brings_a_copy(pool):
    numbers = pool.keep(list, (1, 2))

    numbers.append(3)

    assert numbers.fetch() == [1, 2, 3]


def test_a_context_manager_is_entered_and_left_there(pool):
    database = pool.keep(sqlite3.connect, ":memory:")
    with database as entered:
        assert entered is database
        database.execute.keep("create table t (a)")
        database.execute.keep("insert into t values (7)")
    assert database.execute.keep("select a from t").fetchall() == [(7,)]
    with pytest.raises(ZeroDivisionError):
        insert_and_fail(database)
    assert database.execute.keep("select a from t").fetchall() == [(7,)]  # it rolled back


def test_dropped_references_free_their_values(open_pool, until):
    pool = open_pool(2)

    def left():
        gc.collect()
        return [pool.run(f"{IMPORT}\nlen(_values)", worker=slot).value for slot in pool.slots()]

    before = sum(left())
    kept = [pool.keep(list, range(3)) for _ in range(5)]
    assert sum(left()) == before + 5

    del kept

    until(lambda: sum(left()) == 0)


IMPORT = "from snakepit_kernel.worker.references import _values"


def test_the_status_tells_what_a_worker_keeps(open_pool):
    pool = open_pool()
    assert "keeps" not in str(pool.status())

    kept = [pool.keep(Model), pool.keep(list), pool.keep(list)]

    assert "Model, 2 x list" in str(pool.status())
    assert pool.status().workers[0].kept == "Model, 2 x list"
    del kept


def test_one_that_was_freed_says_so(pool):
    numbers = pool.keep(list)
    numbers.free()

    with pytest.raises(ReferenceError, match="was freed"):
        numbers.append(1)


def test_after_its_worker_it_is_lost_and_says_what_went(open_pool, until):
    pool = open_pool()
    model = pool.keep(Model)
    os.kill(model.pid(), signal.SIGKILL)
    until(lambda: model._home.is_lost)

    with pytest.raises(ReferenceLost, match="went the Model"):
        model.predict(1)
    with pytest.raises(SessionLost):
        pool.submit(weight_of, model)


def test_a_tool_can_leave_its_value(pool):
    @pool.tool
    def load(weight: int) -> Model:
        return Model(weight)

    model = pool.call("load", {"weight": 9}, keep=True)

    assert model.predict(2) == 18


def test_a_session_keeps_as_well(pool):
    session = pool.session("keeper")

    model = session.keep(Model, 4)

    assert session.submit(weight_of, model).result()[0] == 4


def test_in_a_global_of_a_function_it_is_an_argument_as_well(pool, model):
    def use():
        return model.weight, os.getpid()

    assert pool.submit(use).result() == (2, model.pid())
