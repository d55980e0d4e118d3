"""Records of the words that weights were trained on, so that none of them passes for an unseen word.

A checkpoint keeps them. A run that resumes on other words adds a record, so they name every split that the weights saw.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from makemore_pl.checkpoint import read
from makemore_pl.wordlist import STREAM

SPLIT = ["num_words", "split", "unique", "split_seed", "train_fraction", "val_fraction"]
"""The hyperparameters of a NamesDataModule that decide which words of a list are trained on."""

KEY = "trained_on"
"""The key of the records in the state of a NamesDataModule."""

Record = dict[str, Any]
"""The hyperparameters of a split, the `path` of its list, and the `digest` of its words; None if they were not read."""


def record(hparams: Mapping[str, Any], digest: str | None) -> Record:
    """Makes the record of a NamesDataModule with these hyperparameters."""
    return {name: hparams[name] for name in [*SPLIT, "path"] if name in hparams} | {"digest": digest}


def find_records(path: str, checkpoint: Mapping[str, Any]) -> list[Record]:
    """Returns the records in a checkpoint.

    One of an older version has no digest, and may lack hyperparameters; one without data gives an empty list.

    Raises:
        ValueError: if they have another form; it names `path`, the file.
    """
    states = [state for state in checkpoint.values() if isinstance(state, dict) and KEY in state]
    if not states:
        hparams = checkpoint.get("datamodule_hyper_parameters")
        return [record(hparams, None)] if hparams else []
    found = states[0][KEY]
    for each in found if isinstance(found, list) else [None]:
        if not (
            isinstance(each, dict)
            and {"digest"} <= each.keys() <= {*SPLIT, "path", "digest"}
            and all(isinstance(value, str | int | float | None) for value in each.values())
        ):
            raise ValueError(f"{path}: not a checkpoint of makemore_pl: its record of words has another form")
    return list(found)


def read_records(path: str) -> list[Record]:
    """Reads the records of a checkpoint.

    Raises:
        ValueError: if it has none, or is not a checkpoint of this project.
    """
    found = find_records(path, read(path))
    if not found:
        raise ValueError(f"{path}: cannot verify that it was trained on the same split: it has no record of its words")
    return found


def difference(theirs: Sequence[Record], ours: Record) -> str | None:
    """Says in which way any of their words differ from ours; None if all are the same words.

    If our list was not read, only the hyperparameters are compared; if theirs has no digest, the paths of the lists.
    """
    for each in theirs:
        compared = "path" if each["digest"] is None else "digest"
        names = [name for name in SPLIT if name in each] + [compared] * (ours["digest"] is not None)
        name = next((name for name in names if each.get(name) != ours[name]), None)
        if name == "digest":
            return f"trained on another list than {ours['path'] or 'names.txt'}, or on what it was before it changed"
        if "path" in names and STREAM in (each.get("path"), ours["path"]):
            return "cannot verify that it was trained on the same split: a word list came from stdin"
        if name is not None:
            return f"trained on other words: its {name} is {each.get(name)!a}, not {ours[name]!a}"
    return None


def require_same_split(path: str, ours: Sequence[Record]) -> None:
    """Refuses to average a checkpoint with networks that were trained on other words.

    Args:
        path: the checkpoint.
        ours: the records of the others.

    Raises:
        ValueError: if the words differ, or that cannot be verified.
    """
    theirs = read_records(path)
    for each in ours:
        if (why := difference(theirs, each)) is not None:
            raise ValueError(f"{path}: {why}; average networks trained on the same words")


class TrainedOn:
    """Gives a data module the records of a checkpoint, and compares its words with them."""

    hparams: Any
    list: Any
    trainer: Any
    other_words = False
    checkpoint = ""
    trained_on: Sequence[Record] = ()  # the words that the weights of the checkpoint were trained on

    def continue_from(self, path: str | Path, checkpoint: Mapping[str, Any]) -> None:
        """Takes the records of the words that a checkpoint was trained on, for `require_same_words`.

        Args:
            path: of the checkpoint, for the errors.
            checkpoint: its content.

        Raises:
            ValueError: if its records have another form.
        """
        self.checkpoint, self.trained_on = str(path), find_records(str(path), checkpoint)

    def difference(self, reads: bool = True) -> str | None:
        """Says in which way the words of the checkpoint differ from these; None if there is no difference.

        Args:
            reads: whether to read the list and compare its words; if not, the hyperparameters are compared.
        """
        return difference(self.trained_on, record(self.hparams, self.list.digest if reads else None))

    def require_same_words(self, reads: bool = True) -> None:
        """Refuses words other than those of the checkpoint, if there is one, unless `other_words` is set.

        Raises:
            ValueError: if the words differ, or that cannot be verified.
        """
        if self.trained_on and not self.other_words and (why := self.difference(reads)) is not None:
            raise ValueError(f"{self.checkpoint}: {why}; keep its words, or accept others with --data.other_words")

    def state_dict(self) -> dict[str, Any]:
        """Returns the records of all words that the weights were trained on."""
        ours = record(self.hparams, self.list.digest)
        return {KEY: [*(each for each in self.trained_on if difference([each], ours)), ours]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from the checkpoint of this state.

        Raises:
            ValueError: if it was trained on other words.
        """
        self.continue_from(self.trainer.ckpt_path or "the checkpoint", {"": state_dict})
        self.require_same_words()

    def require_same_teacher(self, path: str) -> None:
        """Refuses a teacher that was trained on other words.

        Raises:
            ValueError: if they differ, or that cannot be verified.
        """
        if (why := difference(read_records(path), record(self.hparams, self.list.digest))) is not None:
            raise ValueError(f"teacher {path}: {why}; take a teacher that was trained on the same words")
