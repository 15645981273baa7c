"""A worker answers calls before its Jupyter channels are up, and they come up by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from snakepit_kernel import Pool


def has_shell() -> bool:
    from IPython.core.interactiveshell import InteractiveShell

    return InteractiveShell.initialized()


def ask_for_shell(word: str) -> tuple[str, int]:
    from IPython import get_ipython

    print(word)
    shell = get_ipython()
    print(word, flush=True)
    return type(shell).__name__, len(shell.user_ns["In"])


@pytest.fixture
def pool(open_pool: Callable[..., Pool]) -> Pool:
    return open_pool()


def test_calls_are_answered_before_the_rest_of_the_kernel_is_there(pool):
    assert pool.submit(has_shell).result() is False
    assert pool.submit(pow, 2, 3).result() == 8


def test_the_rest_comes_up_by_itself_and_other_clients_can_attach(pool):
    connection_file = pool._engine.supervisor.workers[1].process.manager.connection_file

    async def attach() -> None:
        client = AsyncKernelClient(connection_file=connection_file)
        client.load_connection_file()
        client.start_channels()
        try:
            reply = await client.kernel_info(reply=True, timeout=20)
            assert reply["content"]["implementation"] == "ipython"
        finally:
            client.stop_channels()
            client.context.destroy(linger=0)

    asyncio.run(attach())
    assert pool.submit(has_shell).result() is True


def test_calls_go_on_while_it_comes_up(pool):
    """Calls without a pause keep it back, and each is answered."""
    waits = []
    until = time.monotonic() + 20
    while not pool.submit(has_shell).result() and time.monotonic() < until:
        for _ in range(20):
            began = time.perf_counter()
            pool.submit(pow, 2, 3).result()
            waits.append(time.perf_counter() - began)
        time.sleep(0.15)
    assert pool.submit(has_shell).result()
    assert sorted(waits)[len(waits) // 2] < 0.01


def test_a_cell_does_not_wait_for_it_to_come_up_by_itself(pool):
    result = pool.run("1 + 1")
    assert (result.value, result.execution_count) == (2, 1)


def test_a_tool_that_wants_the_shell_gets_it_and_what_it_prints_arrives(pool, capsys):
    assert pool.submit(has_shell).result() is False
    assert pool.submit(ask_for_shell, "first").result() == ("ZMQInteractiveShell", 1)
    assert capsys.readouterr().out == "first\nfirst\n"
    assert pool.submit(ask_for_shell, "again").result() == ("ZMQInteractiveShell", 1)
    assert capsys.readouterr().out == "again\nagain\n"
    assert pool.run("print('cell')").stdout == "cell\n"


def test_variables_can_be_pushed_before_the_first_cell(pool):
    session = pool.session("one")
    session.push({"x": 6})
    assert session.run("x * 7").value == 42


def test_an_interrupt_while_it_is_built_does_no_harm(pool):
    with pytest.raises(TimeoutError):
        pool.run("import time; time.sleep(60)", timeout=0.02)
    assert pool.run("6 * 7").value == 42
    assert pool.status().workers[0].name.endswith("-1.1")


def test_a_module_beside_the_notebook_is_found(open_pool: Callable[..., Pool], tmp_path: Any):
    (tmp_path / "beside.py").write_text("def here() -> int:\n    return 42\n")
    pool = open_pool(cwd=tmp_path, adapter=None)
    assert pool.run("import beside; beside.here()").value == 42

    def call() -> int:
        import beside

        return beside.here()

    assert pool.submit(call).result() == 42
