"""The life of a pool and its workers: every beginning that fails, every way to end."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snakepit_kernel import Pool, PoolDegraded, StartFailed, WorkerDied

# -- beginnings that fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("no_such_module_anywhere:Shop", "No module named 'no_such_module_anywhere'"),
        ("shop:Shpo", "module 'shop' has no 'Shpo'; did you mean 'Shop'"),
        ("json", "has no tools; mark its functions with @tool"),
        ("broken", "ZeroDivisionError"),
    ],
)
def test_an_adapter_that_cannot_be_used_stops_the_start_and_says_why(shop, adapter, said):
    Path("broken.py").write_text("1 / 0\n")

    with pytest.raises(StartFailed, match=said) as caught:
        Pool(2, adapter=adapter)

    assert repr(adapter) in str(caught.value)


def write_kernelspec(name: str, **changes: object) -> None:
    folder = Path(os.environ["JUPYTER_DATA_DIR"]) / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parents[2] / "kernelspec" / "kernel.json"
    (folder / "kernel.json").write_text(json.dumps({**json.loads(source.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("missing-interpreter", {"argv": ["/no/such/python", "-m", "x"]}, "No such file"),
        (
            "dies-at-start",
            {"argv": [sys.executable, "-c", "print('last words'); raise SystemExit(7)"]},
            "exited with status 7 before it was ready\nits last output:\nlast words",
        ),
        (
            "never-ready",
            {
                "argv": [
                    sys.executable,
                    "-c",
                    "import time; print('waiting', flush=True); time.sleep(60)",
                ]
            },
            r"not ready within 1 s \(start_timeout\)\nits last output:\nwaiting",
        ),
        (
            "anothers",
            {"metadata": {"kernel_provisioner": {"provisioner_name": "slurm"}}},
            "kernelspec 'anothers' names a kernel provisioner that is not installed here",
        ),
    ],
)
def test_a_worker_that_cannot_start_is_told_with_its_last_output(name, changes, said):
    write_kernelspec(name, **changes)

    with pytest.raises(StartFailed, match=said):
        Pool(2, kernel_name=name, start_timeout=1.0 if name == "never-ready" else 30.0)


def test_an_unknown_kernelspec_is_named_with_the_nearest():
    with pytest.raises(StartFailed, match="no kernelspec 'snakpit'; did you mean 'snakepit'"):
        Pool(1, kernel_name="snakpit")


def test_a_broken_pool_does_not_disturb_a_good_one(shop, open_pool):
    """Acceptance case 19."""
    good = open_pool(adapter=shop, name="good")

    with pytest.raises(StartFailed):
        open_pool(kernel_name="no-such-kernel", name="bad")

    assert good.call("price", {"item": "tea"}) == 2.5


def test_a_runtime_directory_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(blocked / "run"))

    with pytest.raises(PermissionError, match=r"cannot use directory .*SNAKEPIT_RUNTIME_DIR"):
        Pool(1)


# -- workers that die -----------------------------------------------------------------------------


def test_an_idle_worker_that_dies_is_replaced_at_once(open_pool):
    pool = open_pool()
    pid = pool.submit(os.getpid).result()
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    while True:
        try:
            new = pool.submit(os.getpid).result(timeout=20)
        except WorkerDied:
            continue  # it was lent in the moment of its death
        if new != pid:
            break

    assert time.monotonic() - began < 5
    assert pool.stats().died == 1
    assert [worker.name for worker in pool.status().workers] == ["default-1.2"]


def test_what_a_dead_worker_had_started_is_gone(open_pool, process_of):
    pool = open_pool()
    pid = pool.run(
        "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); p.pid"
    ).value
    child = process_of(pid)

    with pytest.raises(WorkerDied):
        pool.submit(os._exit, 1).result()

    assert child.wait_gone(4)


def test_a_pool_whose_workers_cannot_be_replaced_says_so_and_hangs_nobody(shop, open_pool):
    pool = open_pool(adapter=shop)
    Path("shop.py").write_text("raise RuntimeError('the shop burnt down')")

    with pytest.raises(WorkerDied):
        pool.call("die")
    with pytest.raises(PoolDegraded, match="the shop burnt down"):
        pool.call("price", {"item": "tea"}, timeout=30)

    assert "the shop burnt down" in pool.status().problem
    assert pool.stats().started == 4


def test_killing_workers_under_load_hangs_nobody_and_all_come_back(shop, open_pool):
    """Acceptance case 23, smaller."""
    import threading

    pool = open_pool(3, adapter=shop)
    outcomes: list[str] = []

    def client() -> None:
        for number in range(60):
            try:
                assert pool.call("echo", {"value": number}, timeout=30) == number
                outcomes.append("ok")
            except WorkerDied:
                outcomes.append("lost")

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for _ in range(6):
        for worker in pool.status().workers[:2]:
            if worker.pid is not None and worker.state in {"ready", "busy"}:
                os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.1)
    for thread in clients:
        thread.join(60)

    assert len(outcomes) == 240
    end = time.monotonic() + 10
    while [w.state for w in pool.status().workers] != ["ready"] * 3 and time.monotonic() < end:
        time.sleep(0.05)
    stats = pool.stats()
    assert [worker.state for worker in pool.status().workers] == ["ready"] * 3
    assert (stats.ok, stats.lost) == (outcomes.count("ok"), outcomes.count("lost"))
    assert stats.submitted == 240


# -- endings --------------------------------------------------------------------------------------


def test_terminate_interrupts_what_runs_and_ends_within_its_grace(shop, open_pool):
    pool = open_pool(adapter=shop, grace=1.0)
    future = pool.submit(time.sleep, 60)
    while not future.running():
        time.sleep(0.005)
    began = time.monotonic()

    pool.terminate()

    assert time.monotonic() - began < 20  # and not 60
    assert future.done()
    pool.terminate()  # a second time changes nothing


def test_a_worker_that_ignores_sigterm_is_gone_when_shutdown_returns(open_pool, process_of):
    """Acceptance case 3."""
    pool = open_pool(grace=0.5)
    pid = pool.run(
        "import os, signal, atexit, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "atexit.register(time.sleep, 60)\nos.getpid()"
    ).value
    worker = process_of(pid)
    began = time.monotonic()

    pool.shutdown()

    assert time.monotonic() - began < 20  # and not 60
    assert not worker.is_alive


def test_an_idle_worker_runs_its_exit_hooks(open_pool, tmp_path):
    pool = open_pool()
    pool.run(
        f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path / 'bye')!r}).touch)"
    )

    pool.shutdown()

    assert (tmp_path / "bye").exists()


def test_a_pool_that_is_collected_ends(process_of):
    pool = Pool(1)
    worker = process_of(pool.submit(os.getpid).result())
    del pool
    gc.collect()

    assert worker.wait_gone(10)


def test_two_pools_do_not_disturb_each_other(open_pool):
    one, two = open_pool(name="one"), open_pool(name="two")
    pid = two.submit(os.getpid).result()

    one.terminate()

    assert two.submit(os.getpid).result() == pid


# -- looking --------------------------------------------------------------------------------------


def test_the_status_shows_workers_counters_and_sessions_as_text_and_html(shop, open_pool):
    pool = open_pool(2, adapter=shop, name="shop")
    pool.session("abc").call("price", {"item": "<tea>"})

    status = pool.status()

    assert [worker.state for worker in status.workers] == ["ready", "ready"]
    assert status.sessions == ["abc"]
    assert "pool shop of process" in str(status)
    assert "shop:Shop" in str(status)
    assert "done: 1; sessions: abc" in str(status)
    assert status._repr_html_().count("<tr>") == 3
    assert all(worker.memory_bytes > 1 << 20 for worker in status.workers)


def test_the_logs_hold_what_a_worker_wrote_on_its_real_streams(open_pool):
    pool = open_pool()
    pool.submit(os.system, "echo from below >&2").result()

    until = time.monotonic() + 5
    while "from below" not in pool.logs()["default-1.1"]:  # a thread of the worker writes it
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_process_that_does_not_die_is_named_when_the_pool_ends(powerless_python, process_of):
    code = f"""
import os, subprocess, sys
sys.executable = {powerless_python!r}
from snakepit_kernel import Pool
with Pool(1, grace=0.2) as pool:
    child = pool.submit(os.posix_spawn, "/bin/sleep", ["sleep", "600"], {{}}).result()
    print(child, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    child = process_of(int(done.stdout))
    assert child.is_alive
    child.kill()

    assert "default-1.1: processes of run " in done.stderr
    assert f"{child.pid} S sleep 600" in done.stderr


def test_a_program_that_ends_with_an_open_pool_that_works_says_nothing():
    code = """
import time
from snakepit_kernel import Pool
pool = Pool(1, max_memory_bytes=2**40, heartbeat=True)
pool.session("s").submit(abs, -1).result()
running = pool.submit(time.sleep, 30)
time.sleep(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
