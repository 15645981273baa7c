"""Environment and working directory, of a shell and of one command."""

from __future__ import annotations

import os

import pytest

SHOW = 'echo "$PROJECT|$TEMP|$O"'


def test_variables_of_a_command_are_gone_with_it(open_one):
    shell = open_one("s", env={"PROJECT": "p", "O": "session-level"}).shell

    assert shell.run(SHOW, env={"TEMP": "t", "O": "command-level"}).stdout == "p|t|command-level\n"
    assert shell.run(SHOW).stdout == "p||session-level\n"
    streamed = list(shell.stream(SHOW, env={"TEMP": "t"}))
    assert b"".join(chunk.data for chunk in streamed) == b"p|t|session-level\n"
    assert shell.run(SHOW).stdout == "p||session-level\n"
    assert shell.run("printenv O").stdout == "session-level\n"


AS_BYTES = "python3 -c 'import os; print(ascii(os.environb[b\"V\"]))'"

VALUES = [
    "$(touch never) `id` $HOME",
    "it's \"quoted\" '' \\ \\\\ \\n",
    "two\nlines\n\n",
    "grüße ✓ \U0001f600",
    "",
    " ",
    "*",
    "~",
    "-n",
    "a=b",
    "\t\r\x01\x7f",
    "\udcff\udcfe",
    "x" * 100_000,
    ";&|<>#!",
]


@pytest.mark.parametrize("value", VALUES)
def test_values_are_exact(shell, value):
    result = shell.run(f"printenv V; {AS_BYTES}", env={"V": value})

    assert result.stdout_bytes.startswith(os.fsencode(value) + b"\n")
    assert result.stdout.endswith(ascii(os.fsencode(value)) + "\n")
    assert shell.run("printenv V").returncode == 1


def test_many_variables_of_a_megabyte_arrive(shell):
    env = {f"V{number}": "y" * 10_000 for number in range(200)}

    assert shell.run('echo "${#V0} ${#V199}"', env=env).stdout == "10000 10000\n"
    assert shell.run("echo next").stdout == "next\n"


@pytest.mark.parametrize(
    "name", ["1BAD", "A-B", "", "A B", "A=B", "Ä", "A\n", "a;b", 3, "BASH_FUNC_x%%"]
)
def test_a_name_that_is_none_is_an_error_that_names_it(shell, name):
    with pytest.raises(ValueError, match="letters, digits and _") as caught:
        shell.run("true", env={name: "x"})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error"), [(3, TypeError), ("a\0b", ValueError), (b"x", TypeError)]
)
def test_a_value_that_is_none_is_an_error_that_names_the_variable(shell, session, value, error):
    with pytest.raises(error, match="'V'"):
        shell.run("true", env={"V": value})
    with pytest.raises(error, match="'V'"):
        session.processes.start("true", env={"V": value})


def test_a_variable_can_be_set_empty_or_not_set(open_one):
    shell = open_one("s", env={"D": "v", "N": None, "E": "", "R": "set"}).shell

    assert shell.run('echo "$D"; printenv N || echo "not set"; echo "[$E]"').stdout == (
        "v\nnot set\n[]\n"
    )
    assert shell.run("printenv V; printenv R", env={"V": "x", "R": None}).stdout == "x\n"
    assert shell.run("printenv R").stdout == "set\n"
    assert shell.run("R=mine; printenv R", env={"R": None}).returncode == 1
    assert shell.run("unset R; printenv R").returncode == 1


def test_a_variable_that_is_not_exported_is_there_again_as_it_was(shell):
    shell.run("local_only='a  b'; declare -i number=3; list=(1 2)")
    shell.run("echo", env={"local_only": None, "number": None})

    assert shell.run('echo "$local_only"; printenv local_only; echo $((number))').stdout == (
        "a  b\n3\n"
    )


def test_the_environment_of_the_owner_is_inherited(shell, monkeypatch, open_one):
    monkeypatch.setenv("OF_THE_OWNER", "k")

    assert open_one("later").shell.run("echo $OF_THE_OWNER").stdout == "k\n"
    assert (
        open_one("without", env={"OF_THE_OWNER": None}).shell.run("echo [$OF_THE_OWNER]").stdout
        == "[]\n"
    )


def test_the_folder_of_a_command_is_its_own(shell, tmp_path):
    (tmp_path / "it's a $folder").mkdir()
    shell.run("cd /usr; cd /")

    result = shell.run("pwd; cd ..; pwd", cwd=tmp_path / "it's a $folder")

    assert result.stdout == f"{tmp_path}/it's a $folder\n{tmp_path}\n"
    assert shell.run("pwd; echo $OLDPWD").stdout == "/\n/usr\n"
    assert shell.cwd == "/"
    assert shell.run("nohup pwd && pwd & wait", cwd=tmp_path).stdout == f"{tmp_path}\n" * 2


@pytest.mark.parametrize("kind", ["nothing", "a file"])
def test_a_folder_that_is_none_is_an_error_that_names_it(session, open_one, tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.touch()
    attempts = [
        lambda: session.shell.run("true", cwd=folder),
        lambda: session.processes.start("true", cwd=folder),
        lambda: open_one("other", cwd=folder),
    ]

    for attempt in attempts:
        with pytest.raises(NotADirectoryError, match=str(folder)):
            attempt()


def test_a_folder_that_was_removed_while_the_shell_was_in_it_does_not_hinder_it(shell, tmp_path):
    (tmp_path / "gone").mkdir()
    shell.run(f"cd {tmp_path}/gone; x=1")
    (tmp_path / "gone").rmdir()

    assert shell.run("echo $x").stdout == "1\n"
    assert shell.run("exit 3").returncode == 3
    assert shell.run("echo $x").stdout == "1\n"
    assert shell.run("cd /; pwd").stdout == "/\n"
