"""A kernel that was forked from a template, beside one that was executed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from snakepit_kernel.errors import StartFailed
from snakepit_kernel.processes.template import TEMPLATE_VARIABLE, templates

pytestmark = pytest.mark.usefixtures("with_templates")

FACTS = """
import asyncio, faulthandler, gc, json, locale, multiprocessing, os, resource, signal, sys
import tempfile, threading

main = sys.modules["__main__"]
pipe = os.popen("pwd; umask; ulimit -n; echo $GIVEN $JPY_PARENT_PID")
facts = {
    "argv": [word for word in sys.argv[1:] if not word.startswith("--snakepit")][:1],
    "program": sys.argv[0],
    "orig_argv": sys.orig_argv[:3],
    "flags": repr(sys.flags),
    "path": sys.path,
    "prefix": sys.prefix,
    "main": sorted(name for name in vars(main) if name.startswith("__")),
    "main is the namespace": main.__dict__ is globals(),
    "name": __name__,
    "environment": {k: v for k, v in os.environ.items() if not k.startswith("SNAKEPIT")},
    "cwd": os.getcwd(),
    "shell": pipe.read(),
    "limits": [resource.getrlimit(n) for n in range(16) if n != resource.RLIMIT_RSS],
    "signals": [str(signal.getsignal(n)).split(" at ")[0] for n in range(1, 32)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "threads": sorted(
        t.name.split(" ")[0].split("-")[0] for t in threading.enumerate()
        if "Heartbeat" not in type(t).__name__
    ),
    "main thread": threading.current_thread() is threading.main_thread(),
    "native id": threading.main_thread().native_id == os.getpid(),
    "session": os.getsid(0) == os.getpid(),
    "group": os.getpgrp() == os.getpid(),
    "methods": multiprocessing.get_all_start_methods(),
    "process": multiprocessing.current_process().name,
    "parent": multiprocessing.parent_process(),
    "faulthandler": faulthandler.is_enabled(),
    "gc": (gc.isenabled(), gc.get_threshold()),
    "stdin": [sys.__stdin__.isatty(), sys.__stdin__.encoding],
    "stdout": [type(sys.stdout).__name__, sys.__stdout__.line_buffering, sys.__stdout__.fileno()],
    "stderr": [type(sys.stderr).__name__, sys.__stderr__.line_buffering, sys.__stderr__.fileno()],
    "locale": locale.setlocale(locale.LC_ALL),
    "recursion": sys.getrecursionlimit(),
    "temporary": tempfile.gettempdir(),
    "priority": os.nice(0),
    "cores": sorted(os.sched_getaffinity(0)),
    "inherited": [n for n in range(3, 64) if _inherits(n)],
}
print(json.dumps(facts))
"""

INHERITS = """
def _inherits(number):
    import os
    try:
        return os.get_inheritable(number)
    except OSError:
        return False
"""


@pytest.fixture
def facts_of(start_kernel, monkeypatch, tmp_path):
    """Return what a kernel says of itself, started in either way."""

    def ask(way: str) -> dict[str, object]:
        monkeypatch.setenv(TEMPLATE_VARIABLE, {"fork": "1", "exec": "0"}[way])

        async def scenario() -> dict[str, object]:
            launch = {"cwd": str(tmp_path), "env": {**os.environ, "GIVEN": "a b"}}
            async with start_kernel(launch=launch) as kernel:
                process = kernel.km.provisioner.guarded
                assert (process.not_forked_because is None) == (way == "fork")
                await kernel.run(INHERITS)
                return json.loads(await kernel.run(FACTS))

        return asyncio.run(scenario())

    return ask


def test_a_forked_kernel_cannot_be_told_from_an_executed_one(facts_of):
    before = os.umask(0o027)
    try:
        forked, executed = facts_of("fork"), facts_of("exec")
    finally:
        os.umask(before)
    different = {k: (forked[k], executed[k]) for k in executed if forked[k] != executed[k]}
    assert different == {}
    assert "0027" in executed["shell"]


def test_two_forked_kernels_share_no_randomness(start_kernel):
    code = """
import multiprocessing, numpy, os, random, secrets, ssl, tempfile, uuid
print(random.random(), numpy.random.rand(), numpy.random.default_rng().random(), uuid.uuid4(),
      uuid.uuid1(), secrets.token_hex(8), ssl.RAND_bytes(8).hex(), os.urandom(8).hex(),
      next(tempfile._get_candidate_names()), multiprocessing.current_process().authkey.hex())
"""

    async def scenario() -> None:
        async with start_kernel() as one, start_kernel() as other:
            said = (await one.run(code)).split(), (await other.run(code)).split()
            assert [a for a, b in zip(*said, strict=True) if a == b] == []

    asyncio.run(scenario())


def test_the_process_list_shows_kernel_and_guardian_as_what_they_are(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            run_id = kernel.km.provisioner.run_id
            process = psutil.Process(kernel.pid)
            command = process.cmdline()
            assert command[:4] == [sys.executable, "-P", "-m", "snakepit_kernel.kernel"]
            assert command[4:] == [
                "-f",
                kernel.km.connection_file,
                f"--snakepit-run-id={run_id}",
            ]
            assert process.environ()["SNAKEPIT_RUN_ID"] == run_id
            guardian = process.parent().cmdline()
            assert guardian[:2] == ["snakepit-guardian", f"--snakepit-run-id={run_id}"]
            assert command == guardian[guardian.index("--") + 1 :]
            (template,) = [t for t in templates() if process.parent().ppid() == t.identity.pid]
            assert template.is_alive

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "code",
    [
        f"import multiprocessing as m; p = m.get_context('{method}').Pool(2); "
        "print(p.map(abs, [-1, -2])); p.close(); p.join()"
        for method in ("fork", "spawn", "forkserver")
    ]
    + [
        "import subprocess; print(subprocess.check_output(['echo', '[1, 2]'], text=True))",
        "import asyncio; print(await asyncio.sleep(0.01, [1, 2]))",
        "import threading as t; r = t.Thread(target=print, args=([1, 2],)); r.start(); r.join()",
        "import numpy as np; a = np.ones((300, 300)); print([1, int((a @ a)[0, 0]) // 150])",
        "%matplotlib inline\nprint([1, 2])",
    ],
)
def test_what_notebooks_do_works_in_a_forked_kernel(start_kernel, code):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert kernel.km.provisioner.guarded.not_forked_because is None
            assert (await kernel.run(code, timeout=60)).split("\n")[0] == "[1, 2]"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("get_ipython().kernel.do_shutdown(False)\nexit()", 0),
    ],
)
def test_its_exit_status_is_told(start_kernel, end, status):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            kernel.kc.execute(end)
            assert await asyncio.wait_for(kernel.km.provisioner.wait(), 20) == status

    asyncio.run(scenario())


def test_its_exit_hooks_run(start_kernel, tmp_path):
    code = f"""
import atexit, threading, time
def note(word):
    with open({str(tmp_path / "hooks")!r}, "a") as file:
        file.write(word + " ")
class Last:
    def __del__(self):
        note("deleted")
last = Last()
atexit.register(note, "atexit")
threading.Thread(target=lambda: (time.sleep(0.2), note("thread"))).start()
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(code)
            await kernel.km.shutdown_kernel()

    asyncio.run(scenario())
    assert (tmp_path / "hooks").read_text().split()[:2] == ["thread", "atexit"]


def test_a_working_directory_that_has_gone_is_named(start_kernel, tmp_path):
    gone = tmp_path / "gone"

    async def scenario() -> None:
        with pytest.raises(StartFailed, match=re.escape(str(gone))):
            async with start_kernel(launch={"cwd": str(gone)}):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_working_directory_may_be_given_in_any_form(start_kernel, tmp_path, kind):
    async def scenario() -> None:
        async with start_kernel(launch={"cwd": kind(tmp_path)}) as kernel:
            assert kernel.km.provisioner.guarded.not_forked_because is None
            assert await kernel.run("import os; print(os.getcwd())") == str(tmp_path)

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [1_000, 120_000, 600_000])
def test_an_environment_of_any_size_arrives(start_kernel, size):
    environment = {**os.environ, **{f"LONG_{n}": "x" * (size // 10) for n in range(10)}}

    async def scenario() -> None:
        async with start_kernel(launch={"env": environment}) as kernel:
            assert kernel.km.provisioner.guarded.not_forked_because is None
            code = "import os; print(sum(len(v) for k, v in os.environ.items() if 'LONG_' in k))"
            assert await kernel.run(code) == str(size)

    asyncio.run(scenario())


def test_without_templates_a_kernel_is_executed_and_says_when_it_is_ready(
    start_kernel, monkeypatch
):
    monkeypatch.setenv(TEMPLATE_VARIABLE, "0")
    before = templates()

    async def scenario() -> None:
        async with start_kernel() as kernel:
            process = kernel.km.provisioner.guarded
            assert process.not_forked_because == "SNAKEPIT_TEMPLATE=0"
            assert process.is_ready
            command = Path(f"/proc/{kernel.pid}/cmdline").read_bytes().split(b"\0")
            assert f"--snakepit-run-id={process.run_id}".encode() in command
            assert "SNAKEPIT_READY_FD" not in await kernel.run("import os; print(os.environ)")

    asyncio.run(scenario())
    assert templates() == before
