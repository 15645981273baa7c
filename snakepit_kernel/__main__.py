"""Run the command line: ``python -m snakepit_kernel``."""

from snakepit_kernel.cli import main

if __name__ == "__main__":
    main()
