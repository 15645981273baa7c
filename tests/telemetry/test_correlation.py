"""Correlation ids."""

from __future__ import annotations

import os
import pickle

from opentelemetry import trace

from snakepit_kernel import ToolError, correlation_id
from snakepit_kernel.telemetry import correlation


def test_each_outermost_call_gets_an_id_of_its_own():
    ids = {correlation.correlation_of_work() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(0 < len(each) <= 32 for each in ids)
    assert correlation_id() == ""


def test_work_of_a_host_tool_has_the_id_of_its_call():
    token = correlation.serve("abc")
    assert correlation_id() == correlation.correlation_of_work() == "abc"

    correlation.leave(token)
    assert correlation_id() == ""


def test_a_forked_child_mints_ids_that_its_parent_does_not():
    end, other_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(other_end, correlation.correlation_of_work().encode())
        os._exit(0)
    os.close(other_end)
    os.waitpid(pid, 0)
    with os.fdopen(end) as pipe:
        childs = pipe.read()
    assert childs.split("-")[0] != correlation.correlation_of_work().split("-")[0]


def test_a_caller_in_a_recorded_span_gives_the_id_of_its_trace(sdk):
    with trace.get_tracer("test").start_as_current_span("mine") as span:
        found = correlation.correlation_of_work()

    assert found == format(span.get_span_context().trace_id, "032x")
    assert correlation.correlation_of_work() != found


def test_an_error_of_the_package_takes_its_id_along_and_others_are_left_alone():
    error, foreign = ToolError("KeyError", "'tea'"), KeyError("tea")
    assert error.correlation_id == ""

    for each in (error, foreign, None):
        correlation.stamp(each, "abc")

    assert pickle.loads(pickle.dumps(error)).correlation_id == "abc"
    assert not hasattr(foreign, "correlation_id")
