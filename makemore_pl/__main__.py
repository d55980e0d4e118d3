"""Starts the command line: `python -m makemore_pl`."""

import os
import signal

from makemore_pl.commands.process import end_with_parent


def main() -> None:
    """Runs the command line; during the seconds of its imports Ctrl-C ends it at once."""
    end_with_parent()
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    # Waiting threads sleep and leave the core to other work; torch reads this variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from makemore_pl.commands import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
