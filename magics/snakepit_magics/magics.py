"""Implementation of the magics: commands of pools, tools, cells and jobs."""

from __future__ import annotations

import atexit
import contextlib
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.page import page
from IPython.display import display

from snakepit_kernel import (
    CellError,
    CellResult,
    InvalidArguments,
    Pool,
    PoolClosed,
    PoolStatus,
    Session,
    SnakepitError,
    ToolError,
    ToolNotFound,
)
from snakepit_kernel.errors import suggest
from snakepit_kernel.pool.caller import failed_result, run_everywhere
from snakepit_kernel.pool.pool import compare_options, has_adapter, open_pools
from snakepit_kernel.pool.scheduling.wait_notice import announcing_waits
from snakepit_kernel.printable import printable
from snakepit_kernel.tools.adapter import options_of
from snakepit_kernel.tracebacks import hides_own_frames

from .completion import Completer
from .help import help_of, help_text
from .job_commands import JobCommands
from .jobs import Job
from .notebook import functions_of, last_run_summary
from .own_cell import MAX_KEPT_BYTES, ShownValue, asker
from .parsing import (
    COMMANDS,
    SESSION_COMMANDS,
    SHELL_COMMANDS,
    arguments_of,
    cell_parser,
    check_cell_options,
    environment_of,
    flag_of,
    help_asked_for,
    help_command,
    line_parser,
    names_of,
)
from .rendering import (
    CellView,
    as_cell_error,
    format_in_full,
    format_in_list,
    raise_here,
    raise_interrupt,
    without_traceback,
)
from .session_commands import SessionCommands
from .session_views import JobList
from .shell_commands import ShellCommands, parse_raw
from .worker_help import WorkerHelp
from .worker_outputs import WorkersView, summarize_errors


@magics_class
class SnakepitMagics(Magics):
    """The magics ``%snakepit`` and ``%%snakepit``, and the pools that they opened.

    Parameters
    ----------
    shell
        The shell that they belong to.
    """

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._for_joblib: tuple[Pool, Any] | None = None  # with what undoes it
        self._started: list[Pool] = []  # here, since nothing else may refer to them
        self.chosen_pool = "default"
        self.job_commands = JobCommands(shell)
        self.sessions = SessionCommands(shell)
        self.shells = ShellCommands(self.sessions)
        self._is_last_run_printed = False
        self._parser = line_parser()
        self._cell_parser = cell_parser()
        self._worker_help = WorkerHelp(
            self._cell_parser.parse,
            lambda options: self._session(options.session, options.pool),
        )
        # Before any pool, and so run after their ends: their sessions may get content until then.
        atexit.register(self.sessions.close)

    @classmethod
    def of(cls, shell: InteractiveShell) -> SnakepitMagics | None:
        """Return the magics of a shell, or None if it has none."""
        found = shell.magics_manager.registry.get(cls.__name__)
        return found if isinstance(found, cls) else None

    @no_var_expand  # braces and dollars belong to the cell and to the arguments
    @line_cell_magic
    @hides_own_frames
    def snakepit(self, line: str, cell: str | None = None) -> Any:  # noqa: D102 - see below
        try:
            self._print_last_run()
            with announcing_waits(print):
                return self._run(line, cell)
        except CellError:
            raise
        except (ToolNotFound, InvalidArguments, PoolClosed) as mistake:
            raise UsageError(printable(str(mistake), lines=True)) from mistake
        except SnakepitError as failure:
            raise without_traceback(failure) from None
        except (ValueError, TypeError, OSError) as mistake:
            raise UsageError(printable(str(mistake), lines=True)) from mistake
        finally:
            self.sessions.print_news()

    snakepit.__doc__ = help_text()  # what %snakepit? shows

    def _run(self, line: str, cell: str | None) -> Any:
        asked = help_asked_for(line)
        if asked is not None:
            display(help_of(asked or None))
            return None
        if cell is not None:
            return self._run_cell(self._cell_parser.parse(line), cell)
        options = parse_raw(line) or self._parser.parse(line)
        if options.command is None:
            return self._overview()
        if options.command in SESSION_COMMANDS:
            return self.sessions.run(options)
        if options.command in SHELL_COMMANDS:
            return self.shells.run(options)
        return getattr(self, f"_{options.command}")(options)

    def _print_last_run(self) -> None:
        """Print once, in one line, what the restart of this kernel had to end."""
        if self._is_last_run_printed:
            return
        self._is_last_run_printed = True
        line = last_run_summary()
        if line:
            print(line)  # noqa: T201 - the output of the cell

    # -- pools ---------------------------------------------------------------------------------

    @property
    def pools(self) -> dict[str, Pool]:
        """The open pools of this process, by name, whether or not a magic has opened them."""
        return open_pools()

    def _start(self, options: Namespace) -> Pool:
        given = {
            **vars(options),  # each option has the name that `Pool` gives it
            "adapter": self._adapter(options.adapter),
            "preload": names_of(options.preload),
            "env": environment_of(options.env),
        }
        del given["command"], given["replace"], given["joblib"]
        chosen = {name: value for name, value in given.items() if value is not None}
        running = self._running().get(options.name)
        if running is not None and not options.replace:
            pool = self._reuse(running, chosen)
        else:
            if running is not None:
                self._end(running)
            pool = Pool(**chosen)
            self._started.append(pool)
            self.chosen_pool = pool.name
        if options.joblib:
            self._use_for_joblib(pool)
        return pool

    def _use_for_joblib(self, pool: Pool) -> None:
        """Let joblib use a pool by default, until it ends."""
        try:
            from snakepit_kernel.joblib import default_to
        except ModuleNotFoundError as error:
            if error.name != "joblib":
                raise
            msg = "--joblib needs joblib: %pip install 'snakepit-kernel[joblib]'"
            raise UsageError(msg) from None
        self._stop_use_for_joblib()
        self._for_joblib = pool, default_to(pool)

    def _stop_use_for_joblib(self) -> None:
        if self._for_joblib is not None:
            self._for_joblib[1].unregister()
            self._for_joblib = None

    def _reuse(self, pool: Pool, options: dict[str, Any]) -> Pool:
        """Return the running pool, if it was opened with the same options."""
        differences = compare_options(pool, options)
        if differences:
            told = "; ".join(
                f"{flag_of(name)} is {mine!r}, not {other!r}"
                for name, (mine, other) in differences.items()
            )
            msg = (
                f"pool {pool.name!r} is running already, with other options: {told}. Add --replace "
                "to end it and open the new one, or --name NAME to open another one"
            )
            raise UsageError(printable(msg))
        self.chosen_pool = pool.name
        count = len(pool.slots())
        workers = f"{count} worker{'' if count == 1 else 's'}"
        print(f"pool {pool.name} is running already, with these options: {workers}")  # noqa: T201
        adapter = options.get("adapter")
        if isinstance(adapter, type) and not has_adapter(pool, adapter):
            name = adapter.__name__
            print(f"%snakepit reload {name} gives the workers {name} as it is now")  # noqa: T201
        return pool

    def _adapter(self, text: str | None) -> object:
        """Return the notebook's class of that name, or else the text, which names a module."""
        found = self.shell.user_ns.get(text) if text else None
        return found if isinstance(found, type) else text

    def _stop(self, options: Namespace) -> None:
        running = self._running()
        pools = list(running.values()) if options.all else [self._pool(options.name)]
        for pool in pools:
            self._end(pool)
            has_others = self._running() and not options.all
            now = f"; cells run in pool {self.chosen_pool} now" if has_others else ""
            print(f"pool {pool.name} has ended{now}")  # noqa: T201 - output of the magic

    def _end(self, pool: Pool) -> None:
        """End a pool, verified."""
        if self._for_joblib is not None and self._for_joblib[0] is pool:
            self._stop_use_for_joblib()
        pool.terminate()
        self._started = [each for each in self._started if each is not pool]

    def _restart(self, options: Namespace) -> Pool:
        pool = self._pool(options.name)
        pool.restart()
        self.chosen_pool = pool.name
        return pool

    def _status(self, options: Namespace) -> PoolStatus:
        return self._pool(options.name).status()

    def _dashboard(self, options: Namespace) -> Any:
        return self._pool(options.name).dashboard()

    def _resize(self, options: Namespace) -> None:
        self._pool(options.pool).resize(options.workers)

    def _recycle(self, options: Namespace) -> None:
        self._pool(options.pool).recycle(options.worker)

    def _reload(self, options: Namespace) -> None:
        self._pool(options.pool).reload(self._adapter(options.adapter))

    def _drain(self, options: Namespace) -> None:
        pool = self._pool(options.pool)
        done = pool.drain(options.timeout)
        how = "all is done" if done else "not all is done yet"
        print(f"{how}; pool {pool.name} takes no new work until %snakepit resume")  # noqa: T201

    def _resume(self, options: Namespace) -> None:
        self._pool(options.pool).resume()

    def _logs(self, options: Namespace) -> None:
        name = options.name
        if name is not None and name not in self._running():
            self.shells.logs(options)
            return
        for worker, text in self._pool(options.name).logs().items():
            print(f"--- {worker}\n{printable(text, lines=True) or '(nothing)'}")  # noqa: T201

    def _running(self) -> dict[str, Pool]:
        """Return the running pools; if the chosen one has ended, choose the one opened last."""
        running = self.pools
        self._started = [pool for pool in self._started if pool.is_open]
        if self.chosen_pool not in running:
            self.chosen_pool = next(reversed(running), "default")
        return running

    def _pool(self, name: str | None = None) -> Pool:
        running = self._running()
        wanted = name or self.chosen_pool
        if wanted in running:
            return running[wanted]
        if not running:
            msg = "no pool is running; %snakepit start opens one"
            raise UsageError(msg)
        msg = f"there is no pool {wanted!r}{suggest(wanted, running)}"
        raise UsageError(msg)

    # -- sessions ------------------------------------------------------------------------------

    def _use(self, options: Namespace) -> Pool | None:
        if options.pool is None and options.session is None and options.ttl is None:
            msg = "%snakepit use: name a session, or a pool by --pool NAME"
            raise UsageError(msg)
        pool = None if options.pool is None else self._pool(options.pool)
        self.sessions.use(options)
        if pool is not None:
            self.chosen_pool = pool.name
        return pool

    def _session(self, name: str | None, pool: str | None = None) -> Session:
        session = self._pool(pool).session(self.sessions.name_of(name))
        if name is None:
            self.sessions.look_at(session.state)
        return session

    # -- tools ---------------------------------------------------------------------------------

    def _tools(self, options: Namespace) -> None:
        tools = self._pool().tools
        if options.tool is not None:
            print(format_in_full(tools[options.tool]))  # noqa: T201
            return
        print("\n".join(format_in_list(tools[name]) for name in tools) or "no tools")  # noqa: T201
        if self._session(None).host_tools:
            print(f"\nhost tools, which workers may call:\n{self._listed_host_tools(None)}")  # noqa: T201

    def _call(self, options: Namespace) -> Any:
        arguments = arguments_of(options.arguments, self.shell.user_ns)
        session = self._session(options.session)
        limit = {} if options.timeout is None else {"timeout": options.timeout}
        streams = session.tools[options.tool].streams
        if options.background:
            title = " ".join([options.tool, *options.arguments])
            return self.job_commands.begin_call(session, title, options.tool, arguments, limit)
        try:
            if streams:
                return session.stream(options.tool, arguments, **limit).show()
            return session.call(options.tool, arguments, **limit)
        except ToolError as error:
            return raise_here(as_cell_error(error))

    def _expose(self, options: Namespace) -> None:
        if options.function is None:
            print(self._listed_host_tools(options.session) or "no host tools")  # noqa: T201
            return
        function = self._function(options.function)
        pool = self._pool()
        session = pool.session(options.session) if options.session else None
        (session or pool).host_tool(function)
        marked = options_of(function)
        name = (marked and marked.name) or function.__name__
        whose = f"session {options.session}" if session else f"pool {pool.name}"
        signature = (session or pool).host_tools[name].signature
        print(f"workers of {whose} may call {name}{signature}")  # noqa: T201

    def _listed_host_tools(self, session: str | None) -> str:
        return "\n".join(map(format_in_list, self._session(session).host_tools.values()))

    def _function(self, name: str) -> Callable[..., Any]:
        found = self.shell.user_ns.get(name)
        if name not in self.shell.user_ns:
            near = suggest(name, functions_of(self.shell))
            msg = f"there is no function {name!r} in this notebook{near}"
            raise UsageError(msg)
        if isinstance(found, type) or not callable(found):
            kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
            msg = f"{name} is {kind}; a host tool is a function"
            raise UsageError(msg)
        if not getattr(found, "__name__", "").isidentifier():
            msg = f"{name} has no name of its own to be called by; define it by def"
            raise UsageError(msg)
        function: Callable[..., Any] = found
        return function

    def _push(self, options: Namespace) -> None:
        variables = self._variables(names_of(options.names))
        session = self._session(options.session)
        if options.all:
            session.push(variables, worker="all")
        else:
            session.push(variables, worker=options.worker)

    def _pull(self, options: Namespace) -> None:
        names = names_of(options.names)
        try:
            pulled = self._session(options.session).pull(names, worker=options.worker)
        except NameError as error:
            raise UsageError(printable(str(error), lines=True)) from error
        self.shell.push(pulled)

    def _scatter(self, options: Namespace) -> None:
        session = self._session(options.session)
        for name, value in self._variables(names_of(options.names)).items():
            session.scatter(name, value)

    def _gather(self, options: Namespace) -> None:
        session = self._session(options.session)
        try:
            gathered = {name: session.gather(name) for name in names_of(options.names)}
        except NameError as error:
            raise UsageError(printable(str(error), lines=True)) from error
        self.shell.push(gathered)

    def _variables(self, names: list[str]) -> dict[str, Any]:
        namespace = self.shell.user_ns
        for name in names:
            if name not in namespace:
                known = [key for key in namespace if not key.startswith("_")]
                msg = f"name {name!r} is not defined in this notebook{suggest(name, known)}"
                raise UsageError(msg)
        return {name: namespace[name] for name in names}

    # -- cells ---------------------------------------------------------------------------------

    def _run_cell(self, options: Namespace, code: str) -> Job | None:
        check_cell_options(options)
        if options.shell:
            self.shells.run_cell(options, code)
            return None
        session = self._session(options.session, options.pool)
        arguments: dict[str, Any] = {
            "push": self._variables(names_of(options.push)),
            "pull": names_of(options.pull),
        }
        if options.timeout is not None:
            arguments["timeout"] = options.timeout
        if options.background:
            return self._run_in_background(session, code, options, arguments)
        if options.all:
            self._run_everywhere(session, code, options, arguments)
        else:
            self._run_in_worker(session, code, options, arguments)
        return None

    def _run_in_worker(
        self, session: Session, code: str, options: Namespace, arguments: dict[str, Any]
    ) -> None:
        value = ShownValue(self.shell)
        view = CellView(value)
        try:
            result = session.run(
                code,
                worker=options.worker,
                on_message=view.show,
                on_input=asker(self.shell),
                max_value_bytes=MAX_KEPT_BYTES,
                **arguments,
            )
            value.keep(result)
        except KeyboardInterrupt as interrupt:
            view.end([])
            raise_interrupt(interrupt, view.error)
        except NameError as error:  # of a variable to pull
            view.end([])
            raise UsageError(printable(str(error), lines=True)) from error
        except SnakepitError as error:
            self._keep(options.out, failed_result(error))
            raise
        self._keep(options.out, result)
        view.end([] if result.error is None else [result.error])
        for shown in result.pages:
            page(shown)
        self._apply_results(session, [result])

    def _apply_results(self, session: Session, results: list[CellResult]) -> None:
        """Copy the pulled variables to the notebook; raise the first error."""
        for result in results:
            if result.error is not None:
                advice = self._advice(session, result.error)
                error = result.error
                raise_here(CellError(error.type_name, error.message, [*error.traceback, *advice]))
        if len(results) == 1:
            self.shell.push(results[0].pulled)
        else:  # one value for each worker
            names = results[0].pulled
            self.shell.push({name: [result.pulled[name] for result in results] for name in names})

    def _advice(self, session: Session, error: CellError) -> list[str]:
        """Return for a `NameError` of a worker's cell where the name exists here."""
        asked = _UNDEFINED.match(error.message) if error.type_name == NameError.__name__ else None
        if asked is None:
            return []
        name = asked[1]
        advice = []
        if name in self.shell.user_ns:
            advice.append(
                f"{name!r} is defined in this notebook: %%snakepit --push {name} copies it to the "
                "worker first."
            )
        if name in session.variables:
            advice.append(
                f"{name!r} is a variable of the session: "
                f"snakepit_kernel.context().variables[{name!r}] reads it in a worker."
            )
        return advice

    def _run_everywhere(
        self, session: Session, code: str, options: Namespace, arguments: dict[str, Any]
    ) -> None:
        """Run a cell in all workers, and show what each shows with the number of the worker."""
        view = WorkersView()
        try:
            results = run_everywhere(session, code, on_message=view.show, **arguments)
        except KeyboardInterrupt as interrupt:
            view.end_interrupted()
            raise without_traceback(interrupt) from None
        view.end(results)
        self._keep(options.out, list(results.values()))
        self._apply_results_of_all(session, results)

    def _apply_results_of_all(self, session: Session, results: dict[int, CellResult]) -> None:
        """Copy the pulled variables of all workers here; raise one error for those that failed."""
        error = summarize_errors(results)
        if error is not None:
            errors = [result.error for result in results.values() if result.error is not None]
            advice = dict.fromkeys(line for each in errors for line in self._advice(session, each))
            raise_here(CellError(error.type_name, error.message, [*error.traceback, *advice]))
        self._apply_results(session, list(results.values()))

    def _run_in_background(
        self, session: Session, code: str, options: Namespace, arguments: dict[str, Any]
    ) -> Job:
        def apply(ended: Job) -> None:
            results = list(ended.results.values())
            for shown in results[0].pages:  # its cell has no pager any more
                ended.present(partial(display, shown, raw=True))
            self._apply_results(session, results)

        if options.all:
            count = len(self._pool(options.pool).slots())
            job = self.job_commands.begin_cell_everywhere(session, code, count, arguments, apply)
        else:
            job = self.job_commands.begin_cell(session, code, options.worker, arguments, apply)
        self._keep(options.out, job)
        return job

    def _keep(self, name: str | None, value: object) -> None:
        """Put what a cell has given into a variable of the notebook, if one is named."""
        if name is not None:
            self.shell.push({name: value})

    # -- jobs ----------------------------------------------------------------------------------

    @property
    def jobs(self) -> dict[int, Job]:
        """What runs, or has run, in the background, by number."""
        return self.job_commands.jobs

    def _jobs(self, _: Namespace) -> JobList:
        return JobList(self.jobs.values())

    def _cancel(self, options: Namespace) -> None:
        self.job_commands.cancel(options)

    def _wait(self, options: Namespace) -> None:
        self.job_commands.wait(options)

    # -- help ----------------------------------------------------------------------------------

    def _overview(self) -> None:
        running = self._running()
        if running:
            for name, pool in running.items():
                print(f"{'*' if name == self.chosen_pool else ' '} {pool!r}")  # noqa: T201
        else:
            print("no pool is running; %snakepit start opens one")  # noqa: T201
        print(f"session {self.sessions.name_of(None)}; %snakepit help shows the commands")  # noqa: T201

    def _help(self, options: Namespace) -> None:
        if options.about is not None and options.about not in COMMANDS:
            msg = f"%snakepit help: there is no command {options.about!r}"
            raise UsageError(f"{msg}{suggest(options.about, COMMANDS)}")
        display(help_of(options.about))

    def _doctor(self, _: Namespace) -> None:
        # In a separate process: it checks the installation as a shell sees it.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "snakepit_kernel", "doctor"],
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout + done.stderr, end="")  # noqa: T201

    # -- the shell -----------------------------------------------------------------------------

    def register_completer(self) -> None:
        """Complete what follows ``%snakepit``, and the names of workers in their cells."""
        Completer(self, self._worker_help).register(self.shell.Completer)
        if (kernel := getattr(self.shell, "kernel", None)) is not None:
            self._worker_help.register(kernel)

    def register_help(self) -> None:
        """Make a question mark after a command show its options: IPython would look for a name."""
        self.shell.input_transformers_cleanup.append(help_command)

    def unregister(self) -> None:
        """End the pools, and remove the magics from the shell."""
        for job in self.jobs.values():
            job.cancel()
        for pool in self._started:
            pool.terminate()
        atexit.unregister(self.sessions.close)
        self.sessions.close()
        with contextlib.suppress(ValueError):
            self.shell.input_transformers_cleanup.remove(help_command)
        manager = self.shell.magics_manager
        manager.registry.pop(type(self).__name__, None)
        for kind in ("line", "cell"):
            with contextlib.suppress(KeyError):
                del manager.magics[kind]["snakepit"]
        Completer.unregister(self.shell.Completer)
        if (kernel := getattr(self.shell, "kernel", None)) is not None:
            self._worker_help.unregister(kernel)


_UNDEFINED = re.compile(r"name '(\w+)' is not defined")
