"""`snakepit run`: many notebooks, each in a kernel of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from snakepit_kernel.cli.notebook_runs import JOURNAL

SNAKEPIT = [str(Path(sys.executable).with_name("snakepit"))]


def write(path: Path, *sources: str, parameters: str = "") -> Path:
    cells = [new_code_cell(source) for source in sources]
    if parameters:
        cells.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run(folder: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SNAKEPIT, "run", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def text_of(path: Path) -> str:
    cells = nbformat.read(path, 4).cells
    return "".join(each.get("text", "") for cell in cells for each in cell.get("outputs", ()))


def comparable(path: Path) -> str:
    """Return a notebook without what differs from run to run: ids and times."""
    text = path.read_text()
    text = re.sub(r'"(id|exec_time|[a-z_]*time|duration|output_path)": [^\n]*', r'"\1": 0', text)
    return re.sub(r'"(iopub|shell)\.[^\n]*', "", text)


def test_each_succeeds_or_fails_by_itself_and_the_table_says_how(tmp_path):
    write(tmp_path / "good.ipynb", "print(6 * 7)")
    write(tmp_path / "bad.ipynb", "1 / 0")
    write(tmp_path / "dies.ipynb", "import os\nos.kill(os.getpid(), 9)")
    write(tmp_path / "hangs.ipynb", "import time\ntime.sleep(600)")

    done = run(
        tmp_path,
        "good.ipynb",
        "bad.ipynb",
        "dies.ipynb",
        "hangs.ipynb",
        "-j",
        "2",
        "--timeout",
        "8",
    )

    assert done.returncode == 1
    assert text_of(tmp_path / "executed" / "good.ipynb") == "42\n"
    assert "4 notebooks: 1 succeeded, 3 failed" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "it took longer than 8 s" in done.stdout
    assert re.search(r"dies\.ipynb +failed .*[Kk]ernel died", done.stdout)


def test_outputs_are_those_of_plain_papermill(tmp_path):
    write(
        tmp_path / "a.ipynb",
        "import sys\nprint(n, type(n).__name__)\nprint('w', file=sys.stderr)",
        "from IPython.display import HTML\nHTML('<b>x</b>')",
        "n * 2",
        parameters="n = 1",
    )
    plain = tmp_path / "plain.ipynb"
    papermill.execute_notebook(
        str(tmp_path / "a.ipynb"), str(plain), {"n": 21}, progress_bar=False, cwd=str(tmp_path)
    )

    done = run(tmp_path, "a.ipynb", "-p", "n", "21", "--output-dir", "out")

    assert done.returncode == 0, done.stderr
    ours = comparable(tmp_path / "out" / "a.ipynb")
    assert ours.replace(f"{tmp_path}/", "") == comparable(plain).replace(f"{tmp_path}/", "")


def test_resume_after_a_kill_runs_nothing_twice(tmp_path, until):
    names = [f"{number}.ipynb" for number in range(4)]
    for name in names:
        write(tmp_path / name, f"open('ran', 'a').write('{name}\\n')\nimport time\ntime.sleep(0.3)")
    running = subprocess.Popen([*SNAKEPIT, "run", *names], cwd=tmp_path, stdout=subprocess.DEVNULL)
    journal = tmp_path / "executed" / JOURNAL
    until(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 2, 30.0)
    running.kill()
    running.wait()
    finished = [json.loads(line)["notebook"] for line in journal.read_text().splitlines()]

    done = run(tmp_path, *names, "--resume")

    assert done.returncode == 0, done.stdout + done.stderr
    ran = (tmp_path / "ran").read_text().split()
    assert all(ran.count(name) == 1 for name in finished)
    assert set(ran) == set(names)
    again = run(tmp_path, *names, "--resume")
    assert "4 notebooks succeeded before" in again.stdout
    assert (tmp_path / "ran").read_text().split() == ran


def test_a_notebook_that_has_changed_runs_again(tmp_path):
    write(tmp_path / "a.ipynb", "print(1)")
    assert run(tmp_path, "a.ipynb").returncode == 0
    write(tmp_path / "a.ipynb", "print(2)")

    assert run(tmp_path, "a.ipynb", "--resume").returncode == 0

    assert text_of(tmp_path / "executed" / "a.ipynb") == "2\n"


def test_ctrl_c_ends_all_kernels_and_what_they_started(tmp_path, until, living):
    write(
        tmp_path / "a.ipynb",
        "import subprocess, time\nsubprocess.Popen(['sleep', '600'], start_new_session=True)",
        "open('started', 'w').close()\ntime.sleep(600)",
    )
    running = subprocess.Popen(
        [*SNAKEPIT, "run", "a.ipynb"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until((tmp_path / "started").exists, 30.0)

    running.send_signal(signal.SIGINT)

    assert running.wait(20) == 130
    running.communicate()
    assert not [process for process in living() if "sleep" in str(process)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.ipynb"], "cannot read none.ipynb: No such file or directory"),
        (["text.ipynb"], "text.ipynb is no notebook of format 4"),
        (["a.ipynb", "sub/a.ipynb"], "would both be written to"),
        (["a.ipynb", "--output-dir", "."], "would be overwritten"),
        (["a.ipynb", "-p", "2x", "1"], "-p takes the name of a variable first, not '2x'"),
        (["a.ipynb", "--preload", "no_such_module"], "there is no module 'no_such_module'"),
        (["a.ipynb", "-j", "0"], "0 is not in the range"),
        ([], "Missing argument 'NOTEBOOK...'"),
    ],
)
def test_misuse_is_one_line_and_runs_nothing(tmp_path, arguments, said):
    write(tmp_path / "a.ipynb", "print(1)")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.ipynb", "print(1)")
    (tmp_path / "text.ipynb").write_text("no JSON")

    done = run(tmp_path, *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_two_runs_into_one_directory_are_refused(tmp_path, until):
    write(tmp_path / "a.ipynb", "import time\ntime.sleep(600)")
    first = subprocess.Popen(
        [*SNAKEPIT, "run", "a.ipynb"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until((tmp_path / "executed" / JOURNAL).exists, 20.0)
    time.sleep(0.2)

    second = run(tmp_path, "a.ipynb")

    assert second.returncode == 2
    assert "another snakepit run writes into" in second.stderr
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130


def test_the_engine_of_papermill_runs_a_notebook(tmp_path):
    write(tmp_path / "a.ipynb", "import os\nprint(os.environ.get('SNAKEPIT_RUN_ID') is not None)")

    papermill.execute_notebook(
        str(tmp_path / "a.ipynb"),
        str(tmp_path / "b.ipynb"),
        engine_name="snakepit",
        progress_bar=False,
    )

    assert text_of(tmp_path / "b.ipynb") == "True\n"
    assert os.getpid()
