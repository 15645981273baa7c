"""Processes that /proc hides (``hidepid``), from their own user as well: they are ended too.

Each test runs in a PID namespace with a /proc of its own, without any capability.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HIDDEN = """
import ctypes, os, signal, subprocess, sys, time
PR_SET_DUMPABLE = 4
HIDE = "import ctypes, os, signal, sys, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0);"
WAIT = " print(os.getpid(), flush=True); time.sleep(600)"
def hidden(code="", **arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", HIDE + code + WAIT], stdout=subprocess.PIPE, **arguments)
    return int(child.stdout.readline())
"""

OWNER = (
    HIDDEN
    + """
import asyncio, json
from snakepit_kernel import Pool, keep
from snakepit_kernel.processes.run_registry import Registry

def run(code, **options):
    global pool, worker
    pool = Pool(1, grace=0.5, **options)
    pid = int(pool.run(HIDDEN + code).value)
    assert not readable(pid), "it is not hidden"
    worker = next(iter(pool._engine.supervisor.workers.values()))
    return pid

def readable(pid):
    try:
        open(f"/proc/{pid}/stat").close()
    except OSError:
        return False
    return True

def gone(pid, patience=5.0):
    # A zombie is as good: this process is the first of its namespace, and collects nothing.
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select
    return bool(select.select([descriptor], [], [], patience)[0])

def report():
    found = worker.process.manager.provisioner.last_report
    return [found.verified, found.count, found.survivors, [item.pid for item in found.kept]]

def reap(*options):
    command = [sys.executable, "-m", "snakepit_kernel", "reap", *options]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout

def tell(*facts):
    print(json.dumps(facts), flush=True)
    os._exit(0)
"""
)


def behind(hidepid: int, *command: str) -> list[str]:
    """Return a command that runs where /proc hides what is not dumpable."""
    mount = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() == 0:  # whose group is let see everything, by default
        powerless += ["--regid=65534", "--clear-groups"]
    else:
        namespaces += ["--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
        powerless += ["--ambient-caps=-all"]
    return [*namespaces, "sh", "-c", mount, "sh", *powerless, *command]


def can_hide() -> bool:
    try:
        return subprocess.run(behind(2, "true"), stderr=-3, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not can_hide(), reason="this machine lets us mount no /proc")


@pytest.fixture
def look(tmp_path: Any) -> Iterator[Callable[..., Any]]:
    """Run an owner's code where /proc hides processes; return what it tells."""
    place = tempfile.mkdtemp(prefix="spt-", dir="/tmp")  # short: sockets lie below it
    places = {f"SNAKEPIT_{name}_DIR": f"{place}/{name[0]}" for name in ("RUNTIME", "DATA")}

    def run(code: str, hidepid: int = 2, prefix: tuple[str, ...] = ()) -> Any:
        program = [*prefix, sys.executable, "-c", HIDDEN_TEXT + textwrap.dedent(code)]
        done = subprocess.run(
            behind(hidepid, *program),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **places},
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
        return json.loads(done.stdout)

    yield run
    shutil.rmtree(place)


HIDDEN_TEXT = f"HIDDEN = {HIDDEN!r}\n{OWNER}"


@pytest.mark.parametrize("hidepid", [1, 2, 4])
def test_hidden_children_are_ended_with_their_run(hidepid, look):
    """A child, one that is deaf to SIGTERM, an orphan, and one below another that is hidden."""
    code = """
    run("hidden()")
    codes = ["signal.signal(15, signal.SIG_IGN);", "os.fork() and os._exit(0); os.setsid();"]
    codes += ["os.fork() and time.sleep(600);"]
    pids = [int(pool.run(f"hidden({code!r})").value) for code in codes]
    assert not any(map(readable, pids))
    began = time.monotonic()
    pool.shutdown()
    tell(report(), all(map(gone, pids)), time.monotonic() - began < 4)
    """
    (verified, count, survivors, _), gone, is_quick = look(code, hidepid)

    assert (verified, count, survivors, gone, is_quick) == (True, 5, [], True, True)


@pytest.mark.parametrize(("hidepid", "pause"), [(1, 0), (2, 0), (2, 0.05)])
def test_a_hidden_child_is_found_by_its_mark_when_its_guardian_was_killed(hidepid, pause, look):
    code = f"""
    pid = run("hidden(env={{}}, start_new_session=True)")
    os.kill(worker.process.guarded.guardian.pid, 9)
    time.sleep({pause})  # the pool may notice, and be ending it when it is told to
    pool.terminate()
    tell(report(), gone(pid), reap())
    """
    (verified, count, survivors, _), gone, reaped = look(code, hidepid)

    assert (verified, count, survivors, gone) == (True, 1, [], True)
    assert reaped == "nothing to end\n"


def test_a_hidden_child_that_is_to_be_kept_is_kept(look):
    code = """
    pid = run("import snakepit_kernel\\nwith snakepit_kernel.keep():\\n    pid = hidden()\\npid")
    pool.terminate()
    at_end = report(), gone(pid, 0)
    reaped = json.loads(reap("--json"))["kept"]
    reap("--kept")
    tell(pid, *at_end, reaped, gone(pid))
    """
    pid, (verified, _, survivors, kept), gone_at_end, reaped, gone = look(code)

    assert (verified, survivors, kept, gone_at_end) == (True, [], [pid], False)
    assert [item["pid"] for item in reaped] == [pid]
    assert gone


def test_a_hidden_owner_is_no_dead_one(look):
    """Whoever sweeps cannot see it, nor whether it is another process with its pid."""
    code = """
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    pool = Pool(1)
    worker = int(pool.run("import os; os.getpid()").value)
    reaped = json.loads(reap("--json"))
    folder = str(pool._engine._folder.path)
    tell(reaped["runs"], len(reaped["left_alone"]["live"]), pool.run("6 * 7").value,
         gone(worker, 0), os.path.exists(folder))
    """
    assert look(code) == [[], 1, 42, False, True]


def test_a_hidden_kernel_can_be_interrupted(look):
    code = """
    pool = Pool(1)
    pool.run("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")
    try:
        pool.run("import time; time.sleep(600)", timeout=0.5)
    except TimeoutError as error:
        tell(type(error).__name__, pool.run("6 * 7").value, pool.stats().died)
    """
    assert look(code) == ["CallTimeout", 42, 0]


def test_hidden_processes_that_do_not_die_are_named(look, refusing):
    """The guardian can signal nobody, as it cannot signal what became another user's."""
    code = """
    import logging
    pid = run("hidden()")
    pool.terminate()
    tell(pid, report())
    """
    prefix = tuple(refusing(kill=errno.EPERM, pidfd_send_signal=errno.EPERM))
    pid, (verified, _, survivors, _) = look(code, prefix=prefix)

    assert not verified
    assert any(line.startswith(f"{pid} ") for line in survivors), survivors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a set-uid program of another")
def test_a_hidden_program_of_which_nothing_can_be_told_is_named(look, tmp_path):
    """Whether a set-uid program is of a run cannot be told when its guardian is not there."""
    program = tmp_path / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    code = f"""
    pid = run("subprocess.Popen([{str(program)!r}, '600']).pid")
    os.kill(worker.process.guarded.guardian.pid, 9)
    pool.terminate()
    tell(pid, report(), reap())
    """
    pid, (verified, _, survivors, _), reaped = look(code)

    assert not verified
    assert [line for line in survivors if line.startswith(f"{pid} ")]
    assert "/proc hides 1 process of yours" in reaped
    assert str(pid) in reaped
