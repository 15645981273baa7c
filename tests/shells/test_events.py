"""Events of commands and processes: what happened, and no text of it."""

from __future__ import annotations

from snakepit_kernel import telemetry


def test_each_command_and_process_is_an_event_without_its_text(session):
    got = []
    with telemetry.subscribe(got.append):
        session.shell.run("echo secret-text", env={"V": "secret-value"})
        session.shell.run("(exit 3)")
        session.shell.run("sleep 60", timeout=0.05)
        session.processes.start("exit 4 # secret-text", name="job").wait(10)
        telemetry.flush(5)

    commands = [event for event in got if event.name == "shell"]
    (process,) = [event for event in got if event.name == "process"]
    assert [event.attributes["outcome"] for event in commands] == ["ok", "error", "timeout"]
    assert [event.attributes["returncode"] for event in commands] == [0, 3, 124]
    assert process.attributes["outcome"] == "failed"
    assert process.attributes["name"] == "job"
    assert "secret" not in repr(got)


def test_a_result_has_the_correlation_id_of_its_event(session):
    got = []
    with telemetry.subscribe(got.append):
        result = session.shell.run("true")
        telemetry.flush(5)

    (event,) = [event for event in got if event.name == "shell"]
    assert event.attributes["correlation_id"] == result.correlation_id != ""
