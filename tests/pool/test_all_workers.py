"""What is done in all workers: cells, and variables that are pushed, scattered and gathered."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import traceback

import numpy as np
import pytest

from snakepit_kernel import CellError

NUMBER = "import snakepit_kernel\nn = int(snakepit_kernel.context().worker[-3])\n"
"""Has each worker's number as ``n``: its name ends in its number and that of its process."""


@pytest.fixture(scope="module")
def pool(open_for_all):
    return open_for_all(2, name="all")


# -- cells that are checked ------------------------------------------------------------------------


def test_a_checked_cell_raises_its_error_with_the_workers_traceback_as_a_note(pool):
    assert pool.run("6 * 7", check=True).value == 42

    with pytest.raises(CellError, match="ZeroDivisionError: division by zero") as caught:
        pool.run("def broken():\n    1 / 0\nbroken()", check=True)

    (note,) = caught.value.__notes__
    assert note.startswith("in worker all-")
    assert "----> 2     1 / 0" in note
    assert "\x1b" not in note
    assert [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)] == [
        __file__
    ]


def test_a_result_is_checked_as_often_as_wanted_and_given_back_if_it_is_good(pool):
    good, bad = pool.run("1"), pool.session("one").run("1 / 0")

    assert good.check() is good
    for _ in range(2):
        with pytest.raises(CellError) as caught:
            bad.check()
        assert len(caught.value.__notes__) == 1
    with pytest.raises(CellError):
        asyncio.run(pool.arun("1 / 0", check=True))


def test_checked_cells_of_all_workers_raise_the_first_error_and_say_how_many_have_failed(pool):
    assert [result.value for result in pool.run_all(f"{NUMBER}n", check=True)] == [1, 2]

    with pytest.raises(CellError, match="ValueError: 1") as caught:
        pool.run_all(f"{NUMBER}raise ValueError(n)", check=True)

    assert caught.value.__notes__[0] == "the cell raised in 2 of 2 workers"
    with pytest.raises(CellError, match="ValueError: 2") as caught:
        pool.run_all(f"{NUMBER}if n == 2: raise ValueError(n)", check=True)
    assert len(caught.value.__notes__) == 1


def test_messages_of_all_workers_have_the_numbers_of_their_workers(pool):
    messages = []

    pool.run_all(f"{NUMBER}print(n)", on_message=messages.append)

    texts = [
        (each["worker"], each["content"]["text"])
        for each in messages
        if each["msg_type"] == "stream"
    ]
    assert sorted(texts) == [(1, "1\n"), (2, "2\n")]


# -- variables of all workers ----------------------------------------------------------------------


def test_a_push_of_a_pool_goes_to_all_workers_and_one_of_a_session_to_its_own(pool):
    session = pool.session("pushes")

    pool.push({"a": np.zeros(10**5)})
    pool.push({"b": 1}, worker=1)
    session.push({"c": 2}, worker="all")
    session.push({"d": 3}, worker=2)

    assert [result.value for result in pool.run_all("len(a), 'b' in globals()")] == [
        (10**5, True),
        (10**5, False),
    ]
    assert [result.value for result in session.run_all("c, 'd' in globals()")] == [
        (2, False),
        (2, True),
    ]


def test_parts_of_a_sequence_are_worked_on_in_all_workers_and_gathered_in_order(pool):
    pool.scatter("rows", [1, 2, 3, 4, 5])
    pool.run_all("squares = np.array(rows) ** 2; total = sum(rows)", push={"np": np})

    assert pool.gather("rows") == [1, 2, 3, 4, 5]
    assert [result.value for result in pool.run_all("rows")] == [[1, 2, 3], [4, 5]]
    assert pool.gather("squares").tolist() == [1, 4, 9, 16, 25]
    assert pool.gather("total") == [6, 9]


def test_parts_belong_to_the_cells_of_their_session_and_functions_do_not_see_them(pool):
    session = pool.session("parts")
    session.scatter("mine", range(4))

    assert session.gather("mine") == range(4)
    assert session.run("mine", worker=2).value == range(2, 4)
    with pytest.raises(NameError, match="name 'mine' is not defined in workers 1 and 2"):
        pool.gather("mine")
    with pytest.raises(NameError):
        session.submit(lambda: mine).result()  # noqa: F821 - that is what is asked


def test_wrong_names_and_values_are_refused_before_a_worker_has_them(pool):
    for name in ("a b", "class", 3):
        with pytest.raises(ValueError, match="takes the name of a variable first"):
            pool.scatter(name, [1])
        with pytest.raises(ValueError, match="takes the name of a variable first"):
            pool.gather(name)
    with pytest.raises(TypeError, match="has a length and can be sliced"):
        pool.scatter("unordered", {1, 2})
    with pytest.raises(NameError):
        pool.gather("unordered")


def test_a_part_that_went_with_its_worker_is_an_error_and_no_shorter_sequence(open_pool):
    pool = open_pool(2)
    pool.push({"everywhere": 1})
    pool.scatter("rows", [1, 2, 3])
    pool.run_all("doubled = [2 * row for row in rows]")

    pool.recycle(2)

    lost = "'rows' is not complete: the part of worker 2 is lost; a worker that was replaced"
    with pytest.raises(NameError, match=lost):
        pool.gather("rows")
    with pytest.raises(NameError, match="name 'doubled' is not defined in worker 2"):
        pool.gather("doubled")
    with pytest.raises(NameError, match="name 'everywhere' is not defined in worker 2"):
        pool.gather("everywhere")
    pool.scatter("rows", [4, 5, 6])
    assert pool.gather("rows") == [4, 5, 6]
    pool.resize(1)
    with pytest.raises(NameError, match="the part of worker . is lost"):
        pool.gather("rows")


def test_ctrl_c_ends_the_wait_for_a_worker_that_is_busy(pool):
    pool.push({"a": 1})
    cancelled = pool.stats().cancelled
    is_busy = threading.Event()
    pool.host_tool(is_busy.set)
    busy = threading.Thread(
        target=pool.run,
        args=("import snakepit_kernel as s, time\ns.context().host_tools.set()\ntime.sleep(1)",),
        kwargs={"worker": 2},
    )
    busy.start()
    assert is_busy.wait(20)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.gather("a")

    assert busy.is_alive()
    busy.join()
    assert pool.stats().cancelled == cancelled + 1
    assert pool.gather("a") == [1, 1]
    assert pool.stats().queued == pool.stats().running == 0


def test_a_callback_that_waits_is_told_what_works_there(pool):
    @pool.tool
    def double(x: int) -> int:
        return 2 * x

    found, ended = [], threading.Event()

    def callback(_):
        try:
            found.append(pool.call("double", {"x": 4}))
            found.append(pool.run("1 + 1").value)
            pool.submit(pow, 2, 3).result()
        except RuntimeError as error:
            found.append(str(error))
        finally:
            ended.set()

    pool.submit(time.sleep, 0.2).add_done_callback(callback)  # not done before it is added

    assert ended.wait(20)
    assert found[:2] == [8, 2]
    assert "pool.call() and pool.run() work here while a worker is free" in found[2]
