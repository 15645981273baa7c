"""CPython's own tests of executors, run on a pool.

They are those of the interpreter that runs this: `test.test_concurrent_futures`, a package since
Python 3.12, one module before.
"""

from __future__ import annotations

import importlib
import unittest
from types import ModuleType
from typing import Any

import pytest

from snakepit_kernel import Pool

WORKERS = 3
"""Each pool has so many; the tests hold three at most at a time."""


def _cpython(part: str) -> ModuleType:
    """Return the module with a part of CPython's tests, or skip this one."""
    package = "test.test_concurrent_futures"
    try:
        whole = importlib.import_module(package)
        return importlib.import_module(f"{package}.{part}") if hasattr(whole, "__path__") else whole
    except ModuleNotFoundError as error:
        pytest.skip(
            f"this Python has no tests of its own, {error.name} is missing (Debian has them in "
            "libpython3.*-testsuite)",
            allow_module_level=True,
        )


class OnAPool(unittest.TestCase):
    """Gives each test a pool, and waits for all that it has submitted, as CPython's mixins do."""

    executor_type = Pool
    worker_count = WORKERS
    executor: Any

    def setUp(self) -> None:
        self.executor = Pool(self.worker_count)
        self.addCleanup(self.executor.terminate)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)


class TestExecutor(_cpython("executor").ExecutorTest, OnAPool):
    # A pool counts `workers`, not `max_workers`. That their number is checked, and named when it is
    # wrong, is tested in test_config.py.
    test_max_workers_negative = None


class TestWait(_cpython("test_wait").WaitTests, OnAPool):
    pass


class TestAsCompleted(_cpython("test_as_completed").AsCompletedTests, OnAPool):
    pass
