"""Time-outs, interrupts and cancellations end a command and leave the shell with its state."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

ZOO = [
    "sleep 60",
    "sleep 60 | cat | cat",
    "y=$(sleep 60)",
    "echo $(echo $(sleep 60))",
    "f() { g; }; g() { h; }; h() { sleep 60; }; f",
    "while :; do :; done",
    "while :; do sleep 0.01; done",
    "for i in {1..100000000}; do :; done",
    "for ((;;)); do true; done",
    "until false; do for i in 1 2; do while true; do :; done; done; done",
    "sleep 60 & wait",
    "(sleep 60; sleep 60) ; sleep 60",
    "trap '' TERM; sleep 60",
    "trap '' TERM INT; while :; do sleep 1; done",
    "trap 'echo no' TERM; sleep 60; sleep 60",
    "trap '' RTMIN+7; while :; do :; done",
    "trap ':' RTMIN+7; while :; do :; done",
    "setsid sleep 60",
    "setsid -w sleep 60",
    "nohup setsid sh -c 'trap \"\" TERM; sleep 60'",
    "yes",
    "yes >/dev/null",
    "select y in a b; do :; done < <(sleep 60)",
    "read y < <(sleep 60)",
    "exec sleep 60",
    "exec 3< <(sleep 60); cat <&3",
    "bash -c 'trap \"\" TERM INT; sleep 60; sleep 60'",
    "env -i sh -c 'sleep 60; sleep 60'",
    "enable -n printf; sleep 60",
    "set -e; sleep 60",
    "kill -STOP $BASHPID",
    "sh -c 'kill -STOP $$'",
    "coproc cat; wait",
    "mkfifo $PWD/fifo; cat < fifo",
    "eval 'source <(echo sleep 60)'",
    "(trap '' TERM; while :; do :; done)",
    "trap 'sleep 60' DEBUG; :",
    "trap 'sleep 60' EXIT; exit",
    "python3 -c 'import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'",
]


@pytest.mark.parametrize("command", ZOO)
def test_a_command_of_any_kind_ends_at_its_timeout_and_the_state_stays(shell, command, tmp_path):
    shell.run(f"x=1; cd {tmp_path}; f() {{ echo kept; }}")

    began = time.monotonic()
    result = shell.run(command, timeout=0.15)

    assert (result.returncode, result.timed_out) == (124, True)
    assert time.monotonic() - began < 0.15 + 2.0
    shown = shell.run('echo "$x $PWD"', timeout=5)
    assert shown.stdout == f"1 {tmp_path}\n"


def test_nothing_of_a_command_runs_on_after_its_timeout(shell, tmp_path, living):
    result = shell.run(
        f"touch {tmp_path}/a; echo said; sleep 120 && touch {tmp_path}/b", timeout=0.3
    )

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert result.stdout == "said\n"
    assert not [process for process in living() if "sleep" in str(process)]


def test_the_timeout_of_a_command_goes_before_that_of_the_shell(open_one):
    short, long = (open_one(name, timeout=t).shell for name, t in (("a", 0.3), ("b", 30)))

    assert short.run("sleep 60").timed_out
    assert long.run("sleep 60", timeout=0.3).timed_out
    assert short.run("sleep 0.5; echo on", timeout=None).stdout == "on\n"


def test_an_interrupt_from_another_thread_is_130_and_the_state_stays(shell, in_background, until):
    shell.run("x=1")
    assert not shell.interrupt()
    running = in_background(shell.run, "y=2; sleep 60; z=3")
    until(lambda: shell.is_busy)
    time.sleep(0.05)

    assert shell.interrupt()

    result = running.result(5)
    assert (result.returncode, result.interrupted, result.timed_out) == (130, True, False)
    assert shell.run('echo "$x $y [$z]"').stdout == "1 2 []\n"


@pytest.mark.parametrize(
    "command", ["trap '' INT TERM; sleep 60", "bash -c \"trap '' INT TERM; while :; do :; done\""]
)
def test_an_interrupt_ends_what_ignores_it(shell, in_background, until, command):
    shell.run("x=1")
    running = in_background(shell.run, command)
    until(lambda: shell.is_busy)
    time.sleep(0.05)

    began = time.monotonic()
    shell.interrupt()

    assert running.result(5).returncode == 130
    assert time.monotonic() - began < 1.5
    assert shell.run("echo $x").stdout == "1\n"


def test_what_ignores_an_interrupt_in_the_background_is_killed_and_nothing_else(
    shell, process_of, until, tmp_path
):
    earlier = process_of(int(shell.run("sleep 600 & echo $!").stdout))
    deaf = "(trap '' TERM INT; while :; do sleep 600; done) & echo $!"

    result = shell.run(f'{deaf}; setsid bash -c "{deaf}; wait"', timeout=0.3)
    later = process_of(int(shell.run("sleep 600 & echo $!").stdout))

    first, second = (process_of(int(pid)) for pid in result.stdout.split())
    until(lambda: not first.is_alive and not second.is_alive, 2.0)
    assert earlier.is_alive
    assert later.is_alive


def test_an_interrupt_leaves_earlier_background_processes_alone(shell, process_of, tmp_path):
    script = f"while sleep 0.02; do echo . >> {tmp_path}/beats; done"
    pid = int(shell.run(f"{{ {script}; }} & echo $!").stdout)

    shell.run("sleep 60", timeout=0.3)
    beats = (tmp_path / "beats").read_text()
    assert shell.run("sleep 60", timeout=0.3).timed_out

    assert process_of(pid).is_alive
    assert len((tmp_path / "beats").read_text()) > len(beats)


@pytest.mark.parametrize(
    ("options", "trap"), [("-T", "DEBUG"), ("+T", "ERR"), ("-T", "RETURN"), ("+T", "USR1")]
)
def test_traps_of_the_user_are_there_after_an_interrupt(shell, options, trap):
    shell.run(f"set {options}")
    shell.run(f"trap ': \"it'\\''s\"' {trap}")
    before = shell.run(f"trap -p {trap}").stdout

    shell.run("sleep 60", timeout=0.2)

    assert trap in before
    assert shell.run(f"trap -p {trap}").stdout == before
    assert ("T" in shell.run("echo $-").stdout) == (options == "-T")


def test_a_cancelled_task_frees_the_shell_at_once(shell, living):
    async def scenario() -> float:
        await shell.arun("x=1")
        task = asyncio.create_task(shell.arun("sleep 60"))
        while not shell.is_busy:
            await asyncio.sleep(0.005)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await shell.arun("echo $x", queue=False)).stdout == "1\n"
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 1.5
    assert not [process for process in living() if "sleep" in str(process)]


def test_a_timeout_of_asyncio_ends_the_command(shell):
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await shell.arun("sleep 60")
        assert (await shell.arun("echo next")).stdout == "next\n"

    asyncio.run(scenario())


def test_commands_that_wait_can_be_cancelled_before_their_turn(shell, tmp_path):
    async def scenario() -> None:
        first = asyncio.create_task(shell.arun("sleep 0.3"))
        waiting = [asyncio.create_task(shell.arun(f"touch {tmp_path}/{n}")) for n in range(3)]
        while shell.queue_length < 3:
            await asyncio.sleep(0.005)
        waiting[1].cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)

    asyncio.run(scenario())

    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]


def test_a_loop_that_is_closed_while_a_command_runs_does_not_hinder_the_shell(shell, until):
    loop = asyncio.new_event_loop()
    task = loop.create_task(shell.arun("sleep 0.3; y=done"))
    loop.run_until_complete(asyncio.sleep(0.1))
    task._log_destroy_pending = False  # that is what happens here
    loop.close()

    assert shell.run("echo on").stdout == "on\n"


@pytest.mark.parametrize("way", ["run", "stream"])
def test_ctrl_c_ends_the_command_and_leaves_the_shell(shell, living, way):
    shell.run("x=1")

    def press() -> None:
        while not shell.is_busy:
            time.sleep(0.005)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        shell.run("sleep 60") if way == "run" else list(shell.stream("echo a; sleep 60"))
    pressing.join()

    assert not [process for process in living() if "sleep" in str(process)]
    assert shell.run("echo $x", queue=False).stdout == "1\n"


def test_ctrl_c_does_not_wait_for_the_commands_of_others(shell, in_background, until):
    first = in_background(shell.run, "sleep 60")
    until(lambda: shell.is_busy)
    pressing = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    pressing.start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        shell.run("echo waits")
    assert time.monotonic() - began < 2.0

    pressing.join()
    shell.interrupt()
    assert first.result(5).returncode == 130


def test_a_timeout_while_a_background_process_writes_ends_in_time(shell):
    shell.run("yes >/dev/null & yes &")

    began = time.monotonic()
    assert shell.run("yes", timeout=0.3, max_output=1000).timed_out
    assert time.monotonic() - began < 2.0
    assert shell.run("jobs -r | wc -l").stdout.strip() == "2"


def test_a_timeout_after_a_restart_in_the_same_moment_keeps_the_state(shell):
    shell.run("x=1")
    for _ in range(5):
        assert shell.run("exec sleep 60", timeout=0.1).timed_out
        assert shell.run("echo $x", timeout=5).stdout == "1\n"


def test_timeouts_one_after_the_other_do_not_interrupt_the_next_command(shell):
    for number in range(25):
        shell.run("sleep 60", timeout=0.02)
        assert shell.run(f"for i in 1 2 3; do :; done; echo {number}").stdout == f"{number}\n"
