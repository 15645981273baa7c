"""The commands, their options, and the messages for misuse.

Importing this module is cheap: a command imports its own module when it runs.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from .._version import __version__
from ..errors import SnakepitError, suggest
from ..printable import printable
from ..validation import parse_seconds

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 and the number of SIGINT."""


class Commands(click.Group):
    """A group whose error for an unknown command suggests the most similar one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = self.list_commands(ctx)
            raise click.UsageError(f"there is no command {name!r}{suggest(name, known)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(__version__, prog_name="snakepit", message="%(prog)s %(version)s")
@click.pass_context
def snakepit(context: click.Context) -> None:
    """Supervised worker kernels for Jupyter."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@snakepit.command()
@click.option("--start", is_flag=True, help="Also start a kernel, run a cell and shut it down.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(context: click.Context, start: bool, as_json: bool) -> None:
    """Check this installation, and say what to do about each problem.

    The exit status is 1 when something is broken, else 0.
    """
    from .doctor import examine, show

    findings = examine(start=start)
    context.exit(show(findings, as_json=as_json))


@snakepit.command()
@click.option("--runs", is_flag=True, help="Also list runs that ended, and what their end took.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("--prometheus", is_flag=True, help="Print the pools' numbers for Prometheus.")
@click.option("--watch", is_flag=True, help="Draw it again each second, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Seconds between two looks of --watch.  [default: 1]",
)
def status(
    *, runs: bool, as_json: bool, prometheus: bool, watch: bool, interval: float | None
) -> None:
    """Show your live pools and kernels, and what was kept, from any shell."""
    if watch + prometheus + as_json > 1 or (runs and (watch or prometheus)):
        raise click.UsageError(
            "--json, --prometheus and --watch exclude each other, and the last two --runs"
        )
    if interval is not None and not watch:
        raise click.UsageError("--interval is for --watch")
    if watch:
        from .status import watch as watch_pools

        watch_pools(1.0 if interval is None else interval)
    elif prometheus:
        from .status import show_for_prometheus

        show_for_prometheus()
    else:
        from .status import show

        show(ended=runs, as_json=as_json)


@snakepit.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be ended.")
@click.option("--kept", is_flag=True, help="End also what was kept on purpose (SNAKEPIT_KEEP=1).")
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0),
    default=2.0,
    show_default=True,
    help="Seconds between SIGTERM and SIGKILL.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def reap(context: click.Context, dry_run: bool, kept: bool, grace: float, as_json: bool) -> None:
    """End what kernels left behind whose owners are dead, and nothing else.

    The exit status is 1 when something does not die, else 0.
    """
    from .reap import reap as reap_all

    if not math.isfinite(grace):
        raise click.UsageError(f"--grace must be 0 or more seconds, not {grace:g}")
    context.exit(reap_all(grace=grace, kept=kept, dry_run=dry_run, as_json=as_json))


@snakepit.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def ps(*, as_json: bool) -> None:
    """List the background processes of your sessions, in whichever kernel they are."""
    from .processes import show

    show(as_json=as_json)


@snakepit.command()
@click.argument("process")
@click.option("--follow", is_flag=True, help="Go on until the process has ended, or Ctrl-C.")
def logs(process: str, *, follow: bool) -> None:
    """Print what a background process has written, by its id or name."""
    from .processes import logs as show

    show(process, follow=follow)


@snakepit.command()
@click.argument("process", nargs=-1, required=True)
@click.option("--signal", "name", default="TERM", show_default=True, help="The first signal.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0),
    default=5.0,
    show_default=True,
    help="Seconds until what is left is killed.",
)
@click.pass_context
def kill(context: click.Context, process: tuple[str, ...], *, name: str, grace: float) -> None:
    """End background processes and all that they have started, by their ids or names.

    The exit status is 1 when something does not die, else 0.
    """
    from .processes import kill as end

    if not math.isfinite(grace):
        raise click.UsageError(f"--grace must be 0 or more seconds, not {grace:g}")
    context.exit(end(process, signal=name, grace=grace))


@snakepit.command("run")
@click.argument(
    "notebooks", nargs=-1, required=True, metavar="NOTEBOOK...", type=click.Path(path_type=Path)
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 150),
    default=1,
    show_default=True,
    help="Number of notebooks that run at a time.",
)
@click.option(
    "--output-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default="executed",
    show_default=True,
    help="Where the executed notebooks are written.",
)
@click.option(
    "-p",
    "--parameter",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A value for the cells tagged 'parameters', as in papermill.",
)
@click.option("--resume", is_flag=True, help="Leave out what has succeeded there before.")
@click.option(
    "--cell-timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Seconds that a cell may take.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Seconds that a notebook may take.",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="MODULE",
    help="Module that all kernels import ahead, once for all.  [default: numpy, pandas and the "
    "like, where the notebooks import them]",
)
@click.pass_context
def run_notebooks(
    context: click.Context,
    notebooks: tuple[Path, ...],
    *,
    jobs: int,
    folder: Path,
    parameters: tuple[tuple[str, str], ...],
    resume: bool,
    cell_timeout: float | None,
    timeout: float | None,
    preload: tuple[str, ...],
) -> None:
    """Run notebooks as papermill does, each in a kernel of its own.

    What one does, be it a crash or an endless loop, costs only itself, and nothing that it has
    started is left. The exit status is 1 when one has failed, else 0.
    """
    try:
        from .notebook_runs import parsed_parameters
        from .notebook_runs import run_notebooks as run_all

        status = run_all(
            notebooks,
            jobs=jobs,
            folder=folder,
            parameters=parsed_parameters(parameters),
            resume=resume,
            cell_timeout=cell_timeout,
            timeout=timeout,
            preload=preload,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None
    context.exit(status)


@snakepit.group("env", cls=Commands)
def environments() -> None:
    """List, make and remove the environments of pools with requirements."""


@environments.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def list_environments(*, as_json: bool) -> None:
    """List your environments, the one used last first."""
    from .environments import show

    show(as_json=as_json)


@environments.command("prune")
@click.option(
    "--older-than",
    default="30d",
    show_default=True,
    metavar="TIME",
    help="How long they have not been used: 12h, 30d.",
)
@click.option("--all", "is_all", is_flag=True, help="All that nobody uses now.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def prune_environments(*, older_than: str, is_all: bool, dry_run: bool) -> None:
    """Remove environments that have not been used for a while, and that nobody uses now.

    Requirements that are not pinned are resolved anew the next time.
    """
    from .environments import prune

    try:
        seconds = 0.0 if is_all else parse_seconds(older_than)
    except ValueError as error:
        raise click.UsageError(f"--older-than: {error}") from error
    prune(seconds, dry_run=dry_run)


@environments.command("make")
@click.argument("requirement", nargs=-1)
@click.option(
    "-r",
    "--requirements",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A requirements file.",
)
@click.option("--upgrade", is_flag=True, help="Resolve them anew, to the newest versions.")
def make_environment(
    requirement: tuple[str, ...], *, files: tuple[Path, ...], upgrade: bool
) -> None:
    """Make the environment of a pool ahead; print its folder."""
    if not requirement and not files:
        raise click.UsageError("name a requirement, or a file of them by --requirements FILE")
    from .environments import make

    try:
        make(requirement, files, upgrade=upgrade)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None


@snakepit.command("new-adapter")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where to write it; a new or an empty directory.  [default: ./NAME]",
)
def new_adapter(name: str, directory: Path | None) -> None:
    """Write a small package with an adapter of two tools, and tests that pass."""
    from .new_adapter import create

    try:
        folder = create(name, directory)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(printable(f"wrote {folder}; try it: cd {folder} && pytest"))


@snakepit.command()
@click.argument("kernelspec")
@click.option("--name", "new_name", help="The copy's name.  [default: snakepit-KERNELSPEC]")
@click.option("--display-name", help="What Jupyter shows.  [default: the old one, and (Snakepit)]")
@click.option("--grace", type=float, help="Seconds between SIGTERM and SIGKILL.  [default: 2]")
@click.option("--sys-prefix", is_flag=True, help="Install into this Python's environment.")
@click.option(
    "--prefix", type=click.Path(path_type=Path), help="Install below PREFIX/share/jupyter."
)
def wrap(
    kernelspec: str,
    *,
    new_name: str | None,
    display_name: str | None,
    grace: float | None,
    sys_prefix: bool,
    prefix: Path | None,
) -> None:
    """Write a copy of any kernelspec whose kernels leave nothing behind.

    Wrapping again updates the copy; snakepit unwrap removes it.
    """
    from .wrap import wrap as write

    if sys_prefix and prefix is not None:
        raise click.UsageError("--sys-prefix and --prefix exclude each other; give one of them")
    try:
        wrapped = write(
            kernelspec,
            new_name=new_name,
            display_name=display_name,
            grace=grace,
            prefix=Path(sys.prefix) if sys_prefix else prefix,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(printable(wrapped.line()))
    if wrapped.left_out:
        click.echo(printable(wrapped.note()), err=True)


@snakepit.command()
@click.argument("kernelspec")
def unwrap(kernelspec: str) -> None:
    """Remove what snakepit wrap wrote, by the original's or the copy's name."""
    from .wrap import unwrap as remove

    try:
        for removed in remove(kernelspec):
            click.echo(printable(removed.line()))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run(arguments: Sequence[str], *, program: str = "snakepit") -> int:
    """Run one command line.

    Parameters
    ----------
    arguments
        The arguments after the program's name.
    program
        The program's name, for help and errors.

    Returns
    -------
    int
        The exit status: 0, 1 for a failure or a problem found, 2 for misuse. Misuse and external
        failures are printed as one line on standard error.
    """
    try:
        outcome = snakepit.main(list(arguments), prog_name=program, standalone_mode=False)
        if sys.stdout is not None:  # it is None when the shell closed it, `>&-`
            sys.stdout.flush()
    except click.ClickException as error:
        return _print_error(program, error.format_message(), error.exit_code)
    except click.Abort:
        return _print_error(program, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output is gone: no message is needed
        _discard_output()
        return 1
    except (SnakepitError, OSError) as error:
        _discard_output()
        return _print_error(program, str(error), 1)
    return outcome if isinstance(outcome, int) else 0


def _discard_output() -> None:
    """Redirect output that cannot be written to the null device: the exit writes it again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _print_error(program: str, text: str, status: int) -> int:
    click.echo(f"{program}: {printable(' '.join(text.split()))}", err=True)
    return status
