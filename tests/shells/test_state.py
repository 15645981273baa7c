"""The state of a session's shell: it stays, does not leak, and survives what ends the shell."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from snakepit_kernel.errors import SessionNotFound, ShellClosed
from snakepit_kernel.sessions.state import open_session

STATE = """
plain='a  "b" $c'; export SENT=$'two\\nlines'; LIST=(1 "2 3"); declare -A MAP=([k]=v [l m]=n)
declare -i NUMBER=3; declare -r FIXED=4; greet() { echo "hello $1"; }; alias hi='echo aliased'
set -o pipefail; shopt -s nullglob; umask 027; cd /usr; trap 'echo usr1' USR1
"""

SHOW = (
    'echo "$plain|$SENT|${LIST[1]}|${MAP[l m]}|$NUMBER|$FIXED|$PWD|$(umask)"; printenv SENT;'
    " printenv plain || :; greet you; hi; shopt -po pipefail; shopt -p nullglob; trap -p USR1"
)

SHOWN = """a  "b" $c|two
lines|2 3|n|3|4|/usr|0027
two
lines
hello you
aliased
set -o pipefail
shopt -s nullglob
trap -- 'echo usr1' SIGUSR1
"""


def test_state_of_every_kind_stays_from_command_to_command(shell):
    shell.run(STATE)

    assert shell.run(SHOW).stdout == SHOWN


@pytest.mark.parametrize(
    "end", ["exit 42", "set -e; (exit 42)", "kill -9 $$", "exec sh -c 'exit 42'", "eval 'exit 42'"]
)
def test_what_ends_the_shell_is_a_result_and_the_state_comes_back(shell, end):
    shell.run(STATE)

    ended = shell.run(end)
    shown = shell.run(SHOW)

    assert (ended.returncode, ended.restarted) == (137 if "kill" in end else 42, True)
    assert shown.stdout == SHOWN
    assert not shown.restarted


def test_an_exit_right_after_a_change_keeps_it_and_says_that_nothing_is_lost(shell):
    result = shell.run("x=new; f() { echo f; }; cd /usr; exit 3")

    assert (result.returncode, result.restarted, result.lost, result.cwd) == (3, True, "", "/usr")
    assert shell.run('f; echo "$x $PWD"').stdout == "f\nnew /usr\n"


def test_a_shell_killed_by_its_command_keeps_what_earlier_ones_did_and_says_what_is_lost(shell):
    shell.run("x=before")

    result = shell.run("x=in; kill -9 $$")

    assert (result.returncode, result.restarted) == (137, True)
    assert "this command" in result.lost
    assert shell.run("echo $x").stdout == "before\n"


def test_a_shell_that_exits_under_an_exit_trap_of_the_user_runs_it_and_keeps_its_state(shell):
    shell.run("x=1")
    shell.run("trap 'echo bye' EXIT; y=2")

    result = shell.run("exit 5")

    assert (result.returncode, result.stdout, result.restarted) == (5, "bye\n", True)
    assert shell.run('echo "$x $y"').stdout == "1 2\n"
    assert shell.run("exit 6").stdout == "bye\n"
    assert shell.run("trap - EXIT; z=0; exit 7").lost  # no trap was there to keep it
    shell.run("trap - EXIT")
    assert shell.run("z=3; exit 8").stdout == ""
    assert shell.run('echo "$x $y $z"').stdout == "1 2 3\n"


def test_environments_of_two_sessions_are_their_own(open_one):
    values = {
        "S1": {"NODE_ENV": "production", "API_KEY": "prod-key-123", "DB_HOST": "prod.example.com"},
        "S2": {"NODE_ENV": "test", "API_KEY": "test-key-456", "DB_HOST": "test.example.com"},
    }
    s1, s2 = (open_one(name, env=env).shell for name, env in values.items())
    show = 'echo "$NODE_ENV|$API_KEY|$DB_HOST"'

    assert s1.run(show).stdout == "production|prod-key-123|prod.example.com\n"
    assert s2.run(show).stdout == "test|test-key-456|test.example.com\n"
    s1.run("NEW_VAR=session1-only")
    assert s1.run("echo $NEW_VAR").stdout == "session1-only\n"
    assert s2.run('echo "VALUE:$NEW_VAR:END"').stdout == "VALUE::END\n"


def test_working_directories_of_two_sessions_are_their_own(open_one, tmp_path):
    for folder in ("app/src", "test/unit"):
        (tmp_path / folder).mkdir(parents=True)
    s1 = open_one("S1", cwd=tmp_path / "app").shell
    s2 = open_one("S2", cwd=tmp_path / "test").shell

    assert [s.run("pwd").stdout for s in (s1, s2)] == [f"{tmp_path}/app\n", f"{tmp_path}/test\n"]
    s1.run("cd src")
    s2.run("cd unit")
    assert [s.cwd for s in (s1, s2)] == [f"{tmp_path}/app/src", f"{tmp_path}/test/unit"]
    assert [s.run("pwd").stdout.strip() for s in (s1, s2)] == [s.cwd for s in (s1, s2)]


@pytest.mark.parametrize(
    "definition", ["greet() {{ echo 'Hello from {0}'; }}", "alias greet='echo \"Hello from {0}\"'"]
)
def test_functions_and_aliases_of_two_sessions_are_their_own(open_one, definition):
    s1, s2 = open_one("S1").shell, open_one("S2").shell

    s1.run(definition.format("Production"))
    assert s1.run("greet").stdout == "Hello from Production\n"
    assert s2.run("greet").returncode == 127
    s2.run(definition.format("Test"))
    assert s2.run("greet").stdout == "Hello from Test\n"
    assert s1.run("greet").stdout == "Hello from Production\n"


def test_files_are_shared_by_sessions(open_one, tmp_path):
    s1, s2 = (open_one(name, cwd=tmp_path).shell for name in ("S1", "S2"))

    s1.run('echo "Written by session1" > shared.txt')
    assert s2.run("cat shared.txt").stdout == "Written by session1\n"
    s2.run('echo "Modified by session2" > shared.txt')
    assert s1.run("cat shared.txt").stdout == "Modified by session2\n"


def test_two_sessions_run_at_the_same_time(open_one):
    shells = [open_one(n, env={"SESSION_NAME": n}).shell for n in ("session1", "session2")]
    command = 'sleep 1 && echo "Completed in $SESSION_NAME"'
    for shell in shells:
        shell.run("true")

    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda shell: shell.run(command), shells))

    assert time.monotonic() - began < 1.8
    assert [r.stdout for r in results] == [f"Completed in session{n}\n" for n in (1, 2)]
    assert [r.returncode for r in results] == [0, 0]


def test_commands_of_one_session_run_one_after_the_other(shell):
    with ThreadPoolExecutor(3) as threads:
        commands = [f"echo START-{i}; sleep 0.05; echo END-{i}" for i in range(3)]
        results = list(threads.map(shell.run, commands))

    assert [r.stdout for r in results] == [f"START-{i}\nEND-{i}\n" for i in range(3)]


def test_a_deleted_session_that_is_opened_again_is_new(open_one):
    state, other = open_one("s"), open_one("other")
    state.shell.run("SESSION_VAR=1")
    state.shell.checkpoint()
    other.shell.run("x=1")

    state.delete()

    assert open_one("s").shell.run('echo "[$SESSION_VAR]"').stdout == "[]\n"
    assert other.shell.run("echo $x").stdout == "1\n"


def test_the_shell_of_a_deleted_session_is_closed(session, open_one):
    shell = session.shell
    shell.run("true")

    session.delete()

    with pytest.raises(ShellClosed, match="'s' is closed: its session was deleted"):
        shell.run("true")
    with pytest.raises(ShellClosed):
        shell.stream("true")
    with pytest.raises(SessionNotFound):
        session.shell  # noqa: B018
    shell.close()
    shell.close()
    assert not shell.is_open


def test_a_shell_that_ends_on_exit_is_closed_and_the_next_one_is_new(open_one):
    state, other = open_one("s", on_exit="terminate"), open_one("other")
    shell = state.shell
    shell.run("M=1")
    shell.checkpoint()
    other.shell.run("x=1")

    with pytest.raises(ShellClosed, match="42"):
        shell.run("echo said; exit 42")

    assert (shell.last.returncode, shell.last.stdout) == (42, "said\n")
    with pytest.raises(ShellClosed, match="42"):
        shell.run("true")
    assert state.shell.run('echo "marker=[$M]"').stdout == "marker=[]\n"
    assert other.shell.run("echo $x").stdout == "1\n"


def test_a_shell_is_opened_once(session):
    session.shell.run("true")

    with pytest.raises(ValueError, match="'s'"):
        session.open_shell(cwd="/")


def test_a_fork_has_the_state_and_changes_do_not_flow_back(shell):
    shell.run(STATE)

    forked = shell.fork("forked")
    try:
        assert forked.run(SHOW).stdout == SHOWN
        forked.run("plain=changed; cd /; greet() { :; }; exit 1")
        assert forked.run('echo "$plain"; greet').stdout == "changed\n"
        assert shell.run(SHOW).stdout == SHOWN
        assert shell.run("exit 9").returncode == 9
        assert shell.run(SHOW).stdout == SHOWN
        with pytest.raises(ValueError, match="'forked'"):
            shell.fork("forked")
    finally:
        open_session("forked").delete()


def test_an_environment_variable_that_was_removed_stays_away(open_one):
    shell = open_one("s", env={"GIVEN": "1", "HOME": None}).shell

    assert shell.run("printenv GIVEN; printenv HOME").stdout == "1\n"
    shell.run("unset GIVEN; exit 1")
    assert shell.run("printenv GIVEN").returncode == 1


@pytest.mark.parametrize("checkpoint", ["idle", "always"])
def test_a_shell_of_another_kernel_comes_back_with_the_state(session, checkpoint):
    first = session.open_shell(checkpoint=checkpoint)
    first.run(STATE)
    first.checkpoint()
    first.close()

    result = session.shell.run(SHOW)

    assert (result.restored, result.stdout) == (True, SHOWN)
    assert not session.shell.run("true").restored
    assert session.shell.run("exit 4").returncode == 4
    assert session.shell.run(SHOW).stdout == SHOWN


def test_an_idle_shell_keeps_its_state_by_itself(session, until):
    session.shell.run("x=idle")

    until(lambda: b"idle" in session.store.sessions.shell_state(session.number))
    session.shell.close()

    assert session.shell.run("echo $x").stdout == "idle\n"


def test_a_shell_that_always_checkpoints_loses_only_what_its_last_command_did(open_one):
    shell = open_one("s", checkpoint="always").shell
    shell.run("x=1; die() { builtin kill -9 $$; }")
    for number in range(20):
        shell.run(f"x={number}")
        result = shell.run("die")
        assert "this command" in result.lost
        assert shell.run("echo $x").stdout == f"{number}\n"


def test_a_shell_without_checkpoints_is_not_kept(session):
    shell = session.open_shell(checkpoint="never")
    shell.run("x=1")
    shell.checkpoint()
    shell.close()

    assert session.store.sessions.shell_state(session.number) == b""
    assert session.shell.run('echo "[$x]"').stdout == "[]\n"


def test_secrets_of_the_environment_are_not_in_what_is_kept(open_one):
    state = open_one("s", env={"SECRET_TOKEN": "hunter2"})
    state.shell.run("x=1")
    state.shell.checkpoint()

    kept = state.store.sessions.shell_state(state.number)

    assert b"x=" in kept
    assert b"hunter2" not in kept


def test_a_state_that_was_kept_is_valid_bash_for_values_of_every_kind(shell):
    shell.run(
        "a=$'\\x01\\xff\\n'; b='\\\\'; c='$(touch /tmp/never)`id`\"'; d=$'\\''; e=(\"(\" ')')"
    )
    expected = shell.run("declare -p a b c d e").stdout_bytes

    shell.run("exit 1")

    assert shell.run("declare -p a b c d e").stdout_bytes == expected


def test_a_session_that_is_gone_from_the_store_does_not_hinder_its_shell(session, open_one):
    shell = session.shell
    shell.run("x=1")
    open_session("s").store.delete_session(session.number)

    assert shell.run("echo $x").stdout == "1\n"
    shell.checkpoint()
    assert shell.run("echo $x; exit 2").returncode == 2
    shell.close()


def test_nothing_of_the_driver_is_in_the_users_names(shell):
    before = set(shell.run("compgen -v; compgen -A function").stdout.split())
    for command in ("true", "exit 1", "false", "sleep 9"):
        shell.run(command, timeout=0.1, env={"A": "b", "N": None}, cwd="/")
    after = set(shell.run("compgen -v; compgen -A function; alias").stdout.split())

    names = {name for name in after - before if not re.match(r"(__sbx_|SBX_)", name)}
    assert names <= {"OLDPWD", "PIPESTATUS", "BASHPID", "BASH_TRAPSIG"}


def test_a_readonly_timeout_of_input_does_not_end_an_idle_shell(shell):
    shell.run("readonly TMOUT=1; x=1")

    time.sleep(1.4)  # nothing happens, which is the point

    assert shell.run("echo $x $TMOUT").stdout == "1 1\n"


def test_what_only_a_command_was_given_is_not_in_the_state_that_it_leaves(shell):
    shell.run("export A=before; cd /usr; cd /")
    shell.run("B=mine; exit 1", env={"A": "given", "C": "given", "HOME": None}, cwd="/tmp")

    shown = shell.run('echo "[$A] [$C] [$B] [${HOME:+home}] $PWD $OLDPWD"').stdout

    assert shown == "[before] [] [mine] [home] / /usr\n"


def test_local_variables_of_a_function_that_exits_are_not_in_the_state_that_it_leaves(shell):
    shell.run("msg=global; caller() { local -i outer=1; die $1; }")
    shell.run("die() { local msg=$1 other; declare -r third=3; kept=$1; echo $msg; exit 1; }")
    shell.checkpoint()

    result = shell.run("caller text")

    assert (result.stdout, result.lost) == ("text\n", "")
    assert shell.run('echo "[$msg] [$other$outer$third] [$kept]"').stdout == "[global] [] [text]\n"


def test_a_shell_that_is_killed_between_two_commands_comes_back_and_says_so(shell, process_of):
    shell.run("x=1")
    shell.checkpoint()
    bash = process_of(shell.pid)
    bash.kill()
    assert bash.wait_gone()

    result = shell.run("echo $x")

    assert (result.stdout, result.restarted) == ("1\n", True)
    assert result.lost
    assert not shell.run("true").restarted


def test_a_session_deleted_through_another_handle_takes_its_shell_along(session, living):
    session.shell.run("sleep 60 &")
    session.processes.start("sleep 60")

    open_session("s").delete()

    assert living() == []


def test_settings_with_which_bash_takes_no_commands_do_not_come_back(shell):
    shell.run("x=1; f() { echo f; }; cd /usr")
    shell.run("set -o pipefail; shopt -s extdebug; set -T; trap false DEBUG")

    result = shell.run('f; echo "$x $PWD"')

    assert result.stdout == "f\n1 /usr\n"
    assert "traps and options" in shell.last.lost or not shell.last.restarted


def test_a_kept_state_that_ends_bash_is_left_out_and_that_is_said(session):
    session.store.sessions.set_shell_state(session.number, b"x=1\nexit 3\n")

    result = session.shell.run("echo [$x]")

    assert (result.stdout, result.restarted) == ("[]\n", True)
    assert "the whole state" in result.lost
