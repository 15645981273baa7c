"""The guardian: the small process above each kernel that ends everything the kernel started.

It is forked from a template (see `template_process`), or executed by the owner in an interpreter
without site-packages::

    python -I -S -c CODE guardian.py --snakepit-run-id=ID --mark=NUMBER --owner=PID:START \
        --channel=FD --grace=S [--pass-fd=FD]... [--leftover=PATH]... [--report=PATH]
        [--independent] -- COMMAND...

It becomes a subreaper, forks the kernel, and waits: for the kernel, for orphans that it inherits,
for the owner (an open channel, and a pidfd), for requests. Because it is a subreaper, everything
the kernel starts stays below it: a double fork, ``setsid`` or an empty environment change nothing.
When the kernel ends, or the owner dies or asks for it, it ends the tree: SIGTERM, up to ``grace``
seconds, then freeze and SIGKILL, with new scans until ``waitpid`` itself reports that no child is
left. That answer of the operating system is the proof. A process that `/proc` hides (``hidepid``)
becomes our child when its parent has ended, and a child that has not been waited for can be
signalled by its pid. If the guardian is killed, the kernel dies by its parent-death signal and the
rest is found by its tag (see `tags` and `sweep`).

A process that is marked to be kept (`SNAKEPIT_KEEP=1`), and what is below it, is left alone; when
there is one, ``waitpid`` cannot prove that the others are gone, and many scans replace it.

The channel carries lines of tab-separated words.

=========================  ==================================================================
from the owner
=========================  ==================================================================
``signal N``               send signal N to the kernel, and to nothing else
``end GRACE``              end the run; a shorter grace replaces a longer one
``assign JSON``            send a standby kernel its command, connection file and environment
=========================  ==================================================================

=========================  ==================================================================
to the owner
=========================  ==================================================================
``started PID START``      the kernel runs
``failed ERRNO [WHAT]``    the command could not be executed, or the file WHAT not be used
``ready``                  the kernel accepts requests
``exited STATUS``          the kernel has ended (negative: by a signal)
``ended PID SIGNAL CMD``   a process of the run was ended by SIGTERM or SIGKILL
``kept PID CMD``           a process is left alive, because it is marked so
``survivor PID STATE CMD``  a process does not die (it sleeps in the kernel of the machine)
``gone COUNT``             verified: nothing is left; COUNT processes had to be ended
=========================  ==================================================================

When the owner is dead, ``ended``, ``kept`` and ``gone`` are written to the file of ``--report``,
unless nothing was ended or kept. Signals do the same as requests, without a channel: SIGTERM ends
the run with its grace, SIGUSR1 at once. SIGUSR2, sent by a kernel that shuts down in order, ends
the others and spares the kernel: it may be waiting for its own children at that moment, as
``multiprocessing`` does at exit.

It is written for a small footprint: few imports, no threads, hardly any allocation.
"""

from __future__ import annotations

import os
import select
from time import monotonic, time

from . import pidfd
from .identity import (
    ProcessIdentity,
    ProcessStatus,
    descendants,
    read_command,
    read_command_line,
    read_status,
    read_tracer,
    shown_command,
)
from .tags import is_kept, set_mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
else:
    # The C module under `signal`: the latter builds enums, which would be a quarter of the
    # guardian's private memory.
    import _signal as signal

RESCAN_INTERVAL = 0.02
"""Seconds between scans of a tree that is being ended: the end of a grandchild is no event."""

KILL_PATIENCE = 0.02
"""Seconds that a killed kernel has to die before other processes are searched for."""

OWNER_INTERVAL = 1.0
"""Seconds between checks of the owner where there are no pidfds."""

SURVIVOR_PATIENCE = 5.0
"""Seconds after SIGKILL before a process that does not die is reported as a survivor."""

ZOMBIE_ROUNDS = 3
"""Rounds of SIGKILL before zombies count as ones that we cannot reap."""

TRACKER_PATIENCE = 0.5
"""Seconds that a shared memory tracker has to remove its memory when nothing else is left."""

EMPTY_SCANS = 20
"""Scans without a process to end that replace the answer of ``waitpid``."""

MAX_LISTED = 64
"""Processes that are named to the owner; all are counted."""

MAX_COMMAND = 200
"""Characters of a command line in a report: all of it must fit into the channel unread."""

MAX_REMEMBERED = 1024
"""Bytes of a command line that are stored until the report, unredacted: with its secrets."""

OWN_NAME = b"snakepit"
"""Is in the command lines of guardians, templates and kernels of this package."""

UNKNOWN_START_TIME = 0
"""Stands for the start time of a child that `/proc` hides."""

HIDDEN_COMMAND = "(hidden by /proc)"
"""Stands for its command."""

READY_VARIABLE = "SNAKEPIT_READY_FD"
"""Environment variable with the file descriptor to which an executed kernel writes "ready"."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: Sequence[str]) -> int:
    """Run a command under guard; return when everything it started is gone."""
    options = Options.parse(arguments)
    guardian = Guardian(options)
    if os.getppid() != options.owner.pid:
        guardian.abandon()
        return 1
    set_mark(options.mark)  # or the kernel would inherit the owner's mark, or that it is kept
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass  # an owner without standard streams: our pipes must not get their numbers
    if guardian.fork_kernel(os.pipe(), close=options.pass_fds):
        guardian.execute(options.command)
    guardian.watch()
    return 0


class Options:
    """Command-line options of a guardian.

    Attributes
    ----------
    owner
        The process whose death ends the run.
    channel
        File descriptor of the channel to it.
    mark
        Tag of the run, see `tags`.
    grace
        Seconds between SIGTERM and SIGKILL.
    leftovers
        Files and directories that are removed with the run.
    report
        File for the report when the owner is dead.
    independent
        The run outlives its owner.
    ready
        The kernel reports when it is ready.
    pass_fds
        File descriptors that the command inherits.
    command
        Program and arguments.
    """

    def __init__(self) -> None:
        self.owner = ProcessIdentity(0, 0)
        self.channel = -1
        self.mark = 0
        self.grace = 0.0
        self.leftovers: list[str] = []
        self.report = ""
        self.independent = False
        self.ready = False
        self.pass_fds: list[int] = []
        self.command: list[str] = []

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Parse a command line."""
        options = cls()
        split = arguments.index("--")
        options.command = list(arguments[split + 1 :])
        for argument in arguments[:split]:
            name, _, value = argument.partition("=")
            if name == "--owner":
                options.owner = ProcessIdentity.parse(value)
            elif name == "--mark":
                options.mark = int(value)
            elif name == "--channel":
                options.channel = int(value)
            elif name == "--grace":
                options.grace = float(value)
            elif name == "--pass-fd":
                options.pass_fds.append(int(value))
            elif name == "--leftover":
                options.leftovers.append(value)
            elif name == "--report":
                options.report = value
            elif name == "--independent":
                options.independent = True
            elif name == "--ready":
                options.ready = True
        return options


class Guardian:
    """Starts one kernel, watches it and its owner, and ends its process tree.

    Attributes
    ----------
    fork
        Forks the kernel's process.
    """

    fork = staticmethod(os.fork)

    def __init__(self, options: Options) -> None:
        self.options = options
        self.channel = options.channel
        self.inbox = b""
        self.link = self.kernel_link = -1
        self.error_write = -1
        self.kernel_pid = 0
        self.kernel_start_time = 0
        self.kernel_alive = True
        self.owner_lost_at: float | None = None  # seconds since the epoch
        self.ending_since: float | None = None
        self.kill_at = 0.0
        self.spare_kernel = False
        self.trackers_since: float | None = None  # when nothing else was alive
        self.kill_rounds = 0
        self.reaped = 0
        self.reported_survivors = False
        self.ended: dict[ProcessIdentity, bytes] = {}  # signalled processes and their commands
        self.killed: set[ProcessIdentity] = set()
        self.poll = select.poll()
        os.set_inheritable(self.channel, False)
        os.set_blocking(self.channel, False)

    # -- launching ---------------------------------------------------------------------------

    def abandon(self) -> None:
        """Remove the leftovers, because the owner died before anything was launched."""
        for path in self.options.leftovers:
            remove(path)

    def fork_kernel(self, link: tuple[int, int], close: Sequence[int]) -> bool:
        """Fork the kernel's process, and return True in it.

        It must then `confirm`, or `report_failure`.

        Parameters
        ----------
        link
            Our end of the link on which the kernel reports that it is ready, and the kernel's.
        close
            File descriptors that belong to the kernel only.
        """
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.link, self.kernel_link = link
        self.wakeup = self.catch_signals()
        error_read, self.error_write = os.pipe()
        guardian = os.getpid()  # not read in the child: we may be dead by then
        failure = b""
        try:
            pid = self.fork()
        except OSError as error:  # the process table is full
            pid, failure, self.kernel_alive = -1, str(error.errno).encode(), False
        if pid == 0:
            self.leave_guardian(guardian)
            return True
        self.kernel_pid = max(pid, 0)
        for descriptor in (self.error_write, self.kernel_link, *close):
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)  # or a reader of the kernel's output would wait for us too
        os.chdir("/")
        failure = failure or os.read(error_read, 4096)
        os.close(error_read)
        if failure:
            self.send("failed\t" + failure.decode("utf-8", "replace"))
            return False
        status = read_status(pid)
        self.kernel_start_time = status.start_time if status else 0
        self.send_line("started", str(self.kernel_pid), str(self.kernel_start_time))
        return False

    def leave_guardian(self, guardian: int) -> None:
        """In the child: die with the guardian, start a new session, reset the signal handlers.

        Also in a template that a guardian forks for its kernel.
        """
        prctl(PR_SET_PDEATHSIG, 9)
        if os.getppid() != guardian:
            os._exit(1)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for signum in range(1, signal.NSIG):
            if signal.getsignal(signum) not in (signal.SIG_DFL, None) and signum not in (9, 19):
                signal.signal(signum, signal.SIG_DFL)

    def confirm(self) -> None:
        """In the kernel: report that its launch succeeded."""
        os.close(self.error_write)

    def report_failure(self, number: int, what: str) -> None:
        """In the kernel: report the operating system's error that prevents the launch."""
        os.write(self.error_write, f"{number}\t{what}".encode("utf-8", "replace")[:4096])

    def execute(self, command: list[str]) -> None:
        """In the child: execute the command."""
        try:
            if self.options.ready:
                os.set_inheritable(self.kernel_link, True)
                os.environ[READY_VARIABLE] = str(self.kernel_link)
            os.execvpe(command[0], command, os.environ)  # noqa: S606 - the kernel's command, as a list
        except OSError as error:
            self.report_failure(error.errno or 0, "")
        finally:
            os._exit(127)

    def catch_signals(self) -> int:
        """Turn signals into bytes on a pipe; return its reading end."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, lambda *_: None)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(signum, signal.SIG_IGN)
        # The thread that started us may have blocked signals; neither we nor the kernel may
        # inherit that.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return read

    # -- watching ----------------------------------------------------------------------------

    def watch(self) -> None:
        """Wait for events until the run is gone."""
        for descriptor in (self.wakeup, self.channel, self.link):
            self.poll.register(descriptor, select.POLLIN)
        owner = None
        interval = None if self.options.independent else OWNER_INTERVAL * 1000
        if interval is not None and pidfd.is_possible():
            interval, owner = None, self.options.owner.open()
            if owner is not None:
                self.poll.register(owner, select.POLLIN)
            else:
                self.lose_owner()
        while not self.is_over():
            ending = self.ending_since is not None
            for descriptor, _ in self.poll.poll(RESCAN_INTERVAL * 1000 if ending else interval):
                if descriptor == self.wakeup:
                    self.read_signals()
                elif descriptor == self.channel:
                    self.read_requests()
                elif descriptor == self.link:
                    self.read_link()
                elif descriptor == owner:
                    self.poll.unregister(owner)
                    self.lose_owner()
            if interval is not None and not ending and not self.options.owner.is_alive():
                self.lose_owner()
        self.finish()

    def is_over(self) -> bool:
        """Reap, continue ending the run if that has begun; return whether nothing is left."""
        nothing_left = self.reap_all()
        if self.ending_since is None:
            return False
        try:
            if nothing_left or self.terminate_round() > 0:
                return nothing_left
            return self.reap_all() or self.is_only_exempt_left()
        except OSError:
            return False  # no memory, or no file descriptor, on the whole machine: try again

    def read_signals(self) -> None:
        """Act on the signals whose numbers are in the pipe."""
        received = os.read(self.wakeup, 4096)
        if signal.SIGUSR1 in received:
            self.end(0.0)
        elif signal.SIGTERM in received:
            self.end(self.options.grace)
        elif signal.SIGUSR2 in received and self.ending_since is None:
            self.end(self.options.grace)
            self.spare_kernel = True

    def read_requests(self) -> None:
        """Act on the owner's requests; end of file means that the owner is gone."""
        try:
            received = os.read(self.channel, 4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.poll.unregister(self.channel)
            self.lose_owner()
            return
        *lines, self.inbox = (self.inbox + received).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b"\t")
            if word == b"signal" and self.kernel_alive:
                os.kill(
                    self.kernel_pid, int(value)
                )  # our own child, not reaped: no other can be hit
            elif word == b"end":
                self.end(float(value))
            elif word == b"assign":
                self.assign(value)

    def read_link(self) -> None:
        """Forward that the kernel is ready; end of file means that it will send nothing more."""
        if os.read(self.link, 64):
            self.send_line("ready")
        else:
            self.drop_link()

    def assign(self, _assignment: bytes) -> None:
        """Forward an assignment to a standby kernel; only a forked guardian can have one."""

    def drop_link(self) -> None:
        """Stop reading from the kernel."""
        self.poll.unregister(self.link)
        os.close(self.link)
        self.link = -1

    def lose_owner(self) -> None:
        """End the run because nobody is left to answer for it."""
        self.owner_lost_at = time()
        if not self.options.independent:
            self.end(self.options.grace)

    # -- ending ------------------------------------------------------------------------------

    def end(self, grace: float) -> None:
        """Begin to end the run, or end it sooner."""
        now = monotonic()
        self.spare_kernel = False
        self.reported_survivors = False  # each request gets a new report
        if self.ending_since is None:
            self.ending_since = now
            self.kill_at = now + grace
        else:
            self.kill_at = min(self.kill_at, now + grace)

    def terminate_round(self) -> int:
        """Signal the processes that are still alive below us; return their number.

        The signal is SIGTERM before the grace has passed, and SIGKILL after.
        """
        now = monotonic()
        if now >= self.kill_at:
            self.kill_rounds += 1
            self.kill_children()
            if self.is_soon_empty():
                return 0
            self.freeze()
        targets = self.targets()
        trackers = {identity for identity in targets if self.is_tracker(identity)}
        if len(trackers) == len(targets) and self.trackers_since is None:
            self.trackers_since = max(now, self.kill_at)
        if now > min(self.trackers_since or now, self.kill_at + 1.0) + TRACKER_PATIENCE:
            trackers.clear()
        for identity in targets:
            if identity in trackers:
                continue
            if now >= self.kill_at:
                self.send_signal(identity, signal.SIGKILL)
                self.killed.add(identity)
            elif identity not in self.ended:
                self.send_signal(identity, signal.SIGTERM)
                # A stopped process handles a signal only once it continues.
                self.send_signal(identity, signal.SIGCONT)
        if now > self.kill_at + SURVIVOR_PATIENCE and not self.reported_survivors:
            self.report_survivors()
        return len(targets)

    def is_soon_empty(self) -> bool:
        """Wait a moment for the kernel to die; return whether nothing is left then.

        Usually there was nothing else, and no scan of ``/proc`` is needed.
        """
        until = monotonic() + KILL_PATIENCE
        while not self.reap_all():
            left = until - monotonic()
            if not self.kernel_alive or self.spare_kernel or left <= 0:
                return False
            poll = select.poll()
            poll.register(self.wakeup, select.POLLIN)
            if poll.poll(left * 1000):
                self.read_signals()
        return True

    def is_tracker(self, identity: ProcessIdentity) -> bool:
        """Whether a process is the shared memory tracker of ``multiprocessing``.

        It removes the memory when the other processes have ended, and ignores SIGTERM. Killed, it
        would leave the memory behind.
        """
        line = self.ended.get(identity) or read_command_line(identity.pid)
        return b"resource_tracker import main" in line

    def is_only_exempt_left(self) -> bool:
        """Whether nothing below us is to be ended, although ``waitpid`` reports children.

        Such children are processes that are to be kept, and traced zombies: their tracer reaps
        them, and it may be a process of somebody else. One scan of ``/proc`` is no proof, because a
        process can fork past it; hence many scans, each of which must show nothing else, with no
        child of ours ending meanwhile: a process that evades scans by forking leaves dead parents.
        """
        reaped = self.reaped
        return all(
            not self.reap_all()
            and self.exempt()
            # A kept process may start and end children all the time; that is not waited for.
            and (self.reaped == reaped or monotonic() > self.kill_at + SURVIVOR_PATIENCE)
            for _ in range(EMPTY_SCANS)
        )

    def exempt(self) -> set[int]:
        """Return the pids below us if all are kept or zombies that we cannot reap, else none.

        A debugger reaps what it traces, so zombies count only after a few rounds of SIGKILL.
        """
        keeping, targets = self.split_kept()
        exempt = {status.pid for status in keeping}
        for status in targets:
            if not status.is_dead:
                return set()
            if self.kill_rounds < ZOMBIE_ROUNDS or not read_tracer(status.pid):
                return set()
            exempt.add(status.pid)
        return exempt

    def split_kept(self) -> tuple[list[ProcessStatus], list[ProcessStatus]]:
        """Return the processes below us, zombies included: those to be kept, and the others.

        A process that has been signalled once is not checked again.
        """
        keeping: list[ProcessStatus] = []
        others: list[ProcessStatus] = []
        pids = set()
        below = descendants(os.getpid())
        for status in [*below, *hidden_children({status.pid for status in below})]:
            if status.parent in pids or (
                status.pid != self.kernel_pid
                and not status.is_dead
                and ProcessIdentity(status.pid, status.start_time) not in self.ended
                and is_kept(status.pid)
            ):
                pids.add(status.pid)
                keeping.append(status)
            else:
                others.append(status)
        return keeping, others

    def targets(self) -> list[ProcessIdentity]:
        """Return the living processes below us that are to be ended."""
        return [
            ProcessIdentity(status.pid, status.start_time)
            for status in self.split_kept()[1]
            if not status.is_dead and not (self.spare_kernel and status.pid == self.kernel_pid)
        ]

    def kill_children(self) -> None:
        """Kill our own children, and those that we inherit meanwhile, as fast as they appear.

        A process that forks and exits every few milliseconds is gone before a scan of all of
        ``/proc`` has reached it, and its child is not in that scan. But each of them is our child
        from the moment its parent exits, and the list of our children is one short file.
        """
        until = monotonic() + RESCAN_INTERVAL
        while monotonic() < until and not self.reap_all():
            has_signalled = False
            for pid in own_children():
                status = read_status(pid) or read_hidden(pid)
                if status is None or status.is_dead or not self.should_kill(status):
                    continue
                identity = ProcessIdentity(pid, status.start_time)
                if identity not in self.killed:
                    self.send_signal(identity, signal.SIGKILL)
                    self.killed.add(identity)
                    has_signalled = True
            if not has_signalled:
                return

    def should_kill(self, status: ProcessStatus) -> bool:
        """Whether a child of ours is to be killed at once."""
        if status.pid == self.kernel_pid:
            return not self.spare_kernel
        identity = ProcessIdentity(status.pid, status.start_time)
        if identity not in self.ended and is_kept(status.pid):
            return False
        return not self.is_tracker(identity)

    def freeze(self) -> None:
        """Stop every process of the tree, so that none can fork while the others are killed."""
        stopped: set[ProcessIdentity] = set()
        for _ in range(10):  # bounded, in case they fork faster; the next round continues
            running = [
                identity
                for identity in self.targets()
                if identity not in stopped and not self.is_tracker(identity)
            ]
            if not running:
                return
            for identity in running:
                self.send_signal(identity, signal.SIGSTOP)
                stopped.add(identity)

    def send_signal(self, identity: ProcessIdentity, signum: int) -> None:
        """Send a signal to one process, and store its command line for the report."""
        if identity not in self.ended:
            self.ended[identity] = read_command_line(identity.pid)[:MAX_REMEMBERED]
        try:
            if identity.start_time == UNKNOWN_START_TIME:
                os.kill(identity.pid, signum)  # our child, not reaped since it was listed
            else:
                identity.signal(signum)
        except (PermissionError, ProcessLookupError):
            pass  # a set-uid program of another user; it is reported if it survives

    def reap_all(self) -> bool:
        """Reap every child that has ended; return whether no child is left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self.reaped += 1
            if pid == self.kernel_pid:
                self.kernel_alive = False
                self.send_line("exited", str(os.waitstatus_to_exitcode(status)))
                self.end(self.options.grace)

    def report_survivors(self) -> None:
        """Report the processes that SIGKILL has not ended; waiting for them goes on."""
        self.reported_survivors = True
        keeping, others = self.split_kept()
        lines = []
        for status in others:
            if not status.is_dead:
                command = read_command(status.pid)[:MAX_COMMAND]
                lines.append(f"survivor\t{status.pid}\t{status.state}\t{command}")
        if not keeping and not others and not self.reap_all():
            lines.append("survivor\t0\t?\ta process that /proc does not show")
        if lines:
            self.send("\n".join(lines[:MAX_LISTED]))  # in one write: a reader of one has read all

    def finish(self) -> None:
        """Report to the owner; if it is dead, write the report file and remove the leftovers."""
        seen = {identity.pid for identity in self.ended if identity.start_time}
        strays = [
            item
            for item in self.ended.items()
            # A process that hid itself after its first signal counts once.
            if item[0].pid != self.kernel_pid and (item[0].start_time or item[0].pid not in seen)
        ]
        # If not all can be named, then the user's, and of those the ones that had to be killed.
        strays.sort(key=lambda item: (OWN_NAME in item[1], item[0] not in self.killed))
        report: list[tuple[str, ...]] = [
            (
                "ended",
                str(identity.pid),
                "SIGKILL" if identity in self.killed else "SIGTERM",
                shown_command(line)[:MAX_COMMAND] if identity.start_time else HIDDEN_COMMAND,
            )
            for identity, line in strays[:MAX_LISTED]
        ]
        report += [
            ("kept", str(status.pid), read_command(status.pid)[:MAX_COMMAND])
            for status in ([] if self.reap_all() else self.split_kept()[0])[:MAX_LISTED]
            if not status.is_dead
        ]
        report.append(("gone", str(len(strays))))
        # A stray child of a dead owner may hold its end of the channel: check both.
        sent = [self.send_line(*words) for words in report]
        if not sent[-1] or self.owner_lost_at is not None:
            if len(report) > 1 and self.options.report:
                write(self.options.report, "".join(["\t".join(words) + "\n" for words in report]))
            for path in self.options.leftovers:
                if not self.belongs_to_later_run(path):
                    remove(path)

    def belongs_to_later_run(self, path: str) -> bool:
        """Whether a file is newer than the owner's death, so that a later run uses its name."""
        try:
            status = os.lstat(path)
        except OSError:
            return False
        is_folder = status.st_mode & 0o170000 == 0o040000  # its name is ours alone
        return not is_folder and status.st_mtime > (self.owner_lost_at or time())

    def send_line(self, *words: str) -> bool:
        """Send a line of words to the owner; return False if it is gone."""
        return self.send("\t".join(words))

    def send(self, text: str) -> bool:
        """Send lines to the owner; return False if it is gone."""
        try:
            os.write(self.channel, text.encode("utf-8", "replace") + b"\n")
        except OSError:
            return False
        return True


def own_children() -> list[int]:
    """Return the pids of this process's children; some may be missing, and all without procfs."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # noqa: PTH123
            return [int(word) for word in file.read().split()]
    except OSError:
        return []  # a Linux without CONFIG_PROC_CHILDREN: scans of /proc must suffice


def hidden_children(seen: set[int]) -> list[ProcessStatus]:
    """Return this process's living children that `/proc` hides, given the pids that it shows."""
    found = [read_hidden(pid) for pid in own_children() if pid not in seen]
    return [status for status in found if status is not None]


def read_hidden(pid: int) -> ProcessStatus | None:
    """Return the status of a child of this process that `/proc` hides; None if it has ended."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is not None or read_status(pid) is not None:
        return None  # it ended, or began, after the others had been listed
    return ProcessStatus(pid, os.getpid(), "?", UNKNOWN_START_TIME, 1)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def write(path: str, text: str) -> None:
    """Write a private file if possible; symbolic links are not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
        os.write(descriptor, text.encode("utf-8", "replace"))
        os.close(descriptor)
    except OSError:
        pass


def remove(path: str, directory: int | None = None) -> None:
    """Remove a file or a directory tree, if it exists.

    Symbolic links are not followed, even if one is put there meanwhile: the entries of a directory
    are removed relative to its descriptor.

    Parameters
    ----------
    path
        The file or directory.
    directory
        Descriptor of the directory that ``path`` is relative to; None for the working directory.
    """
    try:
        try:
            os.unlink(path, dir_fd=directory)
        except OSError as error:  # it is a directory, or the kernel's control group
            if isinstance(error, FileNotFoundError):
                return
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inside = os.open(path, flags, dir_fd=directory)
            try:
                for name in os.listdir(inside):  # noqa: PTH208
                    remove(name, inside)
            finally:
                os.close(inside)
            os.rmdir(path, dir_fd=directory)
    except (OSError, ValueError):
        pass
