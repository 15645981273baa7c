"""The life of a worker: the whole product of states and events."""

from __future__ import annotations

import itertools

import pytest

from snakepit_kernel.pool.workers.lifecycle import TRANSITIONS, WorkerEvent, WorkerState, next_state

PRODUCT = list(itertools.product(WorkerState, WorkerEvent))
IDS = [f"{state.value}-{event.value}" for state, event in PRODUCT]


@pytest.mark.parametrize(("state", "event"), PRODUCT, ids=IDS)
def test_an_event_leads_on_or_is_our_own_bug(state, event):
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) in WorkerState
    else:
        with pytest.raises(AssertionError, match=f"a worker that is {state.value} cannot"):
            next_state(state, event)


def test_the_dead_stay_dead():
    for event in WorkerEvent:
        assert TRANSITIONS.get((WorkerState.DEAD, event), WorkerState.DEAD) is WorkerState.DEAD


def test_who_is_out_of_service_does_not_come_back():
    for (state, _), after in TRANSITIONS.items():
        if after.is_in_service:
            assert state is WorkerState.STARTING or state.is_in_service


@pytest.mark.parametrize("state", WorkerState)
def test_a_worker_can_be_stopped_in_every_state(state):
    assert next_state(state, WorkerEvent.STOP) in {WorkerState.STOPPING, WorkerState.DEAD}
