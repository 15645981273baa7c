"""What commands write and read: every byte, in its own stream, and no more memory than asked."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.shells.results import SMALL, Capture

EVERY_BYTE = "".join(rf"\x{n:02x}" for n in range(256))


def test_every_byte_comes_as_it_was_written_on_both_streams(shell):
    result = shell.run(
        f"for i in {{1..20}}; do printf '{EVERY_BYTE}'; printf '{EVERY_BYTE}' >&2; done"
    )

    assert result.stdout_bytes == bytes(range(256)) * 20
    assert result.stderr_bytes == bytes(range(256)) * 20


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("printf abc", "abc"),
        ("echo abc", "abc\n"),
        (r"printf '\n\n'", "\n\n"),
        (r"printf 'a\r\nb\r'", "a\r\nb\r"),
        (r"printf 'D1 0 /\0'", "D1 0 /\0"),
        (r"printf '\xff\xfe'", "��"),
    ],
)
def test_the_end_of_output_is_exact(shell, text, output):
    assert shell.run(text).stdout == output
    assert shell.run("echo next").stdout == "next\n"


def test_much_output_on_both_streams_is_complete(shell):
    result = shell.run(
        "head -c 100000000 /dev/zero & head -c 10000000 /dev/zero >&2; wait",
        max_output=200_000_000,
    )

    assert (len(result.stdout_bytes), len(result.stderr_bytes)) == (10**8, 10**7)
    assert not result.stdout_truncated


def test_output_beyond_the_limit_keeps_its_head_its_tail_and_its_length(shell):
    result = shell.run("seq 1000000; seq 5 >&2", max_output=1000)

    whole = "".join(f"{n}\n" for n in range(1, 1000001))
    assert result.stdout == whole[:500] + whole[-500:]
    assert (result.stdout_total, result.stdout_truncated) == (len(whole), True)
    assert (result.stderr, result.stderr_truncated) == ("1\n2\n3\n4\n5\n", False)
    assert shell.run("echo abc", max_output=0).stdout_bytes == b""


def test_output_beyond_the_limit_does_not_stay_in_memory(shell):
    before = _resident_bytes()
    shell.run("head -c 1000000000 /dev/zero", max_output=1 << 20)

    assert _resident_bytes() - before < 64 << 20


def _resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_spooled_output_is_whole(shell):
    result = shell.run(r"printf 'a\xff\0b'; seq 200000", spool=True, max_output=100)

    expected = b"a\xff\0b" + "".join(f"{n}\n" for n in range(1, 200001)).encode()
    assert result.spool.read_bytes() == expected
    assert len(result.stdout_bytes) == 100


def test_a_line_of_ten_megabytes_arrives(shell):
    result = shell.run(r"head -c 10000000 /dev/zero | tr '\0' x; printf '\0'")

    assert result.stdout_bytes == b"x" * 10**7 + b"\0"


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("cat", ""),
        ('read -t 1 X || echo "read returned"', "read returned\n"),
        ("grep test || true", ""),
        ("read v; echo $?", "1\n"),
        ("wc -c", "0\n"),
        ("python3 -c 'import sys; print(repr(sys.stdin.read()))'", "''\n"),
    ],
)
def test_a_command_without_input_reads_its_end_at_once(shell, text, output):
    began = time.monotonic()
    result = shell.run(text, timeout=20)

    assert result.stdout == output
    assert not result.timed_out
    assert time.monotonic() - began < 2.0
    assert shell.run("echo next").stdout == "next\n"


@pytest.mark.parametrize("given", ["text\n", b"a\0\xff", b"x" * 3_000_000, ""])
def test_input_is_what_was_given(shell, given):
    expected = given if isinstance(given, bytes) else given.encode()

    assert shell.run("cat", stdin=given).stdout_bytes == expected
    assert shell.run("cat", stdin=io.BytesIO(expected)).stdout_bytes == expected
    assert shell.run("head -c 1 >/dev/null; (exit 3)", stdin=given).returncode == 3
    assert shell.run("cat").stdout == ""


def test_input_of_an_open_file_is_read_from_where_it_is(shell, tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb") as file:
        file.seek(4)
        assert shell.run("cat", stdin=file).stdout == "456789"


@pytest.mark.parametrize(
    "text",
    ["sleep 30 & echo a", "(sleep 30; echo b) & echo a", "sleep 30 </dev/null >/dev/null & echo a"],
)
def test_a_background_process_does_not_hold_a_command_up(shell, text):
    began = time.monotonic()
    result = shell.run(text)

    assert result.stdout == "a\n"
    assert time.monotonic() - began < 0.8
    assert result.detached
    assert not shell.run("true").detached


def test_a_background_process_has_its_number(shell):
    result = shell.run("sleep 30 & echo $!")

    assert "sleep" in Path(f"/proc/{int(result.stdout)}/cmdline").read_text()


def test_a_continuous_writer_in_the_background_does_not_hold_a_command_up(shell, until):
    began = time.monotonic()
    result = shell.run("yes & sleep 0.2; echo done >&2", max_output=100)

    assert time.monotonic() - began < 3.0
    assert (result.stderr, result.detached) == ("done\n", True)
    assert shell.run("echo only").stdout == "only\n"
    until(lambda: shell.late_output(result.number).endswith(b"y\n"))
    assert shell.run("kill %1; wait; echo $?").returncode == 0


def test_late_output_goes_to_its_own_command(shell, until, tmp_path):
    os.mkfifo(tmp_path / "go")
    first = shell.run(f"(read x < {tmp_path}/go; echo late; echo oops >&2) & echo now")
    second = shell.run("echo second")
    (tmp_path / "go").write_text("go\n")

    until(lambda: len(shell.late_output(first.number)) == len("late\noops\n"))

    assert (first.stdout, second.stdout) == ("now\n", "second\n")
    assert shell.late_output(second.number) == b""
    assert shell.run("true").stdout == ""


def test_many_background_processes_are_ended_with_the_shell(shell, living):
    shell.run("for i in {1..60}; do yes >/dev/null & done")
    assert len(living()) >= 60

    shell.close()

    assert living() == []


def test_jobs_can_be_listed_killed_and_awaited(shell):
    shell.run("sleep 99 &")

    assert "sleep 99" in shell.run("jobs").stdout
    assert shell.run("kill %1; wait %1").returncode == 143
    assert shell.run("jobs -r").stdout == ""


def test_a_background_process_lives_through_later_commands_and_an_exit(shell, process_of):
    pid = int(shell.run("sleep 99 & echo $!").stdout)

    shell.run("true")
    assert process_of(pid).is_alive


def test_process_substitution_is_in_the_output(shell, tmp_path):
    result = shell.run(f"echo x > >(tee {tmp_path}/f)")

    assert result.stdout == "x\n"
    assert (tmp_path / "f").read_text() == "x\n"
    assert shell.run("diff <(echo a) <(echo a) && echo same").stdout == "same\n"


def test_descriptors_of_the_user_stay_and_those_of_the_shell_cannot_be_lost(shell, tmp_path):
    shell.run(f"exec 5>{tmp_path}/five; echo one >&5")
    shell.run(f"echo two >&5; exec >{tmp_path}/all 2>&1; echo hidden")

    assert (tmp_path / "five").read_text() == "one\ntwo\n"
    assert (tmp_path / "all").read_text() == "hidden\n"
    assert shell.run("echo shown; echo e >&2").stdout == "shown\n"
    shell.run("exec >&- 2>&- <&-")
    assert shell.run("cat; echo shown").stdout == "shown\n"


@given(
    pieces=st.lists(st.integers(0, 3 * SMALL).map(os.urandom), max_size=12),
    limit=st.integers(0, 8 * SMALL),
)
def test_the_beginning_and_the_end_are_kept_however_the_output_comes_in_pieces(pieces, limit):
    capture = Capture(limit)
    for piece in pieces:
        capture.add(piece)

    whole, first = b"".join(pieces), limit // 2
    is_short = len(whole) <= limit
    expected = whole if is_short else whole[:first] + whole[len(whole) - (limit - first) :]
    assert (capture.take(), capture.total) == (expected, len(whole))


def test_servers_in_sessions_of_their_own_do_not_hold_up_the_loops_behind_them(shell, tmp_path):
    shell.run(f"cd {tmp_path}")
    began = time.monotonic()
    result = shell.run(
        "setsid sleep 60 </dev/null >one 2>&1 & setsid sleep 60 </dev/null >two 2>&1 &\n"
        "for i in 1 2 3; do sleep 0.05; done; while ((i++ < 9)); do :; done; echo done"
    )

    assert (result.stdout, result.detached) == ("done\n", False)
    assert time.monotonic() - began < 5
