"""Peers that nobody invited."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest
import zmq
from jupyter_client.session import Session

from snakepit_kernel import Pool


def sockets_of(pool: Pool) -> list[Path]:
    folder = pool._engine._folder.path
    return [path for path in folder.rglob("*") if stat.S_ISSOCK(path.stat().st_mode)]


def test_only_the_channels_of_jupyter_and_commands_have_a_name_to_connect_to(open_pool):
    """The lane is an inherited pair of sockets: there is nothing to connect to."""
    pool = open_pool()
    pool.run("0")
    names = {path.name for path in sockets_of(pool)}

    assert "commands" in names
    assert names > {"commands"}
    assert all(name.startswith("1.1-") for name in names - {"commands"})
    assert pool._engine._folder.path.stat().st_mode & 0o077 == 0, "for its user alone"


@pytest.mark.parametrize("key", ["wrong key", "no key", "no frames of Jupyter"])
def test_a_peer_without_the_key_is_ignored_and_nothing_runs(open_pool, tmp_path, key):
    """Acceptance case 48."""
    pool = open_pool()
    pool.run("0")
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w').close()"
    session = Session(key=b"" if key == "no key" else b"guessed")
    content = {"code": code, "silent": False, "user_expressions": {}, "allow_stdin": False}
    message = session.serialize(session.msg("execute_request", content))
    if key == "no frames of Jupyter":
        message = [b"<IDS|MSG>", b"", json.dumps(content).encode()]
    context = zmq.Context()
    peers = []
    for path in sockets_of(pool):
        for kind in (zmq.DEALER, zmq.PUSH, zmq.REQ):
            peer = context.socket(kind)
            peer.linger = 0
            peer.connect(f"ipc://{path}")
            peer.send_multipart(message, flags=zmq.DONTWAIT)
            peers.append(peer)
        with socket.socket(socket.AF_UNIX) as raw:  # not even ZeroMQ
            raw.connect(str(path))
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(1000))

    # Behind the garbage in the same queues: when these have run, it has been read.
    assert [pool.run("6 * 7").value for _ in range(3)] == [42] * 3
    assert pool.submit(pow, 2, 2).result(5) == 4
    assert not made.exists()
    for peer in peers:
        peer.close()
    context.term()
