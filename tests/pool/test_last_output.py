"""The last output of a worker, read while its pipes are closed."""

from __future__ import annotations

import asyncio
import os
import threading

from snakepit_kernel.pool.workers import output as output_module
from snakepit_kernel.pool.workers.output import WorkerOutput


def test_pipes_that_are_read_are_not_closed_meanwhile(tmp_path, monkeypatch):
    """Their numbers may be other files' by then."""
    output = WorkerOutput(tmp_path / "log", lambda *_: None)
    output.worker_end.close()
    reading, writing = os.pipe()
    os.write(writing, b"last words")
    os.close(writing)
    output._pipes = [reading]
    reads, go_on, wrong = threading.Event(), threading.Event(), []

    def read(descriptor: int, count: int) -> bytes:
        if threading.current_thread() is not reader:
            return b""
        reads.set()
        go_on.wait(10)
        try:
            return os.read(descriptor, count)
        except OSError as error:
            wrong.append(error)
            return b""

    class Slow:
        close = staticmethod(os.close)

    Slow.read = staticmethod(read)
    monkeypatch.setattr(output_module, "os", Slow)
    reader = threading.Thread(target=output.last, kwargs={"has_ended": True})
    reader.start()
    assert reads.wait(10)

    async def close() -> None:
        output.close()

    closer = threading.Thread(target=asyncio.run, args=(close(),))
    closer.start()
    closer.join(0.2)
    go_on.set()
    reader.join(10)
    closer.join(10)

    assert wrong == []
    assert not closer.is_alive()
