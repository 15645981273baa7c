"""Events of a worker's code, before they are sent."""

from __future__ import annotations

import enum
import pickle
import socket
import time

import numpy as np
import pytest

from snakepit_kernel.lane.marshalling import Marshaller
from snakepit_kernel.lane.worker_end import WorkerLane
from snakepit_kernel.protocol import messages
from snakepit_kernel.protocol.frames import FrameReader
from snakepit_kernel.tools.context import SessionContext
from snakepit_kernel.worker.emitter import MAX_ATTRIBUTES, MAX_TEXT_BYTES, Emitter


class Colour(enum.StrEnum):
    RED = "red"


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def lane(ends):
    return WorkerLane(ends[1], Marshaller(None, None), lambda _: None, lambda: None)


@pytest.fixture
def emit(lane):
    emitter = Emitter(lane)
    return lambda name, /, **attributes: emitter.emit(7, name, attributes, "mine", "abc")


def sent(ends) -> list[messages.Event]:
    """What has arrived at the owner's end."""
    reader, events = FrameReader(), []
    ends[0].settimeout(0.05)
    try:
        while True:
            reader.receive(ends[0].recv_into)
            while (frame := reader.next_frame()) is not None:
                events.append(messages.decode_from_worker(frame.header))
    except TimeoutError:
        return events


def test_an_event_says_whose_it_is(emit, ends):
    before = time.time_ns()
    emit("epoch.done", epoch=3, loss=0.5, best=True, stage="fit")

    (event,) = sent(ends)
    assert before <= event.at <= time.time_ns()
    assert event == messages.Event(
        7,
        "epoch.done",
        {"epoch": 3, "loss": 0.5, "best": True, "stage": "fit"},
        event.at,
        session="mine",
        correlation="abc",
    )


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.array(2.5), 2.5),
        (np.bool_(1), True),
        (Colour.RED, "red"),
        (-(2**63), -(2**63)),
        ("x" * 2000, "x" * MAX_TEXT_BYTES),
        ("ä" * 2000, "ä" * (MAX_TEXT_BYTES // 2)),
        ("€" * 2000, "€" * (MAX_TEXT_BYTES // 3)),
        ("\udcff", "\\udcff"),
    ],
)
def test_values_become_plain_and_texts_are_cut(emit, ends, value, plain):
    emit("done", value=value)

    (found,) = (event.attributes["value"] for event in sent(ends))
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize("value", [None, [1], {}, b"x", 1j, np.zeros(2), object()])
def test_what_is_no_scalar_is_refused_by_its_type(emit, ends, value):
    with pytest.raises(TypeError, match="attribute 'loss' of event 'done' must be a string"):
        emit("done", loss=value)
    assert sent(ends) == []


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_not_like_one_is_refused(emit, name):
    with pytest.raises(ValueError, match="the name of an event must be 1 to 64 characters"):
        emit(name)
    with pytest.raises(ValueError, match="an attribute of event 'done' must be 1 to 64"):
        emit("done", **{name: 1})


def test_a_name_is_a_string(emit):
    with pytest.raises(TypeError, match="the name of an event must be a string, not int"):
        emit(3)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_a_number_that_does_not_fit_is_refused(emit, number):
    with pytest.raises(ValueError, match="does not fit into 64 bits"):
        emit("done", number=number)


def test_more_attributes_than_32_are_refused(emit, ends):
    emit("done", **{f"a{number}": 1 for number in range(MAX_ATTRIBUTES)})
    with pytest.raises(ValueError, match="has 33 attributes; 32 are allowed"):
        emit("done", **{f"a{number}": 1 for number in range(MAX_ATTRIBUTES + 1)})

    assert len(sent(ends)) == 1


@pytest.mark.parametrize("name", ["session", "worker", "pool", "correlation_id"])
def test_attributes_that_are_added_cannot_be_given(emit, name):
    with pytest.raises(ValueError, match="is added by itself"):
        emit("done", **{name: "x"})


def test_an_attribute_may_be_called_name_or_self(ends, lane):
    class HostCalls:
        events = Emitter(lane)

    context = SessionContext("mine", "p", "w", HostCalls())
    context.emit("done", name="a", self="b")

    assert sent(ends)[0].attributes == {"name": "a", "self": "b"}


def test_a_flood_is_cut_to_a_thousand_and_the_rest_is_counted(emit, ends):
    began = time.monotonic()
    emitted = 0
    events = []
    while len(events) < 1001:
        for _ in range(100):
            emit("flood")
        emitted += 100
        events += sent(ends)
    seconds = time.monotonic() - began

    assert len(events) <= 1000 + 1000 * seconds
    assert 0 <= emitted - len(events) - sum(event.dropped for event in events) <= 100


def test_an_owner_who_does_not_read_delays_nobody(emit, ends):
    began = time.monotonic()
    for number in range(3000):
        emit(f"name-{number % 10}", text="x" * 1000)
    assert time.monotonic() - began < 10

    before = sent(ends)
    emit("now")
    (after,) = sent(ends)
    assert 0 < len(before) < 3000
    assert len(before) + after.dropped == 3000


def test_a_closed_lane_drops_events(emit, ends):
    ends[0].close()
    emit("done")
    ends[1].close()
    emit("done")


def test_a_context_that_has_left_its_worker_emits_nothing():
    with pytest.raises(RuntimeError, match="has left its worker, where events can be emitted"):
        SessionContext("mine", "p", "w").emit("done")


def test_a_context_that_travels_takes_its_id_along():
    context = pickle.loads(pickle.dumps(SessionContext("mine", "p", "w", correlation_id="abc")))
    assert (context.session_id, context.correlation_id) == ("mine", "abc")
