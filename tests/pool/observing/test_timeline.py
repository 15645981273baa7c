"""What a pool did, call by call."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import FrozenInstanceError

import pytest

from snakepit_kernel import Pool, context, telemetry
from snakepit_kernel.pool.monitoring.timeline import Timeline, TimelineCall, ticks, tracks


def ask():
    return context().call_host_tool("answer", {})


ask.__module__ = "__main__"  # by value


def call(**fields):
    usual = {"kind": "call", "tool": "price", "session": None, "worker": "shop-1.1"}
    rest = {"correlation_id": "c-1", "queued_at": 1.0, "began_at": 2.0, "ended_at": 4.0}
    return TimelineCall(**{**usual, **rest, "outcome": "ok", **fields})


def timeline_of(*calls):
    timeline = Timeline("shop")
    timeline._calls.extend(calls)
    timeline._count = len(calls)
    return timeline


@pytest.fixture(scope="module")
def recorded():
    """The timeline of a call with a host call, a failure, and two that wait for each other."""
    before = time.time()
    with Pool(1, name="shop") as pool:
        pool.tool(ask)

        @pool.host_tool
        def answer():
            time.sleep(0.02)
            return 42

        with pool.timeline() as timeline:
            pool.session("tea").call("ask")
            futures = [pool.submit(time.sleep, 0.12)]
            time.sleep(0.02)  # it has begun: both sent at once may be given back, and begin anew
            futures.append(pool.submit(divmod, 1, 0))
            for future in futures:
                future.exception()
        pool.submit(len, "later").result()
    return timeline, before, time.time()


def test_each_call_says_where_and_when(recorded):
    timeline, before, after = recorded

    kinds = [(call.kind, call.tool, call.outcome) for call in timeline.calls]
    assert kinds == [
        ("call", "ask", "ok"),
        ("host_call", "answer", "ok"),
        ("future", "sleep", "ok"),
        ("future", "divmod", "error"),
    ]
    for call in timeline.calls:
        assert before < call.queued_at <= call.began_at <= call.ended_at < after
        assert call.worker == "shop-1.1"
    asked, host, slept, failed = timeline.calls
    assert asked.session == host.session == "tea"
    assert asked.correlation_id == host.correlation_id != slept.correlation_id
    assert asked.began_at <= host.began_at
    assert host.ended_at <= asked.ended_at
    assert failed.waited > 0.05
    assert slept.ran > 0.09
    with pytest.raises(FrozenInstanceError):
        slept.tool = "another"


def test_it_shows_itself_as_text(recorded):
    timeline, _, _ = recorded

    title, headings, *rows = repr(timeline).splitlines()

    assert title.startswith("pool shop: 4 calls in ")
    assert title.endswith(": 3 ok, 1 error")
    assert headings.split()[:3] == ["at", "waited", "ran"]
    assert [row.split()[-1] for row in rows] == ["ok", "ok", "ok", "error"]


def test_it_shows_itself_as_bars(recorded):
    timeline, _, _ = recorded

    html = timeline._repr_html_()

    picture = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    outcomes = [group.get("data-outcome") for group in picture.iter("g")]
    assert sorted(outcomes) == ["failed", "ok", "ok", "ok"]
    assert {"notebook", "shop-1.1"} <= {text.text for text in picture.iter("text")}
    assert any("future divmod: error" in title.text for title in picture.iter("title"))


def test_it_is_saved_as_a_trace(recorded, tmp_path):
    timeline, _, _ = recorded

    timeline.save(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = {event["name"]: event for event in events if event["ph"] == "X"}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[spans["answer"]["tid"]] == "notebook"
    assert names[spans["sleep"]["tid"]] == "shop-1.1"
    assert spans["sleep"]["dur"] > 90_000
    assert spans["divmod"]["args"]["outcome"] == "error"
    waits = [event for event in events if event.get("cat") == "queue"]
    assert sorted({event["ph"] for event in waits}) == ["b", "e"]


def test_it_keeps_the_last_and_says_what_is_missing():
    with Pool(1, name="shop") as pool, pool.timeline(limit=3) as timeline:
        for _ in range(5):
            pool.submit(len, "four").result()

    assert len(timeline.calls) == 3
    assert timeline.dropped == 2
    assert "2 more are missing" in repr(timeline)


def test_what_was_dropped_on_the_way_counts_as_missing():
    with Timeline("shop") as timeline:
        telemetry.note_dropped(7)

    telemetry.note_dropped(5)
    assert timeline.dropped == 7
    assert repr(timeline) == "pool shop: no calls; 7 more are missing"
    assert "no calls" in timeline._repr_html_()


def test_nothing_of_the_users_is_html():
    evil = "<script>alert(1)</script>"

    html = timeline_of(call(tool=evil, session=evil, worker=evil))._repr_html_()

    assert "<script>" not in html


def test_calls_that_overlap_get_tracks_of_their_own():
    outer, inner = call(ended_at=9.0), call(began_at=3.0)
    later, refused = call(began_at=9.0, ended_at=10.0), call(worker=None, outcome="saturated")

    assert tracks([later, inner, refused, outer]) == [
        ("shop-1.1", [outer, later]),
        ("shop-1.1", [inner]),
    ]


def test_the_axis_has_round_numbers():
    assert ticks(0.665) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert ticks(60) == pytest.approx([0, 10, 20, 30, 40, 50, 60])
    assert ticks(3.1e-5) == pytest.approx([0, 1e-5, 2e-5, 3e-5])
    assert ticks(0) == [0]
    for span in (0.0031, 0.8, 1, 7, 99.9, 12345):
        found = ticks(span)
        assert 3 <= len(found) <= 7
        assert span - (found[1] - found[0]) < found[-1] <= span


def test_a_long_name_is_cut_and_a_short_failure_is_seen():
    long = "a-pool-with-a-long-name-1.1"
    html = timeline_of(
        call(worker=long, ended_at=1000.0),
        call(worker=long, began_at=1000.0, ended_at=1000.001, outcome="error"),
    )._repr_html_()

    picture = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    (label,) = (text for text in picture.iter("text") if text.find("title") is not None)
    assert label.find("title").text == long
    assert label.find("title").tail == "a-pool-with-a-lo…"
    (failed,) = (group for group in picture.iter("g") if group.get("data-outcome") == "failed")
    assert float(failed.findall("rect")[1].get("width")) >= 3


def test_the_legend_explains_the_colours_that_are_there():
    fine = timeline_of(call())._repr_html_()
    assert "ended well" in fine
    assert "waited in the queue" in fine
    assert "cancelled" not in fine.partition("</svg>")[2]
    assert "failed" in timeline_of(call(outcome="timeout"))._repr_html_().partition("</svg>")[2]
    assert "<i>" not in Timeline("shop")._repr_html_()


def test_another_pools_calls_are_not_in_it():
    with (
        Pool(1, name="one") as one,
        Pool(1, name="two") as two,
        one.timeline() as timeline,
    ):
        two.submit(len, "four").result()
        one.submit(len, "four").result()

        assert [call.worker for call in timeline.calls] == ["one-1.1"]  # also while it records


@pytest.mark.parametrize("limit", [0, "many", True])
def test_a_wrong_limit_is_named(limit):
    with (
        Pool(1) as pool,
        pytest.raises((TypeError, ValueError), match="limit"),
    ):
        pool.timeline(limit)
