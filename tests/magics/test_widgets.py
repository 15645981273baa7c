"""Widgets of worker cells: what the page sends reaches the worker, and its effect the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import Notebook, Shown

Message = dict[str, Any]


class Page:
    """The comms of a page: it sends what its widgets do, and hears what comes of it."""

    def __init__(self, notebook: Notebook) -> None:
        self.client = notebook.client
        self.client.session.copy_threshold = 1 << 30  # else pyzmq keeps a thread for what is sent

    def send(self, kind: str, content: Message, buffers: list[bytes] = []) -> str:  # noqa: B006
        session = self.client.session
        message = session.msg(kind, content)
        session.send(self.client.shell_channel.socket, message, buffers=buffers)
        return str(message["header"]["msg_id"])

    def tell(self, comm: str, data: Message, buffers: list[bytes] = []) -> str:  # noqa: B006
        return self.send("comm_msg", {"comm_id": comm, "data": data}, buffers)

    def move(self, comm: str, **state: object) -> str:
        return self.tell(comm, {"method": "update", "state": state, "buffer_paths": []})

    def press(self, comm: str) -> str:
        return self.tell(comm, {"method": "custom", "content": {"event": "click"}})

    def hears(self, request: str) -> list[Message]:
        """Wait until a message is handled; give what came of it."""
        return list(self._until_idle(request))

    def _until_idle(self, request: str) -> Iterator[Message]:
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] != "status":
                yield message
            elif message["content"]["execution_state"] == "idle":
                return

    def known(self) -> Message:
        request = self.client.comm_info()
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"]["msg_id"] == request:
                return dict(reply["content"]["comms"])


def models(shown: Shown) -> dict[str, str]:
    """Give the comm of each kind of widget that a cell has made."""
    return {
        message["content"]["data"]["state"]["_model_name"].removesuffix("Model"): message[
            "content"
        ]["comm_id"]
        for message in shown.raw
        if message["msg_type"] == "comm_open"
    }


def texts(messages: list[Message]) -> list[str]:
    return [each["content"]["text"] for each in messages if each["msg_type"] == "stream"]


WIDGETS = """%%snakepit
import ipywidgets as w
from IPython.display import display
slider, button, out = w.IntSlider(value=3, max=10), w.Button(), w.Output()
seen = []
def note(change):
    seen.append(change["new"])
    print("now", change["new"])
def press(_):
    with out:
        print("pressed")
slider.observe(note, "value")
button.on_click(press)
display(slider, button, out)
with out:
    print("begun")
"""


@pytest.fixture
def one(open_notebook: Callable[..., Notebook]) -> Notebook:
    """A notebook with a pool of one worker."""
    notebook = open_notebook()
    assert notebook.run("pool = %snakepit start --workers 1").status == "ok"
    return notebook


def captures(messages: list[Message]) -> list[str]:
    """Give what a page puts into an Output widget, with the requests whose output it takes."""
    found = []
    for message in messages:
        content = message["content"]
        if message["msg_type"] == "comm_msg" and "msg_id" in content["data"].get("state", {}):
            found.append(content["data"]["state"]["msg_id"])
        elif message["msg_type"] == "stream":
            found.append(content["text"])
    return found


def test_a_slider_a_button_and_an_output_of_a_worker_work(one):
    page = Page(one)
    shown = one.run(WIDGETS)
    widgets = models(shown)
    assert captures(shown.raw) == [shown.request, "begun\n", ""]

    moved = page.hears(page.move(widgets["IntSlider"], value=5))
    assert texts(moved) == ["now 5\n"]
    assert one.run("%%snakepit\nprint(slider.value, seen)").stdout == "5 [5]\n"

    request = page.press(widgets["Button"])
    assert captures(page.hears(request)) == [request, "pressed\n", ""]

    one.run("%%snakepit\nslider.observe(lambda _: 1 / 0, 'value')")
    failed = page.hears(page.move(widgets["IntSlider"], value=6))
    (error,) = [each["content"] for each in failed if each["msg_type"] == "error"]
    assert error["ename"] == "ZeroDivisionError"


def test_what_the_page_tells_waits_for_the_worker_and_the_next_cell_for_it(one, tmp_path):
    """Also that a handler runs among the names of its own session, and the notebook goes on."""
    page = Page(one)
    shown = one.run(
        "%%snakepit\nimport ipywidgets as w, snakepit_kernel\n"
        "mine, seen, slider = 'mine', [], w.IntSlider()\n"
        "def note(change):\n"
        "    names = get_ipython().user_ns\n"
        "    seen.append((change['new'], names['mine']))\n"
        "    names['whose'] = snakepit_kernel.context().session_id\n"
        "slider.observe(note, 'value')\nslider"
    )
    comm = models(shown)["IntSlider"]
    one.run("%%snakepit --session other\nmine = 'the other one'")
    one.run(
        "def wait():\n    import os, time\n"
        f"    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "busy = pool.submit(wait)"
    )

    moves = [page.move(comm, value=value) for value in (1, 2, 3)]
    assert one.run("busy.done(), pool.stats().queued > 0").text == "(False, True)"
    (tmp_path / "go").touch()

    for move in moves:
        page.hears(move)
    assert one.run("%%snakepit\nseen").text == "[(1, 'mine'), (2, 'mine'), (3, 'mine')]"
    own = one.run("%%snakepit\nprint(whose == snakepit_kernel.context().session_id)")
    assert own.stdout == "True\n"
    assert one.run("%%snakepit --session other\n'whose' in globals()").text == "False"

    page.move(comm, value=4)
    assert one.run("%%snakepit\nlen(seen)").text == "4", "a cell finds what was moved before it"


def test_a_widget_is_handled_where_it_was_made_and_cells_go_on_where_they_were(notebook):
    page = Page(notebook)
    shown = notebook.run(
        "%%snakepit --worker 2\nimport ipywidgets as w, os\nslider = w.IntSlider()\n"
        "slider.observe(lambda _: print(os.getpid()), 'value')\nprint(os.getpid())\nslider"
    )
    notebook.run("%%snakepit --worker 1\nx = 7")

    moved = page.hears(page.move(models(shown)["IntSlider"], value=1))

    assert texts(moved) == [shown.stdout]
    assert notebook.run("%%snakepit\nx").text == "7"


def test_a_handler_that_never_ends_is_stopped_with_the_cell_that_waits_for_it(one):
    page = Page(one)
    shown = one.run(
        "%%snakepit\nimport ipywidgets as w, time\nbutton = w.Button()\n"
        "def hang(_):\n    print('hangs', flush=True)\n    time.sleep(600)\n"
        "button.on_click(hang)\nkept = 7\nbutton"
    )
    request = page.press(models(shown)["Button"])
    while (message := page.client.get_iopub_msg(timeout=30))["msg_type"] != "stream":
        pass
    assert message["parent_header"]["msg_id"] == request

    reply, seconds = one.interrupt_after(0.5, "%%snakepit\n1")

    assert reply["ename"] == "KeyboardInterrupt"
    assert seconds < 20
    assert one.run("%%snakepit\nkept").text == "7"


def test_a_page_opens_a_comm_to_a_worker_and_bytes_go_both_ways(one):
    page = Page(one)
    one.run(
        "%%snakepit\n"
        "def opened(comm, message):\n"
        "    def answer(message):\n"
        "        buffers = [bytes(reversed(bytes(b))) for b in message['buffers']]\n"
        "        comm.send({'got': message['content']['data']}, buffers=buffers)\n"
        "    comm.on_msg(answer)\n"
        "get_ipython().kernel.comm_manager.register_target('mine', opened)"
    )
    large = bytes(range(256)) * 1000
    page.hears(page.send("comm_open", {"comm_id": "c", "target_name": "mine", "data": {}}))
    assert page.known() == {"c": {"target_name": "mine"}}

    (answer,) = page.hears(page.tell("c", {"n": 1}, [b"abc", large]))

    assert answer["content"] == {"comm_id": "c", "data": {"got": {"n": 1}}}
    assert [bytes(each) for each in answer["buffers"]] == [b"cba", large[::-1]]
    page.hears(page.send("comm_close", {"comm_id": "c", "data": {}}))
    assert page.known() == {}


def test_a_page_that_is_loaded_again_asks_each_widget_for_its_state(one):
    page = Page(one)
    one.run("import ipywidgets; own = ipywidgets.IntSlider(value=1)")
    slider = models(one.run("%%snakepit\nimport ipywidgets as w\nslider = w.IntSlider(value=4)"))

    control = {"target_name": "jupyter.widget.control", "comm_id": "all", "data": {}}
    (closed,) = page.hears(page.send("comm_open", control))
    assert closed["msg_type"] == "comm_close", "else only the notebook's own states are told"
    known = page.known()

    assert slider["IntSlider"] in known
    states = [page.hears(page.tell(comm, {"method": "request_state"})) for comm in known]
    values = [each["content"]["data"]["state"].get("value") for (each,) in states]
    assert {1, 4} <= set(values)


def test_a_worker_that_has_ended_closes_its_widgets_and_their_cells_say_so(one):
    page = Page(one)
    shown = one.run(WIDGETS)
    comms = {each["content"]["comm_id"] for each in shown.raw if each["msg_type"] == "comm_open"}
    assert comms <= set(page.known())

    one.client.execute("import os; os.kill(pool.status().workers[0].pid, 9)")
    closed: set[str] = set()
    said: list[str] = []
    while not said:
        (message,) = one.late_messages(shown, 1)
        if message["msg_type"] == "comm_close":
            closed.add(message["content"]["comm_id"])
        elif message["msg_type"] == "stream":
            said.append(message["content"]["text"])

    assert closed == comms
    assert "".join(said) == (
        "The widgets of this cell are gone: worker default-1.1 has ended. Run the cell again for "
        "new ones.\n"
    )
    assert not comms & set(page.known())


def test_what_is_left_of_the_widgets_of_a_stopped_pool_says_so_when_it_is_used(one):
    page = Page(one)
    comm = models(one.run(WIDGETS))["IntSlider"]
    assert one.run("%snakepit stop").raw[0]["msg_type"] == "stream", "nothing is closed"
    assert comm not in page.known()

    said = page.hears(page.move(comm, value=5))

    assert sorted(each["msg_type"] for each in said) == ["comm_close", "stream"]
    assert "".join(texts(said)) == (
        "This widget does nothing any more: worker default-1.1 has ended. Run its cell again for "
        "a new one.\n"
    )


def test_widgets_and_names_of_workers_work_in_ipythons_own_kernel(open_notebook):
    notebook = open_notebook("python3")
    page = Page(notebook)
    notebook.run("%load_ext snakepit_kernel")
    assert notebook.run("pool = %snakepit start --workers 1").status == "ok"
    comm = models(notebook.run(WIDGETS))["IntSlider"]

    assert texts(page.hears(page.move(comm, value=5))) == ["now 5\n"]

    assert notebook.run("%%snakepit\nslider.value").text == "5"
    assert notebook.run("_ + 1").text == "6"
    assert "slider" in notebook.completions("%%snakepit\nsli")
    assert notebook.run("%snakepit stop").status == "ok"
    (closed, said) = page.hears(page.move(comm, value=6))
    assert closed["msg_type"] == "comm_close"
    assert "does nothing any more" in said["content"]["text"]


def test_widgets_of_a_function_work_too(one):
    page = Page(one)
    shown = one.run(
        "def make():\n"
        "    import ipywidgets as w\n"
        "    from IPython.display import display\n"
        "    slider = w.IntSlider()\n"
        "    slider.observe(lambda change: print('now', change['new']), 'value')\n"
        "    display(slider)\n"
        "pool.submit(make).result()"
    )

    moved = page.hears(page.move(models(shown)["IntSlider"], value=9))

    assert texts(moved) == ["now 9\n"]
