"""Commands of every kind give what bash gives, and leave a shell that takes the next one."""

from __future__ import annotations

import subprocess
import time
import traceback

import pytest

from snakepit_kernel.errors import CommandFailed, ShellBusy, StartFailed


@pytest.fixture
def marked(shell):
    """A shell with a variable that must still be there after the test."""
    shell.run("x=1; kept() { echo kept; }")
    yield shell
    assert shell.run('kept; echo "$x"').stdout == "kept\n1\n"


def test_output_and_errors_come_apart_with_the_status(shell):
    result = shell.run("echo o; echo e >&2; (exit 3)")

    assert (result.stdout, result.stderr, result.returncode) == ("o\n", "e\n", 3)
    assert (result.ok, result.restarted, result.timed_out, result.detached) == (False,) * 4


def test_a_command_that_is_not_there_is_127(shell):
    result = shell.run("nonexistentcommand123")

    assert result.returncode == 127
    assert "not found" in result.stderr


@pytest.mark.parametrize(
    "text",
    ["if then", 'echo "abc', "}", "done", "esac", "((", "case x in", "echo $(", "echo `", "<"],
)
def test_a_syntax_error_is_a_result(marked, text):
    began = time.monotonic()
    result = marked.run(text)

    assert result.returncode == 2
    assert "syntax error" in result.stderr or "unexpected" in result.stderr
    assert time.monotonic() - began < 1.0
    assert not result.restarted


def test_a_heredoc_without_end_is_bashs_warning(marked):
    result = marked.run("cat <<EOF\nhi")

    assert result.stdout == "hi\n"
    assert "here-document" in result.stderr


def test_set_e_ends_the_command_alone(marked):
    result = marked.run("set -e; false; echo no")

    assert (result.returncode, result.stdout) == (1, "")
    assert marked.run("set +e; false; echo yes").stdout == "yes\n"


@pytest.mark.parametrize("options", ["set -u", "set -eu", "set -o posix; set -u"])
def test_an_unset_variable_under_set_u_is_an_error(marked, options):
    result = marked.run(f"{options}; echo $nope; echo no")

    assert result.returncode in {1, 127}
    assert result.stdout == ""
    assert "nope" in result.stderr
    marked.run("set +eu +o posix")


@pytest.mark.parametrize(
    ("text", "output", "status"),
    [
        ("exec echo hi", "hi\n", 0),
        ("exec ls /nowhere 2>/dev/null", "", 2),
        ("exec bash", "", 0),
        ("exec sh -c 'echo sub; exit 7'", "sub\n", 7),
        ("exec nonexistentcommand123", "", 127),
    ],
)
def test_a_command_that_replaces_the_shell_is_a_result(marked, text, output, status):
    result = marked.run(text)

    assert (result.stdout, result.returncode) == (output, status)


def test_a_path_without_programs_does_not_hinder_the_shell(shell):
    shell.run("export PATH=/nonexistent")

    assert shell.run("echo ok").stdout == "ok\n"
    assert shell.run("exit 3").returncode == 3
    assert shell.run("echo still $PATH").stdout == "still /nonexistent\n"


def test_the_status_is_there_for_the_next_command(marked):
    for status in (1, 0, 77, 255):
        marked.run(f"(exit {status})")
        assert marked.run("echo $?").stdout == f"{status}\n"
    marked.run("exit 5")
    assert marked.run("echo $?").stdout == "5\n"


def test_return_and_break_at_the_top_level_are_harmless(marked):
    assert marked.run("return 5").returncode == 5
    assert marked.run("break; continue; echo on").stdout == "on\n"
    marked.run("declare -A m=([a]=1)")
    assert marked.run("echo ${m[a]}").stdout == "1\n"


def test_tracing_shows_the_users_commands_alone(marked):
    # Bash writes one + for each level, and a command is in a file that the shell reads.
    assert marked.run("set -x; echo hi").stderr == "++ echo hi\n"
    assert marked.run("echo again").stderr == "++ echo again\n"
    assert marked.run("exit 3").stderr == "++ exit 3\n"
    assert marked.run("echo again").stderr == "++ echo again\n"
    assert marked.run("set +x").stderr == "++ set +x\n"
    assert marked.run("set -v; echo hi\necho ho").stdout == "hi\nho\n"
    assert marked.run("set +v").returncode == 0


@pytest.mark.parametrize(
    "text", ["echo hi \\", "echo hi # c", "", "   ", "\n\n", "#", ":", "echo a; # b", "! true", "&"]
)
def test_a_text_at_the_edge_of_a_command_does_what_bash_does(marked, text):
    expected = subprocess.run(["bash", "-c", text], capture_output=True, check=False)
    result = marked.run(text)

    assert (result.returncode, result.stdout_bytes) == (expected.returncode, expected.stdout)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("cat <<< one", "one\n"),
        ("cat <<EOF\none\n  two $y\n\nEOF", "one\n  two Y\n\n"),
        ("cat <<'EOF'\n$y `id` \\\nEOF", "$y `id` \\\n"),
        ("cat <<-EOF\n\ttab\n\tEOF\necho after", "tab\nafter\n"),
        ("cat <<A <<B\na\nA\nb\nB", "b\n"),
    ],
)
def test_a_heredoc_is_exact_and_the_next_command_works(marked, text, output):
    marked.run("y=Y")

    assert marked.run(text).stdout == output
    assert marked.run("echo next").stdout == "next\n"


def test_a_command_of_ten_megabytes_runs(marked):
    filler = "# " + "x" * (10 << 20)

    assert marked.run(f"echo begin\n{filler}\necho end").stdout == "begin\nend\n"


def test_a_value_of_ten_megabytes_is_kept(marked):
    assert marked.run(f"big={'y' * (10 << 20)}; echo ${{#big}}").stdout == f"{10 << 20}\n"
    assert marked.run("unset big").ok


def test_text_of_many_lines_with_quotes_runs_as_it_is(marked):
    text = """awk 'BEGIN { printf "%s\\n", "it'"'"'s" }'
for i in 1 2; do
    case $i in
        1) echo "one" ;;
        *) echo 'other' ;;
    esac
done | while read -r line; do echo "<$line>"; done"""

    assert marked.run(text).stdout == "it's\n<one>\n<other>\n"


@pytest.mark.parametrize("name", ["printf", "cd", "trap", "builtin", "command", "test", "[", "."])
def test_a_builtin_that_is_replaced_by_a_function_does_not_hinder_the_shell(marked, name):
    marked.run(f"{name}() {{ return 7; }}")

    assert marked.run("echo fine").stdout == "fine\n"
    assert marked.run("(exit 4)").returncode == 4
    marked.run(f"unset -f '{name}'")


@pytest.mark.parametrize(
    "text",
    [
        "enable -n printf",
        "set -o noclobber",
        "set -f",
        "set -k",
        "set -o posix",
        "set -m",
        "shopt -u expand_aliases",
        "shopt -s extglob failglob",
        "alias echo='false'; unalias echo",
        "alias printf=false builtin=false command=false",
        "IFS=0123456789",
        "POSIXLY_CORRECT=1",
        "unset PWD",
        "PWD=/wrong",
        "readonly PWD",
        "readonly OLDPWD",
        "PS4='$(echo p >&2)'; set -x",
        "trap 'echo debug' DEBUG",
        "trap 'echo err' ERR",
        "trap 'echo ret' RETURN; set -T",
        "trap '' RTMIN+7",
        "trap '' TERM INT HUP",
        "PROMPT_COMMAND='echo prompt'",
        "set -o history",
        "BASH_ENV=/nowhere; export BASH_ENV",
        "LC_ALL=nowhere",
        "unset PATH",
        "GLOBIGNORE='*'",
        "set -- a b c",
        "shopt -s extdebug",
        "set -E; trap 'echo e >&2' ERR",
        "stty -a",
        "shopt -s lastpipe; echo 3 | read v",
        "exec 3>&1 4>&2 9<&0",
        "ulimit -n 64",
        "disown -a",
        "complete -F f g",
        "bind 2>/dev/null",
        "hash -r; hash -p /bin/false ls",
        "suspend",
        "shopt -s localvar_inherit compat31",
        "set +o braceexpand",
        "wait",
        "times",
        "logout",
    ],
)
def test_a_setting_of_the_user_does_not_hinder_the_shell(marked, text):
    marked.run(text, timeout=5)

    began = time.monotonic()
    result = marked.run("echo fine; (exit 4)", timeout=10)
    assert result.stdout.endswith("fine\n") or "debug" in result.stdout or "e" in result.stdout
    assert "fine\n" in result.stdout
    assert result.returncode == 4
    assert marked.run("exit 6", timeout=10).returncode == 6
    assert "fine\n" in marked.run("echo fine", timeout=10).stdout
    assert time.monotonic() - began < 3.0
    marked.run("trap - DEBUG ERR RETURN; set +x +T +E +o posix", timeout=10)


@pytest.mark.parametrize("text", ["set -n", "set -n; echo a", "sleep 30 & set -n"])
def test_a_shell_that_reads_no_more_commands_is_replaced(marked, text):
    marked.checkpoint()

    began = time.monotonic()
    result = marked.run(text)

    assert (result.returncode, result.stdout, result.restarted) == (0, "", True)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("text", ["shopt -s extdebug; trap false DEBUG", "exec 1>&- 10>&- 11>&-"])
def test_a_shell_that_cannot_answer_is_replaced(marked, text):
    marked.checkpoint()

    marked.run(text)

    assert marked.run("echo fine").stdout == "fine\n"


def test_endless_recursion_is_a_result(marked):
    marked.checkpoint()

    result = marked.run("ulimit -s 1024; f() { f; }; f")

    assert (result.returncode, result.restarted) == (139, True)
    assert result.lost


def test_check_raises_with_the_result(shell):
    with pytest.raises(CommandFailed, match="status 3: echo e") as caught:
        shell.run("echo e >&2; (exit 3)", check=True)
    assert caught.value.result.stderr == "e\n"
    assert "\ne" in str(caught.value)
    assert shell.run("true", check=True).ok


def test_an_unknown_option_names_the_one_that_may_be_meant_and_shows_none_of_our_frames(shell):
    for call in (shell.run, lambda *args, **options: list(shell.stream(*args, **options))):
        with pytest.raises(
            TypeError, match=r"no option 'timeuot'; did you mean 'timeout'\?"
        ) as caught:
            call("true", timeuot=1)
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert {frame.filename for frame in frames} == {__file__}


def test_a_busy_shell_is_an_error_where_waiting_is_not_wanted(shell, in_background, until):
    running = in_background(shell.run, "sleep 30")
    until(lambda: shell.is_busy)

    with pytest.raises(ShellBusy, match="'s'"):
        shell.run("true", queue=False)
    waiting = in_background(shell.run, "echo later")
    until(lambda: shell.queue_length == 1)

    shell.interrupt()
    assert running.result().returncode == 130
    assert waiting.result().stdout == "later\n"
    assert (shell.is_busy, shell.queue_length) == (False, 0)
    assert shell.run("true", queue=False).ok


def test_a_readonly_variable_that_a_command_is_to_have_is_an_error_and_nothing_runs(marked):
    marked.run("readonly Q=1; set -o posix")

    with pytest.raises(StartFailed, match="readonly"):
        marked.run("echo ran >&2; x=2", env={"Q": "2"})

    assert marked.run("set +o posix; echo $Q").stdout == "1\n"


def test_what_a_terminal_would_show_is_exact(marked):
    assert marked.run('echo "[$PS1]"').stdout == "[]\n"
    marked.run("export PROMPT_COMMAND='echo prompt' PS1='$ '")
    assert marked.run("echo only").stdout == "only\n"
    assert marked.run("unset PROMPT_COMMAND PS1").ok


def test_a_virtual_environment_is_activated_and_left_again_and_again(marked, tmp_path):
    (tmp_path / "activate").write_text(
        'deactivate() { PATH=$_OLD; export PATH; unset -f deactivate; }\n_OLD="$PATH"\n'
        f'PATH="{tmp_path}/bin:$PATH"; export PATH\n'
    )
    path = marked.run("echo $PATH").stdout
    for _ in range(3):
        marked.run(f". {tmp_path}/activate")
        assert marked.run("echo $PATH").stdout == f"{tmp_path}/bin:{path}"
        assert marked.run("deactivate").ok
        assert marked.run("echo $PATH").stdout == path
    (tmp_path / "env.sh").write_text("export FROM=file; conda() { eval \"$1='done'\"; }\n")
    marked.run(f". {tmp_path}/env.sh")
    assert marked.run("conda z; echo $FROM $z").stdout == "file done\n"


def test_the_exported_variables_are_shown_without_the_drivers(shell):
    shell.run("export SHOWN=$'a\\nb'; hidden=1")

    env = shell.env

    assert env["SHOWN"] == "a\nb"
    assert not [name for name in env if name == "hidden" or name.startswith(("SBX", "__sbx"))]


def test_a_function_in_place_of_the_command_builtin_costs_neither_the_status_nor_the_state(marked):
    result = marked.run("builtin() { :; }; y=2; cd /nonexistent")

    assert (result.returncode, result.restarted) == (1, False)
    assert marked.run("echo $y").stdout == "2\n"


def test_the_status_of_a_command_after_which_the_shell_does_not_answer_is_its_own(marked):
    marked.checkpoint()

    result = marked.run("builtin() { :; }; readonly -f builtin; (exit 7)")

    assert (result.returncode, result.restarted) == (7, True)


@pytest.mark.parametrize(
    "text", ["enable -n printf", "enable -n printf; printf() { echo mine; }", "unset -f builtin"]
)
def test_a_shell_whose_reply_the_user_has_disabled_goes_on_with_its_status(marked, text):
    result = marked.run(f"y=2; {text}; (exit 4)")

    assert (result.returncode, result.restarted, result.lost) == (4, False, "")
    assert marked.run("echo $y").stdout == "2\n"
