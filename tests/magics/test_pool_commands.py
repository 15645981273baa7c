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
    assert "replaced: 3" in status.text
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
    assert "it is draining" in notebook.run("%%snakepit\n1").stderr
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


def test_a_cell_waits_for_a_busy_pool_and_says_what_for(notebook):
    # The default queue_timeout of threads that wait is much shorter here than the wait.
    notebook.run("pool = %snakepit start --workers 1 --name small")
    notebook.run("import time; future = pool.submit(time.sleep, 2)")

    shown = notebook.run("%%snakepit\nprint('its turn')")

    assert shown.error is None
    told, output = shown.stdout.splitlines()
    assert told.startswith("a cell waits for a worker of pool 'small': small-1.1 runs sleep.")
    assert told.endswith("Stop ends the wait.")
    assert output == "its turn"


def test_a_wait_that_was_limited_by_hand_ends(open_notebook):
    notebook = open_notebook()
    notebook.run("pool = %snakepit start --workers 1 --queue-timeout 0.2")
    notebook.run("import time; future = pool.submit(time.sleep, 2)")

    shown = notebook.run("%%snakepit\n1")

    assert "(queue_timeout); the call did not run" in shown.traceback
    assert shown.stdout == ""


def test_stop_ends_the_wait_of_a_cell_and_nothing_else(notebook):
    notebook.run("import time; futures = [pool.submit(time.sleep, 3) for _ in range(2)]")

    reply, seconds = notebook.interrupt_after(1.2, "%%snakepit\nprint('never')")

    assert reply["ename"] == "KeyboardInterrupt"
    assert seconds < 1
    shown = notebook.run("[future.result() for future in futures]")
    assert shown.text == "[None, None]", shown
    assert notebook.run("%%snakepit\nprint(1)").stdout == "1\n"


def test_the_magics_are_left_with_a_pool_that_runs(notebook):
    notebook.run("%snakepit start --workers 1 --name b")

    shown = notebook.run("%snakepit stop")
    assert shown.stdout == "pool b has ended; cells run in pool default now\n"
    assert notebook.run("%%snakepit\nprint(1)").stdout == "1\n"
    notebook.run("%snakepit start --workers 1 --name c")
    notebook.run("pool_c = %snakepit use --pool c")
    notebook.run("pool_c.terminate()")
    assert notebook.run("%%snakepit\nprint(2)").stdout == "2\n"
    assert notebook.run("%snakepit stop").stdout == "pool default has ended\n"
    assert "no pool is running" in notebook.run("%snakepit status").stderr
