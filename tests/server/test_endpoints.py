"""What JupyterLab's panel gets from its server, and what it can command."""

from __future__ import annotations

import http.cookiejar
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snakepit_kernel.pool.commands import socket_path
from snakepit_kernel.pool.monitoring.published_pools import live_pools
from snakepit_kernel.server.served import pool_id

BACKGROUND = """%%snakepit --background
import time
time.sleep(600)"""

NAP = """def nap():
    open({!r}, "w").close()
    time.sleep(600)
pool.submit(nap).result()"""

IDLE = "worker shop-1.1 runs nothing that could be interrupted"

PROCESSES = """session = pool.session("work")
session.shell.run("true")
process = session.processes.start("echo begun; exec sleep 600", name="training")
print(process.wait_for_log("begun"))
print(session.processes.start("exit 3", name="broken").wait())"""


def test_the_state_names_what_a_notebook_has_and_commands_end_it(panel, notebook, until):
    assert "begun\n3" in notebook.run(PROCESSES)
    notebook.run(BACKGROUND)
    until(lambda: panel.kernel()["jobs"] and panel.worker()["running"], 20)
    until(lambda: panel.pool()["shells"], 20)

    kernel = panel.kernel()
    assert kernel["name"] == kernel["path"] == notebook.path
    assert kernel["id"] == notebook.kernel
    pool = panel.pool()
    assert (pool["name"], pool["adapter"], pool["running"]) == ("shop", "none", 1)
    assert "work" in panel.state()["kernels"][0]["processes"][0]["session"]
    worker = panel.worker()
    assert (worker["name"], worker["state"]) == ("shop-1.1", "busy")
    assert worker["cells"]["pid"] == str(worker["pid"])
    (job,) = kernel["jobs"]
    assert job["title"] == "import time"
    by_name = {process["name"]: process for process in kernel["processes"]}
    assert by_name["training"]["status"] == "running"
    assert (by_name["broken"]["status"], by_name["broken"]["returncode"]) == ("failed", 3)

    training = by_name["training"]["id"]
    log = panel.ask("GET", f"processes/{training}/log").data
    assert log == {"name": "training", "status": "running", "text": "begun\n", "is_cut": False}
    assert panel.ask("DELETE", f"processes/{training}").status == 204
    until(lambda: panel.kernel()["processes"][0]["status"] != "running")
    assert panel.command(job["pool"], "cancel", job=job["number"]).status == 204
    until(lambda: not panel.kernel()["jobs"], 20)
    assert panel.command(pool["id"], "stop").status == 204
    until(lambda: not panel.kernel()["pools"], 20)

    gone = panel.command(pool["id"], "recycle", worker="shop-1.1")
    assert gone.status == 404
    assert gone.message == "the pool has ended, or belongs to no kernel of this server"
    assert "it was stopped by hand" in notebook.run("pool.run('1')")


def test_a_worker_is_interrupted_recycled_and_killed_while_the_notebook_waits_for_it(
    panel, notebook, until, tmp_path
):
    begun = tmp_path / "begun"
    with ThreadPoolExecutor(1) as executor:
        shown = executor.submit(notebook.run, NAP.format(str(begun)))
        until(lambda: panel.worker()["running"] and begun.exists(), 20)
        pool = panel.pool()["id"]

        assert panel.command(pool, "interrupt", worker="shop-1.1").status == 204
        assert "was interrupted in its worker" in shown.result(20)

        assert panel.command(pool, "recycle", worker="shop-1.1").status == 204
        assert panel.worker()["name"] == "shop-1.2"
        until(lambda: panel.command(pool, "interrupt", worker="shop-1.1").message != IDLE, 20)
        late = panel.command(pool, "kill", worker="shop-1.1")
        assert late.status == 409
        assert late.message == "pool shop has no worker shop-1.1 any more; its workers: shop-1.2"

        shown = executor.submit(notebook.run, "pool.submit(time.sleep, 600).result()")
        until(lambda: panel.worker()["running"], 20)
        assert panel.command(pool, "kill", worker="shop-1.2").status == 204
        assert "was killed by hand" in shown.result(20)
        until(lambda: panel.worker()["name"] == "shop-1.3", 20)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "state"),
        ("POST", "pools/aaaaaaaaaaaaa/shop-abcdef"),
        ("DELETE", "processes/abc"),
        ("GET", "processes/abc/log"),
    ],
)
def test_who_has_no_token_gets_nothing(panel, method, path):
    for token in (None, "wrong"):
        assert panel.ask(method, path, token=token).status == 403


def test_a_page_of_another_site_commands_nothing(panel, server):
    # A browser sends the cookie with such a request, and cannot know the token beside it.
    browser = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    browser.open(f"http://127.0.0.1:{server.port}/api/kernels?token=t").close()
    address = f"http://127.0.0.1:{server.port}/snakepit/processes/abc"
    with pytest.raises(urllib.error.HTTPError) as refused:
        browser.open(urllib.request.Request(address, method="DELETE"))
    with refused.value as reply:
        assert reply.code == 403
        assert b"_xsrf" in reply.read()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"nonsense", "JSON is malformed"),
        (b"", "Input data was truncated"),
        ([], "Expected `object`, got `array`"),
        ({"op": "explode"}, "Invalid value 'explode'"),
        ({"op": "kill"}, "missing required field `worker`"),
        ({"op": "kill", "worker": 1}, "Expected `str`, got `int`"),
        ({"op": "stop", "force": True}, "unknown field `force`"),
    ],
)
def test_what_is_no_command_is_refused_with_a_sentence(panel, body, problem):
    status, data = panel.ask("POST", "pools/aaaaaaaaaaaaa/shop-abcdef", body)

    assert status == 400
    assert problem in data["message"]
    assert data["message"].startswith("the body is no command: ")
    assert 'such as {"op": "recycle", "worker": "default-1.1"}' in data["message"]


SCRIPT = """
from snakepit_kernel import Pool
with Pool(1, name="mine") as pool:
    process = pool.session("mine").processes.start("sleep 600")
    print(process.id, flush=True)
    input()
    print(pool.is_open, process.is_running, flush=True)
    process.kill()
"""


def test_pools_and_processes_of_others_are_not_there(panel, notebook):
    command = [sys.executable, "-c", SCRIPT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as script:
        process = script.stdout.readline().strip()
        (mine,) = [each for each in live_pools()[0] if each.status.name == "mine"]

        assert panel.pool()["name"] == "shop"
        assert panel.kernel()["processes"] == []
        assert panel.command(pool_id(mine), "stop").status == 404
        for method, path in (("DELETE", ""), ("GET", "/log")):
            reply = panel.ask(method, f"processes/{process}{path}")
            assert reply.status == 404
            assert reply.message == (
                f"process {process} is gone, or belongs to no kernel of this server"
            )
        assert script.communicate("\n", timeout=30)[0] == "True True\n"


def test_the_pool_of_a_script_belongs_to_the_notebook_that_runs_it(panel, notebook, tmp_path):
    program = tmp_path / "script.py"
    program.write_text(
        "from snakepit_kernel import Pool\n"
        "with Pool(1, name='inner'):\n    print('ready', flush=True); input()\n"
    )
    notebook.run(
        "import subprocess, sys\n"
        f"script = subprocess.Popen([sys.executable, {str(program)!r}], stdin=-1, stdout=-1)\n"
        "script.stdout.readline()"
    )

    assert {pool["name"] for pool in panel.kernel()["pools"]} == {"shop", "inner"}
    notebook.run("script.communicate(b'\\n')")
    assert panel.pool()["name"] == "shop"


def test_the_server_answers_others_while_a_pool_does_not_answer(panel, notebook, until):
    pool = panel.pool()["id"]
    (found,) = live_pools()[0]
    path = f" {socket_path(found.folder)}\n"
    kernel = int(notebook.run("import os; os.getpid()"))
    os.kill(kernel, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(panel.command, pool, "recycle", worker="shop-1.1")
            # The pool's end of the connection has its name, as the socket that listens has.
            until(lambda: Path("/proc/net/unix").read_text().count(path) > 1)
            assert panel.worker()["name"] == "shop-1.1"
            assert not answer.done()
            os.kill(kernel, signal.SIGCONT)
            assert answer.result(30).status == 204
    finally:
        os.kill(kernel, signal.SIGCONT)
    assert panel.worker()["name"] == "shop-1.2"
