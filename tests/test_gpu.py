"""Device memory of a CUDA device comes back with the end of a run. It needs such a device."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
import time

import pytest

GIBIBYTE = 2**30

# What `torch.empty(n, device="cuda")` comes to, without a framework.
CUDA = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
def check(result):
    assert result == 0, f"CUDA error {result}"
device, context = ctypes.c_int(), ctypes.c_void_p()
check(cuda.cuInit(0))
check(cuda.cuDeviceGet(ctypes.byref(device), 0))
check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
"""

TAKE = (
    CUDA
    + """
import os, time
pointer = ctypes.c_uint64()
check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(2**30)))
os.write(1, b"taken\\n")
time.sleep(600)
"""
)

LOOK = (
    CUDA
    + """
free, total = ctypes.c_size_t(), ctypes.c_size_t()
check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
print(free.value)
"""
)

CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {TAKE!r}], stdout=subprocess.PIPE,
    start_new_session=True, env={{}})
assert child.stdout.readline() == b"taken\\n"
"""


def has_device() -> bool:
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value


pytestmark = pytest.mark.skipif(
    not has_device(), reason="no CUDA device: that device memory comes back was NOT tested here"
)


def free_memory() -> int:
    """Return the bytes that are free on the device, seen from a process of its own."""
    looked = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, check=True)
    return int(looked.stdout)


def comes_back(free: int) -> bool:
    """Whether as much is free again, but for what other programs may take meanwhile."""
    until = time.monotonic() + 10  # the driver frees it a moment after the process is gone
    while free_memory() < free - GIBIBYTE // 2:
        if time.monotonic() > until:
            return False
    return True


@pytest.mark.parametrize("end", ["restart", "restart-now", "kill"])
def test_a_child_of_a_kernel_gives_its_device_memory_back(start_kernel, end):
    async def scenario() -> None:
        before = free_memory()
        async with start_kernel() as kernel:
            await kernel.run(CHILD, timeout=60)
            assert free_memory() < before - GIBIBYTE // 2
            if end == "kill":
                await kernel.km.signal_kernel(9)
            else:
                await kernel.km.restart_kernel(now=end == "restart-now")
            assert comes_back(before)

    asyncio.run(scenario())


def test_a_killed_owner_gives_device_memory_back(kernel_owner):
    before = free_memory()
    with kernel_owner(CHILD) as owner:
        owner.wait_ready()
        assert free_memory() < before - GIBIBYTE // 2
        owner.kill()
    assert comes_back(before)
