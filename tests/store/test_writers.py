"""Several processes that write to the same variables at once."""

from __future__ import annotations

from snakepit_kernel.sessions.state import open_session

COUNT = """
from snakepit_kernel.errors import VersionConflict
session = open_session("a", store=path)
longest = conflicts = 0
for _ in range(150):
    began = time.perf_counter()
    while True:
        now = session.variables.info("n")
        try:
            session.variables.set("n", now.value + 1, version=now.version)
        except VersionConflict:
            conflicts += 1
        else:
            break
    longest = max(longest, time.perf_counter() - began)
print(longest, conflicts)
"""


def test_four_processes_that_compare_and_set_lose_no_update_and_none_starves(store, start):
    session = open_session("a", store=store)
    session.variables.register("n", "integer", 0)
    children = [start(COUNT) for _ in range(4)]
    for child in children:
        child.go()

    said = [child.end()[0].split() for child in children]

    assert session.variables["n"] == 600
    assert session.variables.info("n").version == 601
    assert max(float(longest) for longest, _ in said) < 10
    assert sum(int(conflicts) for _, conflicts in said) > 0, "they did not meet"


PAIRS = """
session = open_session("a", store=path)
for step in range(150):
    text = f"{sys.argv[2]}-{step}"
    session.variables.set_many({"x": text, "y": text})
"""


def test_variables_that_are_set_together_are_read_together(store, start):
    session = open_session("a", store=store)
    session.variables.register_many({"x": ("string", ""), "y": ("string", "")})
    children = [start(PAIRS, number) for number in range(3)]
    for child in children:
        child.go()

    seen = set()
    while any(child.poll() is None for child in children):
        found = session.variables.get_many(["x", "y"]).found
        assert found["x"] == found["y"]
        seen.add(found["x"])

    assert [child.end() for child in children] == [("", "")] * 3
    assert len(seen) > 2, "nothing was read meanwhile"
    assert session.variables.info("x").version == 451
