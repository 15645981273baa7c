"""Options: each wrong one is named, before anything starts."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from snakepit_kernel import Pool
from snakepit_kernel.pool.config import _THREAD_CAPS, PoolOptions
from snakepit_kernel.pool.resources.machine_budget import usable_cores


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"workers": 0}, ValueError, "workers must be between 1 and 150, not 0"),
        ({"workers": 151}, ValueError, "workers must be between 1 and 150, not 151"),
        ({"workers": 1.5}, TypeError, "workers must be a whole number, not 1.5"),
        ({"workers": True}, TypeError, "workers must be a whole number"),
        ({"name": "no spaces"}, ValueError, "pool name 'no spaces' must be 1 to 64 characters"),
        ({"affinity": "hnt"}, ValueError, "affinity 'hnt' is not known; did you mean 'hint'"),
        ({"max_queue": -1}, ValueError, "max_queue must be at least 0, not -1"),
        ({"queue_timeout": "1"}, TypeError, "queue_timeout must be a number of seconds or None"),
        ({"timeout": 0}, ValueError, "timeout must be positive seconds, not 0"),
        ({"grace": -1}, ValueError, "grace must be zero or positive seconds, not -1"),
        ({"standby": -1}, ValueError, r"standby must be between 0 and 150, not -1"),
        ({"preload": "numpy"}, TypeError, r"preload must be a list of module names"),
        ({"env": {"A": 1}}, TypeError, "env must map strings to strings, not 'A' to 1"),
        ({"cwd": "/no/such/place"}, NotADirectoryError, "cwd '/no/such/place' is not a directory"),
        ({"adapter": 3}, TypeError, "adapter must be 'module:Class'"),
        ({"wokers": 2}, TypeError, "there is no option 'wokers'; did you mean 'workers'"),
        ({"max_memory_bytes": "1G"}, TypeError, "not '1G', which is 1073741824"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_wrong_option_is_named_with_what_would_be_right(options, error, said):
    with pytest.raises(error, match=said):
        Pool(**options)


def test_without_a_number_there_is_a_worker_for_each_usable_core(open_pool):
    pool = open_pool(workers=None)

    assert len(pool.status().workers) == usable_cores()


def test_workers_get_the_environment_and_directory_they_were_promised(
    open_pool, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = open_pool(env={"COLOUR": "red"}, cwd=tmp_path)

    code = (
        "import os; e = os.environ;"
        "(e['COLOUR'], e['OMP_NUM_THREADS'], e['OPENBLAS_NUM_THREADS'], os.getcwd())"
    )

    assert pool.run(code).value == ("red", "1", "3", str(tmp_path))


def threads_of_numpy(pool: Pool) -> set[int]:
    code = (
        "import numpy, threadpoolctl as t\n"
        "{each['num_threads'] for each in t.threadpool_info() if each['user_api'] == 'blas'}"
    )
    return pool.run(code).value


def test_numpy_has_one_thread_a_worker_unless_the_user_gave_it_more(open_pool, monkeypatch):
    pytest.importorskip("threadpoolctl")
    for variable in _THREAD_CAPS:
        monkeypatch.delenv(variable, raising=False)

    assert threads_of_numpy(open_pool()) == {1}
    assert threads_of_numpy(open_pool(env={"OMP_NUM_THREADS": "2"})) == {2}
    assert threads_of_numpy(open_pool(env={"OPENBLAS_NUM_THREADS": "2"})) == {2}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_of_numpy(open_pool()) == {2}


def test_preloaded_modules_are_there_and_missing_ones_are_told(open_pool, caplog):
    pool = open_pool(preload=["colorsys", "no_such_module_anywhere"])

    assert pool.submit(_is_loaded, "colorsys").result() is True
    assert "could not preload no_such_module_anywhere: ModuleNotFoundError" in caplog.text


def _is_loaded(name: str) -> bool:
    import sys

    return name in sys.modules


def test_an_option_that_a_pool_takes_has_its_row_in_the_table():
    taken = set(inspect.signature(Pool).parameters)

    assert taken == {option.name for option in dataclasses.fields(PoolOptions)}
