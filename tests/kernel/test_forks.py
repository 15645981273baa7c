"""Children that a cell of a notebook forks: they end with it, and the kernel goes on."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from traitlets.config import Config


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


def test_children_of_a_cell_show_whole_messages_of_any_size_side_by_side(start_kernel):
    cell = """
import os
pids = []
for number in range(8):
    pid = os.fork()
    if pid == 0:
        for part in range(20):
            print(f"<{number}.{part}>" + str(number) * 30_000 + "</>", flush=True)
        os._exit(0)
    pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            said = await kernel.run(cell)
            while said.count("</>") < 160:  # the cell ends, and what the thread has comes behind it
                message = await kernel.kc.get_iopub_msg(timeout=20)
                if message["msg_type"] == "stream":
                    said += message["content"]["text"]
            for number in range(8):
                for part in range(20):
                    assert f"<{number}.{part}>" + str(number) * 30_000 + "</>" in said

    asyncio.run(scenario())


def test_a_child_of_a_cell_cannot_show_more_than_is_decent_and_says_so(start_kernel, capfd):
    cell = """
import os
pid = os.fork()
if pid == 0:
    print("x" * (65 << 20), flush=True)
    print("after", flush=True)
    os._exit(0)
os.waitpid(pid, 0)[1]
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            said = await kernel.run(cell)
            while "after" not in said:
                message = await kernel.kc.get_iopub_msg(timeout=20)
                said += message["content"].get("text", "")
            assert "xxx" not in said

    asyncio.run(scenario())
    assert (
        "bytes of output are not shown: a forked child can show 67108864" in capfd.readouterr().err
    )


def test_a_child_that_outlives_its_kernel_prints_to_nobody_and_goes_on(start_kernel, tmp_path):
    cell = f"""
import os, signal, time
pid = os.fork()
if pid == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.001)
    began = time.monotonic()
    for number in range(1000):  # more than would be kept for somebody
        print("to nobody", flush=True)
    open({str(tmp_path / "told")!r}, "w").write(str(time.monotonic() - began))
    os._exit(0)
"""

    async def scenario() -> None:
        patient = Config({"SnakepitProvisioner": {"grace": 30}})  # the child is to come to its end
        async with start_kernel(config=patient) as kernel:
            await kernel.run(cell)
            os.kill(kernel.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while not (tmp_path / "told").exists() or not (tmp_path / "told").read_text():
                    await asyncio.sleep(0.01)
            assert float((tmp_path / "told").read_text()) < 3

    asyncio.run(scenario())
