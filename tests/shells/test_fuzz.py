"""Commands as agents write them, at random: each does what bash does and leaves the shell well."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from snakepit_kernel.sessions.state import SessionState
from snakepit_kernel.shells.results import ShellResult
from snakepit_kernel.shells.shell import Shell

# Each leaves the shell as it was, but for variables that no other reads.
PLAIN = r"""
echo hi
echo a b   c
printf abc
printf 'a\nb'
printf '\n\n'
printf '\xff\x00\x01\n'
echo err >&2
{ echo a; echo b >&2; } 2>&1
true
false
(exit 3)
! true
nonexistent_command
ls /nonexistent
x=$(echo sub); echo $x
x=`false`; echo $?
for i in 1 2 3; do echo $i; done
i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done
seq 1 20000 | tail -n 1
head -c 100000 /dev/zero | wc -c
yes | head -n 2000
cat
cat <<< here
cat <<EOF␤line $HOME␤  two␤EOF
cat <<'EOF'␤$x `y` \␤EOF
read -r v; echo "r=$? v=$v"
grep x /dev/null
echo $((3*7)) "$(( 1 ? 2 : 3 ))"
[ -f /etc/passwd ] && echo yes
[[ abc == a* ]] && echo yes || echo no
test -e nothing; echo $?
(set -e; false; echo no)
(cd /; pwd)
(trap 'echo bye' EXIT; exit 4)
bash -c 'exit 3'
sh -c 'kill -9 $$'
awk 'BEGIN { print "it'"'"'s" }'
printf '%s\n' {1..5}
echo * | head -c 0
eval 'echo e; false'
eval 'if'
command -v nothing
type -t cd
mapfile -t a < /etc/hostname; echo ${#a[@]}
(f() { local l=1; return 3; }; f)
(f() { echo "$#:$1"; }; f "a b" c)
echo ${nothing:-default} ${nothing:+set}
echo ${unset_one:?must be set}
echo $((1/0))
let 0
declare -i n=08
local l
cd /nonexistent
source /nonexistent
shift 5
break
continue
: > file; cat file
echo out > file; cat file; rm -f file
sleep 0.01
sleep 1 >/dev/null 2>&1 &
(sleep 1 &) >/dev/null 2>&1 </dev/null
setsid sleep 1 >/dev/null 2>&1 </dev/null &
nohup true >/dev/null 2>&1 &
echo a | { read v; echo "$v"; false; }
false | true
echo hi \
echo hi # comment
x=sub; case $x in sub) echo one;; *) echo other;; esac
echo "two
lines"
"""

# Each is an error of the text; what stands on lines before runs.
BROKEN = r"""
echo 'unclosed
echo "unclosed
if then
for
}
)
done
fi
$(
`
((1+
[[ a
case x in
f() {
&& echo
| cat
;;
echo a ;; echo b
cat <<EOF␤never
echo $(echo
"""

# Each ends the shell, or changes how it works.
STATEFUL = r"""
exit
exit 0
exit 42
exit 300
exit abc
(exit 5); exit
kill -9 $$
kill -TERM $$
kill -HUP $$
exec true
exec false
exec nonexistent_command
exec sh -c 'echo x; exit 5'
exec bash
set -e; false; echo no
set -e; false || echo yes
set -u; echo $nothing; echo no
set -euo pipefail; false | true; echo no
set -o pipefail; false | true
set -n; echo a
set -f; echo *
set -o posix; echo a
set -o posix; export 1=2; echo no
set -o noclobber; : > file; echo a > file; rm -f file
set -a; y=1
set -k
set -m
shopt -s extglob nullglob; echo nothing*
shopt -s extdebug
shopt -s failglob; echo nothing*
readonly R=1; R=2; echo after
readonly R=1; unset R
readonly PATH IFS
trap 'echo trapped' ERR; false
trap '' TERM HUP INT
trap 'echo usr1' USR1; kill -USR1 $$
trap 'echo d >/dev/null' DEBUG
printf() { :; }; printf x
echo() { builtin printf 'fn %s\n' "$*"; }; echo a
cd() { :; }; cd /
builtin() { :; }; builtin echo a
command() { return 7; }; command ls
trap() { :; }
kill() { :; }
enable -n echo; echo a
enable -n printf trap kill
IFS=,; v=a,b; set -- $v; echo $#
IFS=0123456789
PATH=; ls
PATH=/nonexistent
unset PATH; echo a
unset HOME PWD OLDPWD
ulimit -n 30; echo a
umask 077; : > file; stat -c %a file; rm -f file
exec 3>file; echo x >&3; cat file; rm -f file
exec >file; echo hidden
exec 2>&1; echo x >&2
exec </dev/null
exec 9<&- 10<&- 11<&-
set -- a b; echo $#
unset -f f
LC_ALL=C; export LC_ALL
TMOUT=1
POSIXLY_CORRECT=1
BASH_ENV=/nonexistent; export BASH_ENV
export PS4='+ ' PROMPT_COMMAND='echo prompt' ENV=/nonexistent
hash -p /bin/false ls
declare -A m=([a b]="c d"); echo "${m[a b]}"
declare -n ref=target; ref=5; echo $target
f() { exit 9; }; f
f() { kill -9 $$; }; f
shopt -u sourcepath
"""

# Each does in a shell that lives on something else than at the end of `bash -c`.
UNLIKE = r"""
trap 'echo bye' EXIT
trap 'echo bye' EXIT; exit 3
return 5
alias ls=false␤ls
set -x; echo hi
set -v; echo hi
sleep 1 &
yes &
echo late | (sleep 0.2; cat) &
coproc cat
jobs; fg; bg; disown
time true
suspend
set -T; trap 'echo d' DEBUG
shopt -s extdebug; trap false DEBUG
ulimit -s 256; f() { f; }; f
echo x > >(cat)
diff <(echo a) <(echo b)
exec 3< <(echo a); cat <&3
logout
history
bind -p
"""


def lines_of(text: str) -> list[str]:
    """Return the commands of a table, in which ␤ stands for a line's end within one."""
    found, open_quote = [], ""
    for line in text.strip("\n").splitlines():
        if line.count('"') == 1 and line.startswith(('echo "two', 'lines"')):
            open_quote += line + "\n"
            if line.startswith("lines"):
                found.append(open_quote.rstrip("\n"))
            continue
        found.append(line.replace("␤", "\n"))
    return found


@dataclass(frozen=True)
class Command:
    text: str
    is_stateful: bool
    is_comparable: bool


class Author:
    """Writes commands.

    Parameters
    ----------
    seed
        Two with the same one write the same.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._tables = {
            "plain": lines_of(PLAIN),
            "broken": lines_of(BROKEN),
            "stateful": lines_of(STATEFUL),
            "unlike": lines_of(UNLIKE),
        }

    def write(self, *, unlike: bool) -> Command:
        kinds = self._random.choices(
            ["plain", "stateful", "broken", "unlike"],
            [10, 4, 2, 3 if unlike else 0],
            k=self._random.choice([1, 1, 1, 2, 2, 3, 4]),
        )
        parts = [self._random.choice(self._tables[kind]) for kind in kinds]
        joints = ["; ", "\n", "\n", " && ", " || ", "; : ; "]
        text = parts[0]
        for part in parts[1:]:
            joint = "\n" if "\n" in text + part or "#" in text else self._random.choice(joints)
            text += joint + part
        is_mutated = self._random.random() < 0.1
        if is_mutated:  # what was in parentheses may change the shell now
            text = self._mutate(text)
        is_stateful = is_mutated or "stateful" in kinds or "unlike" in kinds
        return Command(text, is_stateful, "unlike" not in kinds)

    def _mutate(self, text: str) -> str:
        """Take away or put in a sign of syntax."""
        at = self._random.randrange(len(text) + 1)
        signs = [i for i, sign in enumerate(text) if sign in "'\"(){}\\;"]
        if signs and self._random.random() < 0.5:
            at = self._random.choice(signs)
            return text[:at] + text[at + 1 :]
        return text[:at] + self._random.choice("'\"(){}\\;") + text[at:]


PREFIX = re.compile(rb"^(?:\S*/)?(?:bash|command|environment): (?:-c: )?", re.MULTILINE)
LINE = re.compile(rb"\bline \d+: ")
HASHED = re.compile(rb"^(?:hits\tcommand| +\d+\t/.*|hash: hash table empty)\n", re.MULTILINE)
"""What `hash` lists: it depends on the commands before."""

PIDS = re.compile(rb"\b\d{3,}\b")


def plain_text(text: bytes) -> list[bytes]:
    """Return lines of output without what names the file, the process, and what the driver sets."""
    text = PIDS.sub(b"N", LINE.sub(b"", PREFIX.sub(b"", text)))
    text = HASHED.sub(b"", text)
    own = (b"expand_aliases", b"/leave; }", b"RTMIN+7")
    return [line for line in text.splitlines() if not any(word in line for word in own)]


def plain_errors(text: bytes) -> list[bytes]:
    """Return lines of errors without what names the file and the process."""
    found = PIDS.sub(b"N", LINE.sub(b"", PREFIX.sub(b"", text))).splitlines()
    # A shell that is killed is told by its parent, and a text that ends too early in two ways.
    return [line for line in found if b"Killed" not in line and b"syntax error: unexp" not in line]


ABORTED = 128 + signal.SIGABRT

SECONDS = 10.0
"""Seconds after which a command counts as one without end."""

Outcome = tuple[int, bytes, list[bytes]]


def reference(command: list[str], folder: Path) -> Outcome | None:
    """Return status, output and errors of bash; None if it does not end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["bash", "--norc", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        process_group=0,
    ) as bash:
        try:
            output, errors = bash.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(bash.pid, signal.SIGKILL)
            return None
    status = bash.returncode if bash.returncode >= 0 else 128 - bash.returncode
    return status, output, plain_errors(errors)


SEED = 20261129
"""What is written without ``--chaos-seed``: other commands may show what bash does not define."""

SYNTAX = (
    b"unexpected",
    b"syntax error",
    b"conditional",
    b"must be set",
    b"unbound",
    b"invalid",
    b"value too great",
)


def is_same(found: Outcome, expected: Outcome | None) -> bool:
    """Whether two outcomes are the same, as far as bash says what they are.

    It has no one status for errors of syntax: as a file, in ``-c`` and for a sourced file it gives
    1, 2, 127, and that of the command before.
    """
    if expected is None:
        return False
    for listed in (b"BASH_ARGV=", b"BASHOPTS="):  # variables, and not all are the same here
        if listed in expected[1]:
            return listed in found[1]
    is_broken = any(word in line for word in SYNTAX for line in [*found[2], found[1]])
    statuses = {expected[0], *((1, 2, 127) if is_broken else ())}
    if found[0] not in statuses or plain_text(found[1]) != plain_text(expected[1]):
        return False
    is_killed = found[0] > 128  # a signal to itself comes sooner or later
    # Those of a pipeline come in any order.
    is_told_alike = sorted(found[2]) == sorted(expected[2])
    return is_killed or is_told_alike or (is_broken and bool(found[2] and expected[2]))


def check_state(shell: Shell, folder: Path) -> str:
    """Return what is wrong with the shell's state; nothing, if it is as the tests have left it."""
    show = '{ /bin/echo "<$FUZZ_MARK>"; fuzz_kept; } 2>&1'
    result = shell.run(show, timeout=20, cwd=folder, max_output=10000)
    if result.restarted:  # bash itself may abort, which must not cost the state
        result = shell.run(show, timeout=20, cwd=folder, max_output=10000)
    wrong = [text for text in ("<kept mark>", "kept function") if text not in result.stdout]
    return f"state: {wrong} missing in {result}" if wrong else ""


@dataclass
class Report:
    seed: int
    complaints: list[str]
    counts: Counter[str]

    def __str__(self) -> str:
        told = "\n".join(self.complaints[:20])
        return f"--chaos-seed {self.seed}: {dict(self.counts)}\n{told}"


class Player:
    """Runs commands in sessions that are given up when something has changed them.

    Parameters
    ----------
    open_one
        Opens a session.
    folder
        Where commands run.
    report
        What was found.
    """

    def __init__(
        self, open_one: Callable[[str], SessionState], folder: Path, report: Report
    ) -> None:
        self._open = open_one
        self._folder = folder
        self._report = report
        self._state: SessionState | None = None
        self.shell: Shell

    def renew(self) -> None:
        if self._state is not None:
            self._state.delete()
        self._clean()
        self._state = self._open("fuzz")
        self.shell = self._state.open_shell(cwd=self._folder)
        self.shell.run("FUZZ_MARK='kept mark'; fuzz_kept() { /bin/echo kept function; }")
        self.shell.checkpoint()
        self._report.counts["sessions"] += 1

    def _clean(self) -> None:
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def play(self, command: Command, *, compare: bool) -> None:
        counts = self._report.counts
        self._clean()
        began = time.monotonic()
        result = self.shell.run(command.text, timeout=SECONDS, max_output=1 << 20)
        seconds = time.monotonic() - began
        counts["commands"] += 1
        counts["restarts"] += result.restarted
        if compare:
            counts["compared"] += 1
            self._compare(command, result)
        if seconds > SECONDS + 5:
            self._complain(command, f"took {seconds:.1f} s: {result}")
        if wrong := check_state(self.shell, self._folder):
            self._complain(command, wrong)

    def _compare(self, command: Command, result: ShellResult) -> None:
        if result.timed_out:
            self._report.counts["without end"] += 1
            if (expected := reference(["-c", command.text], self._folder)) is not None:
                self._complain(command, f"does not end, bash has {expected}")
            return
        if result.returncode == ABORTED and result.restarted:
            # Bash 5.2 damages its memory over a text that ends within $( or `, and aborts, then or
            # later. The shell comes back with its state, which is looked at as ever.
            self._report.counts["aborted by bash"] += 1
            return
        found = (result.returncode, result.stdout_bytes, plain_errors(result.stderr_bytes))
        self._clean()
        expected = reference(["-c", command.text], self._folder)
        if found != expected:  # bash takes some errors otherwise in a file
            self._clean()
            file = self._folder / "command"
            file.write_text(command.text)
            as_file = reference([str(file)], self._folder)
            file.unlink()
            if "posix" in command.text and expected is not None and expected[0]:
                # An error of a special builtin ends bash there, and a shell of a session lives on.
                self._report.counts["ended by POSIX mode"] += 1
            elif not result.detached and not any(
                is_same(found, each) for each in (expected, as_file)
            ):
                self._complain(command, f"{found}, bash has {expected} and in a file {as_file}")

    def _complain(self, command: Command, what: str) -> None:
        self._report.complaints.append(f"{command.text!r}: {what[:600]}")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_commands_at_random_give_what_bash_gives_and_leave_the_shell_with_its_state(
    open_one, tmp_path, request, capsys
):
    count = request.config.getoption("--shell-commands")
    seed = request.config.getoption("--chaos-seed")
    if seed is None:
        seed = SEED
    author, report = Author(seed), Report(seed, [], Counter())
    player = Player(open_one, tmp_path, report)

    player.renew()
    for _ in range(count * 2 // 3):  # each begins in a shell as bash has it
        command = author.write(unlike=False)
        player.play(command, compare=True)
        if command.is_stateful or player.shell.last.restarted:
            player.renew()
    for number in range(count - count * 2 // 3):  # each begins in what the last ones have left
        if number % 25 == 0:
            player.renew()
        player.play(author.write(unlike=True), compare=False)

    with capsys.disabled():
        print(f"\nshells: {report}" if count > 300 or report.complaints else "", end="")
    assert report.complaints == [], str(report)
    assert report.counts["commands"] == count
