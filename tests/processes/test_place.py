"""Where processes live: a container sees other pids, and its runs are left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from snakepit_kernel.processes.place import Reach, here, pid_namespace_of
from snakepit_kernel.processes.registry import Registry

IN_A_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
IN_A_CONTAINER += ["--kill-child"]

OWNER = """
import asyncio, sys
from jupyter_client.manager import AsyncKernelManager
async def main():
    km = AsyncKernelManager(kernel_name="snakepit")
    await km.start_kernel()
    print("ready", flush=True)
    for line in sys.stdin:
        print(await km.is_alive(), flush=True)
    await km.shutdown_kernel(now=True)
asyncio.run(main())
"""


def test_this_very_place_is_here():
    assert here().reach is Reach.HERE
    assert here().pid_namespace == pid_namespace_of("self") != 0


@pytest.mark.parametrize(
    ("changes", "reach", "told"),
    [
        ({"boot": "another"}, Reach.PAST, "host "),
        ({"boot": "another", "host": "other/1"}, Reach.ELSEWHERE, "host other"),
        ({"pid_namespace": 1}, Reach.ELSEWHERE, "another container on "),
        ({"pid_namespace": 1, "host": "other/1"}, Reach.ELSEWHERE, "another container on other"),
    ],
)
def test_another_place_is_the_past_or_elsewhere_and_says_which(changes, reach, told):
    place = replace(here(), **changes)
    assert place.reach is reach
    assert str(place).startswith(told)


def test_a_process_that_is_gone_has_no_namespace():
    assert pid_namespace_of(2**22 + 1) == 0


def unshare_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_CONTAINER, "true"], stderr=-3, check=False).returncode == 0


@pytest.mark.skipif(not unshare_works(), reason="this machine lets us make no PID namespace")
def test_owners_inside_and_outside_of_a_container_do_not_touch_each_others_kernels(
    start_and_shut_down,
):
    """Both use one data directory, and each sweeps it at its start."""
    reap = [sys.executable, "-m", "snakepit_kernel", "reap", "--json"]
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", OWNER]
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as outside,
        subprocess.Popen([*IN_A_CONTAINER, *command], stdin=pipe, stdout=pipe, text=True) as inside,
    ):
        owners = (outside, inside)
        assert [owner.stdout.readline() for owner in owners] == ["ready\n"] * 2
        start_and_shut_down()
        for prefix in ([], IN_A_CONTAINER):
            reaped = subprocess.run([*prefix, *reap], capture_output=True, text=True, check=True)
            told = json.loads(reaped.stdout)
            assert told["runs"] == []
            assert len(told["left_alone"]["elsewhere"]) == (2 if prefix else 1)
        for owner in owners:
            owner.stdin.write("alive?\n")
            owner.stdin.flush()
        assert [owner.stdout.readline() for owner in owners] == ["True\n"] * 2
        assert len(Registry().runs()) == 2
    assert Registry().runs() == []


@pytest.mark.skipif(not unshare_works(), reason="this machine lets us make no PID namespace")
def test_below_the_proc_of_another_namespace_nothing_is_started_or_signalled():
    code = """
import asyncio
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.guarded import GuardedProcess
from snakepit_kernel.processes.sweep import tagged_processes
print(tagged_processes())
asyncio.run(GuardedProcess.start(["true"], run_id=new_run_id(), grace=0, env={}))
"""
    prefix = [word for word in IN_A_CONTAINER if word != "--mount-proc"]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n"
    assert "/proc does not show this PID namespace" in done.stderr
