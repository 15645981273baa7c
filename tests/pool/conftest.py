"""What tests of the pool share."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from snakepit_kernel import Pool

SAME = 5
"""Looks in a row that find the same number of descriptors, before it counts as final."""

SHOP = '''
    import os, signal, sys, time
    from snakepit_kernel import Adapter, tool

    class Shop(Adapter):
        @tool
        def price(self, item: str, amount: int = 1) -> float:
            """What it costs."""
            return 2.5 * amount

        @tool
        def fail(self, text: str = "sold out"):
            error = KeyError(text)
            error.add_note("try tomorrow")
            raise error

        @tool
        def whoami(self) -> dict:
            context = self.context
            return {"session": context.session_id, "worker": context.worker, "pid": os.getpid()}

        @tool
        def nap(self, seconds: float) -> str:
            time.sleep(seconds)
            return "rested"

        @tool
        async def anap(self, seconds: float) -> str:
            import asyncio
            await asyncio.sleep(seconds)
            return "rested"

        @tool
        def say(self, text: str):
            print(text)
            print("oops", file=sys.stderr)

        @tool
        def die(self, how: str = "KILL"):
            os.kill(os.getpid(), getattr(signal, f"SIG{how}"))

        @tool(timeout=0.2)
        def hurried(self):
            time.sleep(30)

        @tool
        def echo(self, value):
            return value
'''


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the test, with an adapter of many tools."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP))
    monkeypatch.chdir(tmp_path)
    return "shop:Shop"


@pytest.fixture
def open_pool() -> Iterator[Callable[..., Pool]]:
    """Open pools that are ended with the test."""
    pools: list[Pool] = []

    def open_one(workers: int = 1, **options: object) -> Pool:
        pools.append(Pool(workers, **options))  # type: ignore[arg-type]
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.terminate()


@pytest.fixture
def pool(shop: str, open_pool: Callable[..., Pool]) -> Pool:
    """A pool of one worker with the shop's tools."""
    return open_pool(adapter=shop)


@pytest.fixture(scope="module")
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have what the module defines travel by value: workers cannot import the tests."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def kernelspec() -> Callable[..., str]:
    """Install a kernelspec from its name and command; the name comes back."""

    def install(name: str, *argv: str, language: str = "python", **fields: object) -> str:
        folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"argv": argv, "display_name": name, "language": language, **fields}
        (folder / "kernel.json").write_text(json.dumps(spec))
        return name

    return install


@pytest.fixture(scope="module")
def open_for_all() -> Iterator[Callable[..., Pool]]:
    """Open pools that are ended with the module, with all that a pool opens when it is needed.

    Each test's own check for what it leaves behind would find it else.
    """
    pools: list[Pool] = []

    def open_one(workers: int = 1, **options: object) -> Pool:
        pool = Pool(workers, **options)  # type: ignore[arg-type]
        pools.append(pool)
        pool.run_all("0")
        places = workers * options.get("threads_per_worker", 1)
        list(pool.map(_array_back, [np.zeros(10**6)] * places * 2))
        wait_for_all_sockets()
        return pool

    yield open_one
    for pool in pools:
        pool.terminate()


def wait_for_all_sockets() -> None:
    """Wait until no descriptor is opened any more: ZeroMQ does so in threads, and tells nobody."""
    counts = [-1] * SAME
    while len(set(counts[-SAME:])) > 1 or counts[-1] < 0:
        time.sleep(0.1)
        counts.append(len(os.listdir("/proc/self/fd")))


def _array_back(array: np.ndarray) -> np.ndarray:
    time.sleep(0.02)
    return array + 1


_array_back.__module__ = "__main__"  # by value: this module is no module of the workers
