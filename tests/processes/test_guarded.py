"""Processes under guard: everything that a command starts ends with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from snakepit_kernel.errors import StartFailed
from snakepit_kernel.processes import guarded_process
from snakepit_kernel.processes.bare_interpreter import bare_command
from snakepit_kernel.processes.guarded_process import GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec
from snakepit_kernel.processes.sweep import end_tagged
from snakepit_kernel.processes.waiting import readable

# Code that starts children, each of which says `child PID` when it runs.
KINDS = {
    "plain": "child = subprocess.Popen(['sleep', '600']); say('child', child.pid)",
    "own session": """
child = subprocess.Popen(['sleep', '600'], start_new_session=True); say('child', child.pid)
""",
    "double fork": """
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        say('child', os.getpid())
        os.execvp('sleep', ['sleep', '600'])
    os._exit(0)
os.waitpid(middle, 0)
""",
    "empty environment": """
child = subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True)
say('child', child.pid)
""",
    "nohup in the background of a shell": """
script = 'nohup setsid sh -c "echo child \\\\$\\\\$; exec sleep 600" 2>/dev/null &'
subprocess.run(['sh', '-c', script])
""",
    "deaf to signals": """
subprocess.Popen(['sh', '-c', 'trap "" TERM INT HUP; echo child $$; while :; do sleep 600; done'])
""",
    "stopped": """
child = subprocess.Popen(['sleep', '600'])
child.send_signal(signal.SIGSTOP); os.waitid(os.P_PID, child.pid, os.WSTOPPED)
say('child', child.pid)
""",
    "below a subreaper of its own": """
if os.fork() == 0:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid(); say('child', os.getpid()); os.execvp('sleep', ['sleep', '600'])
        os._exit(0)
    time.sleep(600)
""",
    "traced by another": """
subprocess.Popen(['strace', '-f', '-qq', '-o', '/dev/null', 'sh', '-c', 'echo child $$; sleep 600'])
""",
    "of another user": """
child = subprocess.Popen(['sleep', '600'], user=65534, group=65534, extra_groups=[], cwd='/')
say('child', child.pid)
""",
    "that flees into a new session when it is asked to end": """
child = os.fork()
if child == 0:
    def flee(*_):
        if os.fork() == 0:
            os.setsid(); os.execve('/bin/sleep', ['sleep', '600'], {})
        os._exit(0)
    signal.signal(signal.SIGTERM, flee)
    say('child', os.getpid())
    time.sleep(600)
""",
    "of a command that replaced itself": """
child = subprocess.Popen(['sleep', '600'], start_new_session=True); say('child', child.pid)
os.execv('/bin/sh', ['sh', '-c', 'echo ready; exec sleep 600'])
""",
    "in a cgroup namespace and a pid namespace": """
subprocess.Popen(['unshare', '-p', '-f', 'sh', '-c', 'sleep 600 & echo child $$; wait'])
""",
    "whose first thread has ended": """
code = "import ctypes, os, threading, time; "
code += "threading.Thread(target=time.sleep, args=(600,)).start(); "
code += "print('child', os.getpid(), flush=True); ctypes.CDLL(None).pthread_exit(None)"
subprocess.Popen([sys.executable, '-c', code])
""",
    "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))
process.start(); say('child', process.pid)
""",
}
ROOT_ONLY = {"of another user", "in a cgroup namespace and a pid namespace"}
ADVERSARIES = [
    pytest.param(code, id=name.replace(" ", "-"))
    for name, code in KINDS.items()
    if os.getuid() == 0 or name not in ROOT_ONLY
    if name != "traced by another" or shutil.which("strace")
]
SOON = 5.0
"""Seconds. Two are promised, and on a machine that does nothing else it takes a tenth of one."""

READY = "\nsay('ready')\ntime.sleep(600)\n"
IDLE = READY


def read_until_ready(lines) -> list[str]:
    """Read what the command says until a child runs and the command is ready."""
    said: list[str] = []
    while "ready" not in said or not any(line.startswith("child") for line in said):
        said.append(lines.read())
    return said


# -- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"), [("", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)]
)
def test_the_exit_status_of_a_command_is_known(guards, code, status):
    process = guards.python(code)
    assert guards.wait(process) == status
    assert process.poll() == status


def test_a_command_that_ends_at_once_is_waited_for_all_the_same(guards):
    for _ in range(10):
        assert guards.wait(guards.start(["true"])) == 0


def test_a_command_that_runs_has_no_status_and_waiting_ends_in_time(guards):
    process = guards.start(["sleep", "600"])
    assert process.poll() is None
    started = time.monotonic()
    assert guards.wait(process, 0.1) is None
    assert 0.1 <= time.monotonic() - started < 10


@pytest.mark.parametrize("program", ["/nowhere/python", "no-such-program", "/etc/passwd", "/"])
def test_a_command_that_cannot_be_executed_is_named_and_leaves_nothing(guards, living, program):
    with pytest.raises(StartFailed) as caught:
        guards.start([program, "-c", "pass"])
    assert program in str(caught.value)
    assert [process for process in living() if not process.wait_gone(1.0)] == []


def test_a_working_directory_that_is_missing_is_named_and_leaves_nothing(guards, living):
    with pytest.raises(StartFailed, match="/nowhere"):
        guards.start(["true"], cwd="/nowhere")
    assert list(map(str, living())) == []


def test_a_start_that_is_cancelled_leaves_nothing(living):
    async def cancel_at_once() -> None:
        spec = LaunchSpec.of(["sleep", "600"], run_id="a" * 13, grace=0.0, env=os.environ)
        task = asyncio.create_task(GuardedProcess.start(spec))
        await asyncio.sleep(0)  # the guardian is spawned, and has not answered
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(cancel_at_once())
    assert [process for process in living() if not process.wait_gone(SOON)] == []


def test_a_command_is_no_child_of_its_owner_and_leads_its_own_session(guards, lines):
    process = guards.python("say(os.getppid(), os.getpgrp() == os.getsid(0) == os.getpid())")
    assert lines.read() == f"{process.guardian.pid} True"


def test_a_command_inherits_what_popen_would_give_it(guards, lines, tmp_path):
    reading, writing = os.pipe()
    code = f"""
    os.write({writing}, b'x')
    os.umask(umask := os.umask(0))
    say(os.getcwd(), oct(umask), os.environ['COLOUR'], sys.stdin.read())
    """
    env = {**os.environ, "COLOUR": "green"}

    guards.python(code, cwd=tmp_path, umask=0o27, env=env, pass_fds=[writing])

    assert lines.read() == f"{tmp_path} 0o27 green "
    assert os.read(reading, 1) == b"x"
    os.close(writing)
    assert os.read(reading, 1) == b""  # the guardian has not kept it
    os.close(reading)


@pytest.mark.parametrize("stdin", [{}, {"stdin": None}], ids=["default", "None"])
def test_a_command_never_reads_its_owners_input(guards, lines, stdin):
    guards.python("say(os.readlink('/proc/self/fd/0'))", **stdin)
    assert lines.read() == "/dev/null"


def test_a_command_starts_with_default_signals_though_its_owner_blocked_and_ignored_them(
    guards, lines
):
    """A guardian that inherited the mask would never hear of the end of its children."""

    def start_with_all_signals_blocked() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        started.append(guards.start(["sh", "-c", "grep Sig[BI] /proc/self/status"]))

    started: list[GuardedProcess] = []
    thread = threading.Thread(target=start_with_all_signals_blocked)
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    thread.start()
    thread.join()
    signal.signal(signal.SIGUSR1, previous)

    assert guards.wait(started[0], 5.0) == 0
    assert lines.read().split() == ["SigBlk:", "0" * 16]
    name, ignored = lines.read().split()
    of_the_c_library = (
        1 << 31 | 1 << 32
    )  # it uses 32 and 33 itself, and has what it spawns ignore them
    assert (name, int(ignored, 16) & ~of_the_c_library) == ("SigIgn:", 0)


def test_an_owner_without_standard_streams_can_start_a_command(start_owner, lines, living):
    owner = start_owner(
        f"""
        os.closerange(0, 3)
        process = start("time.sleep(600)")
        os.kill(process.identity.pid, 9)
        status = asyncio.run(process.wait(5.0))
        report = asyncio.run(process.end(0.0))
        os.write({lines.writing}, f"{{status}} {{report.verified}}\\n".encode())
        """,
        pass_fds=[lines.writing],
    )
    assert lines.read() == "-9 True"
    assert owner.wait() == 0
    assert list(map(str, living())) == []


# -- ending --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0.0, 0.2])
@pytest.mark.parametrize("code", ADVERSARIES)
def test_a_child_is_gone_when_ending_returns(guards, lines, living, code, grace):
    process = guards.python(code + READY)
    read_until_ready(lines)

    report = guards.end(process, grace)

    assert list(map(str, living())) == []
    assert report.verified
    assert report.survivors == []
    assert report.count >= 1
    assert process.is_gone


@pytest.mark.parametrize("code", ADVERSARIES)
def test_a_child_is_gone_soon_after_its_command_was_killed(guards, lines, living, code):
    process = guards.python(code + READY, grace=0.2)
    read_until_ready(lines)

    process.send_signal(signal.SIGKILL)

    assert guards.wait(process) == -signal.SIGKILL
    assert process.guardian.pid
    assert [item for item in living() if not item.wait_gone(SOON)] == []


def test_two_thousand_children_are_gone_when_ending_returns(guards, lines, living):
    """Half of them obey SIGTERM."""
    process = guards.python("""
    for number in range(2000):
        if os.fork() == 0:
            if number % 2:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
    say('ready')
    signal.pause()
    """)
    assert lines.read(60) == "ready"

    report = guards.end(process, 0.5)

    assert list(map(str, living())) == []
    assert report.verified
    assert report.count == 2000
    assert 0 < len(report.ended) <= 64


@pytest.mark.parametrize(
    "step",
    ["", "os.setsid()", "os.environ.clear() or os.setpgid(0, 0)"],
    ids=["same-group", "new-sessions", "new-groups"],
)
@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_a_process_that_flees_by_forking_all_the_time_is_caught(guards, lines, living, step, grace):
    """Its pid changes thousands of times a second; no list of pids is ever right."""
    code = f"""
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say('child')
    os.fork(); os.fork()  # four of them
    until = time.monotonic() + 15  # a bound, for the sake of the machine if this test fails
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
        {step or "pass"}
    os._exit(0)
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    report = guards.end(process, grace)
    assert list(map(str, living())) == []
    assert report.verified


def test_a_process_that_forks_every_few_milliseconds_is_caught_on_a_machine_with_many_others(
    guards, lines, living
):
    """One scan of ``/proc`` takes longer than it lives, and its child is not in that scan."""
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(500)]
    code = """
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say('child')
    until = time.monotonic() + 30  # a bound, for the sake of the machine if this test fails
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
        time.sleep(0.003)
    os._exit(0)
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    started = time.monotonic()
    report = guards.end(process, 0.1)
    took = time.monotonic() - started
    for other in others:
        other.kill()
    for other in others:
        other.wait()
    assert report.verified
    assert took < SOON
    assert list(map(str, living())) == []


@pytest.mark.parametrize("pause", [0.001, 0.005])
def test_a_process_that_forks_every_few_milliseconds_is_found_by_its_tag(guards, lines, pause):
    code = f"""
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + 20  # a bound, for the sake of the machine if this test fails
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
        say('child')
        time.sleep({pause})
    os._exit(0)
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    process.guardian.signal(signal.SIGKILL)

    asyncio.run(end_tagged([process.run_id], 0.1))

    while lines.pending():
        lines.read()
    time.sleep(0.2)  # in which it would say something
    assert not lines.pending()


def test_a_storm_of_forks_is_ended_while_it_grows(guards, lines, living):
    code = """
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say('child')
    for _ in range(9):  # 2 ** 9 processes
        if os.fork() == 0:
            time.sleep(0.001)
    time.sleep(20)
    os._exit(0)
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    report = guards.end(process, 0.05)
    assert list(map(str, living())) == []
    assert report.verified


def test_within_the_grace_a_child_may_clean_up_after_sigterm(guards, lines, tmp_path):
    code = f"""
def clean_up(*_):
    time.sleep(0.5)
    open({str(tmp_path / "clean")!r}, 'w').close()
    os._exit(0)
if os.fork() == 0:
    signal.signal(signal.SIGTERM, clean_up)
    say('child')
    while True:
        time.sleep(600)
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    started = time.monotonic()

    report = guards.end(process, 5.0)

    assert (tmp_path / "clean").exists()
    assert [item.signal for item in report.ended] == ["SIGTERM"]
    assert 0.5 <= time.monotonic() - started < 4.9  # before its grace is over


def test_within_the_grace_a_stopped_child_may_clean_up_after_sigterm(guards, lines, tmp_path):
    code = f"""
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / "clean")!r}, 'w'), os._exit(0)))
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)
os.waitid(os.P_PID, child, os.WSTOPPED)
say('child')
"""
    process = guards.python(code + READY)
    read_until_ready(lines)
    guards.end(process, 5.0)
    assert (tmp_path / "clean").exists()


def test_after_the_grace_a_deaf_child_is_killed_and_named(guards, lines):
    process = guards.python(KINDS["deaf to signals"] + READY)
    read_until_ready(lines)
    started = time.monotonic()

    report = guards.end(process, 0.4)

    assert 0.4 <= time.monotonic() - started < 10
    killed = [item for item in report.ended if item.signal == "SIGKILL"]
    assert any(item.command.startswith("sh -c trap") for item in killed)


def test_a_shorter_grace_replaces_a_longer_one(guards, lines, living):
    process = guards.python(KINDS["deaf to signals"] + READY)
    read_until_ready(lines)
    process.request_end(60.0)
    started = time.monotonic()
    assert guards.end(process, 0.0).verified
    assert time.monotonic() - started < 20  # and not 60
    assert list(map(str, living())) == []


def test_ending_twice_and_ending_what_has_ended_is_harmless(guards):
    process = guards.start(["true"])
    guards.wait(process)
    first = guards.end(process)
    second = guards.end(process)
    assert first.verified
    assert second.verified
    assert process.status == 0


def test_a_command_can_be_waited_for_while_another_thread_ends_it(guards, monkeypatch):
    process = guards.start(["sleep", "600"])

    async def end_first(*descriptors: int, timeout: float | None) -> bool:
        monkeypatch.undo()
        await asyncio.to_thread(guards.end, process)
        return await readable(*descriptors, timeout=timeout)

    monkeypatch.setattr(guarded_process, "readable", end_first)
    assert guards.wait(process) == -signal.SIGKILL


def test_what_does_not_die_is_named_and_not_waited_for_for_ever(
    start_owner, lines, process_of, powerless_python
):
    owner = start_owner(
        f"""
        sys.executable = {powerless_python!r}
        process = start({KINDS["own session"] + READY!r})
        began = time.monotonic()
        report = asyncio.run(process.end(0.1))
        say(report.verified, time.monotonic() - began < 9, process.is_gone)
        say(*[line.split()[0] for line in report.survivors])
        sys.stdin.read()
        say(asyncio.run(process.end(0.1)).verified, process.report.survivors)
        """,
        stdin=subprocess.PIPE,
    )
    child = process_of(int(lines.read().split()[1]))
    assert lines.read() == "ready"
    assert lines.read(30) == "False True False"
    pids = set(map(int, lines.read().split()))
    assert child.pid in pids

    child.kill()
    for pid in pids - {child.pid}:
        os.kill(pid, signal.SIGKILL)  # the command; this test may
    owner.stdin.close()

    assert lines.read() == "True []"


def test_many_children_with_long_commands_are_reported_in_full(guards, lines, living):
    """The report must fit into the channel, though nobody reads it before the end."""
    code = """
word = 'x' * 3000
for _ in range(80):
    subprocess.Popen(['sh', '-c', 'sleep 600; : ' + word], start_new_session=True)
say('child')
"""
    process = guards.python(code + READY)
    read_until_ready(lines)

    report = guards.end(process, 0.0)

    assert report.verified
    assert report.count >= 80
    assert len(report.ended) == 64
    assert all(item.command for item in report.ended)


def test_a_child_that_a_stranger_traces_does_not_hold_up_the_end(guards, lines, living):
    """Its zombie belongs to the tracer, and the guardian cannot reap it."""
    process = guards.python(KINDS["plain"] + READY)
    child = int(next(line for line in read_until_ready(lines) if "child" in line).split()[1])
    tracer_code = f"""
import ctypes, sys, time
assert ctypes.CDLL(None).ptrace(0x4206, {child}, 0, 0) == 0   # PTRACE_SEIZE
print("ready", flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", tracer_code], stdin=pipe, stdout=pipe) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"ready\n"

        report = guards.end(process, 0.0)

        assert report.verified
        assert [item.pid for item in living()] == [tracer.pid]


# -- signals -------------------------------------------------------------------------------------


def test_a_signal_reaches_the_command_and_not_its_children(guards, lines, process_of):
    code = """
signal.signal(signal.SIGINT, lambda *_: say('interrupted'))
child = subprocess.Popen(['sleep', '600'], restore_signals=True)
say('child', child.pid)
say('ready')
while True:
    time.sleep(600)
"""
    process = guards.python(code)
    said = read_until_ready(lines)
    child = process_of(int(said[0].split()[1]))

    process.send_signal(signal.SIGINT)

    assert lines.read() == "interrupted"
    assert child.is_alive
    process.send_signal(signal.SIGKILL)
    assert guards.wait(process) == -signal.SIGKILL
    process.send_signal(signal.SIGKILL)  # nobody is left to receive it


# -- the owner dies ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ADVERSARIES)
def test_a_child_is_gone_soon_after_the_owner_was_killed(start_owner, lines, living, code):
    owner = start_owner(f"process = start({code + READY!r}, grace=0.2)\ntime.sleep(600)")
    read_until_ready(lines)

    owner.kill()
    owner.wait()

    assert [item for item in living() if not item.wait_gone(SOON)] == []


def test_a_command_that_holds_the_gil_is_gone_soon_after_the_owner_was_killed(
    start_owner, lines, living
):
    code = "say('ready', 'child'); sum(range(10**12))"
    owner = start_owner(f"process = start({code!r}, grace=0.2)\ntime.sleep(600)")
    assert lines.read() == "ready child"
    owner.kill()
    owner.wait()
    assert [item for item in living() if not item.wait_gone(SOON)] == []


@pytest.mark.parametrize(
    "fork", ["os.fork", "ctypes.PyDLL(None).fork"], ids=["by-python", "behind-pythons-back"]
)
def test_a_stray_child_of_the_owner_that_holds_the_channel_changes_nothing(
    start_owner, lines, living, tmp_path, fork
):
    leftover = tmp_path / "connection.json"
    leftover.touch()
    owner = start_owner(
        f"""
        process = start({IDLE!r}, grace=0.2, leftovers=[{str(leftover)!r}])
        if {fork}() == 0:
            say('stray', os.getpid())
            time.sleep(600)
        time.sleep(600)
        """
    )
    said = {lines.read(), lines.read()}
    stray = next(int(line.split()[1]) for line in said if line.startswith("stray"))

    owner.kill()
    owner.wait()

    gone = [item for item in living() if item.pid != stray]
    assert [item for item in gone if not item.wait_gone(SOON)] == []
    assert not leftover.exists()
    os.kill(stray, signal.SIGKILL)


def test_leftovers_are_removed_when_the_owner_is_killed(start_owner, lines, living, tmp_path):
    file, directory, missing = tmp_path / "file", tmp_path / "directory", tmp_path / "missing"
    outside = tmp_path / "outside"
    for path in (file, outside):
        path.touch()
    (directory / "below").mkdir(parents=True)
    (directory / "below" / "file").touch()
    (directory / "link").symlink_to(outside)
    leftovers = [str(file), str(directory), str(missing)]
    owner = start_owner(f"process = start({IDLE!r}, leftovers={leftovers!r})\ntime.sleep(600)")
    assert lines.read() == "ready"

    owner.kill()
    owner.wait()

    assert [item for item in living() if not item.wait_gone(SOON)] == []
    assert list(tmp_path.iterdir()) == [outside]


def test_leftovers_are_the_owners_business_while_it_lives(guards, lines, tmp_path):
    (tmp_path / "file").touch()
    process = guards.python(READY, leftovers=[tmp_path / "file"])
    lines.read()
    assert guards.end(process).verified
    assert (tmp_path / "file").exists()


def test_leftovers_go_though_the_owner_died_before_the_guardian_was_up(guards, living, tmp_path):
    """The guardian finds another parent than the owner it was told of, and launches nothing."""
    (tmp_path / "file").touch()
    options = ["--owner=1:1", "--channel=0", "--grace=0", f"--leftover={tmp_path / 'file'}"]
    command = [*bare_command("guardian"), *options, "--", "sleep", "600"]

    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=10)

    assert list(map(str, living())) == []
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
def test_an_owner_killed_at_any_moment_of_a_start_leaves_nothing(start_owner, lines, living, delay):
    owner = start_owner(f"say('starting')\nprocess = start({IDLE!r}, grace=0.0)\ntime.sleep(600)")
    assert lines.read() == "starting"
    time.sleep(delay)  # the moment is the parameter of this test

    owner.kill()
    owner.wait()

    assert [item for item in living() if not item.wait_gone(SOON)] == []


# -- independent runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_an_independent_run_survives_its_owner_and_can_be_ended(
    start_owner, lines, living, process_of, signum
):
    owner = start_owner(
        f"""
        process = start({KINDS["own session"] + READY!r}, independent=True)
        say('guardian', process.guardian.pid)
        time.sleep(600)
        """
    )
    said = sorted(lines.read() for _ in range(3))
    assert [line.split()[0] for line in said] == ["child", "guardian", "ready"]
    guardian = process_of(int(said[1].split()[1]))

    owner.kill()
    owner.wait()
    assert not guardian.wait_gone(0.5)
    assert len(living()) == 3

    os.kill(guardian.pid, signum)
    assert guardian.wait_gone()
    assert list(map(str, living())) == []


def test_an_independent_run_removes_its_files_when_it_ends_after_its_owner(
    start_owner, lines, living, tmp_path
):
    (tmp_path / "file").touch()
    leftovers = [str(tmp_path / "file")]
    owner = start_owner(
        f"""
        process = start("time.sleep(600)", independent=True, leftovers={leftovers!r})
        say(process.identity.pid)
        time.sleep(600)
        """
    )
    command = int(lines.read())
    owner.kill()
    owner.wait()
    assert (tmp_path / "file").exists()

    os.kill(command, signal.SIGKILL)

    assert [item for item in living() if not item.wait_gone(SOON)] == []
    assert not (tmp_path / "file").exists()


# -- the guardian dies ---------------------------------------------------------------------------


def test_a_command_dies_at_once_with_its_guardian(guards, lines, process_of):
    process = guards.python(READY)
    assert lines.read() == "ready"
    assert process.identity is not None
    command = process_of(process.identity.pid)

    os.kill(process.guardian.pid, signal.SIGKILL)

    assert command.wait_gone(1.0)
    assert guards.wait(process) == -signal.SIGKILL


def test_a_stopped_guardian_still_ends_its_run_when_asked(guards, lines, living):
    process = guards.python(KINDS["own session"] + READY)
    read_until_ready(lines)
    os.kill(process.guardian.pid, signal.SIGSTOP)

    report = guards.end(process, 0.0)

    assert report.verified
    assert list(map(str, living())) == []


def test_the_end_of_a_command_below_a_stopped_guardian_is_noticed(guards, lines):
    process = guards.python(READY)
    assert lines.read() == "ready"
    process.guardian.signal(signal.SIGSTOP)
    process.identity.signal(signal.SIGKILL)

    deadline = time.monotonic() + SOON
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)

    assert process.poll() == -signal.SIGKILL


def test_a_thousand_children_of_a_killed_guardian_are_asked_before_they_are_killed(
    guards, lines, living
):
    process = guards.python("""
    for _ in range(1000):
        if os.fork() == 0:
            while True:
                signal.pause()
    say('ready')
    signal.pause()
    """)
    assert lines.read(60) == "ready"
    process.guardian.signal(signal.SIGKILL)

    ending = asyncio.run(end_tagged([process.run_id], 20.0))

    assert list(map(str, living())) == []
    assert ending.survivors == []
    assert {name for _, name in ending.ended} == {"SIGTERM"}


def test_signals_of_a_terminal_do_not_end_a_guardian(guards, lines, process_of):
    process = guards.python(READY)
    assert lines.read() == "ready"
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        os.kill(process.guardian.pid, signum)
    process.send_signal(signal.SIGUSR1)  # the default action of which ends the command
    assert guards.wait(process) == -signal.SIGUSR1


def test_a_guardian_takes_little_memory(guards, lines):
    """Private_Clean + Private_Dirty: pages of no other process, as in psutil's `uss`.

    Pages of the interpreter's own file are shared with the owner, which runs the same one.
    """
    process = guards.python(READY)
    assert lines.read() == "ready"
    rollup = Path(f"/proc/{process.guardian.pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    assert sizes["Private_Clean"] + sizes["Private_Dirty"] < 4096
