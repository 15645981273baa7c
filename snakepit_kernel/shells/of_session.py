"""The shell and the background processes of one session, and the processes of a pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..tracebacks import hides_own_frames
from .driver import ShellDriver, ShellOptions
from .manager import ProcessRequest, manager
from .process import NO_PROCESSES, Process, table_of
from .shell import Shell


@hides_own_frames
class ProcessList:
    """The background processes of a session or a pool.

    Parameters
    ----------
    key, owner
        The session, or what `SessionShells.own` was told of a pool.
    """

    def __init__(self, *, key: object = None, owner: object = None) -> None:
        self._key = key
        self._owner = owner

    def list(self) -> list[Process]:
        """Return its processes, oldest first; those that have ended as well."""
        return manager.processes(key=self._key, owner=self._owner)

    def get(self, id: str) -> Process:  # noqa: A002 - its public name
        """Return a process by its id or name, of any session of this user.

        Raises
        ------
        ProcessNotFound
            There is none.
        """
        own = [process for process in self.list() if id in (process.id, process.name)]
        running = [process for process in own if process.is_running] or own
        return running[-1] if running else manager.find_process(id)

    def kill(self, id: str, **options: Any) -> int | None:  # noqa: A002
        """Kill a process, see `Process.kill`."""
        return self.get(id).kill(**options)

    def kill_all(self, grace: float = 5.0) -> int:
        """Kill all that run; return how many these were."""
        running = [process for process in self.list() if process.is_running]
        for process in running:
            process.kill(grace=grace)
        return len(running)

    def __repr__(self) -> str:
        found = self.list()
        return table_of(found).as_text() if found else NO_PROCESSES

    def _repr_html_(self) -> str:
        found = self.list()
        return table_of(found).as_page() if found else NO_PROCESSES


@hides_own_frames
class SessionProcesses(ProcessList):
    """The background processes of a session.

    Parameters
    ----------
    shells
        Of the session.
    """

    def __init__(self, shells: SessionShells) -> None:
        super().__init__(key=shells.key)
        self._shells = shells

    def start(
        self,
        command: str,
        *,
        name: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Process:
        """Start a command in the background, with the state of the session's shell.

        It does not wait for a command that the shell runs: then the state is that before it. It
        goes on until it ends by itself, is killed, or its session, pool or kernel ends.

        Parameters
        ----------
        command
            Any text that bash can run.
        name
            Its name, for people. Default: the first word of the command.
        cwd, env
            As for `Shell.run`.

        Raises
        ------
        StartFailed
            It could not be started.
        TypeError, ValueError, NotADirectoryError
            An argument is wrong; it is named.
        """
        return self._shells.start_process(command, name=name, cwd=cwd, env=env)


class SessionShells:
    """The shell and the processes of one session in this process.

    Parameters
    ----------
    key
        The session, unique in this process.
    session_id
        Its name.
    load, save
        Read and write what is kept of its shell with the session.
    fork
        Makes a copy of the session under another name, and returns the `SessionShells` of it.
    """

    def __init__(
        self,
        key: object,
        session_id: str,
        *,
        load: Callable[[], bytes],
        save: Callable[[bytes], object],
        fork: Callable[[str], SessionShells],
    ) -> None:
        self.session_id = session_id
        self._owner: object = None
        self._pool: str | None = None
        self.key = key
        self._load, self._save, self._fork = load, save, fork
        self.processes = SessionProcesses(self)

    def own(self, owner: object, pool: str | None) -> None:
        """Set whose end ends what is started from now on, and the name of that pool."""
        self._owner, self._pool = owner, pool

    @property
    def shell(self) -> Shell:
        """The shell of the session; it is opened at its first use."""
        known = manager.find_shell(self.key)
        while known is None:
            try:
                return self.open()
            except ValueError:  # another thread has opened it meanwhile
                known = manager.find_shell(self.key)
        return known

    def open(self, *, state: bytes = b"", **options: Any) -> Shell:
        """Open the shell with options; those of `ShellOptions`.

        Parameters
        ----------
        state
            The state to begin with; empty for what is kept with the session.

        Raises
        ------
        ValueError
            It is open; or an option is wrong, which is named.
        """
        checked = ShellOptions.checked(**options)
        driver = ShellDriver(
            self.session_id, checked, state=state, load=self._load, save=self._save
        )

        def fork(session_id: str, state: bytes) -> Shell:
            forked = self._fork(session_id)
            forked.own(self._owner, self._pool)
            return forked.open(state=state, **options)

        return manager.open_shell(self.key, driver, self._owner, fork)

    def start_process(
        self,
        command: str,
        *,
        name: str | None,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str | None] | None,
    ) -> Process:
        """Start a process, see `SessionProcesses.start`."""
        request = ProcessRequest.checked(
            command,
            key=self.key,
            name=name,
            cwd=cwd,
            env=env,
            session_id=self.session_id,
            pool=self._pool,
            driver=manager.driver(self.key, lambda: self.shell),
            owner=self._owner,
        )
        return manager.start_process(request)

    def close(self, *, detach: bool) -> None:
        """End the shell and, unless they are detached, the processes."""
        manager.close_session(self.key, detach=detach)


def processes() -> list[Process]:
    """Return the background processes of all kernels and scripts of this user, oldest first.

    Any of them may be followed, waited for, signalled and killed here.
    """
    return manager.all_processes()


def find_process(id: str) -> Process:  # noqa: A002 - its public name
    """Return a background process by its id or name.

    Raises
    ------
    ProcessNotFound
        There is none.
    """
    return manager.find_process(id)
