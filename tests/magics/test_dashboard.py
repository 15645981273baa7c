"""The live view of a pool, as its notebook's kernel sends it."""

from __future__ import annotations

import time
from queue import Empty

import pytest

QUIET = 2.5
"""Seconds: more than two looks at the pool."""


class Frontend:
    """Runs cells, and keeps all that the kernel sends."""

    def __init__(self, notebook):
        self.client = notebook.client
        self.messages = []

    def run(self, code):
        """Run a cell; return the id of its request."""
        request = self.client.execute(code)
        self.wait_for(
            lambda m: m["content"].get("execution_state") == "idle" and parent_of(m) == request
        )
        return request

    def wait_for(self, is_wanted):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=30)
            self.messages.append(message)
            assert message["msg_type"] != "error", message["content"]
            if is_wanted(message):
                return message
        pytest.fail("it did not come")

    def wait_for_view(self, is_wanted):
        """Wait for an update of the dashboard that shows something; return its message."""
        return self.wait_for(lambda m: (view := view_of(m)) is not None and is_wanted(view))

    def is_silent(self, seconds=QUIET):
        try:
            self.messages.append(self.client.get_iopub_msg(timeout=seconds))
        except Empty:
            return True
        return False

    def show(self, is_shown):
        """Tell the kernel as a browser does whether the dashboard is on the screen."""
        (opened,) = [m for m in self.messages if opens_a_dashboard(m)]
        content = {
            "comm_id": opened["content"]["comm_id"],
            "data": {"method": "update", "state": {"shown": is_shown}, "buffer_paths": []},
        }
        message = self.client.session.msg("comm_msg", content)
        self.client.shell_channel.send(message)
        self.wait_for(
            lambda m: (
                m["content"].get("execution_state") == "idle"
                and parent_of(m) == message["header"]["msg_id"]
            )
        )


def parent_of(message):
    return message["parent_header"].get("msg_id")


def opens_a_dashboard(message):
    data = message["content"].get("data", {})
    return message["msg_type"] == "comm_open" and "view" in data.get("state", {})


def view_of(message):
    if message["msg_type"] != "comm_msg":
        return None
    return message["content"]["data"].get("state", {}).get("view")


@pytest.fixture
def frontend(notebook):
    return Frontend(notebook)


def test_what_it_sends_is_of_the_cell_that_opened_it(frontend):
    opening = frontend.run("dashboard = %snakepit dashboard")
    busy = frontend.run("import time; futures = [pool.submit(time.sleep, 2) for _ in range(3)]")

    update = frontend.wait_for_view(lambda view: view["stats"]["queued"] == 1)
    frontend.wait_for_view(lambda view: view["stats"]["ok"] == 3 and view["rate"] == 0)

    assert busy != opening == parent_of(update)
    assert [w["running"] for w in view_of(update)["workers"]] == ["sleep", "sleep"]


def test_an_idle_pool_and_a_hidden_dashboard_send_nothing(frontend):
    frontend.run("dashboard = pool.dashboard()")
    deadline = time.monotonic() + 20
    while not frontend.is_silent():
        assert time.monotonic() < deadline

    frontend.show(False)
    frontend.run("pool.submit(pow, 2, 3).result()")
    assert frontend.is_silent()
    frontend.show(True)
    frontend.wait_for_view(lambda view: view["stats"]["ok"] == 1)


def test_the_kernel_stays_idle_while_it_is_refreshed(frontend):
    frontend.run("dashboard = pool.dashboard()")
    frontend.run("import time; futures = [pool.submit(time.sleep, 0.3) for _ in range(12)]")
    frontend.messages.clear()

    frontend.wait_for_view(lambda view: view["stats"]["ok"] == 12)

    assert {message["msg_type"] for message in frontend.messages} <= {
        "comm_msg",
        "snakepit_activity",
    }


def test_it_shows_the_shells_and_processes_of_the_pool_s_sessions(frontend):
    frontend.run("dashboard = pool.dashboard(); session = pool.session('build')")
    frontend.wait_for_view(lambda view: view["beside"] == "")

    frontend.run("session.shell.run('true'); process = session.processes.start('sleep 60')")
    frontend.wait_for_view(lambda view: view["beside"] == "1 shell, 1 process")
    frontend.run("process.kill()")
    frontend.wait_for_view(lambda view: view["beside"] == "1 shell")


def test_its_thread_ends_when_it_is_closed(frontend):
    frontend.run("dashboards = [pool.dashboard() for _ in range(3)]")
    frontend.run("threads = [d._thread for d in dashboards]; [d.close() for d in dashboards]")
    frontend.run("[thread.join(5) for thread in threads]")
    frontend.run("assert not any(thread.is_alive() for thread in threads)")


def test_it_ends_with_the_pool_and_keeps_the_last_workers_and_the_reason(frontend):
    frontend.run("dashboard = pool.dashboard()")
    frontend.run("%snakepit stop")

    (view,) = map(view_of, [frontend.wait_for_view(lambda view: not view["is_open"])])
    assert [worker["name"] for worker in view["workers"]] == ["default-1.1", "default-2.1"]
    assert view["problem"] == "it was shut down"
    frontend.run("dashboard._thread.join(5); assert not dashboard._thread.is_alive()")
    frontend.run("assert 'closed' in repr(dashboard)")


def test_it_goes_on_after_a_restart_of_the_pool(frontend):
    frontend.run("import snakepit_kernel.pool.monitoring.dashboard as module")
    frontend.run("module.INTERVAL = 0.01; dashboard = pool.dashboard()")  # it looks meanwhile
    frontend.run("pool.restart(); print(pool.status().workers[0].pid)")
    (pid,) = [int(m["content"]["text"]) for m in frontend.messages if m["msg_type"] == "stream"]

    update = frontend.wait_for_view(lambda view: [w["pid"] for w in view["workers"]][:1] == [pid])

    assert view_of(update)["is_open"]
    frontend.run("assert 'live' in repr(dashboard)")


def test_a_pool_that_works_is_told_of_again_and_again_although_nothing_changes(frontend):
    frontend.run("import time, snakepit_kernel.pool.monitoring.dashboard as module")
    frontend.run("module.BEAT = 1.0; dashboard = pool.dashboard()")
    frontend.run("future = pool.submit(time.sleep, 8)")

    views = [view_of(frontend.wait_for_view(lambda view: view["stats"]["running"]))]
    for _ in range(3):
        views.append(view_of(frontend.wait_for_view(lambda _: True)))

    assert {view["stats"]["running"] for view in views} == {1}
    times = [view["at"] for view in views]
    assert times == sorted(set(times))
    assert views[-1]["beat"] == 1.0
    frontend.run("future.cancel()")


def test_where_there_are_no_widgets_it_is_the_status_as_text_or_html(notebook):
    shown = notebook.run("dashboard = pool.dashboard(); dashboard").data[0]

    assert "application/vnd.jupyter.widget-view+json" in shown
    text, html = shown["text/plain"], shown["text/html"]
    assert text.startswith("pool default of process ")
    assert "default-2.1" in text
    assert "<td>default-2.1</td>" in html
    assert "as of 20" in html
    notebook.run("%snakepit stop")
    for closed in ("dashboard", "pool.dashboard()"):
        shown = notebook.run(closed).data[0]
        assert shown["text/plain"] == "pool default is closed: it was shut down"
        assert "pool default is closed: it was shut down" in shown["text/html"]
        assert "<table>" not in shown["text/html"]


def test_it_does_not_keep_a_pool_that_nobody_has(frontend):
    frontend.run("import snakepit_kernel; own = snakepit_kernel.Pool(1, name='own')")
    frontend.run("dashboard = own.dashboard(); del own; import gc; gc.collect()")

    frontend.wait_for_view(lambda view: view["name"] == "own" and not view["is_open"])


def test_anywidget_is_imported_with_the_first_dashboard(frontend):
    frontend.run("import sys; assert 'anywidget' not in sys.modules")
    frontend.run("dashboard = pool.dashboard(); assert 'anywidget' in sys.modules")
