"""What ending a run took, in words."""

from __future__ import annotations

import sys

import pytest

from snakepit_kernel.processes.bare_interpreter import bare_command
from snakepit_kernel.processes.end_report import EndedProcess, EndReport
from snakepit_kernel.processes.guardian import MAX_COMMAND
from snakepit_kernel.processes.identity import shown_command


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


def test_a_report_names_first_what_had_to_be_killed_and_then_what_there_was_most_of():
    report = report_of("a", "b", "b", "b", "c", "c")
    report.ended.append(EndedProcess(pid=2, command="deaf", signal="SIGKILL"))
    report.count += 1
    assert report.summary() == "ended 7 processes: deaf (killed), 3 x b, 2 x c, …"


RUN_ID = "f76w37qbxwqna"  # always the same: each process of a run of the tests has the same tests
RUN = f"/run/user/1000/snakepit/{RUN_ID}/shop-ab12cd"


def executed(*words: str) -> str:
    """Give a command as a guardian reports it."""
    return shown_command("\0".join(words).encode())[:MAX_COMMAND]


OWN = [
    executed(f"snakepit-guardian --snakepit-run-id={RUN_ID} -- python -m x"),  # a title
    executed("snakepit-template --owner=12:34"),
    executed(f"{sys.executable} -P -m snakepit_kernel.kernel -f /tmp/k.json --lane=3:4:5"),
    executed(sys.executable, "-P", "-m", "snakepit_kernel.kernel", "--template", "--owner=1:2"),
    executed(*bare_command("guardian"), f"--snakepit-run-id={RUN_ID}", "--owner=1:2"),
    executed(*bare_command("template_process"), "--template", "--owner=1:2"),
    executed("/usr/bin/bash", "--noprofile", "--norc"),
    executed("R", "--slave", "-e", "IRkernel::main()", "--args", f"{RUN}/2.1.json"),
    executed("python3", "-c", "from multiprocessing.resource_tracker import main;main(7)"),
    executed(""),  # it was ending
]

USERS = [
    executed("sleep", "600"),
    executed("python", "train.py", "--snakepit"),
    executed("python", "-m", "snakepit_kernel", "status"),
    executed("bash", "-c", "make; bash --noprofile --norc"),
    executed("bash", "--norc"),
    executed("python", "-m", "ipykernel_launcher", "-f", "/home/me/1.1.json"),
    executed("less", "snakepit-guardian"),
    "(hidden by /proc)",
]


@pytest.mark.parametrize("command", OWN)
def test_what_this_package_started_is_not_the_users(command):
    assert not report_of(command).ended[0].is_the_users


@pytest.mark.parametrize("command", USERS)
def test_what_the_user_started_is_the_users_whatever_its_arguments_are(command):
    assert report_of(command).ended[0].is_the_users


def test_the_report_of_the_user_leaves_out_the_others_and_their_number():
    assert report_of(*OWN).of_user().count == 0
    assert report_of(*OWN, "a", "a").of_user().summary() == "ended 2 processes: 2 x a"
    assert report_of("a", *OWN, count=99).of_user().count == 1, "the user's are listed first"
    assert report_of("a", "a", count=99).of_user().count == 99


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
