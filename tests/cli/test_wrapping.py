"""Wrapping: any kernelspec runs under our provisioner, and nothing else is touched."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from snakepit_kernel.cli.commands import run

Run = Callable[..., tuple[int, str, str]]

SOON = 5.0

SETSID_CHILD = (
    "import subprocess;"
    "print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
)

OWNER = """
import asyncio, subprocess, sys
from jupyter_client.manager import AsyncKernelManager
name, code = sys.argv[1:]
async def main():
    km = AsyncKernelManager(kernel_name=name)
    await km.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kc = km.client()
    kc.start_channels()
    await kc.wait_for_ready(timeout=30)
    await kc.execute_interactive(code, timeout=30)
    sys.stdout.flush()  # the reader waits for it
    sys.stdin.readline()
asyncio.run(main())
"""

# A kernel that is not ipykernel: each cell is a command of a shell, and what it writes is shown.
TINY_KERNEL = f"""#!{sys.executable}
import json, subprocess, sys
import zmq
from jupyter_client.session import Session

info = json.load(open(sys.argv[1]))
session = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
context = zmq.Context()


def bind(kind, name):
    socket = context.socket(kind)
    socket.bind(f"{{info['transport']}}://{{info['ip']}}:{{info[name + '_port']}}")
    return socket


shell, control = bind(zmq.ROUTER, "shell"), bind(zmq.ROUTER, "control")
iopub, stdin, heart = bind(zmq.PUB, "iopub"), bind(zmq.ROUTER, "stdin"), bind(zmq.REP, "hb")
poller = zmq.Poller()
for socket in (shell, control, heart):
    poller.register(socket, zmq.POLLIN)


def answer(socket):
    identity, message = session.recv(socket)
    kind = message["msg_type"]
    session.send(iopub, "status", {{"execution_state": "busy"}}, message)
    content = {{"status": "ok"}}
    if kind == "kernel_info_request":
        content |= {{"protocol_version": "5.3", "implementation": "tiny"}}
        content |= {{"implementation_version": "1", "banner": "", "language_info": {{"name": ""}}}}
    elif kind == "execute_request":
        text = subprocess.run(["sh", "-c", message["content"]["code"]], stdout=-1).stdout.decode()
        session.send(iopub, "stream", {{"name": "stdout", "text": text}}, message)
        content |= {{"execution_count": 1, "user_expressions": {{}}}}
    session.send(socket, kind.replace("request", "reply"), content, message, identity)
    session.send(iopub, "status", {{"execution_state": "idle"}}, message)
    return kind != "shutdown_request"


running = True
while running:
    for socket, _ in poller.poll():
        if socket is heart:
            heart.send(heart.recv())
        else:
            running = answer(socket) and running
context.destroy(linger=200)
"""

SHELL_CHILD = "setsid sleep 600 >/dev/null 2>&1 & echo $!"


@pytest.fixture
def command(place: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; give its status, its output and its complaint."""

    def do(*arguments: object) -> tuple[int, str, str]:
        status = run([str(item) for item in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return do


@pytest.fixture
def original(place: Any, write_kernelspec: Any) -> Path:
    """Write a kernelspec of every field, with files beside it and below."""
    stock = {"provisioner_name": "local-provisioner"}
    folder = write_kernelspec(
        "plain",
        ["{resource_dir}/bin/start", "-f", "{connection_file}"],
        display_name="Plain ✓",
        language="sh",
        interrupt_mode="message",
        env={"COLOUR": "green"},
        metadata={"debugger": False, "kernel_provisioner": stock},
        mimetype="text/x-sh",
    )
    (folder / "kernel.js").write_text("define([])")
    (folder / "logo-64x64.png").write_bytes(b"\x89PNG")
    (folder / "bin").mkdir()
    (folder / "bin" / "start").write_text("#!/bin/sh\n")
    (folder / "bin" / "start").chmod(0o755)
    return folder


@pytest.fixture
def tiny(place: Any, write_kernelspec: Any) -> str:
    """Write a kernelspec of a kernel that is not ipykernel; give its name."""
    folder = write_kernelspec("tiny", ["{resource_dir}/kernel", "{connection_file}"], language="sh")
    (folder / "kernel").write_text(TINY_KERNEL)
    (folder / "kernel").chmod(0o755)
    return folder.name


def user_kernels(place: Any) -> Path:
    return Path(place.settings["JUPYTER_DATA_DIR"], "kernels")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Give the mode and the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def complaint(outcome: tuple[int, str, str], status: int = 2) -> str:
    """Assert that a command failed by one sentence; give it."""
    assert outcome[:2] == (status, "")
    (line,) = outcome[2].splitlines()
    assert line.startswith("snakepit: ")
    return line


# -- what is written -------------------------------------------------------------------------------


def test_a_copy_differs_from_its_original_only_in_names_provisioner_and_mark(
    command: Run, place: Any, original: Path
) -> None:
    before = snapshot(original)

    status, out, err = command("wrap", "plain")

    copy = user_kernels(place) / "snakepit-plain"
    written = json.loads((copy / "kernel.json").read_text())
    assert written == {
        **json.loads((original / "kernel.json").read_text()),
        "display_name": "Plain ✓ (Snakepit)",
        "metadata": {
            "debugger": False,
            "kernel_provisioner": {"provisioner_name": "snakepit-provisioner", "config": {}},
            "snakepit": {"wraps": "plain"},
        },
    }
    assert {**snapshot(copy), "kernel.json": b""} == {**before, "kernel.json": b""}
    assert snapshot(original) == before
    assert (status, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith(f"wrote {copy}; ")
    assert line.endswith("jupyter console --kernel snakepit-plain")
    assert [path.name for path in copy.parent.iterdir()] == ["snakepit-plain"]


def test_options_give_the_copy_its_name_its_display_name_and_its_grace(
    command: Run, original: Path
) -> None:
    status, out, _ = command(
        "wrap", "PLAIN", "--name", "Safe.Plain_2", "--display-name", "Safe", "--grace", "0.5"
    )

    spec = KernelSpecManager().get_kernel_spec("safe.plain_2")
    assert status == 0
    assert "'Safe'" in out
    assert spec.display_name == "Safe"
    assert spec.metadata["kernel_provisioner"]["config"] == {"grace": 0.5}
    assert spec.metadata["snakepit"] == {"wraps": "plain"}


def test_a_prefix_is_where_the_copy_is_installed(
    command: Run, place: Any, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = place.root / "prefix"
    status, out, _ = command("wrap", "plain", "--prefix", prefix)

    share = prefix / "share" / "jupyter"
    assert status == 0
    assert (share / "kernels" / "snakepit-plain" / "kernel.json").exists()
    assert f"add {share} to JUPYTER_PATH" in out  # for Jupyter does not look there
    assert not user_kernels(place).exists()

    monkeypatch.setenv("JUPYTER_PATH", f"{os.environ['JUPYTER_PATH']}:{share}")
    assert "jupyter console --kernel" in command("wrap", "plain", "--prefix", prefix)[1]


def test_sys_prefix_installs_into_the_environment(
    command: Run, place: Any, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(place.root / "environment"))

    assert command("wrap", "plain", "--sys-prefix")[0] == 0

    kernels = place.root / "environment" / "share" / "jupyter" / "kernels"
    assert (kernels / "snakepit-plain" / "kernel.json").exists()


def test_a_copy_behind_another_of_its_name_is_said_to_be_unused(
    command: Run, place: Any, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = place.root / "prefix" / "share" / "jupyter"
    monkeypatch.setenv("JUPYTER_PATH", f"{os.environ['JUPYTER_PATH']}:{share}")
    command("wrap", "plain", "--prefix", os.path.dirname(share.parent))
    monkeypatch.setenv("JUPYTER_PATH", f"{share}:{original.parents[1]}")

    status, out, _ = command("wrap", "plain")

    assert status == 0
    assert f"Jupyter finds {share}/kernels/snakepit-plain first" in out


def test_a_sealed_original_gives_a_copy_that_can_be_updated_and_removed(
    command: Run, original: Path
) -> None:
    for path in (original / "kernel.json", original / "bin", original):
        path.chmod(0o555)
    try:
        outcomes = [command("wrap", "plain"), command("wrap", "plain"), command("unwrap", "plain")]
    finally:
        original.chmod(0o755)
        (original / "bin").chmod(0o755)

    assert [status for status, *_ in outcomes] == [0, 0, 0]


def test_links_within_an_original_are_followed_and_dangling_ones_left_out(
    command: Run, place: Any, original: Path
) -> None:
    (original / "bin" / "shared.js").write_text("shared")
    (original / "shared.js").symlink_to("bin/shared.js")
    (original / "dangling").symlink_to("nowhere")

    assert command("wrap", "plain")[::2] == (0, "")

    copy = user_kernels(place) / "snakepit-plain"
    assert not (copy / "shared.js").is_symlink()
    assert (copy / "shared.js").read_text() == "shared"
    assert not os.path.lexists(copy / "dangling")


def test_links_of_an_original_to_the_folder_that_they_lie_in_are_left_out(
    command: Run, place: Any, original: Path
) -> None:
    (original / "bin" / "loop").symlink_to("..")
    (original / "loop").symlink_to(".")

    assert command("wrap", "plain")[::2] == (0, "")

    left = {path.name for path in (user_kernels(place) / "snakepit-plain").rglob("*")}
    assert "bin" in left
    assert "loop" not in left


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_in_an_original_is_named_and_not_copied_without_end(
    command: Run, place: Any, original: Path
) -> None:
    os.mknod(original / "zeros", stat.S_IFCHR | 0o600, os.makedev(1, 5))

    said = complaint(command("wrap", "plain"), 1)

    assert f"cannot copy {original}/zeros" in said
    assert not (user_kernels(place) / "snakepit-plain").exists()


def test_links_out_of_an_original_are_named_and_not_followed(
    command: Run, place: Any, original: Path
) -> None:
    (original.parent / "secret").write_text("secret")
    (original.parent / "folder").mkdir()
    (original.parent / "folder" / "file").write_text("secret")
    (original / "file").symlink_to("../secret")
    (original / "bin" / "folder").symlink_to(original.parent / "folder")

    status, out, said = command("wrap", "plain")

    copy = user_kernels(place) / "snakepit-plain"
    assert status == 0
    assert out.startswith(f"wrote {copy}; ")
    assert "not copied, because they are links out of 'plain'" in said
    assert str(original / "file") in said
    assert str(original / "bin" / "folder") in said
    left = {path.name for path in copy.rglob("*")}
    assert not left & {"folder", "secret"}
    assert not os.path.lexists(copy / "file")


@pytest.mark.parametrize(("mode", "copied"), [(0o600, 0o600), (0o640, 0o640), (0o400, 0o400)])
def test_the_rights_of_a_spec_are_kept_whatever_the_umask(
    command: Run, place: Any, original: Path, mode: int, copied: int
) -> None:
    """There may be a token in its environment."""
    copy = user_kernels(place) / "snakepit-plain" / "kernel.json"
    (original / "kernel.json").chmod(mode)
    old = os.umask(0)
    try:
        assert command("wrap", "plain")[0] == 0
        assert copy.stat().st_mode & 0o777 == copied
        (original / "kernel.json").chmod(0o644)
        assert command("wrap", "plain")[0] == 0  # an update gives nobody more
    finally:
        os.umask(old)
    assert copy.stat().st_mode & 0o777 == copied


def test_directories_that_are_made_for_a_spec_are_private_whatever_the_umask(
    command: Run, place: Any, original: Path, tmp_path: Path
) -> None:
    """Others could put kernelspecs there, which are commands."""
    old = os.umask(0)
    try:
        assert command("wrap", "plain", "--prefix", str(tmp_path / "made"))[0] == 0
    finally:
        os.umask(old)
    made = tmp_path / "made"
    for path in (made, made / "share", made / "share" / "jupyter" / "kernels"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_no_copy_runs_as_its_owner(command: Run, place: Any, original: Path) -> None:
    """It would be another owner: whoever wraps, and not who made the original."""
    program = original / "bin" / "program"
    program.write_text("")
    program.chmod(0o6755)
    assert command("wrap", "plain")[0] == 0
    copy = user_kernels(place) / "snakepit-plain" / "bin" / "program"
    assert copy.stat().st_mode & 0o7777 == 0o755


# -- wrapping again --------------------------------------------------------------------------------


def test_wrapping_again_updates_the_copy_and_says_so(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain", "--grace", "1")
    (original / "kernel.js").unlink()
    (original / "new.js").write_text("new")

    status, out, _ = command("wrap", "plain", "--grace", "3")

    copy = user_kernels(place) / "snakepit-plain"
    assert status == 0
    assert out.startswith(f"updated {copy}; ")
    assert {path.name for path in copy.iterdir()} == {path.name for path in original.iterdir()}
    spec = KernelSpecManager().get_kernel_spec("snakepit-plain")
    assert spec.metadata["kernel_provisioner"]["config"] == {"grace": 3.0}
    assert [path.name for path in copy.parent.iterdir()] == ["snakepit-plain"]


def test_an_update_that_fails_leaves_the_older_copy_as_it_was(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain")
    copy = user_kernels(place) / "snakepit-plain"
    before = snapshot(copy)
    os.mkfifo(original / "pipe")  # cannot be copied

    outcome = command("wrap", "plain", "--grace", "3")

    assert f"cannot copy {original}/pipe" in complaint(outcome, 1)
    assert snapshot(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["snakepit-plain"]


def test_a_failed_rename_puts_the_older_copy_back(
    command: Run, place: Any, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("wrap", "plain")
    copy = user_kernels(place) / "snakepit-plain"
    before = snapshot(copy)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)

    assert "No space left on device" in complaint(command("wrap", "plain"), 1)
    assert snapshot(copy) == before


def test_a_copy_that_is_a_link_is_replaced_and_what_it_points_to_stays(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain")
    copy, elsewhere = user_kernels(place) / "snakepit-plain", place.root / "elsewhere"
    copy.rename(elsewhere)
    copy.symlink_to(elsewhere)
    before = snapshot(elsewhere)

    status, out, _ = command("wrap", "plain", "--grace", "3")

    assert (status, out.split()[0]) == (0, "updated")
    assert not copy.is_symlink()
    assert snapshot(elsewhere) == before


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plian"], "there is no kernelspec 'plian'; did you mean 'plain'?"),
        (["snakepit"], "'snakepit' runs under snakepit-provisioner already"),
        (["plain", "--name", "a b"], "'a b' cannot be the name of a kernelspec"),
        (["plain", "--name", ".."], "'..' cannot be the name"),
        (["plain", "--name", ""], "'' cannot be the name"),
        (["plain", "--name", "../plain"], "choose one with --name"),
        (["plain", "--name", "plain"], "was not written by snakepit wrap"),
        (["plain", "--name", "Python3"], "was not written by snakepit wrap"),
        (["plain", "--display-name", " "], "--display-name must not be empty"),
        (["plain", "--grace", "-1"], "--grace must be 0 or more seconds, not -1"),
        (["plain", "--grace", "nan"], "--grace must be 0 or more seconds, not nan"),
        (["plain", "--grace", "inf"], "--grace must be 0 or more seconds, not inf"),
        (["plain", "--grace", "soon"], "'soon' is not a valid float"),
        (["plain", "--sys-prefix", "--prefix", "/x"], "exclude each other"),
        ([], "KERNELSPEC"),
    ],
)
def test_what_cannot_be_wrapped_is_one_sentence_and_writes_nothing(
    command: Run, place: Any, original: Path, arguments: list[str], expected: str
) -> None:
    assert expected in complaint(command("wrap", *arguments))
    assert not user_kernels(place).exists()


def test_a_copy_is_not_wrapped_again(command: Run, original: Path) -> None:
    command("wrap", "plain")

    said = complaint(command("wrap", "snakepit-plain"))

    assert "'snakepit-plain' runs under snakepit-provisioner already" in said


def test_a_kernelspec_under_another_provisioner_is_refused_and_that_is_named(
    command: Run, place: Any, write_kernelspec: Any
) -> None:
    metadata = {"kernel_provisioner": {"provisioner_name": "yarn-provisioner"}}
    write_kernelspec("far", [sys.executable], metadata=metadata)

    assert "another provisioner, yarn-provisioner" in complaint(command("wrap", "far"))


@pytest.mark.parametrize(
    ("program", "env", "expected"),
    [
        ("/nowhere/R", {}, "starts /nowhere/R, which is not found"),
        ("no-such-program", {}, "starts no-such-program, which is not found"),
        ("sh", {"PATH": "/nowhere"}, "starts sh, which is not found"),
        ("{resource_dir}/kernel.json", {}, "/gone/kernel.json, which is not executable"),
        ("/usr", {}, "starts /usr, which is not found"),
    ],
)
def test_a_program_that_cannot_be_executed_is_named(
    command: Run, write_kernelspec: Any, program: str, env: dict[str, str], expected: str
) -> None:
    write_kernelspec("gone", [program], env=env)

    assert expected in complaint(command("wrap", "gone"))


@pytest.mark.parametrize("program", ["python", "python3", "sh", "/bin/sh"])
def test_a_program_that_jupyter_would_find_is_found(
    command: Run, write_kernelspec: Any, program: str
) -> None:
    write_kernelspec("fine", [program], env={"PATH": "/nowhere:${PATH}"})

    assert command("wrap", "fine")[0] == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode"),
        (b"[]", "it holds no object"),
        (b"{}", "its argv is no list of words"),
        (b'{"argv": []}', "its argv is no list of words"),
        (b'{"argv": "sh"}', "its argv is no list of words"),
        (b'{"argv": ["sh", 1]}', "its argv is no list of words"),
        (b'{"argv": ["sh"], "env": ["A"]}', "its env"),
        (b'{"argv": ["sh"], "env": {"A": 1}}', "its env"),
        (b'{"argv": ["sh"], "metadata": []}', "its metadata is no object"),
        (b'{"argv": ["sh"], "metadata": {"kernel_provisioner": "x"}}', "kernel_provisioner"),
        (
            b'{"argv": ["sh"], "metadata": {"kernel_provisioner": {"provisioner_name": 1}}}',
            "provisioner_name is no text",
        ),
    ],
)
def test_a_broken_kernel_json_is_named_with_what_is_wrong(
    command: Run, place: Any, original: Path, content: bytes, expected: str
) -> None:
    (original / "kernel.json").write_bytes(content)

    said = complaint(command("wrap", "plain"))

    assert f"{original}/kernel.json is broken: " in said
    assert expected in said
    assert not user_kernels(place).exists()


def test_a_kernelspec_that_wrap_did_not_write_is_never_overwritten(
    command: Run, place: Any, original: Path
) -> None:
    target = user_kernels(place) / "snakepit-plain"
    target.mkdir(parents=True)
    (target / "kernel.json").write_text('{"argv": ["sh"], "display_name": "mine"}')
    before = snapshot(target)

    said = complaint(command("wrap", "plain"))

    assert f"{target} was not written by snakepit wrap; choose another name with --name" in said
    assert snapshot(target) == before


def test_a_kernelspec_elsewhere_that_the_copy_would_hide_is_named(
    command: Run, write_kernelspec: Any, original: Path
) -> None:
    hidden = write_kernelspec("Snakepit-Plain", ["sh"])

    assert f"{hidden} was not written by snakepit wrap" in complaint(command("wrap", "plain"))


@pytest.mark.parametrize("kind", ["file", "empty folder", "dangling link"])
def test_whatever_else_is_in_the_copys_place_is_never_overwritten(
    command: Run, place: Any, original: Path, kind: str
) -> None:
    target = user_kernels(place) / "snakepit-plain"
    target.parent.mkdir(parents=True)
    if kind == "file":
        target.touch()
    elif kind == "empty folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")

    assert f"{target} was not written by snakepit wrap" in complaint(command("wrap", "plain"))
    assert os.path.lexists(target)


def test_a_copy_of_another_kernelspec_is_not_overwritten(
    command: Run, write_kernelspec: Any, original: Path
) -> None:
    write_kernelspec("second", ["sh"])
    command("wrap", "plain", "--name", "safe")

    said = complaint(command("wrap", "second", "--name", "safe"))

    assert "safe is a copy of 'plain'; choose another name with --name, or unwrap it" in said


@pytest.mark.parametrize("prefix", ["/proc/nowhere", "/dev/null"])
def test_a_target_that_cannot_be_written_is_named(
    command: Run, original: Path, prefix: str
) -> None:
    said = complaint(command("wrap", "plain", "--prefix", prefix), 1)

    assert f"cannot write {prefix}/share/jupyter/kernels/snakepit-plain: " in said
    assert "choose --prefix" in said


def test_a_name_too_long_for_a_directory_is_one_sentence(command: Run, original: Path) -> None:
    said = complaint(command("wrap", "plain", "--name", "x" * 300), 1)

    assert "File name too long" in said


def test_a_target_inside_of_the_original_is_refused(command: Run, original: Path) -> None:
    assert "is inside of" in complaint(command("wrap", "plain", "--prefix", original))
    assert not (original / "share").exists()


# -- unwrapping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "Plain", "snakepit-plain"])
def test_either_name_removes_the_copy_and_spares_the_original(
    command: Run, place: Any, original: Path, name: str
) -> None:
    before = snapshot(original)
    command("wrap", "plain")

    status, out, err = command("unwrap", name)

    copy = user_kernels(place) / "snakepit-plain"
    assert (status, err) == (0, "")
    assert out == f"removed {copy} ('snakepit-plain', a copy of 'plain')\n"
    assert not copy.exists()
    assert snapshot(original) == before


def test_a_copy_whose_original_is_gone_is_removed_by_either_name(
    command: Run, place: Any, original: Path
) -> None:
    for name in ("plain", "snakepit-plain"):
        command("wrap", "plain")
        original.rename(place.root / "away")
        status, _, _ = command("unwrap", name)
        (place.root / "away").rename(original)
        assert status == 0
    assert list(user_kernels(place).iterdir()) == []


def test_a_copy_is_removed_from_every_data_path(
    command: Run, place: Any, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = place.root / "prefix" / "share" / "jupyter"
    monkeypatch.setenv("JUPYTER_PATH", f"{os.environ['JUPYTER_PATH']}:{share}:{share}/../jupyter")
    command("wrap", "plain")
    command("wrap", "plain", "--prefix", place.root / "prefix")

    status, out, _ = command("unwrap", "plain")

    assert status == 0
    assert len(out.splitlines()) == 2
    assert list((share / "kernels").iterdir()) == list(user_kernels(place).iterdir()) == []


def test_several_copies_of_one_original_are_removed_by_their_own_names_only(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain")
    command("wrap", "plain", "--name", "quick", "--grace", "0")

    said = complaint(command("unwrap", "plain"))
    assert "'plain' has several copies; say which one: quick, snakepit-plain" in said
    assert len(list(user_kernels(place).iterdir())) == 2

    assert command("unwrap", "quick")[0] == 0
    assert [path.name for path in user_kernels(place).iterdir()] == ["snakepit-plain"]
    assert command("unwrap", "plain")[0] == 0


def test_a_linked_copy_loses_its_link_and_what_it_points_to_stays(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain")
    copy, elsewhere = user_kernels(place) / "snakepit-plain", place.root / "elsewhere"
    copy.rename(elsewhere)
    copy.symlink_to(elsewhere)
    before = snapshot(elsewhere)

    status, out, _ = command("unwrap", "plain")

    assert status == 0
    assert out.startswith(f"removed link {copy} ")
    assert not os.path.lexists(copy)
    assert snapshot(elsewhere) == before


def test_a_link_inside_of_a_copy_is_not_followed_when_the_copy_is_removed(
    command: Run, place: Any, original: Path
) -> None:
    command("wrap", "plain")
    (user_kernels(place) / "snakepit-plain" / "link").symlink_to(original)
    before = snapshot(original)

    assert command("unwrap", "plain")[0] == 0
    assert snapshot(original) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python3", "kernelspec 'python3' is not wrapped, and no copy; nothing was removed"),
        ("snakepit", "kernelspec 'snakepit' is not wrapped, and no copy; nothing was removed"),
        (
            "snakepit-plian",
            "no wrapped kernelspec 'snakepit-plian'; did you mean 'snakepit-plain'?",
        ),
    ],
)
def test_what_wrap_did_not_write_is_not_removed(
    command: Run, place: Any, original: Path, name: str, expected: str
) -> None:
    command("wrap", "plain")
    before = set(KernelSpecManager().find_kernel_specs())

    assert expected in complaint(command("unwrap", name))
    assert set(KernelSpecManager().find_kernel_specs()) == before


def test_without_any_copy_unwrap_says_that_there_are_none(command: Run) -> None:
    assert "there is no wrapped kernelspec 'x'; there are none" in complaint(command("unwrap", "x"))


@pytest.mark.parametrize(
    "metadata",
    [
        {"snakepit": {"wraps": "plain"}},
        {"snakepit": "plain", "kernel_provisioner": {"provisioner_name": "snakepit-provisioner"}},
        {"kernel_provisioner": {"provisioner_name": "snakepit-provisioner"}},
    ],
)
def test_a_kernelspec_with_half_of_the_marks_is_not_taken_for_a_copy(
    command: Run, write_kernelspec: Any, metadata: dict[str, Any]
) -> None:
    folder = write_kernelspec("snakepit-plain", ["sh"], metadata=metadata)

    complaint(command("unwrap", "plain"))
    complaint(command("unwrap", "snakepit-plain"))

    assert folder.exists()


def test_a_copy_that_cannot_be_removed_is_named(
    command: Run, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    command("wrap", "plain")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", refuse)
        said = complaint(command("unwrap", "plain"), 1)

    assert "cannot remove " in said
    assert "Permission denied" in said


# -- kernels that run ------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
@pytest.mark.parametrize(("kernel", "code"), [("python3", SETSID_CHILD), ("tiny", SHELL_CHILD)])
def test_a_wrapped_kernel_leaves_nothing_after_a_restart_and_a_shutdown(
    snakepit: Any,
    tiny: str,
    start_kernel: Any,
    process_of: Any,
    living: Any,
    kernel: str,
    code: str,
    now: bool,
) -> None:
    done = snakepit("wrap", kernel, env={"JUPYTER_PATH": os.environ["JUPYTER_PATH"]})
    assert done.returncode == 0, done.stderr

    async def scenario() -> None:
        async with start_kernel(f"snakepit-{kernel}") as running:
            child = process_of(int(await running.run(code)))
            assert child.is_alive
            await running.km.restart_kernel(now=now)
            assert not child.is_alive
            await running.ready()
            child = process_of(int(await running.run(code)))
            assert child.is_alive
            await running.km.shutdown_kernel(now=now)
            assert not child.is_alive
            assert list(map(str, living())) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("kernel", "code"), [("python3", SETSID_CHILD), ("tiny", SHELL_CHILD)])
def test_a_wrapped_kernel_whose_manager_is_killed_leaves_nothing(
    command: Run, place: Any, tiny: str, process_of: Any, living: Any, kernel: str, code: str
) -> None:
    assert command("wrap", kernel)[0] == 0
    program = [sys.executable, "-c", OWNER, f"snakepit-{kernel}", code]

    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        child = process_of(int(owner.stdout.readline()))
        assert len(living()) >= 4  # the owner, a guardian, the kernel and its child
        owner.kill()

    assert child.wait_gone(SOON)
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_without_wrapping_the_same_child_survives_a_restart(
    tiny: str, start_kernel: Any, process_of: Any
) -> None:
    """What the tests above would not notice, were the stock provisioner to end children as well."""

    async def scenario() -> None:
        async with start_kernel(tiny) as running:
            child = process_of(int(await running.run(SHELL_CHILD)))
            while os.getsid(child.pid) != child.pid:  # else it is of the kernel's group still
                await asyncio.sleep(0.005)
            await running.km.restart_kernel(now=True)
            try:
                assert child.is_alive
            finally:
                child.kill()
            await running.ready()

    asyncio.run(scenario())
