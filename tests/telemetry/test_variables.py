"""What is told of variables: who did what to which, and never a value."""

from __future__ import annotations

import pytest

from snakepit_kernel import (
    BatchRejected,
    ConstraintViolation,
    Pool,
    VariableNotFound,
    VariableTypeError,
    context,
    correlation_id,
    open_session,
    telemetry,
)


@pytest.fixture
def session(tmp_path):
    state = open_session("s", store=tmp_path / "sessions.sqlite")
    yield state
    state.store.close()


def told_of(sdk, *names):
    """Return the attributes of each span that tells of a variable, in their order."""
    wanted = {f"variable.{name}" for name in names}
    return [dict(span.attributes) for span in sdk.spans() if span.name in wanted]


def test_each_thing_that_is_done_to_a_variable_is_a_span(sdk, session):
    session.variables.register("x", "float", 0.7, min=0, max=2)
    assert session.variables["x"] == 0.7
    session.variables["x"] = 1.5
    session.variables.delete("x")

    common = {"session": "s", "correlation_id": "", "name": "x", "type": "float"}
    (registered,) = told_of(sdk, "registered")
    assert registered.pop("size_bytes") > 0
    assert registered == {**common, "total": 1}
    (got,) = told_of(sdk, "get")
    assert got["found"] is True
    assert got["size_bytes"] > 0
    (updated,) = told_of(sdk, "updated")
    assert updated.pop("size_bytes") > 0
    assert updated == common
    (deleted,) = told_of(sdk, "deleted")
    assert (deleted["name"], deleted["type"]) == ("x", "float")
    assert all(span.end_time > span.start_time for span in sdk.spans() if "get" in span.name)


def test_what_is_not_there_is_told_as_not_found(sdk, session):
    with pytest.raises(VariableNotFound):
        session.variables["none"]

    (got,) = told_of(sdk, "get")
    assert (got["name"], got["found"]) == ("none", False)


def test_a_batch_is_told_of_by_its_counts(sdk, session):
    session.variables.register_many({"a": ("integer", 1), "b": ("integer", 2)})
    session.variables.get_many(["a", "b", "none"])
    session.variables.set_many({"a": 3, "b": 4})
    with pytest.raises(BatchRejected):
        session.variables.set_many({"a": 3, "b": "text"})
    session.variables.set_many({"a": 3, "none": 4}, atomic=False)

    assert [event["name"] for event in told_of(sdk, "registered")] == ["a", "b"]
    (got,) = told_of(sdk, "batch_get")
    assert (got["count"], got["found"], got["missing"]) == (3, 2, 1)
    updates = [(e["count"], e["failed"], e["atomic"]) for e in told_of(sdk, "batch_update")]
    assert updates == [(2, 0, True), (2, 1, True), (2, 1, False)]


def test_what_is_refused_is_told_with_the_reason_and_without_the_value(sdk, session):
    session.variables.register("x", "float", 0.7, max=2)
    with pytest.raises(ConstraintViolation):
        session.variables["x"] = 31415.0
    with pytest.raises(VariableTypeError):
        session.variables["x"] = "31415"

    (violated,) = told_of(sdk, "constraint_violation")
    assert (violated["name"], violated["type"], violated["constraint"]) == ("x", "float", "max")
    (failed,) = told_of(sdk, "validation_failed")
    assert (failed["name"], failed["given"]) == ("x", "str")
    assert told_of(sdk, "updated") == []
    assert "31415" not in str([dict(span.attributes) for span in sdk.spans()])


def use(value):
    here = context()
    here.variables["x"] = here.variables["x"] + value
    here.call_host_tool("look")
    here.emit("used")
    return here.correlation_id


use.__module__ = "__main__"  # by value


@pytest.mark.parametrize("way", ["call", "cell", "future"])
def test_one_id_goes_from_the_work_to_the_worker_to_what_it_does_to_variables(sdk, tmp_path, way):
    with Pool(1, name="shop", store=tmp_path / "sessions.sqlite") as pool:
        session = pool.session("s")
        session.variables.register("x", "integer", 1)
        seen = []

        @session.host_tool
        def look():
            seen.append((session.variables["x"], correlation_id()))

        pool.tool(use)
        if way == "call":
            known = session.call("use", {"value": 2})
        elif way == "future":
            known = session.submit(use, 2).result()
        else:
            session.push({"use": use})
            known = session.run("use(2)").value
        assert seen == [(3, known)]
        again = session.submit(use, 2).result()

    def ids_of(name):
        return [event["correlation_id"] for event in told_of(sdk, name)]

    assert known
    assert known != again
    assert ids_of("updated") == [known, again]
    assert ids_of("get") == [known, known, again, again]  # the worker's, and the host tool's
    assert [span.attributes["correlation_id"] for span in sdk.spans("used")] == [known, again]
    assert ids_of("registered") == [""]


def test_a_handler_gets_what_the_sdk_gets(sdk, session):
    got = []
    with telemetry.subscribe(got.append):
        session.variables.register("x", "integer", 1)
        session.variables["x"] = 2
        session.variables["x"]

    assert [event.name for event in got] == [span.name for span in sdk.spans()]
    assert [event.name for event in got] == [
        f"variable.{name}" for name in ("registered", "updated", "get")
    ]


def test_nothing_is_told_to_nobody(session):
    session.variables.register("x", "integer", 1)
    session.variables["x"] = 2

    assert not telemetry.is_on()
    assert telemetry.dropped() == 0
