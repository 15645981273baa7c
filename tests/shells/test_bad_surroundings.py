"""What the system refuses is an error that names it, and the shell works again when it can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from snakepit_kernel.errors import StartFailed
from snakepit_kernel.paths import RUNTIME_VARIABLE


@pytest.mark.parametrize("command", ["a\0b", "\0"])
def test_a_command_with_a_nul_is_an_error(shell, command):
    with pytest.raises(ValueError, match="NUL"):
        shell.run(command)
    with pytest.raises(ValueError, match="NUL"):
        shell.stream(command)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "soon"}, (TypeError, ValueError), "timeout"),
        ({"max_output": -1}, ValueError, "max_output"),
        ({"stdin": 3}, TypeError, "stdin"),
        ({"queue": "no"}, TypeError, "queue"),
        ({"spool": 1}, TypeError, "spool"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_an_option_that_is_wrong_is_an_error_that_names_it(shell, options, error, named):
    with pytest.raises(error, match=named):
        shell.run("true", **options)


@pytest.mark.parametrize("options", [{"checkpoint": "often"}, {"on_exit": "stay"}, {"timeout": -1}])
def test_an_option_of_a_shell_that_is_wrong_is_an_error_that_names_it(session, options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        session.open_shell(**options)
    assert session.shell.run("true").ok


def test_a_command_that_is_no_text_is_an_error(shell):
    with pytest.raises(TypeError, match="text, not int"):
        shell.run(3)


def test_without_bash_on_path_the_error_says_so(session, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        with pytest.raises(StartFailed, match="no bash on PATH"):
            session.shell.run("true")
        with pytest.raises(StartFailed, match="no bash on PATH"):
            session.processes.start("true")

    assert session.shell.run("echo again").stdout == "again\n"


FEW_DESCRIPTORS = """
import os, resource, sys
from snakepit_kernel import open_session
from snakepit_kernel.errors import SnakepitError
session = open_session("s", store=sys.argv[1])
session.shell.run("x=1")
assert session.processes.start("true").wait() == 0
session.shell.close()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def kept():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [link for link in links if link[0] != "/" or "/shell-" in link or "/process-" in link]

before, failures = kept(), []
for more in range(20):
    used = max(map(int, os.listdir("/proc/self/fd")))
    gaps = [os.open(os.devnull, os.O_RDONLY)]
    while gaps[-1] <= used:
        gaps.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + more, hard))
    os.close(gaps.pop())
    for start in (session.shell.run, lambda command: session.processes.start(command).wait(9)):
        try:
            start("true")
        except (SnakepitError, OSError) as error:
            failures.append(str(error))
            if "oo many open" not in str(error) and "unable to open" not in str(error):
                print(type(error), error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for gap in gaps:
        os.close(gap)
    result = session.shell.run("echo $x")
    if result.stdout != "1\\n":
        print(more, result)
    session.shell.close()
print(len(failures) > 8, sorted(set(kept()) - set(before)))
folders = {process._folder for process in session.processes.list()}
print([name for name in os.listdir(next(iter(folders)).parent) if name.startswith("p")
       and next(iter(folders)).parent / name not in folders])
"""


def test_a_limit_of_descriptors_is_an_error_and_leaves_none(tmp_path):
    command = [sys.executable, "-W", "error", "-c", FEW_DESCRIPTORS, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout.splitlines()) == (0, ["True []", "[]"]), done.stderr
    assert "ResourceWarning" not in done.stderr, done.stderr


def test_a_descriptor_limit_in_the_middle_of_a_command_does_not_hinder_the_next(shell):
    result = shell.run('ulimit -n 10; for i in {11..40}; do eval "exec $i</dev/null"; done')

    assert "ad file descriptor" in result.stderr or "oo many open files" in result.stderr
    assert shell.run("echo fine").stdout == "fine\n"


def test_the_folder_of_a_shell_is_made_again_when_it_was_removed(shell):
    shell.run("x=1")
    shutil.rmtree(shell._driver._code.folder)

    assert shell.run("echo $x").stdout == "1\n"
    assert shell.run("exit 3").returncode == 3
    assert shell.run("echo $x", stdin="y").stdout == "1\n"
    shutil.rmtree(shell._driver._code.folder.parent)
    assert shell.run("y=2; exit 4").returncode == 4
    assert shell.run("echo $x $y").stdout == "1 2\n"


@pytest.mark.parametrize("name", ["in", "out", "err", "command", "take", "leave", "begin", "state"])
def test_a_file_of_a_shell_that_was_removed_does_not_wedge_it(shell, name):
    shell.run("x=1")
    shell.checkpoint()
    (shell._driver._code.folder / name).unlink(missing_ok=True)

    assert shell.run("echo $x").stdout == "1\n"
    assert shell.run("exit 3").returncode == 3
    assert shell.run("echo $x").stdout == "1\n"


FULL_DISK = """
import os, sys
from pathlib import Path
from snakepit_kernel import open_session
from snakepit_kernel.errors import StartFailed
from snakepit_kernel.paths import RUNTIME_VARIABLE
session = open_session("s", store=sys.argv[1])
shell = session.shell
assert shell.run("x=1; f() { echo f; }").ok
assert session.processes.start("echo before").wait() == 0
folder = Path(os.environ["SNAKEPIT_RUNTIME_DIR"])
filler = folder / "filler"
fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(fd, bytes(4096))
except OSError:
    os.close(fd)
said = []
for attempt in (
    lambda: shell.run("# " + "y" * 20000),
    lambda: shell.run("cat", stdin=b"z" * 20000),
    lambda: session.processes.start("# " + "y" * 20000),
):
    try:
        attempt()
        said.append("ran")
    except StartFailed as error:
        said.append("No space left" in str(error))
print(said)
filler.unlink()
print(shell.run("f; echo $x").stdout.split(), shell.run("exit 3").returncode)
print(session.processes.start("echo after; exit 5").wait())
print(shell.run("f; echo $x").stdout.split())
unpublished = [p for p in folder.glob("*/process-*/p*") if not (p / "status.json").exists()]
print(unpublished)
session.delete()
"""


def test_a_full_runtime_directory_is_an_error_and_loses_no_state(tmp_path):
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    mount = f"mount -t tmpfs -o size=2m,mode=700 none {runtime} && exec {sys.executable} {script}"
    unshare = shutil.which("unshare")
    assert unshare is not None
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [unshare, *as_root, "--mount", "sh", "-c", f"{mount} {tmp_path}/store"],
        env={**os.environ, "SNAKEPIT_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    expected = ["[True, True, True]", "['f', '1'] 3", "5", "['f', '1']", "[]"]
    assert done.stdout.splitlines() == expected


CGROUPS = [
    path.parent
    for path in Path("/sys/fs/cgroup").glob("pids/cgroup.procs")
    if os.access(path.parent, os.W_OK)
]
"""Where the number of processes and threads of a group can be limited."""

FEW_PROCESSES = """
import pathlib, sys, time
from snakepit_kernel import open_session, StartFailed
group = pathlib.Path(sys.argv[2])
(group / "cgroup.procs").write_text("0")
session = open_session("s", store=sys.argv[1])
shell = session.shell
shell.run("x=1")
shell.checkpoint()
limit = int((group / "pids.current").read_text())
(group / "pids.max").write_text(str(limit))
began = time.monotonic()
result = shell.run("/bin/true; echo $?", timeout=1.0)
print(result.timed_out or "fork" in result.stderr, time.monotonic() - began < 3.0)
print(shell.run("echo $x", timeout=5).stdout.strip())
try:
    session.processes.start("true")
    print("started")
except StartFailed as error:
    print("limit on the number of processes" in str(error), error)
(group / "pids.max").write_text("max")
print(shell.run("/bin/echo $x").stdout.strip(), session.processes.start("true").wait())
session.delete()
"""


@pytest.mark.skipif(not CGROUPS, reason="no cgroup can be made that limits processes")
def test_a_full_process_table_is_named_and_the_shell_answers(tmp_path):
    group = CGROUPS[0] / f"snakepit-test-{os.getpid()}"
    group.mkdir()
    try:
        command = [sys.executable, "-c", FEW_PROCESSES, str(tmp_path / "store"), str(group)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        until = time.monotonic() + 5
        while (group / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.02)  # the end of processes that are not ours is no event
        group.rmdir()

    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [said[0], said[1], said[2].split()[0], said[3]] == ["True True", "1", "True", "1 0"]


def test_a_script_that_ends_in_the_middle_of_commands_ends_cleanly(tmp_path):
    script = """
        import sys, threading
        from snakepit_kernel import open_session
        session = open_session("s", store=sys.argv[1])
        shell = session.shell
        shell.run("sleep 60 & x=1")
        session.processes.start("setsid sleep 60")
        threading.Thread(target=shell.run, args=("sleep 60",), daemon=True).start()
        stream = shell.stream("echo never")
        while not shell.is_busy:
            pass
        print("end")
    """
    command = [sys.executable, "-X", "dev", "-c", textwrap.dedent(script), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, done.stdout) == (0, "end\n")
    lines = [line for line in done.stderr.splitlines() if "never retrieved" in line]
    assert lines == []
    assert "Destroyed" not in done.stderr, done.stderr


def test_the_runtime_directory_may_have_any_name(open_one, monkeypatch, tmp_path):
    folder = tmp_path / "a b'$HOME\"(;"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv(RUNTIME_VARIABLE, str(folder))
    shell = open_one().shell

    assert shell.run("x=1; cat; exit 3", stdin="read").stdout == "read"
    result = shell.run("echo $x; echo e >&2")
    assert (result.stdout, result.stderr) == ("1\n", "e\n")
    shell.checkpoint()
