"""Commands for our own small processes: interpreters without what the environment has installed."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def bare_command(module: str) -> list[str]:
    """Return the command that runs ``main`` of a module in this folder, without its options.

    The module is imported, and not executed as a script, because only a module's compiled code is
    cached: compiling it each time costs 10 ms and 1 MiB. A stand-in replaces the package, whose
    facade imports `typing`: another MiB.
    """
    package, _, folder = __name__.rpartition(".")[0].partition(".")
    code = (
        "import sys; "
        f"package = sys.modules[{package!r}] = type(sys)({package!r}); "
        f"package.__path__ = [{str(_PACKAGE)!r}]; "
        f"from {package}.{folder}.{module} import main; sys.exit(main(sys.argv[2:]))"
    )
    source = _PACKAGE / folder / f"{module}.py"  # for those who read the command line
    return [sys.executable, "-I", "-S", "-c", code, str(source)]
