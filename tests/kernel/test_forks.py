"""Children that a cell of a notebook forks: they end with it, and the kernel goes on."""

from __future__ import annotations

import asyncio

import pytest


@pytest.mark.parametrize(
    ("child", "status"), [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1), ("raise SystemExit", 0)]
)
@pytest.mark.parametrize("awaits", ["", "await asyncio.sleep(0)"])
def test_the_child_of_a_cell_ends_with_it(start_kernel, awaits, child, status):
    cell = f"""
import asyncio, os, sys
{awaits}
pid = os.fork()
if pid == 0:
    {child}
else:
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.getpid()
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert await kernel.run(cell) == f"{status}\n{kernel.pid}"
            assert await kernel.run("os.getpid()") == str(kernel.pid)

    asyncio.run(scenario())


def test_the_child_of_a_cell_has_no_part_in_the_notebooks_pool(start_kernel):
    cell = """
import os
pid = os.fork()
if pid == 0:
    pool.submit(pow, 2, 3)
os.waitpid(pid, 0)
print(pool.submit(pow, 2, 3).result(10))
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("from snakepit_kernel import Pool\npool = Pool(1)")
            assert await kernel.run(cell) == "8"
            assert await kernel.run("print(pool.stats().died)") == "0"
            await kernel.run("pool.shutdown()")

    asyncio.run(scenario())
