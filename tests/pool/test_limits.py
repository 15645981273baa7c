"""What a worker may take: held by the operating system, and told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from snakepit_kernel import Limits, Pool, WorkerDied
from snakepit_kernel.pool.resources.limits import check_limits, find_group
from snakepit_kernel.processes.os_limits import NotDelegated, find_parent

MIB = 1 << 20


def can_hold(*controllers: str) -> bool:
    try:
        find_parent(controllers)
    except NotDelegated:
        return False
    return True


@pytest.mark.parametrize(
    ("limits", "error", "said"),
    [
        ({"cpu_secs": 1}, ValueError, "limits has no 'cpu_secs'; did you mean 'cpu_seconds'"),
        ({"cpu_seconds": "1"}, TypeError, "limits: cpu_seconds must be a number or None, not '1'"),
        ({"cpu_seconds": float("inf")}, ValueError, "cpu_seconds must be positive, not inf"),
        ({"address_space_bytes": 1.5}, TypeError, "address_space_bytes must be a whole number"),
        ({"address_space_bytes": True}, TypeError, "address_space_bytes must be a whole number"),
        ({"memory_bytes": 0}, ValueError, "limits: memory_bytes must be positive, not 0"),
        ({"open_files": 20}, ValueError, "limits: open_files must be at least 128, not 20"),
        (3, TypeError, r"limits must be Limits\(…\) or a mapping, not 3"),
    ],
    ids=str,
)
def test_limits_that_make_no_sense_are_named(limits, error, said):
    with pytest.raises(error, match=said):
        Pool(1, limits=limits)


def test_limits_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="limits: open_files must be at least 128, not 20"):
        Limits(open_files=20)
    with pytest.raises(TypeError, match="memory_bytes must be .* not '1G', which is 1073741824"):
        Limits(memory_bytes="1G")  # type: ignore[arg-type]


def test_limits_are_an_object_or_a_mapping():
    assert check_limits({"cpu_seconds": 2}) == check_limits(Limits(cpu_seconds=2))
    assert check_limits(None) == Limits()


# -- of a process ---------------------------------------------------------------------------------


def test_a_worker_may_take_so_much_memory_beyond_its_own_and_no_more(open_pool):
    pool = open_pool(limits=Limits(address_space_bytes=200 * MIB))

    assert pool.submit(lambda: len(bytearray(150 * MIB))).result() == 150 * MIB
    with pytest.raises(MemoryError):
        pool.submit(lambda: len(bytearray(250 * MIB))).result()
    assert pool.run("bytearray(250 << 20)").error.type_name == "MemoryError"
    assert pool.stats().died == 0


def test_large_values_still_travel_through_shared_memory_under_a_limit(open_pool):
    numpy = pytest.importorskip("numpy")
    pool = open_pool(limits=Limits(address_space_bytes=200 * MIB), preload=["numpy"])
    array = numpy.ones(10 * MIB)  # 80 MiB, which are nobody's but the lane's

    assert pool.submit(numpy.sum, array).result() == 10 * MIB
    assert pool.submit(lambda values: values, array).result().nbytes == 80 * MIB


def test_in_a_pool_of_threads_each_lane_has_its_room(open_pool):
    pool = open_pool(
        profile="thread", threads_per_worker=4, limits={"address_space_bytes": 300 * MIB}
    )

    assert list(pool.map(len, [bytes(4 * MIB)] * 8)) == [4 * MIB] * 8
    with pytest.raises(MemoryError):
        pool.submit(lambda: len(bytearray(400 * MIB))).result()


def test_an_adapter_is_held_to_the_limit_while_it_is_imported(open_pool, tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text(
        "from snakepit_kernel import tool\nROOM = bytearray(300 << 20)\n"
        "@tool\ndef room() -> int:\n    return len(ROOM)\n"
    )
    monkeypatch.chdir(tmp_path)

    with pytest.raises(Exception, match="MemoryError"):
        open_pool(adapter="greedy", limits=Limits(address_space_bytes=200 * MIB))
    assert open_pool(
        adapter="greedy", name="wide", limits=Limits(address_space_bytes=400 * MIB)
    ).call("room") == (300 * MIB)


def test_a_worker_that_has_used_its_cpu_time_is_replaced_and_its_death_explained(open_pool):
    pool = open_pool(limits=Limits(cpu_seconds=1))
    code = "while True: pass"

    with pytest.raises(WorkerDied) as caught:
        pool.run(code)

    assert caught.value.reason == "used its 1 s of CPU time (limits.cpu_seconds)"
    assert str(caught.value).startswith(
        "worker default-1.1 used its 1 s of CPU time (limits.cpu_seconds) and was killed by SIGXCPU"
    )
    assert pool.run("1 + 1", timeout=20).value == 2


def test_a_worker_and_its_children_may_have_so_many_files_open(open_pool):
    pool = open_pool(limits={"open_files": 150})

    def open_many() -> int:
        import os

        files = []
        try:
            while True:
                files.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return len(files)
        finally:
            for file in files:
                os.close(file)

    assert 20 < pool.submit(open_many).result() < 150
    code = (
        "import subprocess; subprocess.run(['sh', '-c', 'ulimit -n'], capture_output=True).stdout"
    )
    assert pool.run(code).value == b"150\n"


def test_the_guardian_and_the_owner_have_no_limits(open_pool):
    pool = open_pool(limits=Limits(cpu_seconds=5, open_files=200))
    worker = psutil.Process(pool.status().workers[0].pid)

    assert worker.rlimit(psutil.RLIMIT_NOFILE) == (200, 200)
    assert worker.parent().rlimit(psutil.RLIMIT_CPU) == psutil.Process().rlimit(psutil.RLIMIT_CPU)
    assert psutil.Process().rlimit(psutil.RLIMIT_NOFILE) != (200, 200)


def test_a_kernel_that_is_not_ours_is_limited_as_well(open_pool, kernelspec):
    # Behind a program that cannot be asked what it has: so it is not ours.
    argv = ("/usr/bin/env", sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    limits = Limits(address_space_bytes=200 * MIB, cpu_seconds=20, open_files=140)
    pool = open_pool(kernel_name=kernelspec("limited", *argv), limits=limits)
    worker = psutil.Process(pool.status().workers[0].pid)

    assert not pool._engine.config.kernel.has_lane
    assert worker.rlimit(psutil.RLIMIT_NOFILE) == (140, 140)
    assert 20 <= worker.rlimit(psutil.RLIMIT_CPU)[0] < 40
    assert pool.run("len(bytearray(100 << 20))").ok
    assert pool.run("bytearray(300 << 20)").error.type_name == "MemoryError"


# -- of a group -----------------------------------------------------------------------------------


def test_no_group_is_looked_for_where_none_is_needed():
    assert find_group(Limits(cpu_seconds=1, open_files=200)) is None


@pytest.mark.skipif(can_hold("memory"), reason="this machine can hold it")
def test_memory_of_a_group_is_refused_with_the_reason_where_it_cannot_be_held():
    with pytest.raises(ValueError, match="limits: memory_bytes cannot be held here: .*") as caught:
        Pool(1, limits=Limits(memory_bytes=512 * MIB))

    assert "cgroup" in str(caught.value)
    assert "use address_space_bytes, or max_memory_bytes of the pool, for memory" in str(
        caught.value
    )


@pytest.mark.skipif(not can_hold("memory", "cpu"), reason="needs a delegated cgroup v2")
def test_a_worker_that_takes_more_memory_than_its_group_has_is_ended_and_that_is_told(open_pool):
    pool = open_pool(limits=Limits(memory_bytes=300 * MIB, cpus=0.5))

    with pytest.raises(WorkerDied, match=r"took more than its 314,572,800 bytes of memory"):
        pool.submit(lambda: sum(bytearray(b"1" * (600 * MIB))[::4096])).result()

    assert pool.run("1 + 1", timeout=20).value == 2


OWNER = """
import sys, time
from snakepit_kernel import Pool
from snakepit_kernel.pool import config
from snakepit_kernel.processes.os_limits import find_parent

config.find_group = lambda limits: find_parent(())  # a group that limits nothing
pool = Pool(1)
print(open(f"/proc/{pool.status().workers[0].pid}/cgroup").read().split("0::")[1].split()[0])
print(pool.status().workers[0].pid, flush=True)
if sys.argv[1] == "ends":
    sys.stdin.read()
    pool.shutdown()
else:
    time.sleep(60)
"""


@pytest.mark.skipif(not can_hold(), reason="needs a cgroup v2 that can be written")
@pytest.mark.parametrize("how", ["ends", "is killed", "is killed with its guardian"])
def test_the_group_of_a_worker_goes_with_it_also_when_its_owner_is_killed(how):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    with owner:
        name = Path(owner.stdout.readline().strip()).name
        worker = psutil.Process(int(owner.stdout.readline()))
        guardian = worker.parent()
        group = find_parent(()) / name
        assert name.startswith("snakepit-")
        assert group.is_dir()
        if how == "ends":
            owner.stdin.close()
        else:
            guardian.suspend()
            owner.kill()
        owner.wait()
    if how == "is killed with its guardian":
        guardian.kill()
        psutil.wait_procs([guardian, worker], timeout=10)
        assert group.exists()
        with Pool(1):  # which sweeps first
            pass
    elif how == "is killed":
        guardian.resume()
    psutil.wait_procs([guardian], timeout=10)

    assert not group.exists()
