"""What `fit` and `lr_find` take where a flag is omitted."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from makemore_pl.commands.messages import say
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.defaults import Figures, choose


def fit_to_list(data: NamesDataModule, options: Namespace, given: Mapping[str, Any]) -> None:
    """Chooses what the user has not given from the size of the list, and prints it.

    A recipe is complete: with `--config` nothing is chosen. Neither is it for a list in pieces, which is read once.

    Args:
        data: the list.
        options: of the command, which config.yaml keeps.
        given: the flags of the user among them.
    """
    if given.get("config") or data.in_pieces:
        return
    counts = data.count("train", together=False)["train"]
    chosen = choose(Figures(int(counts.n.sum()), len(counts), counts.vocab_size))
    if any(f"data.{name}" in given for name in ("counted", "replacement")):
        chosen.pop("data.batch_size", None)
    chosen = {flag: value for flag, value in chosen.items() if flag not in given}
    if not chosen:
        return
    for flag, value in chosen.items():
        options[flag] = value
    data.hparams.update({flag.removeprefix("data."): value for flag, value in chosen.items() if flag[:5] == "data."})
    data.hparams["counted"] = data.takes_all and data.hparams["counted"]
    say(f"chosen for this list: {' '.join(f'--{flag} {value}' for flag, value in chosen.items())}")
