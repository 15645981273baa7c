"""Logs of workers."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from snakepit_kernel.processes import logs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "worker.log"


def test_a_log_is_private_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with logs.open_log(path) as log:
            log.write(b"x" * (logs.LOG_BYTES + 1))
            logs.bound(log.fileno())
    finally:
        os.umask(before)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["worker.log", "worker.log.1"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]


def test_a_log_that_is_a_link_is_not_opened_and_what_it_leads_to_is_not_touched(path, tmp_path):
    (tmp_path / "precious").write_text("mine")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="is a link"):
        logs.open_log(path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_was_kept_of_a_log_does_not_go_where_a_link_leads(path, tmp_path):
    (tmp_path / "precious").write_text("mine")
    path.with_name("worker.log.1").symlink_to(tmp_path / "precious")
    with logs.open_log(path) as log:
        log.write(b"x" * (logs.LOG_BYTES + 1))
        logs.bound(log.fileno())
    assert path.stat().st_size == 0
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_log_stays_bounded_and_its_end_is_known_wherever_it_was_cut(path):
    with logs.open_log(path) as log:
        for number in range(50_000):
            log.write(b"%08d %s\n" % (number, b"x" * 90))
            logs.bound(log.fileno())
            if number % 997 == 0:
                assert logs.read_end(path, 100) == b"%08d %s\n" % (number, b"x" * 90)
    sizes = [file.stat().st_size for file in path.parent.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= logs.LOG_BYTES + 100


def test_who_else_writes_goes_on_behind_the_new_beginning(path):
    with logs.open_log(path) as log:
        command = ["sh", "-c", "read _; echo later"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log) as other:
            log.write(b"x" * (logs.LOG_BYTES + 1))
            logs.bound_file(path)
            other.communicate(b"\n")
    assert path.read_bytes() == b"later\n"


def test_a_log_that_is_gone_is_no_error(path):
    logs.bound_file(path)
    logs.remove(path)
    with logs.open_log(path) as log:
        log.write(b"x" * (logs.LOG_BYTES + 1))
        path.unlink()
        logs.bound(log.fileno())
        assert os.fstat(log.fileno()).st_size == 0
    assert list(path.parent.iterdir()) == []
