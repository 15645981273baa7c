"""Where runtime and durable files live."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from snakepit_kernel.paths import (
    DATA_VARIABLE,
    MAX_SOCKET_PATH,
    RUNTIME_VARIABLE,
    data_dir,
    fits_sockets,
    runtime_dir,
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

    def test_that_others_may_enter_is_closed_to_them(
        self, monkeypatch, tmp_path, directory, variable
    ):
        tmp_path.chmod(0o777)
        monkeypatch.setenv(variable, str(tmp_path))
        assert mode_of(directory()) == 0o700

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


def test_the_runtime_directory_lies_below_jupyters(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.delenv(RUNTIME_VARIABLE)
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", short)
        assert runtime_dir() == Path(short) / "snakepit"


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


@pytest.mark.parametrize("length", [MAX_SOCKET_PATH - 44, MAX_SOCKET_PATH - 43])
def test_the_length_of_a_directory_is_measured_in_bytes(length):
    path = Path("/" + "ä" * ((length - 1) // 2) + "x" * ((length - 1) % 2))
    assert len(os.fsencode(path)) == length
    assert fits_sockets(path) == (length <= MAX_SOCKET_PATH - 44)
