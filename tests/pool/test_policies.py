"""Policies without a pool: what they accept, and what they decide, by tables."""

from __future__ import annotations

import pytest

from snakepit_kernel import (
    Attempt,
    Breaker,
    CallTimeout,
    CrashBarrier,
    Heartbeat,
    Pool,
    PoolSaturated,
    QueueTimeout,
    Retry,
    ToolError,
    WorkerDied,
)
from snakepit_kernel.pool.policies import CircuitBreaker, Recovery, check_policy, falls_under
from snakepit_kernel.pool.workers.lifecycle import FIRST_BACKOFF, MAX_RESTARTS, RESTART_WINDOW, Slot
from snakepit_kernel.pool.workers.monitor import LivenessProbe

# -- what they accept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"retry": {"attemps": 3}}, ValueError, "retry has no 'attemps'; did you mean 'attempts'"),
        ({"retry": {"on": ["dyed"]}}, ValueError, "'dyed' is not known; did you mean 'died'"),
        ({"retry": {"on": [ValueError]}}, TypeError, "names of exception types, not"),
        ({"retry": "3"}, TypeError, "retry must be a Retry, a mapping such as"),
        ({"retry": 2.5}, TypeError, "retry attempts must be a whole number, not 2.5"),
        ({"retry": {"attempts": 0}}, ValueError, "retry attempts must be at least 1, not 0"),
        ({"breaker": {"seconds": -1}}, ValueError, "breaker seconds must be positive seconds"),
        ({"breaker": {"seconds": None}}, TypeError, "breaker seconds must be a number of seconds"),
        ({"heartbeat": {"misses": 0}}, ValueError, "heartbeat misses must be at least 1"),
        ({"heartbeat": -2.0}, ValueError, "heartbeat interval must be positive seconds"),
        ({"heartbeat": "often"}, TypeError, "heartbeat must be a Heartbeat"),
        ({"crash_barrier": {"backoff": []}}, TypeError, "backoff must be numbers of seconds"),
        ({"crash_barrier": "yes"}, TypeError, "crash_barrier must be a CrashBarrier"),
        ({"max_age": 0}, ValueError, "max_age must be positive seconds, not 0"),
        ({"max_calls": 0}, ValueError, "max_calls must be at least 1, not 0"),
        ({"max_memory_bytes": "1G"}, TypeError, "max_memory_bytes must be a whole number"),
    ],
)
def test_a_wrong_policy_is_named_before_anything_starts(options, error, said):
    with pytest.raises(error, match=said):
        Pool(1, **options)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Heartbeat, 0.5, Heartbeat(interval=0.5, timeout=2.5, misses=3)),
        (Heartbeat, True, Heartbeat(interval=2.0, timeout=10.0, misses=3)),
        (Breaker, 7, Breaker(failures=7, seconds=30.0)),
        (Retry, {"attempts": 2, "backoff": 1}, Retry(attempts=2, backoff=(1.0,))),
        (CrashBarrier, False, None),
        (CrashBarrier, None, None),
    ],
)
def test_a_policy_may_be_a_number_a_mapping_or_a_switch(kind, value, expected):
    assert check_policy("it", kind, value) == expected


# -- what is made again ----------------------------------------------------------------------------

DIED = WorkerDied("w-1.1", -11)
TOOL = ToolError("ConnectionError", "refused")
LATE = CallTimeout("price", 1.0)
FULL = PoolSaturated("default", 5)


def earlier(*categories: str) -> list[Attempt]:
    return [
        Attempt(worker=None, category=each, reason="", queue_seconds=0.0, run_seconds=0.0)
        for each in categories
    ]


@pytest.mark.parametrize(
    ("barrier", "retry", "error", "before", "idempotent", "pause"),
    [
        (CrashBarrier(), None, DIED, [], True, 0.05),
        (CrashBarrier(), None, DIED, [], False, None),
        (CrashBarrier(), None, DIED, ["died"], True, None),
        (CrashBarrier(retries=2), None, DIED, ["died"], True, 0.1),
        (CrashBarrier(retries=9), None, DIED, ["died"] * 8, True, 0.2),
        (CrashBarrier(), None, TOOL, [], True, None),
        (CrashBarrier(), None, LATE, [], True, None),
        (None, None, DIED, [], True, None),
        (None, Retry(), DIED, [], True, 0.05),
        (None, Retry(), DIED, ["died"], True, 0.1),
        (None, Retry(), DIED, ["died", "died"], True, None),
        (None, Retry(on=["tool"]), TOOL, [], True, 0.05),
        (None, Retry(on=["tool"]), TOOL, [], False, None),
        (None, Retry(on=["ConnectionError"]), TOOL, [], True, 0.05),
        (None, Retry(on=["ValueError"]), TOOL, [], True, None),
        (None, Retry(), FULL, [], False, 0.05),
        (None, Retry(), QueueTimeout("default", 1.0), [], False, 0.05),
        (None, Retry(backoff=1.5), LATE, [], True, 1.5),
        (CrashBarrier(), Retry(), DIED, ["died"], True, 0.1),
        (CrashBarrier(), Retry(), KeyboardInterrupt(), [], True, None),
    ],
)
def test_which_errors_are_followed_by_another_attempt(
    barrier, retry, error, before, idempotent, pause
):
    recovery = Recovery(barrier=barrier, retry=retry)

    found = recovery.pause(error, earlier(*before), idempotent=idempotent, seconds_left=None)

    assert found == pause


@pytest.mark.parametrize(("left", "pause"), [(0.04, None), (0.06, 0.05)])
def test_there_is_no_further_attempt_for_which_there_is_no_time(left, pause):
    recovery = Recovery(barrier=CrashBarrier(), retry=None)

    assert recovery.pause(DIED, [], idempotent=True, seconds_left=left) == pause


@pytest.mark.parametrize(
    ("error", "name", "expected"),
    [
        (ToolError("requests.exceptions.Timeout", ""), "Timeout", True),
        (ToolError("requests.exceptions.Timeout", ""), "requests.exceptions.Timeout", True),
        (ToolError("KeyError", ""), "LookupError", False),
        (BrokenPipeError(), "ConnectionError", True),
        (BrokenPipeError(), "tool", True),
        (DIED, "WorkerDied", True),
        (DIED, "tool", False),
    ],
)
def test_an_error_falls_under_its_category_and_the_names_of_its_types(error, name, expected):
    assert falls_under(error, [name]) is expected


def test_an_exception_that_came_along_is_known_by_its_base_classes_too():
    error = ToolError("KeyError", "")
    error.__cause__ = KeyError()

    assert falls_under(error, ["LookupError"])


# -- breaker ---------------------------------------------------------------------------------------


def test_a_breaker_opens_after_failures_one_after_the_other_and_tries_one_call_later():
    circuit = CircuitBreaker(Breaker(failures=3, seconds=30))
    for _ in range(2):
        circuit.fail(circuit.admit(0.0), 0.0, "boom")
    circuit.succeed(circuit.admit(0.0))
    for _ in range(3):
        circuit.fail(circuit.admit(1.0), 1.0, "boom")

    assert circuit.admit(1.0) is None
    assert circuit.seconds_left(11.0) == 20.0
    assert circuit.state(11.0) == "open"

    trial = circuit.admit(31.0)
    assert trial is not None
    assert circuit.admit(31.0) is None, "one trial at a time"
    circuit.fail(trial, 32.0, "boom again")
    assert circuit.seconds_left(32.0) == 30.0

    circuit.succeed(circuit.admit(63.0))
    assert circuit.state(63.0) == "closed"
    assert circuit.failures == 0


def test_a_call_from_before_the_breaker_opened_tells_nothing_afterwards():
    circuit = CircuitBreaker(Breaker(failures=1, seconds=10))
    slow, failing = circuit.admit(0.0), circuit.admit(0.0)
    circuit.fail(failing, 0.0, "boom")

    circuit.succeed(slow)

    assert circuit.admit(1.0) is None


def test_a_trial_that_tells_nothing_is_followed_by_another():
    circuit = CircuitBreaker(Breaker(failures=1, seconds=10))
    circuit.fail(circuit.admit(0.0), 0.0, "boom")

    circuit.abandon(circuit.admit(10.0))

    assert circuit.admit(10.0) is not None


# -- signs of life ---------------------------------------------------------------------------------

POLICY = Heartbeat(interval=2, timeout=10, misses=3)


def looks(
    probe: LivenessProbe, until: int, *, pulse: int = 1, cpu: object = 0.0, **facts: bool
) -> float:
    """Look every two seconds at a worker that is silent; return when it is given up, or inf."""
    for now in range(2, until, 2):
        used = float(now) if cpu == "used" else 0.0
        facts = {"is_stopped": False, "is_busy": False, **facts}
        if not probe.heartbeat(now, pulse) and probe.is_dead(now, cpu=used, **facts):
            return now
    return float("inf")


@pytest.mark.parametrize(
    ("facts", "ends"),
    [
        ({}, 18),
        ({"is_busy": True}, float("inf")),
        ({"is_stopped": True, "is_busy": True}, 18),
        ({"cpu": "used"}, float("inf")),
    ],
)
def test_only_what_is_stopped_or_stands_idle_without_a_pulse_is_given_up(facts, ends):
    assert looks(LivenessProbe(POLICY, 0.0), 100, **facts) == ends


def test_misses_count_only_one_after_the_other():
    probe = LivenessProbe(POLICY, 0.0)
    stopped = {"cpu": 0.0, "is_stopped": True, "is_busy": False}
    for now in (11, 13):
        assert not probe.heartbeat(now, 0)
        assert not probe.is_dead(now, **stopped)
    assert probe.heartbeat(14, 7)
    for now in (25, 27):
        assert not probe.heartbeat(now, 7)
        assert not probe.is_dead(now, **stopped)
    assert probe.is_dead(29, **stopped)


# -- restart intensity -----------------------------------------------------------------------------


def test_a_slot_is_degraded_when_its_workers_end_too_often_without_use():
    slot = Slot(1)
    for _ in range(MAX_RESTARTS):
        assert not slot.record_failure(0.0, "exited")

    assert slot.record_failure(RESTART_WINDOW - 0.1, "exited again")
    assert slot.problem == "exited again"
    assert slot.backoff_left(RESTART_WINDOW - 0.1) == FIRST_BACKOFF


def test_ends_that_lie_far_apart_do_not_degrade_a_slot():
    slot = Slot(1)

    assert not any(slot.record_failure(number * 2.0, "exited") for number in range(50))


def test_a_degraded_slot_rests_longer_each_time_until_it_has_proved_itself():
    slot = Slot(1)
    now, rests = 0.0, []
    for _ in range(MAX_RESTARTS + 8):
        if slot.record_failure(now, "exited"):
            rests.append(slot.backoff_left(now))
            now += rests[-1]
            slot.mark_filled()

    assert rests == [1, 2, 4, 8, 16, 30, 30, 30]
    slot.record_success()
    assert not slot.record_failure(now, "exited")
