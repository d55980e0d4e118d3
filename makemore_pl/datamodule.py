"""A word list -> batches: reads it, keeps its windows as tensors on the device, hands them out.

Over 300 lines: a fifth of it documents the options.
"""

import math
from collections.abc import Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.distributed import all_gather_object

from makemore_pl.batches import Batches
from makemore_pl.checkpoint import FromCheckpoint, refuse_url
from makemore_pl.comparison import Mixture
from makemore_pl.memory import require_memory
from makemore_pl.ngram import NGram, Smoothed
from makemore_pl.options import require_sizes
from makemore_pl.pieces import require_column, require_encoding
from makemore_pl.sampling import NextLogits, Sampler
from makemore_pl.split import WordList
from makemore_pl.terminal import brief
from makemore_pl.trained_on import TrainedOn
from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import WORDS_PER_PART, Counts, add_counts, build_windows, count_words, rows_at_once
from makemore_pl.wordlist import Normalization, recorded, shipped

FULL_STEPS = 25
"""Updates in an epoch if each takes all windows: a pass over them would be one update."""

CELLS_HELD = 2**25
"""Up to this number, N windows x V characters, smoothed targets are computed once: 128 MB; beyond, batch by batch."""


def next_batch(trainer: Trainer, loader: Batches) -> int:
    """Computes the number of the next batch, among all batches of a run, from the steps that its optimizer took.

    If the gradients of several batches are accumulated, Lightning also takes a step at the end of an epoch.
    """
    length = min(loader.steps_per_epoch, int(trainer.num_training_batches) * loader.steps_per_execution)
    epoch, step = divmod(trainer.global_step, math.ceil(length / trainer.accumulate_grad_batches))
    start = 0 if trainer.overfit_batches else epoch * length  # type: ignore[attr-defined]
    return start + step * trainer.accumulate_grad_batches


class NamesDataModule(TrainedOn, FromCheckpoint, LightningDataModule):  # type: ignore[misc]
    """Turns a list of words into windows.

    Args:
        path: a list of words, one a line; `-` for stdin; the 32,033 names of names.txt if omitted.
        num_words: use only the first N words of the list; all if omitted.
        vocabulary: the characters, sorted, in one string; those of the list if omitted.
        block_size: T, the number of characters in a context.
        counted: collapse equal contexts into one row that counts what came next: the same loss and gradient
            at a fraction of the cost. If false, one row per window, as in the notebook. If omitted, true
            unless there is a batch size.
        batch_size: windows per training step; all windows if omitted.
        replacement: draw the windows of a batch with replacement, as the notebook does, instead of each once per pass.
        steps_per_epoch: updates in an epoch, after which the Trainer validates and saves; if omitted, one pass over the
            windows, or 25 updates if each takes all windows.
        steps_per_execution: updates that the Trainer takes as one batch; callbacks run once per block. Above 1, it
            saves the Trainer's own work where batches are small: 500 for the lecture's 32 windows.
        train_fraction: the share of the words to train on.
        val_fraction: the share to validate on; the rest is for the test. With 0, validation runs on the training words.
        split: `shuffled`, as in the lecture; or `hashed`, by a hash of each word, so that equal words stay together
            and no process has to hold the list: it is counted in pieces and may have any length.
        unique: shuffle the distinct words, so that equal words stay together; in the lecture some are in train and val.
        split_seed: random seed for the split.
        smoothing: the share of each training target that is the prediction of Kneser-Ney counting instead of the
            character that came next; train/loss is then measured against such targets.
        teacher: a checkpoint of a larger network, trained on the same words; its prediction is then half of that
            share (Hinton et al. 2015, "Distilling the knowledge in a neural network").
        order_seed: random seed for the order of batches.
        normalization: the Unicode form that words are put into, so that letters that look the same are the same:
            `NFC` has é as one character; `none` leaves words as they are.
        max_word_length: the most characters of a word.
        encoding: of the list, such as latin-1, cp1252 or utf-16. A byte order mark of UTF-8 is dropped.
        column: where the list is a table, the column of the words: its name in the first row, or, without such a row,
            its number, from 1 on. Tabs, commas or semicolons separate columns, by the first row; tabs in .tsv files.
        skip_bad_lines: omit lines that cannot be used, and say how many; otherwise an error names the first three.
        other_words: resume or evaluate on words other than those of the checkpoint, some of which it may have been
            trained on: the losses are then too low. Its later checkpoints keep a record of both for good.

    Raises:
        ValueError: if the list cannot be used, a size or share is out of range, `counted` is set with a batch size, or
            there is a teacher without smoothing.
    """

    def __init__(
        self,
        path: str | None = None,
        num_words: int | None = None,
        vocabulary: str | None = None,
        block_size: int = 3,
        counted: bool | None = None,
        batch_size: int | None = None,
        replacement: bool = False,
        steps_per_epoch: int | None = None,
        steps_per_execution: int = 1,
        train_fraction: float = 0.8,
        val_fraction: float = 0.1,
        split: Literal["shuffled", "hashed"] = "shuffled",
        unique: bool = False,
        split_seed: int = 42,
        smoothing: float = 0.0,
        teacher: str | None = None,
        order_seed: int = 2147483647,
        normalization: Normalization = "NFC",
        max_word_length: int = 1000,
        encoding: str = "utf-8",
        column: int | str | None = None,
        skip_bad_lines: bool = False,
        other_words: bool = False,
    ) -> None:
        super().__init__()
        require_sizes(num_words=num_words, block_size=block_size, batch_size=batch_size)
        require_sizes(steps_per_epoch=steps_per_epoch, steps_per_execution=steps_per_execution)
        require_sizes(max_word_length=max_word_length)
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing is {smoothing:g}: expected a share from 0 to 1")
        if teacher is not None:
            if not smoothing:
                raise ValueError("smoothing is 0: expected more than 0 with a teacher (null for none)")
            refuse_url(teacher)
            teacher = str(Path(teacher).absolute())
        if counted and (batch_size or replacement):
            raise ValueError(
                "counted needs all rows at once: in a batch of some, rare contexts would weigh as much as frequent "
                "ones; omit counted, or batch_size and replacement"
            )
        if counted is None:
            counted = not (batch_size or replacement)
        if path is not None:
            refuse_url(path)
        source, path = Path(path or shipped("names.txt")), path and recorded(path)
        require_encoding(encoding)
        require_column(column)
        # Saved for validate and test; not logged, since model and data share keys.
        self.save_hyperparameters(logger=False, ignore="other_words")
        self.list = WordList(
            source, in_pieces=split == "hashed" and counted and num_words is None, options=self.hparams
        )
        self.source, self.is_stream, self.changed = self.list.source, self.list.is_stream, self.list.changed
        self.tensors: dict[str, tuple[Tensor, Any]] = {}
        self.counts: dict[str, Counts] = {}
        self.teacher: NextLogits | None = None
        self.other_words = other_words

    @property
    def words(self) -> list[str]:
        """The words in use, in the order of the list."""
        return self.list.words

    @property
    def splits(self) -> dict[str, list[str]]:
        """The words of `train`, `val` and `test`."""
        return self.list.splits

    @property
    def in_pieces(self) -> bool:
        """Whether the list is read piece by piece and never held."""
        return self.list.in_pieces

    def where(self, words: Sequence[str]) -> list[str]:
        """Returns the split of each word: the first of `train`, `val` and `test` that has it, or `new`.

        Raises:
            ValueError: if the list cannot be read, or its words are not those of the checkpoint.
        """
        self.require_same_words()
        return self.list.where(words)

    def unseen(self, split: str) -> list[str] | None:
        """Returns the words of a split that are not in train; None if no word can be in both."""
        return self.list.unseen(split)

    @property
    def takes_all(self) -> bool:
        """Whether each training step takes all windows."""
        return self.hparams["batch_size"] is None and not self.hparams["replacement"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The characters that were given, or those of the whole list, even if only few of its words are in use."""
        given = self.hparams["vocabulary"]
        return Vocabulary.from_words(self.list.characters) if given is None else Vocabulary(given)

    def setup(self, stage: str) -> None:
        """Builds the tensors of the splits that the stage needs, on the device of the Trainer if there is one.

        Raises:
            ValueError: if the list cannot be used, or its words are not those of the checkpoint.
        """
        splits = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}.get(stage, [])
        if splits:
            self.require_same_words()
        # Evaluation needs no order, so it always takes the counted form: the same figures in less time.
        train_counts = self.hparams["counted"] or self.hparams["smoothing"]
        counts = self.count(*(split for split in splits if split != "train" or train_counts))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self.tensors |= {split: (own.contexts.to(device), own.to(device)) for split, own in counts.items()}
        if "train" in splits:
            X, Y = self._targets(device)
            self.tensors["train"] = X.to(device), Y.to(device) if isinstance(Y, Tensor) else Y

    def _targets(self, device: torch.device) -> tuple[Tensor, Any]:
        """Builds the contexts to train on and their targets, which are held, or made batch by batch."""
        counted, smoothing, V = self.hparams["counted"], self.hparams["smoothing"], len(self.vocabulary)
        Y: Any
        if counted:
            Y = self.counts["train"]
            X = Y.contexts
        else:
            X, Y = self.view("train", counted=False)
        if smoothing:
            Y = Smoothed(X, Y, self._expected(), V, smoothing, device)
        elif not counted:
            return X, Y
        if self.takes_all or len(X) * V <= CELLS_HELD:
            what = "targets smoothed by counting" if smoothing else f"the counts of {len(X):,} contexts"
            require_memory(20 * len(X) * V, what)
            rows = rows_at_once(V)
            Y = torch.cat([Y[start : start + rows] for start in range(0, len(X), rows)])
        return X, Y

    def learn_from(self, teacher: NextLogits, vocabulary: Vocabulary, block_size: int) -> None:
        """Takes the network of the checkpoint that `teacher` names; call it before `setup`.

        Args:
            teacher: contexts (B, T) int64 -> logits (B, V).
            vocabulary: of its V tokens.
            block_size: T.

        Raises:
            ValueError: if its characters, its block size or the words it was trained on are not those of this data.
        """
        path = self.hparams["teacher"]
        found = {"vocabulary": vocabulary.characters, "block_size": block_size}
        for name, ours in [("vocabulary", self.vocabulary.characters), ("block_size", self.hparams["block_size"])]:
            if found[name] != ours:
                raise ValueError(
                    f"teacher {path}: its {name} is {brief(found[name], ours)}, that of the data {brief(ours)}"
                )
        self.require_same_teacher(path)
        self.teacher = teacher

    def _expected(self) -> NextLogits:
        """Makes the prediction that smooths the targets: counting, and a teacher."""
        expected: NextLogits = NGram(self.counts["train"])
        if (path := self.hparams["teacher"]) is not None:
            if self.teacher is None:
                raise ValueError(f"teacher {path}: load its network and pass it to learn_from")
            expected = Mixture(self.teacher, expected, 0.5)
        return expected

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def count(self, *splits: str, together: bool = True) -> dict[str, Counts]:
        """Counts the windows of some splits, each split once.

        Args:
            splits: of `train`, `val` and `test`.
            together: all processes of the run call this; each counts its share of the words, and the counts are added.
                If false, this process counts all words.

        Raises:
            ValueError: if a split has no words, or a word a character that is not in the vocabulary.
        """
        missing = [split for split in splits if split not in self.counts]
        if missing:
            self.counts |= self._count(missing, *(self._place if together else (0, 1)))
        return {split: self.counts[split] for split in splits}

    def _count(self, splits: list[str], rank: int, world_size: int) -> dict[str, Counts]:
        found: Any
        try:
            found = self._count_share(splits, rank, world_size)
        except ValueError as error:
            found = error  # sent to all processes, which raise it together: none waits for this one
        everyone = [found] * world_size
        if world_size > 1:
            all_gather_object(everyone, found)
        for found in everyone:
            if isinstance(found, ValueError):
                raise found
        totals = {split: reduce(add_counts, (found[split] for found in everyone)) for split in splits}
        for split, counts in totals.items():
            self._require(split, len(counts))
        return totals

    def _count_share(self, splits: list[str], rank: int, world_size: int) -> dict[str, Counts]:
        V, T = len(self.vocabulary), self.hparams["block_size"]
        counted = {split: Counts.empty(T, V) for split in splits}
        for piece in self.list.share(rank, world_size):
            for split in splits:
                self._require_memory(piece[split][:WORDS_PER_PART])
                counted[split] = add_counts(counted[split], count_words(piece[split], self.vocabulary, T))
        return counted

    def _require(self, split: str, size: int) -> None:
        if not size:
            raise ValueError(f"no words in the {split} split: give it a larger share, or more words")

    def _require_memory(self, words: list[str]) -> None:
        """Refuses windows that would not fit into memory."""
        T = self.hparams["block_size"]
        require_memory(8 * T * (sum(map(len, words)) + len(words)), f"windows of {T:,} characters")

    def view(self, split: str, counted: bool) -> tuple[Tensor, Tensor]:
        """Builds one split.

        Args:
            split: `train`, `val` or `test`.
            counted: whether equal contexts are collapsed.

        Returns:
            X (N, T) int64 and Y (N,) int64, or counted X (M, T) int64 and Y (M, V) int64.

        Raises:
            ValueError: if the split has no words, or a word a character that is not in the vocabulary.
        """
        if counted:
            counts = self.count(split, together=False)[split]
            require_memory(8 * len(counts) * counts.vocab_size, f"the counts of {len(counts):,} contexts")
            return counts.contexts, counts[:]
        self._require(split, len(self.splits[split]))
        self._require_memory(self.splits[split])
        return build_windows(self.splits[split], self.vocabulary, self.hparams["block_size"])

    def train_dataloader(self) -> Batches:
        hparams = self.hparams
        order = hparams["batch_size"], hparams["order_seed"], hparams["replacement"]
        steps = hparams["steps_per_epoch"] or (FULL_STEPS if self.takes_all else None), hparams["steps_per_execution"]
        loader = Batches(self.tensors["train"], *order, *self._place, *steps)
        if self.trainer is not None:
            trainer = self.trainer
            loader.next_update = lambda: next_batch(trainer, loader)
            loader.max_steps = lambda: trainer.max_steps
        return loader

    def val_dataloader(self) -> Batches:
        return self._evaluation("val")

    def test_dataloader(self) -> Batches:
        return self._evaluation("test")

    def predict_dataloader(self) -> Sampler:
        """Has `Trainer.predict(model, data)` draw twenty names; pass another `Sampler` instead of the data."""
        return Sampler()

    def _evaluation(self, split: str) -> Batches:
        rank, world_size = self._place
        rows = rows_at_once(len(self.vocabulary))
        return Batches(self.tensors[split], rows, rank=rank, world_size=world_size)
