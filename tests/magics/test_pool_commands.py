"""``%snakepit resize``, ``recycle``, ``reload``, ``drain`` and ``resume``: a pool that lives on."""

from __future__ import annotations

NAMES = "[worker.name for worker in pool.status().workers]"


# Who was replaced ends in its own time, and tells nobody but the status.
ENDED = """
import time
until = time.monotonic() + 20
while len(pool.status().ends) < 3:
    assert time.monotonic() < until
    time.sleep(0.01)
"""


def test_a_pool_is_resized_and_restarted_at_that_size(notebook):
    assert notebook.run("%snakepit resize 3").error is None
    assert notebook.run("len(pool.slots())").text == "3"
    assert notebook.run("%snakepit resize 1").error is None
    assert notebook.run("len(pool.slots())").text == "1"

    notebook.run("pool = %snakepit restart")
    assert notebook.run("len(pool.slots())").text == "1"


def test_one_worker_or_all_are_recycled(notebook):
    assert notebook.run("%snakepit recycle 2").error is None
    assert notebook.run(NAMES).text == "['default-1.1', 'default-2.2']"
    assert notebook.run("%snakepit recycle").error is None
    assert notebook.run(NAMES).text == "['default-1.2', 'default-2.3']"

    notebook.run(ENDED)
    status = notebook.run("%snakepit status")
    assert "3 recycled" in status.text
    assert "default-1.1, " in status.text
    assert "was replaced after" in status.data[0]["text/html"]


def test_a_pool_gets_other_tools_and_keeps_them_over_a_restart(notebook):
    notebook.run("""
import snakepit_kernel
class Shop(snakepit_kernel.Adapter):
    @snakepit_kernel.tool
    def price(self) -> int:
        return 3
""")

    assert notebook.run("%snakepit reload Shop").error is None
    assert notebook.run("%snakepit call price").text == "3"
    notebook.run("pool = %snakepit restart")
    assert notebook.run("%snakepit call price").text == "3"


def test_a_drained_pool_takes_work_again_when_it_is_resumed(notebook):
    notebook.run("import time; future = pool.submit(time.sleep, 1)")

    assert "not all is done yet; pool default" in notebook.run("%snakepit drain --timeout 0").stdout
    assert notebook.run("%snakepit drain").stdout.startswith("all is done; ")
    assert notebook.run("future.done()").text == "True"
    assert "drains" in notebook.run("%%snakepit\n1").stderr
    assert notebook.run("%snakepit resume").error is None
    assert notebook.run("pool.submit(len, 'four').result()").text == "4"


def test_misuse_is_one_line(notebook):
    for line, said in {
        "resize": "arguments are required: workers",
        "resize many": "'many' is not a whole number",
        "resize 0": "workers must be between 1 and 150, not 0",
        "recycle 9": "there is no worker 9",
        "reload nosuch:Thing": "nosuch",
        "drain --pool shop": "there is no pool 'shop'",
    }.items():
        shown = notebook.run(f"%snakepit {line}")
        assert said in shown.stderr + str(shown.error), line
        assert "Traceback" not in shown.stderr, line
