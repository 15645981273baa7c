"""`snakepit doctor`: each problem is found, named with what to do, and nothing sound is blamed."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import open_session
from snakepit_kernel.cli import doctor, installation_checks
from snakepit_kernel.cli.findings import Finding, Level, listing, ok
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.sweep import tagged_processes

pytestmark = pytest.mark.usefixtures("with_templates")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Findings = list[dict[str, Any]]

ENTRY_POINTS = "[jupyter_client.kernel_provisioners]\nsnakepit-provisioner = {}\n"


@pytest.fixture
def findings(snakepit: Run) -> Callable[..., Findings]:
    """Run ``doctor --json``; give what it found of one check. The exit status must agree."""

    def run(check: str, *options: str, **environment: str) -> Findings:
        done = snakepit("doctor", "--json", *options, env=environment)
        assert done.stderr == ""
        report = json.loads(done.stdout)
        broken = any(finding["level"] == "problem" for finding in report["findings"])
        assert report["ok"] is not broken
        assert done.returncode == (1 if broken else 0)
        return [finding for finding in report["findings"] if finding["check"] == check]

    return run


def write_kernelspec(place: Any, **changes: Any) -> Path:
    """Put a kernelspec of our name where jupyter_client looks first."""
    source = Path(__file__).parents[2] / "kernelspec" / "kernel.json"
    folder = place.root / "jp" / "kernels" / "snakepit"
    folder.mkdir(parents=True)
    content = {**json.loads(source.read_text()), **changes}
    (folder / "kernel.json").write_text(json.dumps(content))
    return folder


def install(folder: Path, entry_points: str) -> None:
    """Install a distribution that has entry points and nothing else."""
    metadata = folder / "other-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


# -- the report ------------------------------------------------------------------------------------


def test_a_sound_installation_has_one_line_for_each_check_and_no_problem(snakepit: Run) -> None:
    done = snakepit("doctor")

    lines = done.stdout.splitlines()
    level_of = {line[9:].partition(": ")[0]: line[:9].strip() for line in lines}
    # Orphans are looked for on the whole machine, and other tests may be making some.
    level_of.pop("processes")
    assert level_of == {name: "ok" for name in doctor.CHECKS if name != "processes"}


def test_a_check_that_fails_is_a_problem_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Iterator[Finding]:
        raise RuntimeError("no luck")
        yield

    checks = {"first": fail, "second": lambda: [ok("second", "fine")]}
    monkeypatch.setattr(doctor, "CHECKS", checks)

    status = doctor.show(doctor.examine(start=False), as_json=False)

    assert status == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("problem  first: ")
    assert "RuntimeError: no luck" in first
    assert second == "ok       second: fine"


def test_a_hint_alone_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    hint = Finding(check="x", level=Level.HINT, text="two\nlines", advice="do this")

    assert doctor.show([hint], as_json=False) == 0
    assert capsys.readouterr().out == "hint     x: two lines; do this\n"


def test_a_long_list_is_cut_and_counted() -> None:
    assert listing(["a", "b", "c"]) == "a, b, c"
    assert listing(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


# -- versions --------------------------------------------------------------------------------------


def test_a_package_that_is_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installation_checks.version
    monkeypatch.setattr(
        installation_checks, "version", lambda name: "25.1" if name == "pyzmq" else real(name)
    )

    (found,) = installation_checks.check_versions()

    assert found.level is Level.PROBLEM
    assert "pyzmq 25.1 does not satisfy >=26" in found.text
    assert "pip install --upgrade snakepit-kernel" in found.advice


def test_the_versions_that_matter_are_named(findings: Callable[..., Findings]) -> None:
    (found,) = findings("versions")

    for name in ("Python 3.", "jupyter-client ", "ipykernel ", "pyzmq "):
        assert name in found["text"]
    assert "ipyparallel" not in found["text"]  # it is only for the benchmarks


# -- kernelspec ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}, "argv"),
        ({"argv": []}, "argv"),
        ({"metadata": {"debugger": True}}, "metadata"),
        ({"metadata": {"kernel_provisioner": {"config": None}}}, "metadata"),
        ({"interrupt_mode": "message"}, "interrupt_mode"),
    ],
)
def test_a_stale_kernelspec_is_a_problem_that_names_folder_and_field(
    place: Any, findings: Callable[..., Findings], changes: dict[str, Any], field: str
) -> None:
    folder = write_kernelspec(place, **changes)

    (found,) = findings("kernelspec")

    assert found["level"] == "problem"
    assert str(folder) in found["text"]
    assert f"differs in {field}" in found["text"]
    assert f"rm -r {folder}" in found["advice"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"argv": 1}', '{"metadata": {"kernel_provisioner": null}}']
)
def test_a_kernelspec_that_cannot_be_used_is_a_problem_that_names_its_folder(
    place: Any, findings: Callable[..., Findings], content: str
) -> None:
    folder = write_kernelspec(place)
    (folder / "kernel.json").write_text(content)

    (found,) = findings("kernelspec")

    assert found["level"] == "problem"
    assert f"{folder}/kernel.json cannot be used" in found["text"]
    assert f"rm -r {folder}" in found["advice"]


def test_a_kernelspec_that_is_nowhere_is_a_problem(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])

    (found,) = installation_checks.check_kernelspec()

    assert found.level is Level.PROBLEM
    assert "finds no kernelspec 'snakepit'" in found.text
    assert "pip install --force-reinstall" in found.advice


def test_a_setting_of_the_users_own_in_the_kernelspec_is_a_hint(
    place: Any, findings: Callable[..., Findings]
) -> None:
    folder = write_kernelspec(place)
    content = json.loads((folder / "kernel.json").read_text())
    content["metadata"]["kernel_provisioner"]["config"]["grace"] = 9.0
    (folder / "kernel.json").write_text(json.dumps(content))

    (found,) = findings("kernelspec")

    assert found["level"] == "hint"
    assert "grace" in found["text"]


@pytest.mark.parametrize(
    ("interpreter", "level"), [("/nowhere/python", "problem"), (sys.executable, "hint")]
)
def test_an_interpreter_in_the_kernelspec_is_a_hint_and_a_problem_when_it_is_gone(
    place: Any, findings: Callable[..., Findings], interpreter: str, level: str
) -> None:
    packaged = json.loads((write_kernelspec(place) / "kernel.json").read_text())
    path = place.root / "jp" / "kernels" / "snakepit" / "kernel.json"
    path.write_text(json.dumps({**packaged, "argv": [interpreter, *packaged["argv"][1:]]}))

    (found,) = findings("kernelspec")

    assert found["level"] == level
    assert interpreter in found["text"]


# -- provisioner and servers -----------------------------------------------------------------------


def test_a_provisioner_of_the_same_name_that_is_not_ours_is_a_problem(
    place: Any, findings: Callable[..., Findings]
) -> None:
    install(place.root / "lib", ENTRY_POINTS.format("json:JSONDecoder"))

    found = findings("provisioner", PYTHONPATH=str(place.root / "lib"))

    assert "problem" in {item["level"] for item in found}
    assert any("json:JSONDecoder" in item["text"] for item in found)


def test_a_missing_provisioner_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation_checks, "entry_points", lambda **_: [])

    (found,) = installation_checks.check_provisioner()

    assert found.level is Level.PROBLEM
    assert "no entry point 'snakepit-provisioner'" in found.text


@pytest.fixture
def other(place: Any) -> Iterator[Any]:
    """Give another environment, whose ``jupyter-lab`` comes first on PATH."""
    venv.create(place.root / "v", with_pip=False, symlinks=True)
    scripts = place.root / "v" / "bin"
    (scripts / "jupyter-lab").write_text(f"#!{scripts}/python\n")
    (scripts / "jupyter-lab").chmod(0o755)
    place.path = f"{scripts}:{place.settings['PATH']}"
    (place.libraries,) = (place.root / "v" / "lib").glob("python*/site-packages")
    return place


def of_lab(found: Findings) -> dict[str, Any]:
    (finding,) = [item for item in found if item["text"].startswith("jupyter-lab on PATH")]
    return finding


def test_a_server_of_another_environment_that_knows_nothing_of_us_is_a_hint(
    other: Any, findings: Callable[..., Findings]
) -> None:
    found = of_lab(findings("servers", PATH=other.path))

    assert found["level"] == "hint"
    assert f"{other.root}/v/bin/python" in found["text"]
    assert "-m pip install snakepit-kernel" in found["advice"]


def test_a_server_of_another_environment_that_sees_the_provisioner_is_fine(
    other: Any, findings: Callable[..., Findings]
) -> None:
    install(other.libraries, ENTRY_POINTS.format("anything:at_all"))

    found = of_lab(findings("servers", PATH=other.path))

    assert found["level"] == "ok"
    assert "sees snakepit-provisioner" in found["text"]


def test_a_server_that_offers_our_kernel_without_the_provisioner_is_a_problem(
    other: Any, findings: Callable[..., Findings]
) -> None:
    write_kernelspec(other)
    (other.libraries / "jupyter_core").mkdir()
    (other.libraries / "jupyter_core" / "paths.py").write_text(
        f"def jupyter_path(*parts): return [{str(other.root / 'jp' / 'kernels')!r}]\n"
    )

    found = of_lab(findings("servers", PATH=other.path))

    assert found["level"] == "problem"
    assert f"{other.root}/v/bin/python -m pip install snakepit-kernel" in found["advice"]


def test_a_server_of_this_environment_is_fine(findings: Callable[..., Findings]) -> None:
    for found in findings("servers"):
        assert found["level"] == "ok"
        assert "of this environment" in found["text"]


@pytest.mark.parametrize("body", ["#!/bin/sh\nexec sleep 60\n", "#!/bin/sh\nexit 3\n"])
def test_an_interpreter_that_does_not_answer_is_a_hint(
    place: Any, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (place.root / "bin").mkdir()
    for name, content in {
        "python": body,
        "jupyter-lab": f"#!{place.root}/bin/python\n",
    }.items():
        (place.root / "bin" / name).write_text(content)
        (place.root / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.root}/bin:/usr/bin:/bin")
    monkeypatch.setattr(installation_checks, "ANSWER_PATIENCE", 0.3)
    began = time.monotonic()

    found = [item for item in installation_checks.check_servers() if "did not answer" in item.text]

    assert [item.level for item in found] == [Level.HINT]
    assert time.monotonic() - began < 10


def test_a_script_of_which_the_python_is_not_known_is_a_hint(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / "bin").mkdir()
    (place.root / "bin" / "jupyter").write_text("#!/usr/bin/env bash\n")  # as pyenv's shims are
    (place.root / "bin" / "jupyter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.root}/bin:/usr/bin:/bin")

    found = [item for item in installation_checks.check_servers() if "cannot tell" in item.text]

    assert [item.level for item in found] == [Level.HINT]


@pytest.mark.parametrize(
    ("content", "interpreter"),
    [
        ("#!/opt/x/bin/python3.11\n", "/opt/x/bin/python3.11"),
        ("#! /opt/x/bin/python -I\n", "/opt/x/bin/python"),
        ("#!/bin/sh\n'''exec' '/a b/bin/python' \"$0\" \"$@\"\n' '''\n", "/a b/bin/python"),
        ("#!/bin/sh\n'''exec' /long/python \"$0\" \"$@\"\n' '''\n", "/long/python"),
        ("#!/usr/bin/env -S python-of-nowhere -I\n", "python-of-nowhere"),
        ("#!/bin/bash\n", None),
        ("#!\n", None),
        ("\x7fELF", None),
        ("", None),
    ],
)
def test_the_interpreter_of_a_script_is_read_from_its_first_lines(
    tmp_path: Path, content: str, interpreter: str | None
) -> None:
    (tmp_path / "script").write_text(content)

    assert installation_checks.interpreter_of(tmp_path / "script") == interpreter


# -- directories and registry ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "variable"),
    [("runtime directory", "SNAKEPIT_RUNTIME_DIR"), ("data directory", "SNAKEPIT_DATA_DIR")],
)
def test_a_directory_that_cannot_be_made_is_a_problem_that_names_the_variable(
    findings: Callable[..., Findings], check: str, variable: str
) -> None:
    (found,) = findings(check, **{variable: "/proc/nowhere"})

    assert found["level"] == "problem"
    assert f"set {variable}" in found["text"]


def test_a_runtime_directory_that_leaves_no_room_for_sockets_is_a_problem(
    place: Any, findings: Callable[..., Findings]
) -> None:
    (found,) = findings("runtime directory", SNAKEPIT_RUNTIME_DIR=str(place.root / ("x" * 60)))

    assert found["level"] == "problem"
    assert "too long" in found["text"]
    assert "SNAKEPIT_RUNTIME_DIR" in found["advice"]


def test_a_directory_that_others_could_replace_is_a_hint(
    place: Any, findings: Callable[..., Findings]
) -> None:
    shared = place.root / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    (found,) = findings("data directory", SNAKEPIT_DATA_DIR=str(shared / "own"))
    shared.chmod(0o1777)
    (safe,) = findings("data directory", SNAKEPIT_DATA_DIR=str(shared / "own"))

    assert (found["level"], safe["level"]) == ("hint", "ok")
    assert f"chmod go-w {shared}" in found["advice"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize(("owner", "group", "mode"), [(65533, 0, 0o755), (0, 65533, 0o775)])
def test_a_directory_high_above_that_others_could_replace_is_a_hint_too(
    place: Any, findings: Callable[..., Findings], owner: int, group: int, mode: int
) -> None:
    theirs = place.root / "theirs"
    (theirs / "a" / "b").mkdir(parents=True)
    os.chown(theirs, owner, group)
    theirs.chmod(mode)

    (found,) = findings("data directory", SNAKEPIT_DATA_DIR=str(theirs / "a" / "b" / "own"))

    assert found["level"] == "hint"
    assert f"chmod go-w {theirs}," in found["advice"]


def test_a_registry_that_cannot_be_opened_is_a_problem(
    place: Any, findings: Callable[..., Findings]
) -> None:
    (place.data / "runs.sqlite").mkdir()

    (found,) = findings("registry")

    assert found["level"] == "problem"
    assert "cannot be used" in found["text"]


def test_a_corrupt_registry_is_a_problem_once_and_is_kept_aside(
    place: Any, findings: Callable[..., Findings]
) -> None:
    (place.data / "runs.sqlite").write_text("no database " * 100)

    (first,) = findings("registry")
    (second,) = findings("registry")

    assert first["level"] == "problem"
    assert "corrupt" in first["text"]
    assert len(list(place.data.glob("runs.sqlite.corrupt-*"))) == 1
    assert second["level"] == "ok"


def test_stored_sessions_are_counted(place: Any, findings: Callable[..., Findings]) -> None:
    open_session("one", store=place.data / "sessions.sqlite")

    (found,) = findings("sessions")

    assert found["level"] == "ok"
    assert found["text"].startswith("1 in ")


def test_a_damaged_store_of_sessions_is_a_problem_once_and_is_kept_aside(
    place: Any, findings: Callable[..., Findings]
) -> None:
    (place.data / "sessions.sqlite").write_text("no database " * 1000)

    (first,) = findings("sessions")
    (second,) = findings("sessions")

    assert first["level"] == "problem"
    assert "damaged" in first["text"]
    assert len(list(place.data.glob("sessions.sqlite.corrupt-*"))) == 1
    assert second["level"] == "ok"


def test_the_way_in_which_kernels_start_is_said(findings: Any) -> None:
    (found,) = findings("forking")
    assert found["level"] == "ok"
    assert "forked from a template" in found["text"]


def test_why_kernels_are_executed_is_said(findings: Any) -> None:
    (found,) = findings("forking", SNAKEPIT_TEMPLATE="0")
    assert found["level"] == "hint"
    assert "SNAKEPIT_TEMPLATE=0" in found["text"]
    assert found["advice"] == "unset SNAKEPIT_TEMPLATE"


def test_reading_the_registry_leaves_its_logger_as_it_was(place: Any) -> None:
    logger = logging.getLogger("snakepit_kernel.processes.run_registry")
    before = list(logger.handlers)

    list(doctor.CHECKS["registry"]())

    assert logger.handlers == before


# -- orphans ---------------------------------------------------------------------------------------

LOSE = """
import os, subprocess, sys
from snakepit_kernel.processes.run_registry import Registry
run_id, written = sys.argv[1:]
if written == "yes":
    Registry().reserve(run_id, label="lost kernel")
child = subprocess.Popen(
    ["sleep", "60"], env={"SNAKEPIT_RUN_ID": run_id}, start_new_session=True,
    stdout=subprocess.DEVNULL,
)
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.fixture
def lose(place: Any, process_of: Any) -> Iterator[Callable[..., tuple[str, Any]]]:
    """Make a process with the tag of a run whose owner is dead; give the run and the process."""
    lost = []

    def run(*, written: bool) -> tuple[str, Any]:
        run_id = new_run_id()
        owner = subprocess.run(
            [sys.executable, "-c", LOSE, run_id, "yes" if written else "no"],
            env=place.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lost.append(process_of(int(owner.stdout)))
        return run_id, lost[-1]

    yield run
    for process in lost:
        process.kill()
        assert process.wait_gone()


@pytest.mark.parametrize("written", [True, False])
def test_an_orphan_run_is_a_problem_that_names_its_processes_and_how_to_end_them(
    findings: Callable[..., Findings], lose: Callable[..., tuple[str, Any]], written: bool
) -> None:
    run_id, process = lose(written=written)

    (found,) = [item for item in findings("processes") if run_id in item["text"]]

    assert found["level"] == "problem"
    assert ("lost kernel" in found["text"]) is written
    assert ("the next start" in found["advice"]) is written
    assert found["details"] == [f"{process.pid} sleep 60"]
    assert ("snakepit reap" if written else f"kill {process.pid}") in found["advice"]
    assert process.is_alive  # it only looks


def test_a_dead_run_without_processes_is_a_hint(
    findings: Callable[..., Findings], lose: Callable[..., tuple[str, Any]]
) -> None:
    run_id, process = lose(written=True)
    process.kill()
    assert process.wait_gone()

    (found,) = [item for item in findings("processes") if run_id in item["details"]]

    assert found["level"] == "hint"


@pytest.mark.parametrize("registry", ["its own", "another"])
def test_a_live_pool_is_no_orphan_whichever_registry_it_is_written_in(
    place: Any,
    findings: Callable[..., Findings],
    pool_owner: subprocess.Popen[str],
    registry: str,
) -> None:
    ours = f"--owner={pool_owner.pid}:"
    run_ids = {item.run_id for item in tagged_processes() if ours in item.command}
    assert len(run_ids) == 2
    data = place.data if registry == "its own" else place.root / "other"

    found = findings("processes", SNAKEPIT_DATA_DIR=str(data))

    assert not any(run_id in item["text"] for run_id in run_ids for item in found)


def test_what_a_guardian_that_was_killed_left_is_an_orphan_once_its_owner_is_dead(
    place: Any, findings: Callable[..., Findings], process_of: Any
) -> None:
    script = (
        "import os, sys; from snakepit_kernel import Pool; pool = Pool(workers=1);"
        'r = pool.run(\'import subprocess; p = subprocess.Popen(["sleep", "60"]); p.pid\');'
        "print(r.value, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        child = process_of(int(owner.stdout.readline()))
        (guardian,) = [
            process_of(item.identity.pid)
            for item in tagged_processes()
            if f"--owner={owner.pid}:" in item.command
        ]
        owner.send_signal(19)  # SIGSTOP: it can neither refill the slot nor sweep
        guardian.kill()
        before = findings("processes")
        owner.kill()
    try:
        after = findings("processes")
    finally:
        child.kill()
        assert child.wait_gone()

    def blames(found: Findings) -> bool:
        return any(f"{child.pid} sleep 60" in item["details"] for item in found)

    assert not blames(before)  # its owner lives, and will see to it
    assert blames(after)


# -- leftovers -------------------------------------------------------------------------------------


def test_the_folder_of_a_dead_process_is_a_leftover_and_a_live_pools_is_not(
    place: Any, findings: Callable[..., Findings], pool_owner: subprocess.Popen[str]
) -> None:
    (live,) = (path.parent for path in place.runtime.glob("*/*/pool.json"))
    (before,) = findings("leftovers")
    stale = place.runtime / new_run_id() / "shop-abcdef"
    stale.mkdir(parents=True)
    (stale / "owner").write_text(f"{os.getpid()}:1")  # our pid, and not our start

    (after,) = findings("leftovers")

    assert live.exists()
    assert (before["level"], before["details"]) == ("ok", [])
    assert (after["level"], after["details"]) == ("hint", [str(stale)])
    assert str(stale) in after["text"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_old_files_that_no_process_names_are_leftovers(
    place: Any, findings: Callable[..., Findings]
) -> None:
    old = time.time() - 3600
    ours = '{"kernel_name": "snakepit"}'
    stale_socket, used_socket = (place.runtime / f"{new_run_id()}-1" for _ in range(2))
    make_socket(stale_socket)
    make_socket(used_socket)
    contents = {
        "kernel-stale.json": ours,
        "kernel-used.json": ours,
        "kernel-other.json": '{"kernel_name": "python3"}',
        "kernel-list.json": "[]",
        "notes.json": ours,
    }
    files = {name: place.jupyter_runtime / name for name in contents}
    for name, path in files.items():
        path.write_text(contents[name])
    empty = place.runtime / new_run_id()  # the folder of a run is no socket of it
    empty.mkdir()
    for path in (stale_socket, used_socket, empty, *files.values()):
        os.utime(path, (old, old))
    (place.jupyter_runtime / "kernel-young.json").write_text(ours)
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    used = [str(files["kernel-used.json"]), str(used_socket)]

    with subprocess.Popen([*waiting, *used], stdin=subprocess.PIPE):
        (found,) = findings("leftovers")

    assert found["level"] == "hint"
    assert set(found["details"]) == {str(files["kernel-stale.json"]), str(stale_socket)}
    assert str(stale_socket) in found["advice"]


# -- the live check --------------------------------------------------------------------------------


def test_start_runs_a_kernel_and_leaves_nothing(
    place: Any, findings: Callable[..., Findings]
) -> None:
    (found,) = findings("start", "--start")

    assert found["level"] == "ok"
    assert "left nothing" in found["text"]
    assert list(place.jupyter_runtime.iterdir()) == []


def test_start_says_why_a_kernel_dies(place: Any, findings: Callable[..., Findings]) -> None:
    argv = ["python", "-c", "import not_there", "{connection_file}"]
    write_kernelspec(place, argv=argv)

    (found,) = findings("start", "--start")

    assert found["level"] == "problem"
    assert "No module named 'not_there'" in found["text"]
    assert list(place.jupyter_runtime.iterdir()) == []


def test_start_sees_that_a_kernel_has_not_our_provisioner(
    place: Any, findings: Callable[..., Findings]
) -> None:
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_kernelspec(place, argv=argv, metadata={})

    found = findings("start", "--start")

    assert [item["level"] for item in found] == ["problem"]
    assert "without our provisioner" in found[0]["text"]


def test_without_the_option_nothing_is_started(findings: Callable[..., Findings]) -> None:
    assert findings("start") == []
