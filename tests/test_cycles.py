"""An owner that starts, uses, restarts and ends kernels again and again keeps nothing of them."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from traitlets.config import Config

from snakepit_kernel import Pool, standby_kernels
from snakepit_kernel.processes.run_registry import Registry

WARM = 3  # cycles until caches are filled

FEW = 60  # cycles that may grow as much together as so many: memory is taken in large pieces

MEMORY_PER_CYCLE = 50_000  # bytes; jupyter_client itself keeps some


def holdings() -> dict[str, Any]:
    """What this process holds that a cycle might leave."""
    gc.collect()
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
        except FileNotFoundError:
            pass  # that of the list
    children = psutil.Process().children(recursive=True)
    return {
        "descriptors": Counter(links),
        "threads": Counter(thread.name.split("_")[0] for thread in threading.enumerate()),
        "processes": len([item for item in children if item.status() != psutil.STATUS_ZOMBIE]),
        "runs": len(Registry().runs()),
        "files": sorted(path.name for path in Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).iterdir()),
    }


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kept_ready", [0, 1])
def test_kernels_leave_nothing_in_their_owner(start_kernel, request, kept_ready):
    cycles = request.config.getoption("--cycles")
    config = Config({"SnakepitProvisioner": {"standby": kept_ready, "grace": 0.5}})

    async def cycle(number: int) -> None:
        async with start_kernel(config=config) as kernel:
            code = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(6 * 7)"
            assert await kernel.run(code) == "42"
            await kernel.km.restart_kernel(now=bool(number % 2))
            await kernel.ready()
            assert await kernel.run("print('child' in globals())") == "False"

    async def scenario() -> tuple[dict[str, Any], dict[str, Any], int]:
        for number in range(WARM):
            await cycle(number)
        standby_kernels.close()
        before, memory = holdings(), psutil.Process().memory_full_info().uss
        for number in range(cycles):
            await cycle(number)
        standby_kernels.close()
        return before, holdings(), psutil.Process().memory_full_info().uss - memory

    before, after, grown = asyncio.run(scenario())
    assert after == before
    assert grown < max(cycles, FEW) * MEMORY_PER_CYCLE


@pytest.mark.timeout(1800)
def test_pools_leave_nothing_in_their_owner(request):
    cycles = request.config.getoption("--cycles")

    def cycle() -> None:
        with Pool(workers=2, grace=0.5) as pool:
            assert pool.submit(pow, 2, 3).result() == 8
            assert pool.run("6 * 7").value == 42

    for _ in range(WARM):
        cycle()
    before, memory = holdings(), psutil.Process().memory_full_info().uss
    for _ in range(cycles):
        cycle()
    assert holdings() == before
    assert psutil.Process().memory_full_info().uss - memory < max(cycles, FEW) * MEMORY_PER_CYCLE
