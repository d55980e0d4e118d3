"""Checks of options: each by itself, those of a model against its data, and those of a run against its checkpoint."""

from collections.abc import Mapping
from typing import Any, get_args

from makemore_pl.terminal import brief


def require_sizes(**sizes: int | None) -> None:
    """Checks that sizes, where they are given, are 1 or more.

    Raises:
        ValueError: if one is not; it names the option.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}: expected 1 or more")


def require_choice(name: str, choice: str, choices: Any) -> None:
    """Checks that an option is one of the words of a `Literal`.

    Raises:
        ValueError: if not; it names them.
    """
    if choice not in get_args(choices):
        raise ValueError(f"{name} is {choice}: expected {' or '.join(get_args(choices))}")


def require_fit(model: Any, data: Any) -> None:
    """Checks that data, if there is any, has the block size and the characters of an MLP.

    Raises:
        ValueError: if not; it names both.
    """
    hparams = getattr(data, "hparams", {})
    pairs = {
        "block_size": (model.block_size, hparams.get("block_size")),
        "vocabulary": (model.vocabulary.characters, getattr(getattr(data, "vocabulary", None), "characters", None)),
    }
    for name, (ours, theirs) in pairs.items():
        if theirs not in (None, ours):
            raise ValueError(f"the model's {name} is {brief(ours, theirs)}, that of the data {brief(theirs, ours)}")


def require_same_run(model: Any, checkpoint: Mapping[str, Any]) -> None:
    """Holds a resumed MLP to its alphabet, and to blocks of updates or none.

    Raises:
        ValueError: if one is another.
    """
    theirs, ours = checkpoint["hyper_parameters"]["vocabulary"], model.hparams["vocabulary"]
    if theirs != ours:
        raise ValueError(
            f"the checkpoint's characters are {brief(theirs, ours)}, those of the list {brief(ours, theirs)}"
        )
    before = checkpoint.get("datamodule_hyper_parameters", {}).get("steps_per_execution", 1)
    if "loops" in checkpoint and (before == 1) != model.automatic_optimization:
        raise ValueError(f"steps_per_execution: the checkpoint has {before}; a run keeps to blocks, or to none")
