"""Secrets are left out of command lines and texts, and what is none stays."""

from __future__ import annotations

import secrets
import string
import time

import pytest

from snakepit_kernel.redaction import redacted, redacted_command


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["x", "--password=hunter2"], "x --password=***"),
        (["x", "--password=my secret phrase", "y"], "x --password=*** y"),
        (["x", "--db-password", "hunter2", "y"], "x --db-password *** y"),
        (["x", "--token", "hunter2"], "x --token ***"),
        (["x", "--client-secret", "a b"], "x --client-secret ***"),
        (["x", "--api-key=hunter2"], "x --api-key=***"),
        (["x", "--key", "hunter2"], "x --key ***"),
        (["env", "PGPASSWORD=hunter2", "psql"], "env PGPASSWORD=*** psql"),
        (["docker", "run", "-p", "80:80", "-e", "KEY=k", "i"], "docker run -p 80:80 -e KEY=*** i"),
        (["x", "--env=SECRET=a b"], "x --env=SECRET=***"),
        (["x", "API=hunter2", "authToken=hunter2"], "x API=*** authToken=***"),
        (["java", "-Dstore.password=p", "-jar", "x.jar"], "java -Dstore.password=*** -jar x.jar"),
        (["/usr/bin/mysql", "-psecret", "-u", "me", "db"], "/usr/bin/mysql -p*** -u me db"),
        (["mysql", "-p", "db"], "mysql -p db"),
        (["sshpass", "-p", "hunter2", "ssh", "-p", "22", "h"], "sshpass -p *** ssh -p 22 h"),
        (["curl", "-sSu", "me:pw", "https://h/p"], "curl -sSu *** https://h/p"),
        (["curl", "-H", "Authorization: Bearer abc.def", "h"], "curl -H Authorization: *** h"),
        (["curl", "-H", "X-Api-Key: abc"], "curl -H X-Api-Key: ***"),
        (["docker", "login", "-u", "me", "-p", "pw", "r"], "docker login -u me -p *** r"),
        (["redis-cli", "-a", "pw", "ping"], "redis-cli -a *** ping"),
        (["psql", "postgres://me:p@ss@h:5432/db"], "psql postgres://me:***@h:5432/db"),
        (["x", "proxy=me:pw@h:80"], "x proxy=me:***@h:80"),
        (["curl", "https://h/?token=abc&n=1"], "curl https://h/?token=***&n=1"),
        (["git", "clone", "https://ghp_abcdefgh12345678@h/x"], "git clone https://***@h/x"),
        (["sh", "-c", "mysql -ppw db; curl -u 'me:a b' h"], "sh -c mysql -p*** db; curl -u *** h"),
        (["sh", "-c", "a; PASSWORD='a b' b --token pw c"], "sh -c a; PASSWORD=*** b --token *** c"),
        (["python", "-c", "f(password='x y', n=1)"], "python -c f(password=***, n=1)"),
        (["x", '{"password": "a b", "n": 1}'], 'x {"password": ***, "n": 1}'),
        (["python -m x --password=hunter2 y"], "python -m x --password=*** y"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_secret_is_left_out_of_a_command(arguments: list[str], shown: str) -> None:
    assert redacted_command(arguments) == shown


@pytest.mark.parametrize(
    "command",
    [
        "ssh-agent -D",
        "python -c from multiprocessing.resource_tracker import main;main(5)",
        "python -m x --tokenizer=bert --max_tokens 5 --password-file /etc/x --no-password y",
        "python -m snakepit_kernel.kernel -f /run/kernel-3f2a4b6c-1a11-2b22-3c33-44d45e556f66.json",
        "python train.py --lr=1e-05 --model resnet50-v2-imagenet1k --at 2024-12-31T23-59-59Z",
        "/home/me/miniconda3/envs/py311/bin/python /home/me/manylinux_2_17_x86_64/a.py",
        "ssh -p 2222 -L 8080:localhost:80 me@host git@github.com:me/x.git",
        "mkdir -p a/b/c",
    ],
)
def test_what_is_no_secret_stays(command: str) -> None:
    assert redacted_command(command.split(" ")) == command


@pytest.mark.parametrize("size", [16, 24, 32])
def test_keys_that_look_random_are_left_out(size: int) -> None:
    keys = [secrets.token_hex(size) for _ in range(200)]
    keys += [secrets.token_urlsafe(size) for _ in range(200) if size > 16]
    shown = [redacted_command(["x", "send", key]) for key in keys]
    assert shown.count("x send ***") >= 0.95 * len(keys)


@pytest.mark.parametrize("begin", ["", " ", "x="])
def test_a_line_that_is_made_to_be_slow_is_not(begin: str) -> None:
    pieces = [
        *string.punctuation,
        "a.-",
        "secret",
        "bearer ",
        "x://",
        "a:",
        "=:",
        "'\\",
        '"a',
        "-a ",
    ]
    began = time.process_time()
    for piece in pieces:
        redacted_command(["x", begin + piece * (4096 // len(piece))])
    assert time.process_time() - began < 5


def test_a_text_of_an_object_keeps_what_is_no_secret() -> None:
    text = "<Holder password='a b' at 0x7f5a8c0b1d30 in /tmp/some/folder/of/mine/with/a/long/name>"
    assert redacted(text) == text.replace("'a b'", "***")
