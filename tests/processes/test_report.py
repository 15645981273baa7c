"""What ending a run took, in words."""

from __future__ import annotations

import pytest

from snakepit_kernel.processes.end_report import EndedProcess, EndReport


def report_of(*commands: str, count: int | None = None, signal: str = "SIGTERM") -> EndReport:
    ended = [EndedProcess(pid=1, command=item, signal=signal) for item in commands]
    return EndReport(verified=True, count=len(ended) if count is None else count, ended=ended)


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (report_of(), "nothing had to be ended"),
        (report_of("/bin/sleep 600"), "ended 1 process of the last run: sleep 600"),
        (report_of("a", "a", "b"), "ended 3 processes of the last run: 2 x a, b"),
        (report_of("a", signal="SIGKILL"), "ended 1 process of the last run: a (killed)"),
        (report_of(*"abcd"), "ended 4 processes of the last run: a, b, c, …"),
        (report_of("a", count=99), "ended 99 processes of the last run: a, …"),
        (report_of("x" * 99), f"ended 1 process of the last run: {'x' * 29}…"),
    ],
)
def test_a_report_is_one_line(report, text):
    assert report.summary(" of the last run") == text


def test_a_report_survives_the_registry():
    report = report_of("a", "b")
    report.kept.append(EndedProcess(pid=2, command="c"))
    assert EndReport.from_json(report.as_json()) == report


@pytest.mark.parametrize("text", ["", "{", "[]", '{"count": "x"}'])
def test_a_report_that_cannot_be_read_is_empty(text):
    assert EndReport.from_json(text) == EndReport()


def test_what_a_guardian_wrote_down_is_read_and_what_is_torn_is_passed_over():
    text = "ended\t7\tSIGTERM\tsleep 600\nkept\t8\tcat\nnonsense\nended\tx\ty\tz\ngone\t1\ngo"
    report = EndReport.read(text)
    assert (report.verified, report.count) == (True, 1)
    assert report.ended == [EndedProcess(pid=7, signal="SIGTERM", command="sleep 600")]
    assert report.kept == [EndedProcess(pid=8, command="cat")]
