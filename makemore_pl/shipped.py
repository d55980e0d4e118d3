"""Finds the files that come with the package: names.txt and the recipes."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Finds a file or folder that comes with the package: inside an installed one, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.with_name(name)


def recipes() -> dict[str, Path]:
    """Lists the recipes: their names, in alphabetical order, with their files."""
    return {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}
