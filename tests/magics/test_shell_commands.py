"""The session's shell and background processes by ``%snakepit``."""

from __future__ import annotations

import os
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import Process, open_session, processes

EVIL = "\x1b]0;title\x07\u202e\x9b2J"
HARMLESS = r"\x1b]0;title\x07\u202e\x9b2J"

SOON = 10.0


@pytest.fixture
def mine(open_notebook, tmp_path):
    """A notebook in a folder of its own, whose session is named ``mine``; no pool runs."""
    notebook = open_notebook(SNAKEPIT_SESSION="mine")
    notebook.run(f"import os; os.chdir({str(tmp_path)!r})")
    return notebook


def in_shell(notebook: Any, command: str, options: str = "") -> Any:
    return notebook.run(f"%%snakepit --shell {options}\n{textwrap.dedent(command)}")


def only_process() -> Process:
    (process,) = (each for each in processes() if each.is_running)
    return process


def let_go_on_after(notebook: Any, text: str, fifos: list[Path]) -> None:
    """Write to the next FIFO whenever a message with a text arrives."""
    waiting = iter(fifos)
    take = notebook._take

    def take_and_let_go_on(shown: Any, message: dict[str, Any]) -> None:
        take(shown, message)
        if message["msg_type"] == "stream" and text in message["content"]["text"]:
            next(waiting).write_text("\n")

    notebook._take = take_and_let_go_on


# -- cells -----------------------------------------------------------------------------------------


def test_a_cell_runs_in_the_shell_of_the_session_whose_state_stays(mine, tmp_path):
    begun = in_shell(mine, "x='a  b'; mkdir d; cd d; greet() { echo \"hello $x\"; }\ngreet")
    then = in_shell(mine, "greet; pwd; echo e >&2; printf end")

    assert (begun.status, begun.stdout, begun.stderr) == ("ok", "hello a  b\n", "")
    assert then.stdout == f"hello a  b\n{tmp_path}/d\nend"
    assert then.stderr == "e\n"
    assert mine.run("%snakepit sh greet").stdout == "hello a  b\n"
    assert mine.run("2 + 2").text == "4", "it has no value of its own"


def test_output_of_a_cell_appears_while_it_runs(mine, tmp_path):
    """The command goes on when its output has arrived at the client."""
    fifos = [tmp_path / "one", tmp_path / "two"]
    for fifo in fifos:
        os.mkfifo(fifo)
    let_go_on_after(mine, "go on", fifos)

    shown = in_shell(mine, "printf 'one: go on'; read x <one; echo two: go on >&2; read x <two")

    assert (shown.stdout, shown.stderr) == ("one: go on", "two: go on\n")


def test_characters_that_are_divided_and_colours_arrive_whole(mine):
    shown = in_shell(
        mine,
        r"""
        printf '\xe2\x82'; sleep 0.1; printf '\xac\n'        # a euro sign in two writes
        printf '\e[31mred\e[0m\n' >&2
        printf '\xff\n'; printf '\xe2\x82'
        """,
    )

    assert shown.stdout == "€\n\ufffd\n\ufffd"
    assert shown.stderr == "\x1b[31mred\x1b[0m\n"


def test_an_exit_status_is_shown_when_it_is_not_0(mine):
    failed = in_shell(mine, "x=1; exit 3")

    assert (failed.status, failed.stdout, failed.stderr) == ("ok", "", "exit status 3\n")
    assert in_shell(mine, "echo $x").stdout == "1\n"
    assert in_shell(mine, "true").stderr == ""
    assert "exit status 127" in in_shell(mine, "nonesuch").stderr


def test_check_makes_an_error_of_a_status_that_is_not_0(mine):
    failed = in_shell(mine, "echo why >&2; exit 3", "--check")

    assert failed.error is not None
    assert failed.error[0] == "CommandFailed"
    assert "ended with status 3" in failed.error[1]
    assert "shell_commands.py" not in failed.traceback, "none of our own frames"
    assert in_shell(mine, "true", "--check").status == "ok"
    assert mine.run("%snakepit sh --check exit 4").error[0] == "CommandFailed"


def test_a_cell_that_is_killed_with_the_shell_says_what_was_lost(mine):
    in_shell(mine, "x=1")

    killed = in_shell(mine, "x=2; kill -9 $$")

    assert "exit status 137" in killed.stderr
    assert "the shell was started again" in killed.stderr
    assert in_shell(mine, "echo $x").stdout in {"1\n", "2\n"}


def test_a_time_limit_ends_the_command_and_keeps_the_state(mine):
    shown = in_shell(mine, "x=kept; echo begun; sleep 60", "--timeout 0.5")

    assert shown.stdout == "begun\n"
    assert re.search(r"ended after \d\.\d s\nexit status 124\n$", shown.stderr)
    assert mine.run("%snakepit sh --timeout 30 echo $x").stdout == "kept\n"


def test_stop_interrupts_the_command_and_keeps_the_state(mine, until, tmp_path):
    reply, seconds = mine.interrupt_after(
        1.0, f"%%snakepit --shell\nx=kept; sleep 60 & echo $! >{tmp_path}/pid; wait"
    )

    assert reply["ename"] == "KeyboardInterrupt"
    assert seconds < SOON
    process = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    until(lambda: not process.exists())
    assert in_shell(mine, "echo $x").stdout == "kept\n"


def test_each_session_has_a_shell_of_its_own(mine):
    in_shell(mine, "x=mine")
    in_shell(mine, "x=other", "--session other")

    assert mine.run("%snakepit sh echo $x").stdout == "mine\n"
    assert mine.run("%snakepit sh --session other echo $x").stdout == "other\n"
    mine.run("%snakepit use other")
    assert mine.run("%snakepit sh echo $x").stdout == "other\n"


def test_a_shell_comes_back_after_a_restart_and_says_so_once(mine, tmp_path):
    in_shell(mine, f"cd {tmp_path}; x=kept; f() {{ echo f; }}")
    mine.run("import snakepit_kernel; snakepit_kernel.open_session('mine').shell.checkpoint()")

    mine.restart()

    shown = in_shell(mine, "f; echo $x; pwd")
    assert shown.stdout.endswith(f"f\nkept\n{tmp_path}\n")  # after what the restart has ended
    assert shown.stderr == "the shell of session mine has come back\n"
    assert in_shell(mine, "true").stderr == ""


# -- the rest of a line ----------------------------------------------------------------------------

LINES = {
    "echo 'a  b'   c": "a  b c\n",
    'echo "a  b" | tr a-z A-Z': "A  B\n",
    "echo $HOME_OF_MINE-${#x}": "-0\n",
    "echo {a,b}{1,2}": "a1 a2 b1 b2\n",
    "echo it's' fine": "its fine\n",
    "for i in 1 2; do echo $i; done": "1\n2\n",
    "echo a; echo b >&2 2>/dev/null; echo --session c": "a\n--session c\n",
    "-- echo x": "x\n",
    "-- -nonesuch || echo no option": "no option\n",
    "--timeout=30 echo timed": "timed\n",
    "--session mine --timeout 30 echo -n --": "--",
    "echo ~+ | wc -l": "1\n",
}


def test_the_rest_of_a_line_is_for_bash_as_it_is(mine):
    mine.run("HOME_OF_MINE = x = 'of the notebook'; a = b = 7")

    shown = {line: mine.run(f"%snakepit sh {line}").stdout for line in LINES}

    assert shown == LINES


MISUSE = {
    "%snakepit sh": "name a command that bash is to run",
    "%snakepit sh --session mine": "name a command that bash is to run",
    "%snakepit sh --nonesuch pwd": "--nonesuch",
    "%snakepit sh --timeout never pwd": "never",
    "%snakepit start-process": "name a command that bash is to run",
    "%snakepit kill": "process",
    "%snakepit kill nonesuch --signal WRONG": "there is no signal 'WRONG'",
    "%snakepit start-process --name a/b pwd": "a/b",
    "%snakepit sh --session a/b pwd": "a/b",
    "%%snakepit --shell --push x\npwd": "--push is for cells in a worker",
    "%%snakepit --shell --background\npwd": "--background is for cells in a worker",
    "%%snakepit --shell --worker 1\npwd": "not allowed with argument",
    "%%snakepit --check\n1": "--check is for cells that bash runs",
}


def test_misuse_is_one_line_and_runs_nothing(mine):
    for code, said in MISUSE.items():
        shown = mine.run(code)
        assert said in shown.stderr, code
        assert len(shown.stderr.strip().splitlines()) <= 2, shown.stderr
        assert shown.stdout == ""
    assert processes() == []


@pytest.mark.parametrize("command", ["kill", "logs"])
def test_a_process_that_is_not_there_is_an_error_that_names_it(mine, command):
    error = mine.run(f"%snakepit {command} nonesuch").error

    assert error == ("ProcessNotFound", "there is no process 'nonesuch'; there are none")


# -- processes -------------------------------------------------------------------------------------


def test_a_process_is_started_listed_followed_and_killed(mine):
    in_shell(mine, "said=hello")
    started = mine.run('p = %snakepit start-process --name web echo "$said"; echo e >&2; sleep 60')
    assert started.status == "ok", started
    process = only_process()
    process.wait_for_log("hello")
    process.wait_for_log("e")

    listed = mine.run("%snakepit ps").data[0]
    heading, row = listed["text/plain"].splitlines()
    assert heading.split()[:6] == ["id", "name", "session", "pool", "pid", "status"]
    assert row.split()[:5] == [process.id, "web", "mine", str(process.pid), "running"]
    assert f"<td>{process.id}</td><td>web</td>" in listed["text/html"]
    assert mine.run("%snakepit ps --session nonesuch").text == "no processes"
    for name in ("web", process.id):
        logs = mine.run(f"%snakepit logs {name}")
        assert (logs.stdout, logs.stderr) == ("hello\n", "e\n")
    assert mine.run("p.status").text == "'running'"

    assert mine.run("%snakepit kill web").stdout == f"{process.id} web: killed\n"
    assert mine.run("%snakepit kill web").stdout == f"{process.id} web has ended already\n"
    assert mine.run("p.status, p.returncode").text == "('killed', 143)"
    assert "killed 143" in mine.run("%snakepit ps").text


def test_logs_follow_shows_what_comes_until_the_process_ends(mine, tmp_path):
    """The process goes on when its first line has arrived at the client."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    mine.run(f"%snakepit start-process --name slow echo one; read x <{fifo}; echo two; exit 3")
    process = only_process()
    let_go_on_after(mine, "one", [fifo])

    shown = mine.run("%snakepit logs --follow slow")

    assert shown.stdout == "one\ntwo\n"
    assert process.status == "failed"


def test_a_process_of_another_kernel_is_seen_and_killed_by_its_id(mine):
    session = open_session("theirs")
    process = session.processes.start("echo hi; sleep 60", name="far")
    process.wait_for_log("hi")

    assert f"{process.id}  far" in mine.run("%snakepit ps").text
    assert mine.run(f"%snakepit logs {process.id}").stdout == "hi\n"
    assert mine.run(f"%snakepit kill {process.id} --signal INT --grace 1").status == "ok"
    assert process.status == "killed"
    assert process.id not in mine.run("%snakepit ps").text, "it has ended, and is not its own"
    assert process.id in mine.run("%snakepit ps --all").text
    session.delete()
    forget_shells()


def test_a_process_ends_with_the_restart_of_its_kernel(mine):
    mine.run("%snakepit start-process sleep 60")
    process = only_process()

    mine.restart()

    until = time.monotonic() + SOON
    while process.is_running:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not Path(f"/proc/{process.pid}").exists()
    assert mine.run("%snakepit ps").text == "no processes"


def test_logs_without_a_name_and_with_that_of_a_pool_are_those_of_workers(notebook):
    assert "--- default-1.1" in notebook.run("%snakepit logs").stdout
    assert "--- default-2.1" in notebook.run("%snakepit logs default").stdout


def test_what_a_process_is_named_and_runs_does_nothing_where_it_is_listed(mine):
    command = f"echo 'raw: {EVIL}'; sleep 9 #<b>"
    mine.run(f"command = {command!r}")
    mine.run("import snakepit_kernel; s = snakepit_kernel.open_session('mine')")
    mine.run("p = s.processes.start(command)")
    only_process().wait_for_log("raw")

    listed = mine.run("%snakepit ps").data[0]

    assert HARMLESS in listed["text/plain"]
    assert f"{HARMLESS}&#x27;; sleep 9 #&lt;b&gt;</span></td>" in listed["text/html"]
    for text in listed.values():
        assert all(line.isprintable() for line in text.split("\n"))
    assert mine.run(f"%snakepit logs {only_process().id}").stdout == f"raw: {EVIL}\n", "as it is"


# -- completion ------------------------------------------------------------------------------------


def test_names_options_and_paths_are_completed(mine, tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "one.c").touch()
    (tmp_path / "list[1].txt").touch()
    in_shell(mine, "cd library")
    mine.run("%snakepit start-process --name watcher sleep 60")
    process = only_process()

    cases = {
        "%snakepit s": {"sh", "start-process"},
        "%snakepit sh --": {"--session", "--timeout", "--check"},
        "%snakepit sh cat o": {"one.c"},
        "%snakepit sh cat ../l": {"../library/", "../list[1].txt"},
        "%snakepit start-process cc ../lib": {"../library/"},
        "%snakepit sh --session m": {"mine"},
        "%snakepit kill ": {process.id, "watcher", "--signal"},
        "%snakepit logs wat": {"watcher"},
        "%%snakepit --sh": {"--shell"},
    }
    for line, expected in cases.items():
        assert expected <= set(mine.completions(line)), line
    mine.run("%snakepit kill watcher")
    assert process.id not in mine.completions("%snakepit kill ")


def forget_shells() -> None:
    """End the thread of the shells of this process, and what it still lists."""
    from snakepit_kernel.shells.manager import manager

    manager.close()


def test_the_help_of_a_command_says_how_it_is_used(mine):
    for command in ("sh", "ps", "kill", "start-process", "logs"):
        assert f"snakepit {command}" in mine.run(f"%snakepit help {command}").text
    assert "--shell" in mine.run("%snakepit help").text
