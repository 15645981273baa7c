"""Where runtime and durable files live."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_kernel.paths import (
    DATA_VARIABLE,
    MAX_SOCKET_PATH,
    RUNTIME_VARIABLE,
    data_dir,
    fits_sockets,
    runtime_dir,
    runtime_dirs,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("directory", "variable"), [(runtime_dir, RUNTIME_VARIABLE), (data_dir, DATA_VARIABLE)]
)
class TestADirectory:
    def test_that_was_chosen_is_made_private_with_its_parents(
        self, monkeypatch, tmp_path, directory, variable
    ):
        monkeypatch.setenv(variable, str(tmp_path / "a" / "b"))
        assert directory() == tmp_path / "a" / "b"
        assert mode_of(directory()) == 0o700

    def test_that_is_made_is_private_with_its_parents_whatever_the_umask(
        self, monkeypatch, tmp_path, directory, variable
    ):
        monkeypatch.setenv(variable, str(tmp_path / "a" / "b"))
        old = os.umask(0)
        try:
            directory()
        finally:
            os.umask(old)
        assert mode_of(tmp_path / "a") == mode_of(tmp_path / "a" / "b") == 0o700

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o755, 0o710])
    def test_that_others_have_rights_to_is_refused_with_the_remedy_and_left_as_it_is(
        self, monkeypatch, tmp_path, directory, variable, mode
    ):
        tmp_path.chmod(mode)
        monkeypatch.setenv(variable, str(tmp_path))
        with pytest.raises(PermissionError) as caught:
            directory()
        assert mode_of(tmp_path) == mode
        # One that is for all, as /tmp, must stay so.
        remedy = f"as {tmp_path}/snakepit" if mode == 0o1777 else f"chmod 700 {tmp_path}"
        for part in (f"directory {tmp_path} is open to others", remedy, variable):
            assert part in str(caught.value)
        assert ("chmod" in str(caught.value)) is (mode != 0o1777)
        tmp_path.chmod(0o700)
        assert directory() == tmp_path

    def test_that_is_a_link_is_refused_and_what_is_behind_it_is_left_as_it_is(
        self, monkeypatch, tmp_path, directory, variable
    ):
        behind, link = tmp_path / "behind", tmp_path / "link"
        behind.mkdir(mode=0o700)
        link.symlink_to(behind)
        monkeypatch.setenv(variable, str(link))
        with pytest.raises(PermissionError, match=rf"directory {link} is a link.*{variable}"):
            directory()
        assert list(behind.iterdir()) == []

    def test_whose_place_a_file_takes_is_named_with_the_variable(
        self, monkeypatch, tmp_path, directory, variable
    ):
        file = tmp_path / "file"
        file.touch()
        monkeypatch.setenv(variable, str(file))
        with pytest.raises(PermissionError) as caught:
            directory()
        assert str(file) in str(caught.value)
        assert variable in str(caught.value)

    def test_below_a_file_is_named_with_the_variable(
        self, monkeypatch, tmp_path, directory, variable
    ):
        (tmp_path / "file").touch()
        monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))
        with pytest.raises(PermissionError, match=variable) as caught:
            directory()
        assert str(tmp_path / "file" / "below") in str(caught.value)

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
    def test_of_another_user_is_refused_and_left_as_it_is(
        self, monkeypatch, tmp_path, directory, variable
    ):
        foreign = tmp_path / "foreign"
        foreign.mkdir(mode=0o755)
        os.chown(foreign, 65534, 65534)
        monkeypatch.setenv(variable, str(foreign))
        with pytest.raises(PermissionError, match="must belong to you") as caught:
            directory()
        assert str(foreign) in str(caught.value)
        assert mode_of(foreign) == 0o755

    def test_given_relative_is_made_absolute(self, monkeypatch, tmp_path, directory, variable):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(variable, "here")
        assert directory() == tmp_path / "here"

    def test_given_below_home_is_found_there(self, monkeypatch, tmp_path, directory, variable):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv(variable, "~/here")
        assert directory() == tmp_path / "here"

    def test_given_below_the_home_of_nobody_is_taken_by_its_name(
        self, monkeypatch, tmp_path, directory, variable
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(variable, "~no such user/here")
        assert directory() == tmp_path / "~no such user" / "here"


@pytest.fixture
def short(monkeypatch) -> Iterator[Path]:
    """Give a home and temporary files with short paths, and no settings."""
    for name in (RUNTIME_VARIABLE, DATA_VARIABLE, "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="spp-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("HOME", name)
        yield Path(name)


def test_the_runtime_directory_lies_below_jupyters(short):
    assert runtime_dir() == short / ".local/share/jupyter/runtime/snakepit"
    assert data_dir() == short / ".local/share/jupyter/snakepit"
    assert {mode_of(parent) for parent in runtime_dir().parents[:5]} == {0o700}


def test_the_runtime_directory_lies_below_that_of_the_login_where_there_is_one(short, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "x"))
    without = runtime_dir()
    (short / "x").mkdir(mode=0o700)

    assert runtime_dir() == short / "x" / "snakepit"
    # The machine may have others, from processes with other settings.
    assert [path for path in runtime_dirs() if path.is_relative_to(short)] == [
        short / "x" / "snakepit",
        without,
    ]


def test_a_directory_of_the_login_that_others_may_write_to_is_passed_over(short, monkeypatch):
    (short / "x").mkdir()
    (short / "x").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "x"))
    assert runtime_dir() == short / ".local/share/jupyter/runtime/snakepit"


def test_a_directory_of_the_login_with_a_relative_path_is_passed_over(short, monkeypatch):
    (short / "x").mkdir(mode=0o700)
    monkeypatch.chdir(short)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "x")
    assert runtime_dir() == short / ".local/share/jupyter/runtime/snakepit"


def test_jupyters_runtime_directory_comes_first_where_it_was_chosen(short, monkeypatch):
    (short / "x").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "x"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(short / "j"))
    assert runtime_dirs() == [short / "j" / "snakepit"]


def test_a_runtime_directory_too_long_for_sockets_is_replaced_by_a_private_short_one(
    monkeypatch, tmp_path
):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.delenv(RUNTIME_VARIABLE)
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ("x" * 100)))

        chosen = runtime_dir()

        assert chosen == Path(short) / f"snakepit-{os.getuid()}"
        assert mode_of(chosen) == 0o700
        assert fits_sockets(chosen)


def test_a_short_runtime_directory_that_someone_planted_as_a_link_is_refused(monkeypatch, tmp_path):
    """The short one has a name that can be guessed, in a directory where anyone can write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.delenv(RUNTIME_VARIABLE)
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
        victim = tmp_path / "victim"
        victim.mkdir(mode=0o755)
        Path(short, f"snakepit-{os.getuid()}").symlink_to(victim)

        with pytest.raises(PermissionError, match="link"):
            runtime_dir()

        assert mode_of(victim) == 0o755


# -- another user ----------------------------------------------------------------------------------

OTHER = 65534
"""The user id of the victim: these tests are root, and everybody else."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

CHILD = """
import logging, os, pwd, sys, tempfile
import jupyter_core.paths
from snakepit_kernel.paths import data_dir, runtime_dir, runtime_dirs
jupyter_core.paths.jupyter_runtime_dir(), jupyter_core.paths.jupyter_data_dir()
user = int(sys.argv[1])  # who may not be able to read what is to be imported
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
logging.basicConfig(level=logging.WARNING, format="%(message)s")
"""


@pytest.fixture
def victim() -> Iterator[Callable[[str], str]]:
    """Run code as another user, with a home whose path is long; return what it printed."""
    with tempfile.TemporaryDirectory(prefix="spp-", dir="/tmp") as name:
        shared, home = Path(name), Path(name, "h" * 100)
        shared.chmod(0o1777)
        home.mkdir(mode=0o700)
        os.chown(home, OTHER, OTHER)
        kept = {name: value for name, value in os.environ.items() if "_DIR" not in name}
        environment = {**kept, "HOME": str(home), "TMPDIR": str(shared), "WHERE": str(shared)}

        def run(code: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", CHILD + code, str(OTHER)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        run.shared = shared  # type: ignore[attr-defined]
        yield run


@as_root
def test_a_name_among_temporary_files_that_another_user_took_is_told_and_another_one_is_used(
    victim,
):
    taken = victim.shared / f"snakepit-{OTHER}"
    taken.mkdir(mode=0o777)

    first, said = victim("print(runtime_dir())").splitlines()
    second = victim("print(runtime_dir())").strip()
    found = victim("print(*runtime_dirs())").split()

    assert f"{taken} must belong to you, and belongs to user root" in said
    assert first == second != str(taken)
    assert found == [first]
    status = Path(first).lstat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, OTHER)
    assert list(taken.iterdir()) == []


@as_root
@pytest.mark.parametrize("what", ["link", "file"])
def test_what_another_user_planted_under_our_name_is_neither_followed_nor_changed(victim, what):
    taken, mine = victim.shared / f"snakepit-{OTHER}", victim.shared / "victims"
    mine.mkdir()
    os.chown(mine, OTHER, OTHER)
    if what == "link":
        taken.symlink_to(mine)
    else:
        taken.touch()

    used = Path(victim("print(runtime_dir())").splitlines()[0])

    assert used.parent == victim.shared
    assert used != taken
    assert mode_of(mine) == 0o755
    assert list(mine.iterdir()) == []


@as_root
def test_the_other_one_is_still_looked_at_when_the_next_login_has_a_directory(victim):
    (victim.shared / f"snakepit-{OTHER}").mkdir()

    said = victim("""
first = runtime_dir()
login = os.environ["XDG_RUNTIME_DIR"] = os.path.join(os.environ["WHERE"], "login")
os.mkdir(login, 0o700)
print(runtime_dir() != first, first in runtime_dirs())
""")

    assert said.splitlines()[0] == "True True"


@as_root
def test_a_kept_name_that_is_gone_after_a_boot_is_replaced(victim):
    (victim.shared / f"snakepit-{OTHER}").mkdir()
    first = Path(victim("print(runtime_dir())").splitlines()[0])
    first.rmdir()

    second = Path(victim("print(runtime_dir())").splitlines()[0])

    assert second != first
    assert mode_of(second) == 0o700


@as_root
def test_processes_that_find_the_name_taken_at_once_use_the_same_one(victim):
    (victim.shared / f"snakepit-{OTHER}").mkdir()
    code = """
logging.disable()
begin, go = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(go)
        os.read(begin, 1)
        os.write(1, f"{runtime_dir()}\\n".encode())
        os._exit(0)
os.close(go)
for _ in range(8):
    os.wait()
"""
    used = victim(code).split()
    assert len(used) == 8
    assert len(set(used)) == 1


@pytest.mark.parametrize("length", [MAX_SOCKET_PATH - 44, MAX_SOCKET_PATH - 43])
def test_the_length_of_a_directory_is_measured_in_bytes(length):
    path = Path("/" + "ä" * ((length - 1) // 2) + "x" * ((length - 1) % 2))
    assert len(os.fsencode(path)) == length
    assert fits_sockets(path) == (length <= MAX_SOCKET_PATH - 44)
