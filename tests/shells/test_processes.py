"""Background processes: seen, followed, awaited and ended from any session, as the kernel says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

import snakepit_kernel
from snakepit_kernel import keep
from snakepit_kernel.errors import ProcessExited, ProcessNotFound, ProcessNotReady, ShellClosed
from snakepit_kernel.shells.manager import manager
from snakepit_kernel.shells.process_log import LogReader, LogWriter, read_log

FOUR_LEVELS = r"""
echo 'echo $$ >> pids; bash two; :' > one
echo "echo \$\$ >> pids; bash -c '$INNER'; :" > two
"""
INNER = "echo $$ >> pids; sleep 120 & echo $! >> pids; wait"


def test_a_process_is_listed_at_once_and_any_session_kills_it(open_one):
    s1, s2 = open_one("S1"), open_one("S2")

    process = s1.processes.start("sleep 120")

    assert process.status == "running"
    assert isinstance(process.pid, int)
    assert [each.id for each in s1.processes.list()] == [process.id]
    assert s2.processes.list() == []
    assert process.id in [each.id for each in snakepit_kernel.processes()]
    assert s2.processes.kill(process.id) == 143
    assert (process.wait(5), process.status, process.is_running) == (143, "killed", False)
    assert process.started < process.ended


def test_a_process_that_is_not_there_is_an_error_that_names_it(session):
    with pytest.raises(ProcessNotFound, match="fake-123"):
        session.processes.kill("fake-123")
    with pytest.raises(LookupError):
        session.processes.get("")


def test_a_process_has_the_state_of_the_shell(session, tmp_path):
    session.shell.run(f"x='a b'; f() {{ echo \"f $x\"; }}; cd {tmp_path}; alias hi='echo hi'")

    process = session.processes.start("f; pwd; hi; echo $E", env={"E": "e", "HOME": None})

    assert process.wait(5) == 0
    assert process.logs().text == f"f a b\n{tmp_path}\nhi\ne\n"
    elsewhere = session.processes.start("pwd", cwd="/usr")
    elsewhere.wait(5)
    assert elsewhere.logs().text == "/usr\n"


def test_a_process_does_not_wait_for_a_command_and_no_command_for_it(session, in_background, until):
    session.shell.run("x=1")
    session.shell.checkpoint()
    running = in_background(session.shell.run, "sleep 60")
    until(lambda: session.shell.is_busy)

    began = time.monotonic()
    process = session.processes.start("echo $x; sleep 60")
    assert time.monotonic() - began < 1.0
    assert process.wait_for_log("1") == "1"
    session.shell.interrupt()
    running.result()

    began = time.monotonic()
    assert session.shell.run("echo test").stdout == "test\n"
    assert time.monotonic() - began < 1.0
    process.kill()


def test_a_process_needs_no_shell_that_runs(session):
    session.processes.start("true").wait(5)

    assert session.shell.pid is None


@pytest.mark.parametrize(
    ("command", "status", "state"),
    [
        ("echo a; exit 3", 3, "failed"),
        ("exec sh -c 'exit 4'", 4, "failed"),
        ("if then", 2, "failed"),
        ("true", 0, "exited"),
        ("nonexistentcommand123", 127, "failed"),
        ("kill -9 $$", 137, "killed"),
        ("kill -TERM $$", 143, "killed"),
        ("kill -SEGV $$", 139, "failed"),
        ("return 6", 6, "failed"),
    ],
)
def test_the_status_of_a_process_is_the_kernels_word(session, command, status, state):
    process = session.processes.start(command)

    assert process.wait(10) == status
    assert (process.status, process.returncode) == (state, status)
    assert session.shell.run("echo fine").stdout == "fine\n"


def test_a_kill_ends_a_tree_of_four_levels(session, tmp_path, process_of, until):
    session.shell.run(f"touch pids; {FOUR_LEVELS}", cwd=tmp_path, env={"INNER": INNER})
    process = session.processes.start("echo $$ >> pids; bash one; :", cwd=tmp_path)
    until(lambda: len((tmp_path / "pids").read_text().split()) == 5)
    tree = [process_of(int(pid)) for pid in (tmp_path / "pids").read_text().split()]

    began = time.monotonic()
    process.kill()

    assert time.monotonic() - began < 2.0
    assert [each.is_alive for each in tree] == [False] * 5
    assert process.status == "killed"


@pytest.mark.parametrize(
    "command",
    [
        "setsid sleep 120 & setsid -f sleep 120; wait",
        "nohup sleep 120 >/dev/null 2>&1 & (sleep 120 & ) ; env -i sleep 120",
        "(setsid -f sh -c 'trap \"\" TERM; sleep 120; :') ; sleep 120",
    ],
)
def test_nothing_that_a_process_has_started_survives_it(session, living, command, until):
    process = session.processes.start(command)
    until(lambda: sum("sleep 120" in str(each) for each in living()) >= 2)

    process.kill(grace=0.3)

    assert [str(each) for each in living()] == []


def test_what_a_process_leaves_when_it_ends_by_itself_ends_too(session, living, until):
    process = session.processes.start("setsid sleep 120 & sleep 120 & echo $!")

    assert process.wait(5) == 0
    until(lambda: living() == [])


def test_a_process_that_ignores_the_signal_is_killed_after_the_grace(session):
    process = session.processes.start('trap "" SIGTERM; echo ready; while :; do :; done')
    process.wait_for_log("ready")

    began = time.monotonic()
    assert process.kill(grace=0.5) == 137

    assert 0.5 <= time.monotonic() - began < 3.0
    assert process.status == "killed"


def test_a_signal_reaches_a_process_and_may_be_handled(session):
    process = session.processes.start(
        "trap 'echo got usr1' USR1; trap 'echo bye; exit 5' INT; echo ready;"
        " while :; do sleep 0.01; done"
    )
    process.wait_for_log("ready")
    os.kill(process.pid, signal.SIGUSR1)
    process.wait_for_log("got usr1")

    assert process.kill(signal=signal.SIGINT) == 5
    assert (process.status, process.logs().text) == ("killed", "ready\ngot usr1\nbye\n")


def test_all_processes_of_a_session_are_killed_at_once(session, open_one):
    other = open_one("other").processes.start("sleep 120")
    for _ in range(3):
        session.processes.start("sleep 120")

    assert session.processes.kill_all() == 3
    assert {each.status for each in session.processes.list()} == {"killed"}
    assert other.is_running
    assert session.processes.kill_all() == 0


def test_processes_end_with_their_session_unless_they_are_detached(open_one, process_of):
    first, second = open_one("first"), open_one("second")
    ending, staying = first.processes.start("sleep 120"), second.processes.start("sleep 120")
    ends = process_of(ending.pid)

    first.delete()
    second.delete(detach=True)

    assert not ends.is_alive
    assert (ending.status, ending.returncode) == ("killed", 137)
    assert staying.is_running
    assert staying.id in [each.id for each in snakepit_kernel.processes()]
    staying.kill()
    shutil.rmtree(staying._folder)


def test_sessions_of_one_name_in_two_stores_have_their_own_processes(session, tmp_path):
    other = snakepit_kernel.open_session("s", store=tmp_path / "other.sqlite")
    process = session.processes.start("sleep 120")
    theirs = other.processes.start("sleep 120")

    assert [each.id for each in other.processes.list()] == [theirs.id]
    other.delete()

    assert process.is_running
    assert not theirs.is_running
    other.store.close()


def test_a_log_is_followed_as_it_is_written_and_again_later(session, tmp_path):
    wait = f"until [ -e {tmp_path}/$i ]; do sleep 0.01; done"
    process = session.processes.start(f"for i in 1 2 3; do echo line $i; {wait}; done; echo e >&2")
    seen = []
    for chunk in process.follow():
        seen.append((chunk.stream, chunk.text))
        (tmp_path / str(len(seen))).touch()

    expected = [("stdout", f"line {i}\n") for i in (1, 2, 3)] + [("stderr", "e\n")]
    assert seen == expected
    assert [(chunk.stream, chunk.text) for chunk in process.follow()] == expected
    assert [chunk.text for chunk in process.follow(since=2)] == ["line 3\n", "e\n"]
    logs = process.logs(since=3)
    assert (logs.text, logs.next, logs.truncated) == ("e\n", 4, False)
    assert process.logs(since=4).chunks == ()


def test_followers_may_come_and_go(session):
    process = session.processes.start("while :; do echo tick; sleep 0.001; done")
    for _ in range(5):
        follower = process.follow()
        assert "tick" in next(follower).text
        follower.close()
    with ThreadPoolExecutor(4) as threads:
        firsts = list(threads.map(lambda _: next(process.follow()).seq, range(4)))

    assert firsts == [0] * 4
    assert process.is_running
    process.kill()
    assert process.status == "killed"


def test_a_follower_that_leaves_while_a_process_ends_does_not_disturb_it(session):
    process = session.processes.start("echo a; sleep 0.1; exit 3")
    next(process.follow())

    assert process.wait(5) == 3


def test_a_line_is_awaited_on_either_stream_and_in_the_past(session):
    process = session.processes.start(
        'sleep 0.1; echo "Server ready on port 8080"; printf "half"; sleep 0.1; echo " line" >&2;'
        " sleep 60"
    )
    line = "Server ready on port 8080"

    assert process.wait_for_log(line, timeout=10) == line
    assert process.wait_for_log(r"port \d+$") == line
    assert process.wait_for_log("line") == " line"
    assert process.wait_for_log("^half$") == "half"
    process.kill()


def test_what_was_found_once_is_found(session):
    process = session.processes.start("sleep 60")
    answers = iter([None, "found"])

    assert process._await(lambda: next(answers, None), "is not there", 1.0) == "found"
    process.kill()


def test_a_line_that_does_not_come_in_time_is_an_error_with_the_log(session):
    process = session.processes.start("echo something; sleep 60")
    process.wait_for_log("something")

    began = time.monotonic()
    with pytest.raises(ProcessNotReady, match="something") as caught:
        process.wait_for_log("never", timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 1.5
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(ProcessNotReady):
        process.wait(0.05)
    with pytest.raises(ValueError, match="no regular expression"):
        process.wait_for_log("(")
    process.kill()


def test_a_process_that_ends_before_it_is_ready_is_an_error_at_once(session):
    process = session.processes.start('echo "quick exit"; exit 9')

    began = time.monotonic()
    with pytest.raises(ProcessExited, match="quick exit") as caught:
        process.wait_for_log("Server ready", timeout=30)
    with pytest.raises(ProcessExited):
        process.wait_for_port(1, timeout=30)
    assert time.monotonic() - began < 5.0
    assert caught.value.returncode == 9


def test_a_port_is_awaited(session):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = session.processes.start(
        "sleep 0.2; echo Database connected;"
        f" exec {sys.executable} -m http.server {port} --bind 127.0.0.1"
    )

    process.wait_for_log("Database connected")
    process.wait_for_port(port)

    socket.create_connection(("127.0.0.1", port)).close()
    process.kill()
    other = session.processes.start("sleep 60")
    with pytest.raises(ProcessNotReady, match=str(port)):
        other.wait_for_port(port, timeout=0.1)
    for wrong in (0, 65536, "x"):
        with pytest.raises((TypeError, ValueError), match="port"):
            other.wait_for_port(wrong)
    other.kill()


def test_a_short_wait_answers_when_the_process_ends(session):
    process = session.processes.start("sleep 0.3")

    began = time.monotonic()
    process.wait(30)
    assert time.monotonic() - began < 1.5


def test_input_is_sent_until_it_is_closed(session):
    process = session.processes.start("cat; echo end")

    process.send_input("hello\n")
    assert process.wait_for_log("hello") == "hello"
    process.send_input(b"x" * 200_000)
    process.close_input()

    assert process.wait(5) == 0
    assert process.logs().text == "hello\n" + "x" * 200_000 + "end\n"
    with pytest.raises(BrokenPipeError, match=process.id):
        process.send_input("more")
    process.close_input()


def test_a_log_is_bounded_and_says_what_is_missing(session):
    process = session.processes.start("head -c 5000000 /dev/zero; echo the end")
    assert process.wait(20) == 0

    logs = process.logs()
    kept = sum(len(chunk.data) for chunk in logs.chunks)
    assert logs.truncated
    assert 400_000 < kept < 1_300_000
    assert logs.text.endswith("the end\n")
    numbers = [chunk.seq for chunk in logs.chunks]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert sum(file.stat().st_size for file in process._folder.glob("log.*")) < 1_400_000


def test_a_reader_of_a_log_that_turns_over_misses_nothing_that_is_kept(tmp_path):
    writer, reader = LogWriter(tmp_path), LogReader(tmp_path)
    seen = []
    for number in range(30_000):
        writer.add("stdout", b"%d" % number)
        if number % 997 == 0:
            seen += [chunk.data for chunk in reader.read().chunks]
    seen += [chunk.data for chunk in reader.read().chunks]
    writer.close()

    assert seen == [b"%d" % number for number in range(30_000)]
    logs = read_log(tmp_path)
    assert logs.truncated
    assert len(logs.chunks) >= 5000
    assert LogReader(tmp_path, 29_998).read().chunks[0].data == b"29998"


OTHER_OWNER = """
import sys
from snakepit_kernel import keep, open_session
session = open_session("theirs", store=sys.argv[1])
code = "echo hello; trap 'exit 7' TERM; while :; do sleep 0.01; done"
process = session.processes.start(code, name="web")
print(process.id, flush=True)
print(process.wait(), process.status, flush=True)
again = session.processes.start("sleep 120")
print(again.id, flush=True)
sys.stdin.readline()
"""


def test_processes_of_another_owner_are_seen_and_killed_from_here(session, tmp_path):
    command = [sys.executable, "-c", OTHER_OWNER, str(tmp_path / "store.sqlite")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        name = owner.stdout.readline().strip()
        process = session.processes.get(name)
        assert session.processes.get("web").id == name
        assert (process.status, process.session_id) == ("running", "theirs")
        assert process.wait_for_log("hello") == "hello"
        assert next(process.follow()).text == "hello\n"
        with pytest.raises(RuntimeError, match=name):
            process.close_input()

        assert process.kill() == 7

        assert owner.stdout.readline().split() == ["7", "killed"]
        lost = session.processes.get(owner.stdout.readline().strip())
        assert lost.is_running
        owner.kill()
    assert lost.wait(10) == 137
    assert lost.status == "killed"
    with pytest.raises(ProcessNotFound):
        session.processes.get(lost.id)


def test_a_name_is_found_when_it_is_the_only_one(session):
    one = session.processes.start("sleep 60", name="web")
    assert session.processes.get("web").id == one.id
    session.processes.start("sleep 60", name="web")

    assert session.processes.get("web").name == "web"
    with pytest.raises(ProcessNotFound, match="web"):
        manager.find_process("web")
    session.processes.kill_all()


@pytest.mark.parametrize(
    ("command", "error"),
    [("", ValueError), ("  ", ValueError), ("a\0b", ValueError), (3, TypeError)],
)
def test_a_command_that_is_none_is_an_error(session, command, error):
    with pytest.raises(error, match="command"):
        session.processes.start(command)


def test_a_command_of_a_megabyte_runs_as_a_process(session):
    process = session.processes.start("echo begin\n# " + "x" * (1 << 20) + "\necho end")

    assert process.wait(10) == 0
    assert process.logs().text == "begin\nend\n"


def test_secrets_are_not_in_what_is_published(session):
    command = "echo --password=hunter2 >/dev/null"
    process = session.processes.start(command, env={"TOKEN": "hunter3"})
    process.wait(5)

    published = (process._folder / "status.json").read_text()
    assert "hunter" not in published
    assert process._folder.stat().st_mode & 0o077 == 0


def test_starts_and_ends_leave_no_descriptor(session, until):
    session.processes.start("true").wait(10)
    before = len(os.listdir("/proc/self/fd"))

    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(lambda _: session.processes.start("true").wait(30), range(40)))

    assert statuses == [0] * 40
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_process_whose_folder_was_removed_is_killed_all_the_same(session, process_of):
    process = session.processes.start("sleep 60")
    running = process_of(process.pid)
    shutil.rmtree(process._folder)

    assert process.kill() == 143

    assert not running.is_alive
    assert process.status == "killed"


def test_a_session_whose_folders_were_removed_is_deleted_all_the_same(session, living):
    process = session.processes.start("sleep 60")
    shutil.rmtree(process._folder)

    session.delete()

    assert living() == []


def in_a_forked_child(work) -> int:
    """Return how a forked child of this process ends, which returns 0 for True."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_of_the_owner_sees_the_process_and_does_not_end_it(session):
    process = session.processes.start("sleep 60")

    def look() -> bool:
        with pytest.raises(ProcessNotReady):
            process.wait(0.05)
        return process.is_running and session.processes.list() == []

    assert in_a_forked_child(look) == 0
    assert process.is_running
    process.kill()


def test_a_forked_child_of_the_owner_does_not_have_its_shell(session):
    shell = session.shell
    shell.run("x=1")

    def look() -> bool:
        with pytest.raises(ShellClosed, match="forked"):
            shell.run("x=2")
        shell.close()
        return True

    assert in_a_forked_child(look) == 0
    assert shell.run("echo $x").stdout == "1\n"


def test_the_folder_of_processes_is_made_again_when_it_was_removed(session):
    first = session.processes.start("true")
    first.wait(5)
    shutil.rmtree(first._folder.parent)

    process = session.processes.start("echo again")

    assert process.wait(5) == 0
    assert process.logs().text == "again\n"
    assert Path(process._folder.parent / "owner").exists()


def test_a_process_that_is_to_be_kept_is_refused_and_a_marked_command_is_kept(session, process_of):
    with keep(), pytest.raises(ValueError, match="use subprocess inside keep"):
        session.processes.start("sleep 60")
    marked = "SNAKEPIT_KEEP=1 setsid sleep 60 >/dev/null 2>&1 </dev/null & echo $!"
    kept = process_of(int(session.shell.run(marked).stdout))
    other = process_of(int(session.shell.run("setsid sleep 60 & echo $!").stdout))

    session.delete()

    assert not other.is_alive
    assert kept.is_alive
    kept.kill()
    assert kept.wait_gone()


def test_a_process_that_is_asked_again_and_again_tells_the_end_that_the_kernel_tells(session):
    process = session.processes.start("sleep 0.5; exit 7")
    told = set()
    while (record := process.record).state == "running":
        told.add((record.state, record.returncode))

    assert told == {("running", None)}
    assert (process.status, process.returncode) == ("failed", 7)


def test_a_silent_process_tells_since_when_it_runs_and_what_it_has_written(session):
    process = session.processes.start("printf part; sleep 60")
    process.wait_for_log("part")

    assert b"".join(chunk.data for chunk in process.logs().chunks) == b"part"
    assert 0 <= (datetime.now(process.started.tzinfo) - process.started).total_seconds() < 10
    process.kill()
