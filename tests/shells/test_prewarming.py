"""Workers that are prepared ahead do not starve a shell, even on an eighth of a processor."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCENARIO = textwrap.dedent("""
    import os, subprocess, sys, threading

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(7)
    ]
    try:
        from snakepit_kernel import Pool, open_session

        shell = open_session("s", store=sys.argv[1]).shell
        shell.run("X=1; cd " + os.path.dirname(sys.argv[1]) + "; touch f", check=True)
        pools = []
        starting = threading.Thread(target=lambda: pools.append(Pool(workers=1, standby=3)))
        starting.start()
        for _ in range(100):
            assert shell.run('echo "VALUE:$X:END"', timeout=5.0).stdout == "VALUE:1:END\\n"
            assert shell.run("test -e f", timeout=5.0).ok
        starting.join()
        pools[0].shutdown()
    finally:
        for process in busy:
            process.kill()
            process.wait()
""")


def test_commands_go_on_while_workers_are_prepared_on_an_eighth_of_a_processor(tmp_path):
    command = [sys.executable, "-c", SCENARIO, str(tmp_path / "s.sqlite")]
    done = subprocess.run(command, timeout=110, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
