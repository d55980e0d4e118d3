"""`python -m makemore_pl`."""

from makemore_pl.cli import main

if __name__ == "__main__":
    main()
