"""`snakepit ps`, `logs` and `kill`: background processes of sessions, from another process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import Pool, Process, open_session
from snakepit_kernel.shells.manager import manager

from .conftest import SCRIPTS
from .test_doctor import findings  # noqa: F401 - a fixture
from .test_foreign_text import EVIL, HARMLESS, assert_harmless, on_terminal  # noqa: F401 - a fixture

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SOON = 10.0


@pytest.fixture
def mine(place: Any) -> Iterator[Any]:
    """The processes of a session of this process."""
    session = open_session("build", store=place.root / "sessions.sqlite")
    yield session.processes
    session.delete()
    manager.close()


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The table of ``ps``: without its title, its headings and its last line."""
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[2:-1]]


# -- ps --------------------------------------------------------------------------------------------


def test_without_processes_it_says_so_and_succeeds(snakepit: Run, place: Any) -> None:
    done = snakepit("ps")

    assert (done.returncode, done.stdout, done.stderr) == (0, "no processes\n", "")
    assert snakepit("ps", "--json").stdout == "[]\n"


def test_processes_are_listed_with_how_they_fare(snakepit: Run, mine: Any) -> None:
    running = mine.start("sleep 60", name="web")
    failed = mine.start("exit 3", name="test")
    failed.wait()

    assert [row[:5] for row in rows(snakepit("ps"))] == [
        [running.id, "web", "build", str(running.pid), "running"],
        [failed.id, "test", "build", str(failed.pid), "failed"],
    ]
    assert snakepit("ps").stdout.splitlines()[-1] == (
        "snakepit logs ID shows what one has written; snakepit kill ID ends it"
    )


def test_json_has_all_that_is_known_of_a_process_and_no_secret(snakepit: Run, mine: Any) -> None:
    process = mine.start("sleep 60; curl -u user --password=hunter2", name="web")

    (data,) = json.loads(snakepit("ps", "--json").stdout)

    assert data.pop("started") > 0
    assert data.pop("guardian")
    assert data.pop("owner").startswith(str(os.getpid()))
    assert "hunter2" not in data["command"]
    assert data.pop("command").startswith("sleep 60; curl")
    assert data.pop("run_id")
    assert data == {
        "id": process.id,
        "name": "web",
        "pid": process.pid,
        "session": "build",
        "pool": None,
        "state": "running",
        "returncode": None,
        "ended": None,
    }


# -- logs ------------------------------------------------------------------------------------------


def test_a_log_is_printed_byte_for_byte_each_stream_to_its_own(snakepit: Run, mine: Any) -> None:
    process = mine.start(r"printf '\xff\0\e[31mred'; printf '%s' no >&2", name="raw")
    process.wait()

    for name in ("raw", process.id):
        done = subprocess.run(
            [SCRIPTS / "snakepit", "logs", name], capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"\xff\0\x1b[31mred", b"no")


def test_follow_prints_what_is_there_and_what_comes_until_the_end(mine: Any, place: Any) -> None:
    fifo = place.root / "fifo"
    os.mkfifo(fifo)
    process = mine.start(f"echo one; read x <{fifo}; echo two >&2; exit 3")
    with subprocess.Popen(
        [SCRIPTS / "snakepit", "logs", "--follow", process.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as following:
        assert following.stdout.readline() == b"one\n"
        fifo.write_text("\n")
        out, err = following.communicate(timeout=SOON)

    assert (following.returncode, out, err) == (0, b"", b"two\n")
    assert process.returncode == 3


def test_ctrl_c_leaves_the_log_and_not_the_process(mine: Any) -> None:
    process = mine.start("echo one; sleep 60")
    with subprocess.Popen(
        [SCRIPTS / "snakepit", "logs", "--follow", process.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as following:
        following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=SOON)

    assert following.returncode != 0
    assert b"Traceback" not in err
    assert process.is_running


def test_a_reader_that_has_seen_enough_may_leave(mine: Any) -> None:
    """As in ``snakepit logs web | head -1``."""
    process = mine.start("while :; do echo 1; sleep 0.02; done")
    command = f"{SCRIPTS}/snakepit logs --follow {process.id} | head -1"

    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )

    assert "Traceback" not in done.stderr
    assert done.stdout == "1\n"
    assert process.is_running


# -- kill ------------------------------------------------------------------------------------------


def test_processes_are_killed_by_id_and_name_with_all_that_they_have_started(
    snakepit: Run, mine: Any, place: Any
) -> None:
    file = place.root / "pid"
    first = mine.start(f"setsid sleep 60 & echo $! >{file}; wait; sleep 60", name="web")
    second = mine.start("sleep 60")
    until = time.monotonic() + SOON
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.01)

    done = snakepit("kill", "web", second.id)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{first.id} web: killed\n{second.id} sleep: killed\n"
    assert not Path(f"/proc/{file.read_text().strip()}").exists()
    assert (first.status, first.returncode) == ("killed", 143)
    assert snakepit("kill", "web").stdout == f"{first.id} web: killed\n", "it may be said twice"


def test_the_first_signal_and_the_grace_can_be_chosen(snakepit: Run, mine: Any) -> None:
    gentle = mine.start("trap 'exit 7' INT; while :; do sleep 0.02; done")
    stubborn = mine.start("trap '' TERM; echo ready; while :; do sleep 0.02; done")
    stubborn.wait_for_log("ready")
    time.sleep(0.1)  # the first one must have set its trap; it cannot be asked

    assert snakepit("kill", gentle.id, "--signal", "int").returncode == 0
    assert gentle.returncode == 7
    began = time.monotonic()
    assert snakepit("kill", stubborn.id, "--grace", "0.5").returncode == 0
    assert 0.5 < time.monotonic() - began < SOON
    assert stubborn.returncode == 137


def test_a_process_of_another_program_is_killed_and_its_program_told(
    snakepit: Run, place: Any
) -> None:
    code = (
        "import sys; from snakepit_kernel import open_session\n"
        f"s = open_session('far', store={str(place.root / 'far.sqlite')!r})\n"
        "p = s.processes.start('sleep 60', name='far'); print(p.id, flush=True)\n"
        "print(p.wait(), p.status, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        number = owner.stdout.readline().strip()
        assert [row[0] for row in rows(snakepit("ps"))] == [number]
        assert snakepit("kill", "far").stdout == f"{number} far: killed\n"
        assert owner.stdout.readline() == "143 killed\n"
        owner.communicate("", timeout=SOON)
    assert snakepit("ps").stdout == "no processes\n"


# -- misuse ----------------------------------------------------------------------------------------

MISUSE = {
    ("logs",): "Missing argument 'PROCESS'",
    ("kill",): "Missing argument 'PROCESS...'",
    ("logs", "a", "b"): "unexpected extra argument",
    ("kill", "a", "--signal", "WRONG"): "there is no signal 'WRONG'",
    ("kill", "a", "--signal", "99"): "there is no signal '99'",
    ("kill", "a", "--grace", "-1"): "--grace",
    ("kill", "a", "--grace", "nan"): "--grace",
    ("ps", "--all"): "No such option",
}


@pytest.mark.parametrize(("words", "said"), MISUSE.items(), ids=map(" ".join, MISUSE))
def test_misuse_is_named_and_has_the_status_2(
    snakepit: Run, words: tuple[str, ...], said: str
) -> None:
    done = snakepit(*words)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["logs", "kill"])
def test_a_name_that_is_not_there_is_an_error_that_suggests_one(
    snakepit: Run, mine: Any, command: str
) -> None:
    process = mine.start("sleep 60", name="web")

    done = snakepit(command, process.id + "x")

    assert done.returncode == 1
    assert f"there is no process '{process.id}x'; did you mean '{process.id}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_if_one_name_is_wrong_nothing_is_killed(snakepit: Run, mine: Any) -> None:
    process = mine.start("sleep 60", name="web")

    assert snakepit("kill", "web", "nonesuch").returncode == 1
    assert process.is_running


# -- foreign text ----------------------------------------------------------------------------------


def test_names_and_commands_do_nothing_to_the_terminal(
    mine: Any,
    snakepit: Run,
    on_terminal: Callable[..., str],
) -> None:
    process = mine.start(f"echo '{EVIL}'; sleep 60")
    status = next(place_of(process).glob("status.json"))
    evil = {**json.loads(status.read_text()), "name": EVIL, "session": EVIL, "pool": EVIL}
    status.write_text(json.dumps(evil))

    for command in ("ps", "status"):
        for shown in (on_terminal(command), snakepit(command).stdout):
            assert shown.count(HARMLESS) >= 3, command
            assert_harmless(shown)
    assert json.loads(snakepit("ps", "--json").stdout)[0]["name"] == EVIL
    assert_harmless(on_terminal("kill", process.id))


def test_an_evil_name_that_is_asked_for_does_nothing_to_the_terminal(snakepit: Run) -> None:
    for command in ("logs", "kill"):
        done = snakepit(command, EVIL)
        assert done.returncode == 1
        assert HARMLESS in done.stderr
        assert_harmless(done.stderr)


def place_of(process: Process) -> Path:
    return Path(process.__reduce__()[1][0])


# -- status and doctor -----------------------------------------------------------------------------


def test_status_shows_running_processes_and_the_shells_of_a_pool(snakepit: Run, place: Any) -> None:
    with Pool(1, name="shop", store=place.root / "sessions.sqlite") as pool:
        session = pool.session("build")
        session.shell.run("true")
        process = session.processes.start("sleep 60", name="web")
        session.processes.start("true").wait()
        until = time.monotonic() + SOON
        while "1 shell, 1 process" not in (shown := snakepit("status").stdout):
            assert time.monotonic() < until, shown  # it is published once a second
        data = json.loads(snakepit("status", "--json").stdout)
    manager.close()

    table = shown.partition("background processes\n")[2].splitlines()
    assert table[1].split()[:6] == [process.id, "web", "build", "shop", str(process.pid), "running"]
    assert len(table[2:]) == 1 or "true" not in table[2]
    assert (data["pools"][0]["shells"], data["pools"][0]["processes"]) == (1, 1)
    assert [each["id"] for each in data["processes"]] == [process.id]


def test_the_doctor_names_the_bash_that_shells_use(findings: Any) -> None:
    (finding,) = findings("bash")

    assert finding["level"] == "ok"
    assert finding["text"].startswith(f"{shutil.which('bash')}, version 5")


def test_the_doctor_says_what_is_missing_without_bash(
    findings: Any,
    place: Any,
) -> None:
    folder = place.root / "bin"
    folder.mkdir()
    (folder / "snakepit").symlink_to(SCRIPTS / "snakepit")

    (finding,) = findings("bash", PATH=str(folder))

    assert finding["level"] == "hint"
    assert "there is no bash on PATH: sessions have no shell" in finding["text"]
