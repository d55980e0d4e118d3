"""Starts the command line: `python -m makemore_pl`."""

import os
import signal


def main() -> None:
    """Runs the command line; the seconds of its imports end at once on Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    # Threads that wait for each other sleep, and leave the core to other work; torch looks for it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from makemore_pl.commands import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
