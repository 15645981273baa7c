"""Running cells in workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading
import time

import pytest

from snakepit_kernel import CallTimeout, Unserializable, WorkerDied


def test_a_cell_gives_its_value_and_what_it_showed(open_pool):
    result = open_pool().run(
        "import sys\nprint('a'); print('b')\nprint('c', file=sys.stderr)\n6 * 7"
    )

    assert result.ok
    assert result.value == 42
    assert (result.stdout, result.stderr) == ("a\nb\n", "c\n")
    assert result.outputs[-1]["data"] == {"text/plain": "42"}
    assert result.execution_count == 1
    assert result.worker == "default-1.1"


def test_variables_stay_in_the_worker_and_the_last_value_is_an_object(open_pool):
    pool = open_pool()
    pool.run("import numpy as np\nx = np.arange(3)")

    result = pool.run("x + 1")

    assert result.value.tolist() == [1, 2, 3]
    assert pool.run("y = 5").value is None


def test_a_value_that_cannot_travel_is_told_and_the_rest_is_there(open_pool):
    result = open_pool().run("import threading\nthreading.Lock()")

    assert result.ok
    assert result.value == Unserializable("_thread.lock")
    assert "lock" in result.outputs[-1]["data"]["text/plain"]


def test_a_value_that_cannot_travel_is_an_error_where_the_pool_wants_that(open_pool):
    result = open_pool(unserializable="error").run("import threading\nthreading.Lock()")

    assert result.ok
    assert result.value is None
    assert "cannot travel" in str(result.value_error)


def test_a_cell_that_raises_is_a_result_with_the_workers_traceback(open_pool):
    result = open_pool().run("print('before')\n1 / 0")

    assert not result.ok
    assert result.error.type_name == "ZeroDivisionError"
    assert "ZeroDivisionError" in "\n".join(result.error.traceback)
    assert result.stdout == "before\n"
    assert result.outputs[-1]["output_type"] == "error"


@pytest.mark.parametrize("code", ["def f(:", "%no_such_magic", "exit(", "raise SystemExit(3)"])
def test_a_broken_cell_leaves_the_worker_alive(open_pool, code):
    pool = open_pool()

    result = pool.run(code)

    assert not result.ok or code == "%no_such_magic"
    assert pool.run("1 + 1").value == 2
    assert pool.stats().died == 0


def test_plots_frames_and_updates_arrive_as_in_a_notebook(open_pool):
    result = open_pool().run(
        "import matplotlib.pyplot as plt, pandas as pd\n"
        "from IPython.display import display, clear_output\n"
        "print('old'); clear_output()\n"
        "plt.plot([1, 2]); plt.show()\n"
        "handle = display('one', display_id=True); handle.update('two')\n"
        "pd.DataFrame({'a': [1]})"
    )

    kinds = [set(output["data"]) for output in result.outputs]
    assert kinds == [{"text/plain", "image/png"}, {"text/plain"}, {"text/plain", "text/html"}]
    assert result.outputs[1]["data"]["text/plain"] == "'two'"


def test_output_arrives_while_the_cell_runs(open_pool):
    arrived: dict[str, float] = {}

    def note(message):
        if message["msg_type"] == "stream":
            arrived.setdefault(message["content"]["text"].strip(), time.monotonic())

    open_pool().run(
        "import time\nprint('first', flush=True)\ntime.sleep(0.6)\nprint('second')", on_message=note
    )

    assert arrived["second"] - arrived["first"] > 0.4


def test_a_cell_that_passes_its_deadline_is_interrupted_and_the_state_stays(open_pool):
    pool = open_pool()
    pool.run("kept = 1")

    with pytest.raises(CallTimeout, match="a cell passed its timeout of 0.3 s"):
        pool.run("import time; time.sleep(30)", timeout=0.3)

    assert pool.run("kept").value == 1


def test_ctrl_c_interrupts_the_cell_and_the_state_stays(open_pool):
    """Acceptance case 51."""
    pool = open_pool()
    pool.run("kept = 1")
    began = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.run("import time; time.sleep(30)")

    assert time.monotonic() - began < 20
    assert pool.run("kept").value == 1


def test_ctrl_c_interrupts_the_cell_in_all_workers_and_says_where_they_were(open_pool):
    pool = open_pool(2)
    pool.run_all("import time")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()

    with pytest.raises(KeyboardInterrupt) as caught:
        pool.run_all("kept = 1\ntime.sleep(60)")

    assert time.monotonic() - began < 20
    assert [note.splitlines()[0] for note in caught.value.__notes__] == [
        "in worker default-1.1:",
        "in worker default-2.1:",
    ]
    assert all("----> 2 time.sleep(60)" in note for note in caught.value.__notes__)
    assert [result.value for result in pool.run_all("kept")] == [1, 1]


def test_ctrl_c_ends_the_workers_that_ignore_it_and_what_still_waits_for_one(open_pool):
    pool = open_pool(2, grace=0.4)
    deaf = (
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        pass"
    )
    busy = pool.submit(time.sleep, 3)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt) as caught:
        pool.run_all(deaf)

    (note,) = caught.value.__notes__
    assert note.endswith("the worker was replaced: the variables of its cells are gone")
    assert not busy.done(), "the cell that waited was not run"
    assert pool.stats().queued == 0


def test_a_deadline_that_passes_before_the_cell_has_begun_interrupts_it_all_the_same(open_pool):
    pool = open_pool()
    pid = pool.run("import os; os.getpid()").value

    for milliseconds in range(1, 20):
        with pytest.raises(CallTimeout):
            pool.run("import time; time.sleep(30)", timeout=milliseconds / 1000)

    assert pool.run("import os; os.getpid()").value == pid


DEAF_FOR_A_MOMENT = """
import signal, time
def nap():
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(0.3)
    signal.signal(signal.SIGINT, heard)
    time.sleep(30)
"""


def test_an_interrupt_that_a_cell_did_not_hear_is_repeated(open_pool):
    pool = open_pool()
    pool.run(f"{DEAF_FOR_A_MOMENT}\nkept = 1")

    with pytest.raises(CallTimeout):
        pool.run("nap()", timeout=0.1)

    assert pool.run("kept").value == 1


def test_a_cell_that_cleans_up_after_an_interrupt_is_interrupted_once(open_pool):
    pool = open_pool()
    code = """
import time
try:
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.5)
    clean = True
"""
    with pytest.raises(CallTimeout):
        pool.run(code, timeout=0.3)

    assert pool.run("clean").value is True


def test_a_cell_that_heeds_no_interrupt_is_ended_with_its_worker(open_pool):
    pool = open_pool(grace=0.4)

    with pytest.raises(CallTimeout):
        pool.run(
            "import time\nwhile True:\n    try:\n        time.sleep(60)\n"
            "    except KeyboardInterrupt:\n        pass",
            timeout=1.0,  # by then it runs, however busy the machine is
        )

    assert pool.run("1 + 1", timeout=20).value == 2
    assert pool.stats().died == 1


def test_a_cell_whose_worker_dies_says_so_at_once(open_pool):
    pool = open_pool()
    began = time.monotonic()

    with pytest.raises(WorkerDied, match="SIGKILL"):
        pool.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert time.monotonic() - began < 20
    assert pool.run("1 + 1", timeout=20).value == 2


def test_cells_are_awaited_while_the_loop_goes_on_and_can_be_cancelled(open_pool, tmp_path):
    pool = open_pool(2)

    async def main() -> None:
        meet = (
            "import pathlib, time\n"
            "place = pathlib.Path({place!r})\n"
            "(place / '{n}').touch()\n"
            "while len(list(place.iterdir())) < 2: time.sleep(0.01)\n"
            "{n}"
        )
        results = await asyncio.gather(
            *(pool.arun(meet.format(place=str(tmp_path), n=n), timeout=30) for n in range(2))
        )
        assert [result.value for result in results] == [0, 1]
        task = asyncio.create_task(pool.arun("kept = 1; time.sleep(30)", worker=1))
        await asyncio.sleep(0.4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.arun("kept", worker=1, timeout=2)).value == 1

    asyncio.run(main())


def test_variables_are_pushed_before_the_cell_and_pulled_after_it(open_pool):
    pool = open_pool(2)

    result = pool.run("doubled = 2 * given", push={"given": 21}, pull=["doubled"])

    assert result.pulled == {"doubled": 42}


def test_push_and_pull_reach_a_certain_worker(open_pool):
    pool = open_pool(2)
    pool.push({"x": 1}, worker=1)
    pool.push({"x": 2}, worker=2)

    assert [pool.pull("x", worker=n)["x"] for n in (1, 2)] == [1, 2]
    with pytest.raises(NameError, match="name 'nope' is not defined in the worker"):
        pool.pull(["nope"])


def test_a_cell_runs_in_every_worker_or_in_a_certain_one(open_pool):
    pool = open_pool(3)

    everywhere = pool.run_all("import os; os.getpid()")

    pids = [result.value for result in everywhere]
    assert len(set(pids)) == 3
    assert pool.run("os.getpid()", worker=2).value == pids[1]
    with pytest.raises(ValueError, match=r"there is no worker 9; there are 1, 2, 3"):
        pool.run("1", worker=9)


def test_worker_code_finds_its_context(open_pool):
    pool = open_pool()
    code = "import snakepit_kernel as s; c = s.context(); (c.session_id, c.pool, c.worker)"

    assert pool.session("abc").run(code).value == ("abc", "default", "default-1.1")
    assert pool.run(code).value == (None, "default", "default-1.1")


def test_cells_and_calls_share_one_worker_in_turn(pool):
    pool.run("import builtins; builtins.mark = 7")

    assert pool.submit(lambda: __import__("builtins").mark).result() == 7


def test_a_cell_must_be_text(open_pool):
    with pytest.raises(TypeError, match="a cell is text, not int"):
        open_pool().run(3)


def test_who_waits_for_a_worker_that_is_given_up_is_told(open_pool):
    pool = open_pool(grace=0.2, queue_timeout=None)

    @pool.tool
    def stubborn():
        import signal
        import time

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)

    def be_stubborn() -> None:
        with pytest.raises(CallTimeout):
            pool.call("stubborn", timeout=0.5)

    thread = threading.Thread(target=be_stubborn)
    thread.start()
    while pool.stats().running == 0:
        time.sleep(0.005)

    with pytest.raises(WorkerDied):
        pool.run("1 + 1", worker=1)
    thread.join()


def test_who_asks_for_a_worker_that_is_known_to_be_dead_waits_for_the_next(open_pool):
    """Whoever talked to it may notice that before the pool's own watch does."""
    pool = open_pool()
    supervisor = pool._engine.supervisor
    with supervisor._lock:
        pid = supervisor.workers[1].process.pid
        supervisor.stop_scheduling(supervisor.workers[1])
    with concurrent.futures.ThreadPoolExecutor() as threads:
        cell = threads.submit(pool.run, "1 + 1", worker=1, timeout=10)
        while not pool.stats().queued:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert cell.result().value == 2


def test_a_first_cell_on_a_worker_that_has_just_died_says_so_or_waits_for_the_next(open_pool):
    pool = open_pool()
    os.kill(pool.status().workers[0].pid, signal.SIGKILL)
    began = time.monotonic()

    try:
        assert pool.run("1 + 1", worker=1, timeout=10).value == 2
    except WorkerDied:
        assert time.monotonic() - began < 9

    assert pool.run("1 + 1", worker=1, timeout=10).value == 2


def test_a_cell_gives_what_it_has_for_the_pager(open_pool):
    result = open_pool().run("len?")

    (page,) = result.pages
    assert "Return the number of items in a container" in page["text/plain"]
