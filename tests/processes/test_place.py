"""Where processes live: a container sees other pids, and its runs are left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from snakepit_kernel.processes.pid_scope import (
    INITIAL_TIME_NAMESPACE,
    PidScope,
    Visibility,
    here,
    pid_namespace_of,
)
from snakepit_kernel.processes.run_registry import Registry

IN_A_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
IN_A_CONTAINER += ["--kill-child"]
BY_ANOTHER_CLOCK = ["unshare", "--user", "--map-root-user", "--time", "--boottime", "86400"]
BY_ANOTHER_CLOCK += ["--fork", "--kill-child"]

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
    assert here().visibility is Visibility.HERE
    assert here().pid_namespace == pid_namespace_of("self") != 0


@pytest.mark.parametrize(
    ("changes", "visibility", "told"),
    [
        ({"boot": "another"}, Visibility.PAST, "host "),
        ({"boot": "another", "host": "other/1"}, Visibility.ELSEWHERE, "host other"),
        ({"pid_namespace": 1}, Visibility.ELSEWHERE, "another container on "),
        (
            {"pid_namespace": 1, "host": "other/1"},
            Visibility.ELSEWHERE,
            "another container on other",
        ),
        ({"time_namespace": 1}, Visibility.ELSEWHERE, "another time namespace on "),
        ({"host": "clone/1"}, Visibility.ELSEWHERE, "host clone"),
        ({"boot": "another", "time_namespace": 1}, Visibility.PAST, "host "),
    ],
)
def test_another_place_is_the_past_or_elsewhere_and_says_which(changes, visibility, told):
    place = replace(here(), **changes)
    assert place.visibility is visibility
    assert str(place).startswith(told)


@pytest.mark.parametrize("time_namespace", [here().time_namespace, 4026532570])
def test_a_place_is_read_as_it_was_written_down(time_namespace):
    place = replace(here(), time_namespace=time_namespace)
    assert PidScope.read(place.written_host, place.boot, place.pid_namespace) == place


def test_a_place_that_an_earlier_version_wrote_down_is_in_the_first_time_namespace():
    place = PidScope.read(here().host, here().boot, here().pid_namespace)
    assert place.time_namespace == INITIAL_TIME_NAMESPACE
    assert place == here()


def test_a_process_that_is_gone_has_no_namespace():
    assert pid_namespace_of(2**22 + 1) == 0


def unshare_works(prefix=IN_A_CONTAINER) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*prefix, "true"], stderr=-3, check=False).returncode == 0


@pytest.mark.parametrize(
    "apart",
    [
        pytest.param(
            prefix,
            id=name,
            marks=pytest.mark.skipif(not unshare_works(prefix), reason="it is not allowed here"),
        )
        for name, prefix in {"container": IN_A_CONTAINER, "clock": BY_ANOTHER_CLOCK}.items()
    ],
)
def test_owners_inside_and_outside_of_a_namespace_do_not_touch_each_others_kernels(
    apart, start_and_shut_down
):
    """Both use one data directory, and each sweeps it at its start."""
    reap = [sys.executable, "-m", "snakepit_kernel", "reap", "--json"]
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", OWNER]
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as outside,
        subprocess.Popen([*apart, *command], stdin=pipe, stdout=pipe, text=True) as inside,
    ):
        owners = (outside, inside)
        assert [owner.stdout.readline() for owner in owners] == ["ready\n"] * 2
        start_and_shut_down()
        for prefix in ([], apart):
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
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.sweep import tagged_processes
print(tagged_processes())
spec = LaunchSpec.of(["true"], run_id=new_run_id(), grace=0, env={})
asyncio.run(GuardedProcess.start(spec))
"""
    prefix = [word for word in IN_A_CONTAINER if word != "--mount-proc"]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n"
    assert "/proc does not show this PID namespace" in done.stderr
