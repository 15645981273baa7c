"""Measure how kernels and pools start, ours beside the stock one, in one run.

    pip install '.[notebooks]'
    python benchmarks/starting.py

Measures by turns, round after round in changing order, so that a slow moment of the machine meets
all; a first turn warms up, unmeasured, and starts the templates. Prints medians, and beside each
goal what was reached.

- *start*: from the call of ``start_kernel`` until one ``kernel_info_request`` is answered.
  *template*: no kernel is kept ready, so that the kernel is forked. *standby*: one is ready.
  Kernels are reached by ipc, but where it says *curve* (encrypted TCP) or *tcp*.
- *restart*: from the call of ``restart_kernel`` until the new kernel answers a new client; with
  ``now=True``, or a graceful one of a kernel with one living child.
- *pool*: from the call of ``Pool``, whose template is warm, until every worker is ready; with
  numpy and pandas imported ahead, beside stock kernels that start at the same time and import them
  in their first cell. The memory is the sum of the proportional set sizes (PSS) of workers and
  kernels, after a cell that imports both.
- *first tool*: from the call of ``Pool`` until a function that one worker ran has returned, beside
  the first ``execute_reply`` of a stock kernel.
- *20 workers*, *50 workers*: until each has run a function, beside as many stock kernels that start
  at the same time and answer a ``kernel_info_request`` each. With 50 there is one round.
- *cells*: a cell that does nothing, from its request to its reply, in a notebook kernel with a
  pool of four, idle, and while the four are killed and replaced.
- *first cell*: the first cell of a kernel, and those that follow. One that is kept ready, as all
  are but the first of their owner, has rehearsed one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

STOCK, OURS = "python3", "snakepit"

PATIENCE = 60.0
"""Seconds after which a kernel is taken to be broken."""

ATTEMPTS = 3
"""How often many stock kernels are started at most: sometimes one finds its port taken by the
connection of a client, and is never there."""

SETTLE = 1.5
"""Seconds in which the next kernel is started ahead, and a cell is well over."""

PRELOAD = ["numpy", "pandas"]

IMPORTS = f"import {', '.join(PRELOAD)}"

CHILD = """
import subprocess
child = subprocess.Popen(["sleep", "600"])
"""

NOTEBOOK = """
from snakepit_kernel import Pool
pool = Pool(workers=4)
"""

READY_WORKERS = "[worker.pid for worker in pool.status().workers if worker.state == 'ready']"

Measured = dict[str, float]


# -- kernels ---------------------------------------------------------------------------------------


def manager_of(name: str, standby: int = 0, context: Any = None, transport: str = "auto") -> Any:
    """Make the manager of a kernel.

    Parameters
    ----------
    name
        The kernelspec.
    standby
        How many of ours are kept ready.
    context
        ZeroMQ context that it shares with others.
    transport
        How ours is reached; by default by ipc.
    """
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    return AsyncKernelManager(
        kernel_name=name,
        config=Config({"SnakepitProvisioner": {"standby": standby, "transport": transport}}),
        **({"context": context} if context is not None else {}),
    )


@contextlib.asynccontextmanager
async def started(km: Any) -> AsyncIterator[Any]:
    """Start a kernel, give its manager, and end it."""
    # A kernel that is kept ready has the owner's standard streams, and cannot be given others.
    nowhere = subprocess.DEVNULL
    streams = {"stdout": nowhere, "stderr": nowhere} if km.kernel_name == STOCK else {}
    await km.start_kernel(**streams)
    try:
        yield km
    finally:
        await km.shutdown_kernel(now=True)


@contextlib.asynccontextmanager
async def client_of(km: Any) -> AsyncIterator[Any]:
    """Connect a new client."""
    kc = km.client()
    kc.start_channels()
    try:
        yield kc
    finally:
        kc.stop_channels()


async def answer(km: Any) -> float:
    """Wait until the kernel answers a new client; give the moment."""
    async with client_of(km) as kc:
        await kc.kernel_info(reply=True, timeout=PATIENCE)
        return time.perf_counter()


async def run(kc: Any, code: str, **options: Any) -> Any:
    """Run a cell; give the content of its reply."""
    reply = await kc.execute(code, reply=True, timeout=PATIENCE, **options)
    assert reply["content"]["status"] == "ok", reply["content"]
    return reply["content"]


async def value_of(kc: Any, expression: str) -> Any:
    """Give the value of an expression in a kernel, a list of numbers."""
    content = await run(kc, "pass", user_expressions={"value": expression})
    return json.loads(content["user_expressions"]["value"]["data"]["text/plain"])


async def seconds_of(kc: Any, code: str) -> float:
    """Give the seconds from the request of a cell to its reply."""
    began = time.perf_counter()
    await run(kc, code)
    return time.perf_counter() - began


def memory_of(pids: Iterable[int]) -> int:
    """Give the bytes that processes hold, with their share of what several hold."""
    import psutil

    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def is_older(pid: int, moment: float) -> bool:
    """Tell whether a process was there well before a moment of `time.time`."""
    import psutil

    return bool(psutil.Process(pid).create_time() < moment - 0.2)


# -- starts and restarts ---------------------------------------------------------------------------


async def start(label: str, name: str, standby: int = 0, transport: str = "auto") -> Measured:
    km = manager_of(name, standby, transport=transport)
    asked, began = time.time(), time.perf_counter()
    async with started(km):
        taken = await answer(km) - began
        if standby:
            assert is_older(km.provisioner.pid, asked), "no kernel was ready"
            await asyncio.sleep(SETTLE)
    return {label: taken}


async def first_reply(label: str, name: str) -> Measured:
    km = manager_of(name)
    began = time.perf_counter()
    async with started(km), client_of(km) as kc:
        await run(kc, "pass")
        return {label: time.perf_counter() - began}


async def restart(
    label: str, name: str, standby: int = 0, *, now: bool = True, cell: str = "pass"
) -> Measured:
    async with started(manager_of(name, standby)) as km:
        async with client_of(km) as kc:
            await run(kc, cell)
        await asyncio.sleep(SETTLE)
        asked, began = time.time(), time.perf_counter()
        await km.restart_kernel(now=now)
        taken = await answer(km) - began
        if standby:
            assert is_older(km.provisioner.pid, asked), "no kernel was ready"
            await asyncio.sleep(SETTLE)
    return {label: taken}


# -- many at once ----------------------------------------------------------------------------------


async def stock_kernels(label: str, count: int, cell: str = "") -> Measured:
    """Start stock kernels at the same time, until each answers or has run a cell."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(TimeoutError):
            return await all_stock_kernels(label, count, cell)
    return await all_stock_kernels(label, count, cell)


async def all_stock_kernels(label: str, count: int, cell: str) -> Measured:
    import zmq.asyncio

    context = zmq.asyncio.Context()
    managers = [manager_of(STOCK, context=context) for _ in range(count)]
    began = time.perf_counter()
    async with contextlib.AsyncExitStack() as kernels:

        async def one(km: Any) -> int:
            await kernels.enter_async_context(started(km))
            if cell:
                async with client_of(km) as kc:
                    await run(kc, cell)
            else:
                await answer(km)
            return int(km.provisioner.pid)

        pids = await asyncio.gather(*(one(km) for km in managers))
        measured: Measured = {label: time.perf_counter() - began}
        if cell:
            measured[f"{label}: memory"] = memory_of(pids)
    context.destroy(linger=0)
    return measured


def imported_ahead(label: str) -> Measured:
    """Open a pool that imports ahead, until all its workers are ready."""
    from snakepit_kernel import Pool
    from snakepit_kernel.processes.template import templates

    began = time.perf_counter()
    with Pool(workers=4, preload=PRELOAD) as pool:
        taken = time.perf_counter() - began
        pool.run_all(IMPORTS)
        memory = memory_of(item.pid for item in pool.status().workers if item.pid is not None)
        (template,) = [
            item for item in templates() if set(PRELOAD) <= set(item.kind.preload)
        ]  # which process it is
        assert template.identity is not None
        return {
            label: taken,
            f"{label}: memory": memory,
            f"{label}: memory with template": memory + memory_of([template.identity.pid]),
        }


def functions(label: str, count: int) -> Measured:
    """Open a pool, until each worker has run a function."""
    from snakepit_kernel import Pool

    began = time.perf_counter()
    with Pool(workers=count) as pool:
        futures = [pool.submit(pow, 2, 10) for _ in range(count)]
        assert [future.result() for future in futures] == [1024] * count
        return {label: time.perf_counter() - began}


# -- cells -----------------------------------------------------------------------------------------


async def cells(label: str) -> Measured:
    """Run cells in a kernel with a pool; replace the workers of the pool meanwhile."""
    idle: list[float] = []
    refilling: list[float] = []
    async with started(manager_of(OURS)) as km, client_of(km) as kc:
        await run(kc, NOTEBOOK)
        for _ in range(3):
            pids = await value_of(kc, READY_WORKERS)
            assert len(pids) == 4
            idle += [await seconds_of(kc, "pass") for _ in range(100)]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            while len(set(await value_of(kc, READY_WORKERS)) - set(pids)) < 4:
                refilling += [await seconds_of(kc, "pass") for _ in range(5)]
    return {
        f"{label}: idle": statistics.median(idle),
        f"{label}: workers are replaced": statistics.median(refilling),
    }


async def first_cell(label: str, name: str, standby: int = 0) -> Measured:
    async with started(manager_of(name, standby)) as km, client_of(km) as kc:
        await kc.kernel_info(reply=True, timeout=PATIENCE)
        first, *later = [await seconds_of(kc, "1+1") for _ in range(51)]
    return {f"{label}: first": first, f"{label}: later": statistics.median(later)}


# -- all of it -------------------------------------------------------------------------------------

Take = Callable[[str], Awaitable[Measured]]


def apart(function: Callable[..., Measured], *arguments: Any) -> Take:
    """Take a measurement that blocks, in a thread."""
    return lambda label: asyncio.to_thread(function, label, *arguments)


MEASUREMENTS: dict[str, Take] = {
    "stock start": functools.partial(start, name=STOCK),
    "template start": functools.partial(start, name=OURS),
    "template start by curve": functools.partial(start, name=OURS, transport="curve"),
    "template start by tcp": functools.partial(start, name=OURS, transport="tcp"),
    "standby start": functools.partial(start, name=OURS, standby=1),
    "stock restart": functools.partial(restart, name=STOCK),
    "template restart": functools.partial(restart, name=OURS),
    "standby restart": functools.partial(restart, name=OURS, standby=1),
    "stock restart with a child": functools.partial(restart, name=STOCK, now=False, cell=CHILD),
    "standby restart with a child": functools.partial(
        restart, name=OURS, standby=1, now=False, cell=CHILD
    ),
    "stock 4 with imports": functools.partial(stock_kernels, count=4, cell=IMPORTS),
    "pool of 4 with imports": apart(imported_ahead),
    "stock first reply": functools.partial(first_reply, name=STOCK),
    "pool first tool": apart(functions, 1),
    "stock 20": functools.partial(stock_kernels, count=20),
    "pool of 20": apart(functions, 20),
    "stock 50": functools.partial(stock_kernels, count=50),
    "pool of 50": apart(functions, 50),
    "notebook cell": cells,
    "stock cell": functools.partial(first_cell, name=STOCK),
    "template cell": functools.partial(first_cell, name=OURS),
    "standby cell": functools.partial(first_cell, name=OURS, standby=1),
}
"""How each is taken. What one finds bears its name, or its name, a colon and more."""

ONCE = {"stock 50", "pool of 50"}
"""What is measured in the first round only."""


class Row(NamedTuple):
    """A comparison of two medians.

    Attributes
    ----------
    title
        For people.
    base, ours
        What is compared.
    kind
        How: how many times as ``fast``; which ``share`` in percent; how many ``times`` as long;
        how many milliseconds ``more``.
    goal
        At least, for ``fast``; else at most. None for what has no goal.
    """

    title: str
    base: str
    ours: str
    kind: str
    goal: float | None

    @property
    def measurements(self) -> set[str]:
        """What has to be measured for it."""
        return {label.partition(":")[0] for label in (self.base, self.ours)}

    def reached(self, middle: Measured) -> float:
        """Compare the medians."""
        base, ours = middle[self.base], middle[self.ours]
        if self.kind == "fast":
            return base / ours
        if self.kind == "share":
            return 100 * ours / base
        return ours / base if self.kind == "times" else 1000 * (ours - base)

    def say(self, reached: float) -> str:
        """Show what was reached, and the goal."""
        shown = {
            "fast": f"{reached:.1f} x as fast",
            "share": f"{reached:.0f} %",
            "times": f"{reached:.2f} x as long",
            "more": f"{reached:.1f} ms more",
        }[self.kind]
        if self.goal is None:
            return shown
        met = reached >= self.goal if self.kind == "fast" else reached <= self.goal
        goal = {"fast": "at least {:g} x", "share": "at most {:g} %", "times": "at most {:g} x"}
        text = goal.get(self.kind, "at most {:g} ms").format(self.goal)
        return f"{shown:16}  (goal: {text}{'' if met else '; MISSED'})"


PSS = "stock 4 with imports: memory"

ROWS = {
    "start-template": Row("start, template", "stock start", "template start", "fast", 6),
    "start-standby": Row("start, standby", "stock start", "standby start", "fast", 20),
    "start-curve": Row(
        "start, encrypted against plain TCP",
        "template start by tcp",
        "template start by curve",
        "more",
        5,
    ),
    "start-tcp": Row(
        "start, plain TCP against ipc", "template start", "template start by tcp", "more", None
    ),
    "restart-template": Row(
        "restart now, template", "stock restart", "template restart", "fast", None
    ),
    "restart-now": Row("restart now", "stock restart", "standby restart", "fast", 8),
    "restart-child": Row(
        "graceful restart with a child",
        "stock restart with a child",
        "standby restart with a child",
        "fast",
        20,
    ),
    "pool-imports": Row(
        "pool of 4, numpy and pandas", "stock 4 with imports", "pool of 4 with imports", "fast", 8
    ),
    "pool-memory": Row("its memory", PSS, "pool of 4 with imports: memory", "share", 45),
    "pool-template": Row(
        "its memory with the template",
        PSS,
        "pool of 4 with imports: memory with template",
        "share",
        None,
    ),
    "first-tool": Row("first tool of a pool", "stock first reply", "pool first tool", "fast", 40),
    "workers-20": Row("20 workers", "stock 20", "pool of 20", "fast", 25),
    "workers-50": Row("50 workers", "stock 50", "pool of 50", "fast", 6),
    "cells": Row(
        "cells while workers are replaced",
        "notebook cell: idle",
        "notebook cell: workers are replaced",
        "times",
        1.5,
    ),
    "first-cell": Row("the first cell", "standby cell: later", "standby cell: first", "more", 3),
    "first-cell-template": Row(
        "the first cell, template", "template cell: later", "template cell: first", "more", None
    ),
    "first-cell-stock": Row(
        "the first cell, stock", "stock cell: later", "stock cell: first", "more", None
    ),
}


async def warm_up() -> None:
    """Start the templates, and one kernel that is kept ready."""
    await stock_kernels("", 1, IMPORTS)
    await asyncio.to_thread(functions, "", 1)
    await asyncio.to_thread(imported_ahead, "")
    async with started(manager_of(OURS, standby=1)) as km:
        await answer(km)
        await asyncio.sleep(SETTLE)


async def measure(rounds: int, names: set[str]) -> dict[str, list[float]]:
    """Take measurements, by turns."""
    found: dict[str, list[float]] = {}
    await warm_up()
    chosen = [name for name in MEASUREMENTS if name in names]
    for turn in range(rounds):
        for name in chosen[::-1] if turn % 2 else chosen:
            if turn and name in ONCE:
                continue
            for label, value in (await MEASUREMENTS[name](name)).items():
                found.setdefault(label, []).append(value)
    return found


def amount(label: str, value: float) -> str:
    """Show what was measured in its unit."""
    if "memory" in label:
        return f"{value / 2**20:8.1f} MiB"
    return f"{1000 * value:8.2f} ms "


def show(found: dict[str, list[float]], rows: Iterable[Row]) -> None:
    print(f"{'':46} median  (min-max, rounds)")
    for label in sorted(found):
        values = found[label]
        low, high = (amount(label, value).strip() for value in (min(values), max(values)))
        middle = amount(label, statistics.median(values))
        print(f"{label:46} {middle}  ({low} - {high}, {len(values)})")
    print()
    middles = {label: statistics.median(values) for label, values in found.items()}
    for row in rows:
        print(f"{row.title:34} {row.say(row.reached(middles))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    options = parser.parse_args()
    rows = [ROWS[name] for name in options.only]
    names = set().union(*(row.measurements for row in rows))
    show(asyncio.run(measure(options.rounds, names)), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
