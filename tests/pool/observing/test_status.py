"""The status of a pool, as people see it."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser

import pytest

from snakepit_kernel import PoolStats, PoolStatus
from snakepit_kernel.pool.monitoring.dashboard import _as_view
from snakepit_kernel.pool.status import SHOWN_ENDS, WorkerEnd, WorkerStatus, memory


def worker(**fields):
    usual = {"name": "shop-1.1", "pid": 42, "state": "busy", "seconds": 3.0, "calls": 7}
    rest = {"memory_bytes": 50 << 20, "running": "price", "run_id": "r"}
    return WorkerStatus(**{**usual, **rest, **fields})


def end(**fields):
    usual = {"name": "shop-1.1", "pid": 41, "at": time.time() - 10, "seconds": 240.0, "calls": 17}
    rest = {"was_wanted": True, "reason": "SIGKILL"}
    return WorkerEnd(**{**usual, **rest, **fields})


def status(**fields):
    return PoolStatus(**{"name": "shop", "owner_pid": 1, "adapter": "shop:Shop", **fields})


class Text(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.tags[-1] != "style":
            self.texts.append(data)


def test_the_notebook_of_a_pool_is_named_where_it_is_known():
    pool = status(notebook="analysis.ipynb")

    assert pool.title == "pool shop of analysis.ipynb (process 1): adapter shop:Shop"
    assert "analysis.ipynb (process 1) · adapter shop:Shop" in Text(pool._repr_html_()).texts
    assert status().title == "pool shop of process 1: adapter shop:Shop"
    assert PoolStatus.from_json(pool.as_json()) == pool


def test_html_and_text_tell_of_workers_queue_memory_ends_and_a_problem():
    pool = status(
        workers=[worker(), worker(name="shop-2.1", memory_bytes=30 << 20)],
        stats=PoolStats(submitted=1234, ok=1200, error=20, lost=3, queued=4, running=2, died=1),
        ends=[end()],
        problem="the adapter cannot be imported",
    )

    page = Text(pool._repr_html_()).texts

    numbers = [text for text in page[2 : page.index("worker")] if text.strip()]
    assert dict(zip(numbers[1::2], numbers[::2], strict=True)) == {
        "running": "2",
        "waiting": "4",
        "done": "1,228",
        "failed": "23",
        "workers died": "1",
        "memory": "80 MiB",
    }
    assert "running: 2; waiting: 4; done: 1,228 (1,200 ok, 20 error, 3 lost); " in str(pool)
    for shown in ("\n".join(page), str(pool)):
        assert "shop-2.1" in shown
        assert "80 MiB" in shown
        assert "10 s ago" in shown
        assert "died after 4 min and 17 calls: SIGKILL" in shown
        assert "the adapter cannot be imported" in shown


def test_nothing_of_the_users_is_html():
    evil = "<script>alert(1)</script>"
    pool = status(
        name=evil,
        adapter=evil,
        workers=[worker(name=evil, running=evil, tainted=f'" onload="{evil}')],
        sessions=[evil],
        ends=[end(name=evil, reason=evil)],
        problem=evil,
    )

    page = Text(pool._repr_html_())

    assert "script" not in page.tags
    assert page.texts.count(evil) >= 3
    assert "onload=" not in pool._repr_html_().replace("&quot; onload=", "")


def test_devices_are_shown_where_workers_have_them():
    without = status(workers=[worker()])
    pool = status(workers=[worker(device="GPU 0"), worker(name="shop-2.1")])

    assert "device" not in without._repr_html_()
    page = Text(pool._repr_html_()).texts
    assert page.index("device") == page.index("running", page.index("worker")) - 1
    assert "GPU 0" in page


def test_a_busy_worker_shows_how_long_its_present_call_runs_and_of_which_session():
    busy = worker(seconds=90.0, running_seconds=4.0, session="exp", done=6)
    pool = status(workers=[busy, worker(name="shop-2.1", state="ready", running=None)])

    header, first, second = (line.split() for line in str(pool).splitlines()[1:4])
    assert header == [*("worker", "pid", "state", "for", "done", "memory", "running", "session")]
    assert first == ["shop-1.1", "42", "busy", "4", "s", "6", "50", "MiB", "price", "exp"]
    assert second == ["shop-2.1", "42", "ready", "3", "s", "0", "50", "MiB"]
    assert "<td>exp</td>" in pool._repr_html_()
    assert "session" not in status(workers=[worker()]).headings
    assert _as_view(pool)["workers"][0]["session"] == "exp"
    assert time.time() - _as_view(pool)["workers"][0]["since"] == pytest.approx(4.0, abs=1.0)
    assert PoolStatus.from_json(json.loads(json.dumps(pool.as_json()))) == pool


def test_a_tainted_worker_says_so():
    pool = status(workers=[worker(tainted="killed its process before")])

    assert "busy, tainted" in str(pool)
    assert 'title="killed its process before"' in pool._repr_html_()


def test_a_replaced_worker_did_not_die():
    pool = status(ends=[end(was_wanted=False, reason="max_calls of 17")])

    assert "was replaced after 4 min and 17 calls: max_calls of 17" in str(pool)
    assert 'class="snakepit-died"' not in pool._repr_html_()


def test_people_see_the_last_ends_and_some_sessions():
    pool = status(
        ends=[end(name=f"shop-1.{n}") for n in range(20)], sessions=[f"s{n}" for n in range(1000)]
    )

    assert [item.name for item in pool.last_ends] == [f"shop-1.{n}" for n in range(19, 14, -1)]
    assert len(pool.last_ends) == SHOWN_ENDS
    assert "s19 and 980 more" in str(pool)


def test_what_older_and_newer_versions_published_is_read():
    data = json.loads(json.dumps(status(workers=[worker()], ends=[end()]).as_json()))
    newer = {**data, "weather": "fine", "workers": [{**data["workers"][0], "colour": "red"}]}
    older = {key: value for key, value in data.items() if key != "ends"}
    older["workers"] = [{k: v for k, v in data["workers"][0].items() if k != "tainted"}]
    older["stats"] = {"submitted": 3}

    assert PoolStatus.from_json(newer) == PoolStatus.from_json(data)
    assert PoolStatus.from_json(older).stats == PoolStats(submitted=3)
    assert PoolStatus.from_json(older).workers[0].tainted is None


@pytest.mark.parametrize(
    ("size", "text"), [(None, ""), (0, "0 MiB"), (3 << 20, "3 MiB"), (3 << 29, "1.5 GiB")]
)
def test_an_amount_of_memory_is_told_in_one_unit(size, text):
    assert memory(size) == text


def test_nothing_of_others_reaches_a_page_or_a_terminal_unseen():
    evil, harmless = "\x1b]0;t\x07\u202e\x9b", r"\x1b]0;t\x07\u202e\x9b"
    pool = status(
        adapter=evil,
        problem=evil,
        sessions=[evil],
        workers=[worker(running=evil, tainted=evil, device=evil)],
        ends=[end(reason=evil)],
    )
    for text in (str(pool), pool._repr_html_(), json.dumps(_as_view(pool), ensure_ascii=False)):
        shown = text.replace("\n", "")
        assert shown.isprintable(), [c for c in shown if not c.isprintable()]
        assert harmless in shown.replace("\\\\", "\\")
    assert pool.as_json()["problem"] == evil


@pytest.mark.parametrize(
    ("shells", "processes", "said"),
    [
        (0, 0, ""),
        (1, 0, "1 shell"),
        (2, 1, "2 shells, 1 process"),
        (0, 3, "3 processes"),
    ],
)
def test_shells_and_processes_are_counted_where_there_are_any(shells, processes, said):
    pool = status(workers=[worker()], shells=shells, processes=processes)

    assert _as_view(pool)["beside"] == said
    page = "\n".join(Text(pool._repr_html_()).texts)
    for shown in (page, str(pool)):
        assert said in shown
        assert said or not re.search(r"\d (shell|process)", shown)
    assert PoolStatus.from_json(json.loads(json.dumps(pool.as_json()))) == pool


def test_a_status_of_an_earlier_version_has_none_of_them():
    data = status().as_json()
    del data["shells"], data["processes"]

    assert PoolStatus.from_json(data) == status()
