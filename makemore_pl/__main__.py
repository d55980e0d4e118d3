"""Starts the command line: `python -m makemore_pl`."""

import gc
import os

from makemore_pl.process import end_with_parent, keep_freed_memory, stop_on_signals


def main() -> None:
    """Runs the command line. What has to come before the imports, which take seconds, is done here."""
    end_with_parent()
    stop_on_signals()
    keep_freed_memory()
    # Threads that wait sleep, and leave the core to other work; torch reads this variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # collecting garbage during the imports would take a second
    from makemore_pl import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
