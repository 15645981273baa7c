"""Run the kernel: ``python -m snakepit_kernel.kernel -f CONNECTION_FILE``."""

import os  # only modules that are imported already: -P may be missing
import sys

if __name__ == "__main__":
    # Imports must not find a user's random.py next to the notebook. IPython puts the working
    # directory back once the kernel is up.
    if not sys.flags.safe_path and sys.path and sys.path[0] in {"", os.getcwd()}:  # noqa: PTH109
        del sys.path[0]

    if sys.argv[1:2] == ["--template"]:
        from snakepit_kernel.kernel.template_main import main

        sys.exit(main(sys.argv[2:]))

    from snakepit_kernel.processes.tags import is_guarded

    if sys.platform == "linux" and not is_guarded(sys.argv):
        from snakepit_kernel.kernel.launcher import run_guarded

        sys.exit(run_guarded())

    from snakepit_kernel.kernel.app import run

    run(sys.argv[1:])
