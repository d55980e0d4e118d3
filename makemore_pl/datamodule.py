"""A list of words -> batches: reads it, builds its windows as tensors on the device, hands them out."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from makemore_pl.batches import Batches
from makemore_pl.ngram import NGram, Smoothed
from makemore_pl.sampling import SEED, Sampler
from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import Counts, build_windows, count_words, rows_at_once
from makemore_pl.words import read_words, shipped, split_words

FULL_STEPS = 25  # updates in an epoch if each takes all windows: a pass over them would be one update


class NamesDataModule(LightningDataModule):
    """Turns a list of words into windows.

    Where an update takes all windows, equal contexts are collapsed into one row that counts what came next, which gives
    the same loss and gradient at a fraction of the cost. The order of batches depends on the model's seed alone.

    Args:
        path: a list of words, one a line; `-` for stdin; the 32,033 names of names.txt if omitted.
        num_words: use only the first N words of the list; all if omitted.
        vocabulary: the characters, sorted, in one string; those of the list if omitted.
        block_size: T, the number of characters in a context.
        batch_size: windows per update; all windows if omitted.
        replacement: draw the windows of a batch anew each time, as the notebook does, instead of each once per pass.
        steps_per_epoch: updates in an epoch, after which the Trainer validates and saves; if omitted, one pass over the
            windows, or 25 updates if each takes all windows.
        steps_per_execution: updates that the Trainer takes as one batch, a block: 500 saves most of the Trainer's own
            work where a batch is as small as the lecture's 32 windows. Only for the lecture's training: MLP's own
            network, sgd, replacement, one device, an end by epochs that this divides; all else takes single updates.
        train_fraction: the share of the words to train on.
        val_fraction: the share to validate on; the rest is for the test. With 0, validation runs on the training words.
        split_seed: random seed for the split.
        smoothing: the share of each training target that is the prediction of Kneser-Ney counting instead of the
            character that came next; train/loss is then measured against such targets.
        encoding: of the list, such as latin-1, cp1252 or utf-16.
        column: where the list is a table, the column of the words: its name in the first row, or its number, from 1 on.
            Tabs, commas or semicolons separate columns.

    Attributes:
        tensors: after `setup("fit")`, for `train` the contexts X (N, T) int64 and what came next: Y (N,) int64, or
            smoothed targets (N, V), made when they are indexed. If each update takes all windows, their M distinct
            contexts X (M, T) and counts or smoothed targets Y (M, V).

    Raises:
        ValueError: if the list cannot be used, or a size or share is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        num_words: int | None = None,
        vocabulary: str | None = None,
        block_size: int = 3,
        batch_size: int | None = None,
        replacement: bool = False,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        train_fraction: float = 0.8,
        val_fraction: float = 0.1,
        split_seed: int = 42,
        smoothing: float = 0.0,
        encoding: str = "utf-8",
        column: int | str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_words": num_words, "block_size": block_size, "batch_size": batch_size}
        sizes |= {"steps_per_epoch": steps_per_epoch, "steps_per_execution": steps_per_execution}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}: expected 1 or more")
        if replacement and batch_size is None:
            raise ValueError("replacement needs a batch_size")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing is {smoothing:g}: expected a share from 0 to 1")
        if path == "":
            raise ValueError("path is '': expected a list of words, one a line, or - for stdin")
        if path is not None and path != "-":
            path = str(Path(path).absolute())  # a checkpoint may be used in another folder
        self.save_hyperparameters()
        self.tensors: dict[str, tuple[Tensor, Any]] = {}
        self._counts: dict[str, Counts] = {}

    @property
    def hparams_initial(self) -> Any:
        """The options as loggers see them, as `data/batch_size`: apart from those of the model."""
        options = super().hparams_initial
        return type(options)({f"data/{name}": options[name] for name in options if not name.startswith("_")})

    @property
    def takes_all(self) -> bool:
        """Whether each update takes all windows."""
        return self.hparams["batch_size"] is None

    @cached_property
    def _list(self) -> list[str]:
        """All words of the list; a stream is read once and kept."""
        path = self.hparams["path"]
        return read_words(path or shipped("names.txt"), self.hparams["encoding"], self.hparams["column"])

    @property
    def words(self) -> list[str]:
        """The words in use, in the order of the list."""
        return self._list[: self.hparams["num_words"]]

    @cached_property
    def digest(self) -> str:
        """A hash of all words of the list, in order."""
        return hashlib.blake2b("\n".join(self._list).encode(), digest_size=16).hexdigest()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The given characters, or those of the whole list."""
        characters = self.hparams["vocabulary"]
        return Vocabulary.from_words(self._list) if characters is None else Vocabulary(characters)

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """The words of `train`, `val` and `test`."""
        options = (self.hparams[name] for name in ("train_fraction", "val_fraction", "split_seed"))
        train, val, test = split_words(self.words, *options)
        return {"train": train, "val": val if self.hparams["val_fraction"] else train, "test": test}

    @cached_property
    def _split_of(self) -> dict[str, str]:
        return {word: split for split in ("test", "val", "train") for word in self.splits[split]}

    def where(self, words: Sequence[str]) -> list[str]:
        """Returns the split of each word: the first of `train`, `val` and `test` that has it, or `new`."""
        return [self._split_of.get(word, "new") for word in words]

    def unseen(self, words: Sequence[str]) -> list[str]:
        """Returns those words that are not in train."""
        return [word for word, where in zip(words, self.where(words), strict=True) if where != "train"]

    def count(self, split: str) -> Counts:
        """Counts the windows of `train`, `val` or `test` once; each process counts them all."""
        if not self.splits[split]:
            raise ValueError(f"no words in the {split} split: give it a larger share, or add words")
        if split not in self._counts:
            self._counts[split] = count_words(self.splits[split], self.vocabulary, self.hparams["block_size"])
        return self._counts[split]

    @property
    def device(self) -> torch.device:
        """The device of the Trainer, where the examples stay."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def setup(self, stage: str) -> None:
        """Builds the examples to train on; a model with another block size or vocabulary is a ValueError."""
        model = None if self.trainer is None else self.trainer.lightning_module
        for name, ours in {"block_size": self.hparams["block_size"], "vocabulary": self.vocabulary}.items():
            if stage != "predict" and getattr(model, name, ours) != ours:
                raise ValueError(f"{name} of the model and of the data differ: set both alike")
        if stage != "fit":
            return
        Y: Any
        if self.takes_all:
            Y = self.count("train")
            X = Y.contexts
        else:
            X, Y = build_windows(self.splits["train"], self.vocabulary, self.hparams["block_size"])
        if share := self.hparams["smoothing"]:
            Y = Smoothed(X, Y, NGram(self.count("train")), len(self.vocabulary), share, self.device)
        if self.takes_all:
            rows = rows_at_once(len(self.vocabulary))
            Y = torch.cat([Y[start : start + rows] for start in range(0, len(X), rows)])
        self.tensors["train"] = X.to(self.device), Y.to(self.device) if isinstance(Y, Tensor) else Y

    def train_dataloader(self) -> Batches:
        options, model = self.hparams, None if self.trainer is None else self.trainer.lightning_module
        seed = SEED if model is None else model.hparams.get("seed", SEED)
        K, epoch = options["steps_per_execution"], options["steps_per_epoch"] or (FULL_STEPS if self.takes_all else 0)
        divided = options["replacement"] and not options["smoothing"] and epoch and epoch % K == 0
        if not divided or not getattr(model, "takes_blocks", False):
            K = 1
        return Batches(
            self.tensors["train"],
            options["batch_size"] or 0,
            seed=None if self.takes_all else seed,
            replacement=options["replacement"],
            steps_per_epoch=epoch,
            steps_per_execution=K,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> Batches:
        return self.loader("val")

    def test_dataloader(self) -> Batches:
        return self.loader("test")

    def loader(self, split: str) -> Batches:
        """Returns a loader of the counted windows of a split: the same loss and accuracy in less time."""
        counts = self.count(split).to(self.device)
        return Batches((counts.contexts, counts), rows_at_once(len(self.vocabulary)), trainer=self.trainer)

    def predict_dataloader(self) -> Sampler:
        """Has `Trainer.predict(model, data)` draw twenty names; pass another `Sampler` instead of the data."""
        return Sampler()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """Makes the data that a checkpoint was trained on, as Lightning does, but never executes code in the file."""
        return super().load_from_checkpoint(checkpoint_path, *args, **options | {"weights_only": True})

    def state_dict(self) -> dict[str, Any]:
        """Has checkpoints hold the digest, by which another list is noticed."""
        return {"digest": self.digest}
