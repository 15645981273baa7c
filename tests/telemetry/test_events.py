"""Events on their way to handlers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from snakepit_kernel import telemetry
from snakepit_kernel.telemetry import events
from snakepit_kernel.telemetry.rate_limit import MAX_NAMES, OTHER, Buckets, Names


def run(script: str, timeout: float = 30) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def blocked():
    """A handler that stands until the test lets it go on, and has what it got."""
    gate, entered, got = threading.Event(), threading.Event(), []

    def handler(event):
        got.append(event)
        entered.set()
        gate.wait(20)

    with telemetry.subscribe(handler):
        telemetry.emit("first", {})
        assert entered.wait(5)
        yield got
        gate.set()


def test_nobody_listens_by_default_and_nothing_is_kept():
    telemetry.emit("nothing", {"a": 1})

    assert not telemetry.is_on()
    assert events._hub._thread is None
    assert events._hub._buffer.qsize() == 0
    assert telemetry.flush(0)
    assert telemetry.dropped() == 0


def test_a_handler_gets_a_frozen_event():
    got = []
    before = time.time()
    with telemetry.subscribe(got.append):
        assert telemetry.is_on()
        telemetry.emit("done", {"tool": "price", "count": 2, "good": True}, seconds=0.5)

    (event,) = got
    assert (event.name, event.seconds) == ("done", 0.5)
    assert event.attributes == {"tool": "price", "count": 2, "good": True}
    assert before <= event.time <= time.time()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.name = "other"


def test_an_event_keeps_the_attributes_of_its_moment():
    got, attributes = [], {"a": 1}
    with telemetry.subscribe(got.append):
        telemetry.emit("done", attributes)
        attributes["a"] = 2

    assert got[0].attributes == {"a": 1}


def test_a_closed_subscription_has_what_came_before_and_nothing_after():
    got = []
    subscription = telemetry.subscribe(got.append)
    for number in range(100):
        telemetry.emit("before", {"number": number})
    subscription.close()
    telemetry.emit("after", {})
    subscription.close()

    assert [event.attributes["number"] for event in got] == list(range(100))
    assert not telemetry.is_on()


def test_each_of_several_handlers_gets_all_events():
    first, second = [], []
    with telemetry.subscribe(first.append), telemetry.subscribe(second.append):
        telemetry.emit("done", {})
    assert first == second != []


def test_what_is_no_function_cannot_subscribe():
    with pytest.raises(TypeError, match="takes a function, not int 3"):
        telemetry.subscribe(3)


def test_a_handler_that_raises_disturbs_nobody_and_is_logged_once(caplog):
    got = []

    def handler(event):
        raise ZeroDivisionError

    with telemetry.subscribe(handler) as bad, telemetry.subscribe(got.append):
        for _ in range(3):
            telemetry.emit("done", {})

    assert len(got) == 3
    assert bad.failures == 3
    assert len(caplog.records) == 1
    assert "of events raised" in caplog.text


def test_a_handler_that_blocks_delays_nobody_and_what_has_no_room_is_counted(blocked):
    for name in ("a", "b"):
        began = time.monotonic()
        for _ in range(1000):
            telemetry.emit(name, {})
        assert time.monotonic() - began < 5

    assert len(blocked) == 1
    assert telemetry.dropped() == 2000 - events.CAPACITY
    assert not telemetry.flush(0.05)


def test_the_end_of_a_subscription_does_not_wait_for_a_handler_that_blocks(blocked):
    with telemetry.subscribe(print):
        began = time.monotonic()
    assert time.monotonic() - began < 10


def test_more_events_of_a_name_than_a_thousand_at_once_are_dropped_and_counted():
    counts: dict[str, int] = {}

    def handler(event):
        counts[event.name] = counts.get(event.name, 0) + 1

    with telemetry.subscribe(handler):
        began = time.monotonic()
        for number in range(5000):
            telemetry.emit("flood", {"number": number})
            if number % 500 == 0:
                telemetry.flush()
        seconds = time.monotonic() - began
        telemetry.emit("other", {})

    assert 1000 <= counts["flood"] <= 1001 + 1000 * seconds
    assert counts["flood"] + telemetry.dropped() == 5000
    assert counts["other"] == 1


def test_the_limit_of_a_name_can_be_set():
    got = []
    telemetry.set_limit("rare", 2)
    with telemetry.subscribe(got.append):
        for _ in range(10):
            telemetry.emit("rare", {})

    assert 2 <= len(got) <= 3
    assert len(got) + telemetry.dropped() == 10


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_a_limit_is_a_number_greater_than_0(limit):
    with pytest.raises(ValueError, match="greater than 0"):
        telemetry.set_limit("name", limit)


def test_a_bucket_fills_again_as_time_goes_by(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("snakepit_kernel.telemetry.rate_limit.monotonic", lambda: now[0])
    buckets = Buckets(10)

    assert [buckets.take("a") for _ in range(11)] == [True] * 10 + [False]
    now[0] += 0.35
    assert [buckets.take("a") for _ in range(4)] == [True] * 3 + [False]
    now[0] += 1000
    assert sum(buckets.take("a") for _ in range(20)) == 10


def test_names_beyond_a_thousand_share_one_bucket():
    buckets = Buckets(1)

    assert all(buckets.take(f"name-{number}") for number in range(MAX_NAMES))
    assert [buckets.take(f"more-{number}") for number in range(3)] == [True, False, False]
    assert len(buckets._buckets) == MAX_NAMES + 1


def test_names_beyond_a_thousand_are_one_name():
    names = Names()

    kept = [names.bounded("event", f"name-{number}") for number in range(MAX_NAMES)]

    assert kept[-1] == f"name-{MAX_NAMES - 1}"
    assert names.bounded("event", "one more") == OTHER
    assert names.bounded("event", "name-0") == "name-0"
    assert names.bounded("tool", "one more") == "one more"


def test_what_a_handler_does_itself_gives_no_events():
    got = []

    def handler(event):
        got.append(event)
        telemetry.emit("echo", {})
        assert not telemetry.flush(1)

    with telemetry.subscribe(handler) as subscription:
        telemetry.emit("done", {})

    assert [event.name for event in got] == ["done"]
    assert subscription.failures == 0


def test_many_threads_emit_at_the_same_time():
    got = []
    with telemetry.subscribe(got.append):
        threads = [
            threading.Thread(
                target=lambda n=n: [telemetry.emit(f"t{n}", {"i": i}) for i in range(100)]
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for n in range(8):
        assert [e.attributes["i"] for e in got if e.name == f"t{n}"] == list(range(100))


def test_a_forked_child_begins_without_the_events_of_its_parent(blocked):
    for _ in range(2000):
        telemetry.emit("parent", {})
    end, other_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            own = []
            found = [telemetry.dropped(), events._hub._buffer.qsize()]
            events._hub.subscriptions = ()  # one blocks
            with telemetry.subscribe(own.append):
                telemetry.emit("child", {})
            os.write(other_end, repr([*found, *(event.name for event in own)]).encode())
        finally:
            os._exit(0)
    os.close(other_end)
    os.waitpid(pid, 0)
    with os.fdopen(end) as pipe:
        assert pipe.read() == "[0, 0, 'child']"


def test_the_end_of_a_script_hands_on_what_waits():
    said = run("""
        from snakepit_kernel import telemetry
        telemetry.subscribe(lambda event: print(event.name, flush=True))
        for number in range(20):
            telemetry.emit(f"event-{number}", {})
    """)

    assert said.split() == [f"event-{number}" for number in range(20)]


def test_a_handler_that_blocks_does_not_hold_the_end_of_a_script_up():
    began = time.monotonic()
    run("""
        import time
        from snakepit_kernel import telemetry
        telemetry.subscribe(lambda event: time.sleep(60))
        telemetry.emit("done", {})
    """)
    assert time.monotonic() - began < 20


def test_nothing_of_opentelemetry_is_imported_when_nobody_else_does():
    said = run("""
        import sys
        import snakepit_kernel
        from snakepit_kernel import Pool, telemetry

        def loaded():
            return [name for name in sys.modules if name.startswith("opentelemetry")]

        assert "snakepit_kernel.pool" not in sys.modules or not loaded()
        with Pool(1) as pool:
            assert pool.submit(pow, 2, 10).result() == 1024
            assert pool.submit(loaded).result() == []
            assert not telemetry.is_on()
            with telemetry.subscribe(print):
                pass
        print(loaded())
    """)
    assert said == "[]\n"


def test_the_start_of_a_kernel_does_not_import_telemetry():
    said = run("""
        import sys
        import snakepit_kernel, snakepit_kernel.provisioner, snakepit_kernel.kernel.app
        print([name for name in sys.modules if "telemetry" in name])
    """)
    assert said == "[]\n"
