"""The backend of joblib: scikit-learn and `Parallel` on the workers of a pool."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import snakepit_kernel.joblib as backend
from snakepit_kernel import Pool, WorkerDied


@pytest.fixture(autouse=True)
def shared_pools_end():
    yield
    backend.close()


@pytest.fixture
def snakepit():
    with parallel_config(backend="snakepit", n_jobs=2):
        yield


def pid() -> int:
    time.sleep(0.02)
    return os.getpid()


class Unpicklable:
    def __reduce__(self):
        msg = "it holds a lock"
        raise TypeError(msg)


def test_tasks_run_in_workers_that_the_next_call_finds_again(snakepit):
    first = set(Parallel(batch_size=1)(delayed(pid)() for _ in range(8)))
    second = set(Parallel(batch_size=1)(delayed(pid)() for _ in range(8)))

    assert os.getpid() not in first
    assert first == second
    assert len(first) == 2


def test_a_function_of_the_notebook_and_its_arrays_travel(snakepit):
    scale = 3
    matrix = np.arange(200_000.0)

    sums = Parallel()(delayed(lambda a, k: float(a.sum() * k * scale))(matrix, k) for k in range(4))

    assert sums == [float(matrix.sum() * k * 3) for k in range(4)]


def test_the_error_of_a_task_is_raised_and_the_rest_is_not_run(snakepit, tmp_path):
    def touch(number):
        if number == 1:
            raise KeyError(number)
        time.sleep(0.05)
        (tmp_path / str(number)).touch()

    with pytest.raises(KeyError, match="1"):
        Parallel(batch_size=1)(delayed(touch)(number) for number in range(100))

    assert len(list(tmp_path.iterdir())) < 50


def test_what_cannot_travel_is_named_and_the_next_call_works(snakepit):
    with pytest.raises(TypeError, match="it holds a lock"):
        Parallel()(delayed(id)(Unpicklable()) for _ in range(3))

    assert Parallel()(delayed(abs)(-k) for k in range(3)) == [0, 1, 2]


def test_a_worker_that_dies_is_named_and_the_next_call_works(snakepit):
    with pytest.raises(WorkerDied, match=r"joblib-\d"):
        Parallel(batch_size=1)(delayed(die)() for _ in range(2))

    assert Parallel()(delayed(abs)(-k) for k in range(3)) == [0, 1, 2]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_values_come_as_a_generator_before_all_are_there(snakepit):
    values = Parallel(return_as="generator", batch_size=1, pre_dispatch=2)(
        delayed(abs)(-k) for k in range(50)
    )

    assert next(values) == 0
    assert list(values) == list(range(1, 50))


def test_a_time_limit_ends_the_call_and_interrupts_its_tasks(snakepit):
    began = time.monotonic()

    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.3)(delayed(time.sleep)(60) for _ in range(2))

    assert Parallel()(delayed(abs)(-k) for k in range(3)) == [0, 1, 2]
    assert time.monotonic() - began < 20


def test_ctrl_c_ends_the_call_and_interrupts_its_tasks(snakepit):
    main = threading.get_ident()
    threading.Timer(0.4, signal.pthread_kill, (main, signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        Parallel()(delayed(time.sleep)(60) for _ in range(2))

    assert Parallel()(delayed(abs)(-k) for k in range(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("n_jobs", "said"), [(0, "n_jobs == 0 in Parallel has no meaning"), (10_000, "at most 150")]
)
def test_a_number_of_jobs_that_cannot_be_is_named(n_jobs, said):
    with (
        parallel_config(backend="snakepit"),
        pytest.raises(ValueError, match=said),
    ):
        Parallel(n_jobs=n_jobs)(delayed(abs)(-k) for k in range(3))


def test_a_task_that_raises_keyboard_interrupt_interrupts_the_call(snakepit):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parallel()(delayed(interrupt)() for _ in range(2))


def test_an_initializer_runs_once_in_each_worker(tmp_path):
    def note(folder):
        with open(f"{folder}/{os.getpid()}", "a") as file:
            file.write("x")

    with Parallel(
        backend="snakepit", n_jobs=2, batch_size=1, initializer=note, initargs=(tmp_path,)
    ) as parallel:
        pids = set(parallel(delayed(pid)() for _ in range(8)))

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(each): "x" for each in pids
    }


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="no option colour here"):
        Parallel(backend="snakepit", n_jobs=2, colour="red")(delayed(abs)(1) for _ in range(2))


def test_minus_one_means_all_cores_and_is_the_default():
    with parallel_config(backend="snakepit"):
        assert joblib.effective_n_jobs(-1) == joblib.cpu_count()
        assert Parallel().n_jobs == -1


def test_in_a_worker_it_runs_one_after_the_other_and_says_so(snakepit):
    def nested():
        import snakepit_kernel.joblib  # noqa: F401 - it registers the backend

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with parallel_config(backend="snakepit", n_jobs=2):
                pids = set(Parallel()(delayed(os.getpid)() for _ in range(4)))
        return pids == {os.getpid()}, [str(each.message) for each in caught]

    ((is_here, said), *_) = Parallel()(delayed(nested)() for _ in range(2))

    assert is_here
    assert any("this is a worker of a pool already" in each for each in said)


def test_all_cores_inside_a_task_are_its_share_of_them(snakepit):
    def threads():
        found = Parallel(n_jobs=-1, batch_size=1)(delayed(here)() for _ in range(16))
        return len(set(found))

    for count in Parallel()(delayed(threads)() for _ in range(2)):
        assert count <= max(1, joblib.cpu_count() // 2)


def here() -> int:
    time.sleep(0.01)
    return threading.get_ident()


def test_numeric_libraries_get_the_threads_that_are_asked_for():
    with parallel_config(backend="snakepit", n_jobs=2, inner_max_num_threads=3):
        found = Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2))

    assert found == ["3", "3"]


def test_a_pool_that_is_given_is_used_and_stays_open():
    with Pool(workers=2, name="mine") as pool:
        workers = {worker.pid for worker in pool.status().workers}
        for given in (pool, "mine"):
            with parallel_config(backend="snakepit", pool=given, n_jobs=8):
                assert set(Parallel(batch_size=1)(delayed(pid)() for _ in range(8))) <= workers
        assert pool.is_open
        assert joblib.effective_n_jobs(8) == 8
        config = backend.default_to(pool)
        try:
            assert set(Parallel(batch_size=1)(delayed(pid)() for _ in range(8))) <= workers
        finally:
            config.unregister()


def test_a_pool_that_is_not_open_is_named():
    with pytest.raises(ValueError, match="no pool 'nobody' is open here"):
        parallel_config(backend="snakepit", pool="nobody")


def test_an_unused_pool_ends_after_its_time(until):
    with parallel_config(
        backend="snakepit", n_jobs=2, idle_worker_timeout=0.2, name="short", env={"OWN": "1"}
    ):
        Parallel()(delayed(abs)(-k) for k in range(3))

    until(lambda: "short" not in backend.open_pools())


def test_other_numbers_of_jobs_resize_the_pool(snakepit):
    with parallel_config(backend="snakepit", n_jobs=3, inner_max_num_threads=1):
        three = set(Parallel(batch_size=1)(delayed(pid)() for _ in range(12)))
    with parallel_config(backend="snakepit", n_jobs=2, inner_max_num_threads=1):
        two = set(Parallel(batch_size=1)(delayed(pid)() for _ in range(12)))

    assert len(three) == 3
    assert len(two) == 2
    assert two < three


def test_a_search_of_scikit_learn_gives_what_it_gives_without(snakepit):
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    flowers, kinds = load_iris(return_X_y=True)
    grid = {"C": [0.1, 1, 10], "gamma": [0.1, 1]}
    forest = RandomForestClassifier(10, random_state=0)

    def results():
        search = GridSearchCV(SVC(), grid, cv=3).fit(flowers, kinds)
        return (
            search.cv_results_["mean_test_score"].tolist(),
            cross_val_score(forest, flowers, kinds, cv=3).tolist(),
            forest.fit(flowers, kinds).predict(flowers).tolist(),
        )

    parallel = results()
    with parallel_config(backend="sequential"):
        assert results() == parallel
    assert "sklearn" in sys.modules
