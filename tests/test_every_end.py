"""Every end that an owner, a pool or a kernel may find: nothing is left of it, and that in time.

What ends here has workers, and each worker has two children: one in a session of its own, and one
behind a double fork that ignores SIGTERM, so that every end has to go as far as SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from snakepit_kernel import Pool
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.provisioner import SnakepitProvisioner

GRACE = 0.5
IN_TIME = GRACE + 0.5
"""Seconds from the death of an owner to that of a child which ignores SIGTERM."""

CHILDREN = """
import subprocess
child = subprocess.Popen(['sleep', '600'], start_new_session=True)
deaf = "trap '' TERM HUP INT; setsid sleep 600 >/dev/null 2>&1 </dev/null &"
subprocess.run(['sh', '-c', deaf])
"""

PRELUDE = f"""
import os, resource, signal, sys
from pathlib import Path
from snakepit_kernel import Pool
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
CHILDREN = {CHILDREN!r}
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""

POOL = f"""
pool = Pool(2, grace={GRACE})
pool.run_all(CHILDREN)
say("ready", *(worker.pid for worker in pool.status().workers))
"""


class Script:
    """A script in a process of its own: it says words, and goes on when it is told to."""

    def __init__(self, code: str, errors: Path) -> None:
        self._errors = errors
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.pid = self.process.pid

    def hear(self, word: str) -> list[int]:
        """Wait for a word; return the numbers that follow it."""
        assert self.process.stdout is not None
        heard, *numbers = self.process.stdout.readline().split() or [""]
        assert heard == word, self._errors.read_text()
        return [int(number) for number in numbers]

    def tell(self, word: str = "go on") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)  # our own child, not reaped: no other can be hit

    def wait(self) -> int:
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.__exit__(None, None, None)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    scripts: list[Script] = []

    def start(code: str) -> Script:
        scripts.append(Script(code, tmp_path / f"errors-{len(scripts)}"))
        return scripts[-1]

    yield start
    for item in scripts:
        item.close()


@pytest.fixture
def pool_script(script: Callable[[str], Script]) -> Callable[[str], Script]:
    """Start a script that has a pool of two workers with children, and then runs its end."""
    return lambda end: script(POOL + textwrap.dedent(end))


class Stopwatch:
    """Seconds since it was made, less those in which somebody had to wait for a processor.

    What is promised is promised of a machine that has a processor to spare.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._stalled = self._stall()

    @staticmethod
    def _stall() -> float:
        try:
            some = Path("/proc/pressure/cpu").read_text().partition("total=")[2]
        except OSError:
            return 0.0
        return int(some.split()[0]) / 1e6

    def __call__(self) -> float:
        return time.monotonic() - self._began - (self._stall() - self._stalled)


def left_in_time(processes: list[Any], since: Stopwatch, limit: float = IN_TIME) -> list[str]:
    """Wait for processes to end; return those that are alive when the time is over."""
    for process in processes:
        while process.is_alive and (remaining := limit - since()) > 0:
            process.wait_gone(remaining)
    return [str(process) for process in processes if process.is_alive]


def files() -> list[str]:
    folders = [Path(os.environ[f"{name}_RUNTIME_DIR"]) for name in ("JUPYTER", "SNAKEPIT")]
    return [  # not by rglob, which fails when a folder goes meanwhile
        f"{place}/{name}"
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
    ]


def assert_nothing_is_left(living: Callable[[], list[Any]], *spared: int) -> None:
    """No process but those that are spared, no file, no run that lives."""
    assert [str(process) for process in living() if process.pid not in spared] == []
    assert files() == []
    assert [run.label for run in Registry().runs() if not run.is_dead] == []


def start_and_shut_down() -> None:
    """Do what ends what dead runs have left: start a kernel."""

    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name="snakepit")
        await km.start_kernel()
        await km.shutdown_kernel(now=True)

    asyncio.run(scenario())


def kill_together(processes: list[Any]) -> None:
    """Kill several processes so that none sees another die."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)  # ours: we are their parent or their subreaper
    for process in processes:
        process.kill()
    for process in processes:
        assert process.wait_gone()


def guardians_among(processes: list[Any]) -> list[Any]:
    pattern = re.compile(r"guardian(\.py)? --snakepit-run-id=")
    return [process for process in processes if pattern.search(command(process.pid))]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


# -- scripts with a pool -------------------------------------------------------------------------

POLITE = {
    "return-from-main": "def main(): hear()\nmain()",
    "sys.exit": "hear(); sys.exit(3)",
    "uncaught-exception": "hear(); raise ValueError('uncaught')",
    "exit-in-a-thread-pool-callback": """
        hear()
        future = pool.submit(os.getpid)
        future.add_done_callback(lambda _: pool.terminate())
        future.result()
    """,
}
RUDE = {
    "SIGKILL-while-a-worker-holds-the-GIL": """
        pool.submit(sum, range(10**11))
        hear()
        os.kill(os.getpid(), signal.SIGKILL)
    """,
    "os._exit": "hear(); os._exit(4)",
    "os.abort": "hear(); os.abort()",
    "exec-of-another-program": "hear(); os.execv('/bin/true', ['true'])",
    **{
        name: f"hear(); os.kill(os.getpid(), signal.{name}); signal.pause()"
        for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL")
    },
}


@pytest.mark.parametrize("end", POLITE.values(), ids=POLITE.keys())
def test_when_a_script_has_ended_by_itself_its_pool_is_gone(pool_script, living, end):
    owner = pool_script(end)
    owner.hear("ready")
    assert len(living()) == 9  # the script, two guardians, two workers, two children of each

    owner.tell()
    owner.wait()

    assert_nothing_is_left(living)


@pytest.mark.parametrize("end", RUDE.values(), ids=RUDE.keys())
def test_when_a_script_was_ended_its_pool_is_gone_in_time(pool_script, living, end):
    owner = pool_script(end)
    owner.hear("ready")
    started = living()
    assert len(started) == 9

    owner.tell()
    owner.wait()

    assert left_in_time(started, Stopwatch()) == []
    assert_nothing_is_left(living)


@pytest.mark.parametrize("pause", [0.02, 0.3])
def test_a_double_interrupt_in_a_call_that_heeds_none_ends_the_script_and_its_pool(
    pool_script, living, tmp_path, pause
):
    cell = f"""
import time
open({str(tmp_path / "in")!r}, "w").close()
while True:
    try:
        time.sleep(9)
    except BaseException:
        pass
"""
    owner = pool_script(f"pool.run({cell!r})")
    owner.hear("ready")
    started = living()
    while not (tmp_path / "in").exists():
        time.sleep(0.01)  # the cell tells by a file

    owner.send(signal.SIGINT)
    time.sleep(pause)  # what is tested
    owner.send(signal.SIGINT)

    since = Stopwatch()
    owner.wait()
    assert since() < 2 * IN_TIME
    assert left_in_time(started, Stopwatch()) == []
    assert_nothing_is_left(living)


def test_what_a_script_left_that_died_with_its_guardians_is_ended_by_the_next_start(
    pool_script, living
):
    owner = pool_script("hear()")
    owner.hear("ready")
    started = living()

    kill_together([*guardians_among(started), *(p for p in started if p.pid == owner.pid)])
    assert len([process for process in started if process.is_alive]) >= 4

    start_and_shut_down()

    assert [str(process) for process in started if process.is_alive] == []
    assert_nothing_is_left(living)
    assert Registry().runs() == []
    remove_empty_folders()


def remove_empty_folders() -> None:
    """Do what a start does a minute later: a folder may be young because it is about to be used."""
    for folder in Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).iterdir():
        folder.rmdir()


def test_a_script_that_is_killed_while_its_pool_starts_leaves_nothing(script, living):
    for delay in (0.01, 0.1, 0.2, 0.3, 0.45, 0.6):
        owner = script("say('in')\npool = Pool(2)\nhear()")
        owner.hear("in")
        time.sleep(delay)  # what is tested
        owner.send(signal.SIGKILL)
        owner.wait()
        since = Stopwatch()
        while started := living():
            assert left_in_time(started, since) == []
    start_and_shut_down()
    assert_nothing_is_left(living)
    assert Registry().runs() == []
    remove_empty_folders()


# -- two scripts ---------------------------------------------------------------------------------

LOOK = """
    for slot in pool.slots():
        pool.push({"state": "kept"}, worker=slot)
    before = sorted(worker.pid for worker in pool.status().workers)
    while hear() == "look":
        rows = [c.value for c in pool.run_all("(__import__('os').getpid(), state, child.poll())")]
        assert sorted(rows) == [(pid, "kept", None) for pid in before], rows
        say("same", pool.stats().died)
"""


def test_a_script_keeps_its_workers_when_another_stops_is_killed_or_dies_with_its_guardians(
    pool_script, living
):
    first = pool_script(LOOK)
    workers = first.hear("ready")
    mine = living()

    for end in ("stops", "is killed", "dies with its guardians"):
        other = pool_script("hear()\npool.shutdown()")
        assert set(other.hear("ready")).isdisjoint(workers)
        theirs = [process for process in living() if process not in mine]
        if end == "stops":
            other.tell()
        elif end == "is killed":
            other.send(signal.SIGKILL)
        else:
            kill_together([*guardians_among(theirs), *(p for p in theirs if p.pid == other.pid)])
        other.wait()
        start_and_shut_down()

        assert left_in_time(theirs, Stopwatch()) == [], end
        assert [str(process) for process in mine if not process.is_alive] == [], end
        first.tell("look")
        assert first.hear("same") == [0], end

    first.tell("end")
    first.wait()
    start_and_shut_down()  # which forgets what the one before could not know to be dead
    assert_nothing_is_left(living)
    assert Registry().runs() == []
    remove_empty_folders()


# -- notebooks with a pool -----------------------------------------------------------------------

NOTEBOOK = f"""
from snakepit_kernel import Pool
pool = Pool(1, grace={GRACE})
_ = pool.run({CHILDREN!r})
"""
SHORT = Config({"SnakepitProvisioner": {"grace": GRACE}})


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
@pytest.mark.parametrize("verb", ["restart", "shutdown"])
def test_a_notebook_that_restarts_or_ends_takes_its_pool_with_it(start_kernel, living, verb, now):
    async def scenario() -> None:
        async with start_kernel(config=SHORT) as kernel:
            await kernel.run(NOTEBOOK)
            before = living()
            assert len(before) == 6

            await getattr(kernel.km, f"{verb}_kernel")(now=now)

            assert [str(process) for process in before if process.is_alive] == []
            if verb == "restart":
                await kernel.ready()
                assert await kernel.run("print('pool' in globals())") == "False"
        assert_nothing_is_left(living)

    asyncio.run(scenario())


def test_a_notebook_kernel_that_is_killed_takes_its_pool_with_it(start_kernel, living):
    async def scenario() -> None:
        async with start_kernel(config=SHORT) as kernel:
            await kernel.run(NOTEBOOK)
            before = living()

            os.kill(kernel.pid, signal.SIGKILL)

            assert await asyncio.to_thread(left_in_time, before, Stopwatch()) == []
        assert_nothing_is_left(living)

    asyncio.run(scenario())


def test_a_killed_manager_takes_its_notebook_and_the_pool_in_it_with_it(script, living):
    owner = script(f"""
        import asyncio
        from jupyter_client.manager import AsyncKernelManager
        from traitlets.config import Config
        async def main():
            config = Config({dict(SHORT)!r})
            km = AsyncKernelManager(kernel_name="snakepit", config=config)
            await km.start_kernel()
            kc = km.client()
            kc.start_channels()
            await kc.wait_for_ready(timeout=30)
            await kc.execute_interactive({NOTEBOOK!r}, timeout=30)
            say("ready")
            hear()
        asyncio.run(main())
    """)
    owner.hear("ready")
    started = living()
    assert len(started) == 7

    owner.send(signal.SIGKILL)
    owner.wait()

    assert left_in_time(started, Stopwatch()) == []
    assert_nothing_is_left(living)


# -- pools in pools ------------------------------------------------------------------------------

INNER = NOTEBOOK.replace("pool =", "inner =").replace("pool.run", "inner.run")


@pytest.mark.parametrize("end", ["shutdown", "outer script", "middle worker", "middle guardian"])
def test_a_pool_in_a_worker_of_a_pool_ends_with_either(script, living, process_of, end):
    owner = script(f"""
        pool = Pool(1, grace={GRACE})
        pool.run({INNER!r})
        say("ready", pool.status().workers[0].pid)
        hear()
        pool.shutdown()
        say("gone")
        hear()
    """)
    (worker,) = owner.hear("ready")
    started = [process for process in living() if process.pid != owner.pid]
    assert len(started) == 6
    (guardian,) = (p for p in guardians_among(started) if f"--owner={owner.pid}:" in command(p.pid))

    if end == "shutdown":
        owner.tell()
        owner.hear("gone")
        assert_nothing_is_left(living, owner.pid)
    elif end == "outer script":
        owner.send(signal.SIGKILL)
    else:
        (process_of(worker) if end == "middle worker" else guardian).kill()

    assert left_in_time(started, Stopwatch()) == []
    if end.startswith("middle"):
        owner.tell()  # its pool has a new worker, or is about to
        owner.hear("gone")
        start_and_shut_down()  # the inner one's owner could not cross it out any more
        assert_nothing_is_left(living, owner.pid)
        assert Registry().runs() == []


# -- starts that fail ----------------------------------------------------------------------------


@pytest.fixture
def fickle_kernel(tmp_path, monkeypatch) -> str:
    """A kernelspec whose kernel dies with a child at each start, until there is a file ``good``."""
    folder = tmp_path / "kernels" / "fickle"
    folder.mkdir(parents=True)
    start = f'{sys.executable} -m snakepit_kernel.kernel -f "$1"'
    shell = f"[ -e {tmp_path}/good ] && exec {start}; setsid sleep 600 & sleep 0.05; exit 7"
    spec = {
        "argv": ["sh", "-c", shell, "fickle", "{connection_file}"],
        "display_name": "Fickle",
        "language": "python",
        "metadata": {"kernel_provisioner": {"provisioner_name": "snakepit-provisioner"}},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return "fickle"


def test_a_restarter_that_gives_up_leaves_nothing_and_a_later_restart_works(
    fickle_kernel, tmp_path, living
):
    eager = Config({"KernelRestarter": {"time_to_dead": 0.1, "restart_limit": 3}})

    async def scenario() -> None:
        km = AsyncIOLoopKernelManager(kernel_name=fickle_kernel, autorestart=True, config=eager)
        gave_up = asyncio.Event()
        await km.start_kernel()
        km.add_restart_callback(gave_up.set, "dead")
        await asyncio.wait_for(gave_up.wait(), 30)
        assert [str(process) for process in living() if not process.wait_gone(IN_TIME)] == []
        assert [run for run in Registry().runs() if run.run_id != km.provisioner.run_id] == []

        (tmp_path / "good").touch()
        await km.restart_kernel(now=True)
        kc = km.client()
        kc.start_channels()
        await kc.wait_for_ready(timeout=30)
        kc.stop_channels()
        await km.shutdown_kernel(now=True)
        km.context.destroy(linger=0)

    asyncio.run(scenario())
    assert_nothing_is_left(living)
    assert Registry().runs() == []


@pytest.fixture
def failing_post_launch(monkeypatch) -> None:
    async def post_launch(self: Any, **_: Any) -> None:
        raise ValueError("after the launch")

    monkeypatch.setattr(SnakepitProvisioner, "post_launch", post_launch)


@pytest.mark.parametrize("then", ["shutdown", "shutdown-now", "cleanup"])
def test_a_start_that_fails_after_the_launch_leaves_nothing(failing_post_launch, living, then):
    async def scenario() -> None:
        km = AsyncKernelManager(kernel_name="snakepit")
        with pytest.raises(ValueError, match="after the launch"):
            await km.start_kernel()
        if then == "cleanup":
            await km.cleanup_resources()
        else:
            await km.shutdown_kernel(now=then == "shutdown-now")

    asyncio.run(scenario())
    assert_nothing_is_left(living)


def test_a_pool_whose_workers_fail_after_the_launch_leaves_nothing(failing_post_launch, living):
    with pytest.raises(ValueError, match="after the launch"):
        Pool(2)
    gc.collect()
    assert_nothing_is_left(living)
    assert Registry().runs() == []
