"""CPython's own tests of executors, run on a pool.

They are those of the interpreter that runs this: `test.test_concurrent_futures`, a package since
Python 3.12, one module before.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import unittest
from types import ModuleType
from typing import Any

import pytest

from snakepit_kernel import Pool

WORKERS = 3
"""Each pool has so many; the tests hold three at most at a time."""


DEBIANS = "/usr/lib/python{}.{}/test".format(*sys.version_info)
"""Where Debian has the tests of this version, for an interpreter that came without."""


def _find_tests() -> None:
    """Have Debian's tests found where the interpreter has none; its workers find them as well."""
    whole = importlib.util.find_spec("test")
    if whole is not None and importlib.util.find_spec("test.test_concurrent_futures") is not None:
        return
    if os.path.isdir(DEBIANS):
        folder = tempfile.mkdtemp(prefix="cpython-")
        atexit.register(shutil.rmtree, folder)
        os.symlink(DEBIANS, f"{folder}/test")
        for name in [name for name in sys.modules if name.partition(".")[0] == "test"]:
            del sys.modules[name]
        sys.path.insert(0, folder)


def _cpython(part: str) -> ModuleType:
    """Return the module with a part of CPython's tests, or skip this one."""
    package = "test.test_concurrent_futures"
    _find_tests()
    try:
        whole = importlib.import_module(package)
        return importlib.import_module(f"{package}.{part}") if hasattr(whole, "__path__") else whole
    except ModuleNotFoundError as error:
        pytest.skip(
            f"this Python has no tests of its own, {error.name} is missing (Debian has them in "
            "libpython3.*-testsuite)",
            allow_module_level=True,
        )


class Event:
    """An event that travels: it is set when its file is there."""

    def __init__(self, path: str) -> None:
        self._path = path

    def set(self) -> None:
        with open(self._path, "w"):
            pass

    def is_set(self) -> bool:
        return os.path.exists(self._path)

    def wait(self, timeout: float | None = None) -> bool:
        end = time.monotonic() + (60.0 if timeout is None else timeout)
        while not self.is_set() and time.monotonic() < end:
            time.sleep(0.005)  # a file is no event for a process of any kind
        return self.is_set()


Event.__module__ = "__main__"  # by value: this module is no module of the workers


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

    def create_event(self) -> Event:
        """Since Python 3.14 the tests meet by events."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return Event(os.path.join(folder, "set"))


class TestExecutor(_cpython("executor").ExecutorTest, OnAPool):
    # A pool counts `workers`, not `max_workers`. That their number is checked, and named when it is
    # wrong, is tested in test_config.py.
    test_max_workers_negative = None


class TestWait(_cpython("test_wait").WaitTests, OnAPool):
    pass


class TestAsCompleted(_cpython("test_as_completed").AsCompletedTests, OnAPool):
    pass
