"""A word list -> batches: reads it, holds its windows as tensors on the device, hands them out.

Over 300 lines: a third of it documents the options.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.distributed import all_gather_object

from makemore_pl.batches import Batches
from makemore_pl.checkpoint import make, read, refuse_url
from makemore_pl.comparison import CONTEXTS_AT_ONCE, Mixture
from makemore_pl.memory import require_memory
from makemore_pl.ngram import NGram, smooth
from makemore_pl.sampling import NextLogits, Sampler
from makemore_pl.vocabulary import Vocabulary
from makemore_pl.windows import add_counts, build_windows, count_words
from makemore_pl.wordlist import Normalization, hash_words, read_pieces, read_words, shipped, split_words

FULL_STEPS = 25
"""Updates in an epoch where each takes all windows: a pass over them is no more than one update."""

EVALUATION_ROWS = 2**15
"""Contexts per batch of validation and test: large enough for speed, small enough for any memory."""


SPLIT = ["path", "num_words", "normalization", "split", "unique", "split_seed", "train_fraction", "val_fraction"]
"""The hyperparameters that decide which words are trained on."""

STREAM = "<stdin>"
"""What a checkpoint keeps as the path of a list that was read from a pipe and cannot be read again."""


def is_stream(path: Path) -> bool:
    """Whether a list can be read once only: stdin (`-`), a pipe, a device."""
    if str(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/")):
        return True  # also where they lead to a file: in another process, they lead elsewhere
    return str(path) in ("-", STREAM) or (path.exists() and not path.is_file() and not path.is_dir())


def require_same_split(path: str, ours: Mapping[str, Any]) -> None:
    """Refuses a checkpoint trained on other words: some of them would pass for unseen ones.

    Lists are known by their paths: one that has changed meanwhile is not noticed.

    Raises:
        ValueError: if it is one, or that cannot be verified.
    """
    theirs = read(path).get("datamodule_hyper_parameters", {})
    if STREAM in (theirs.get("path"), ours["path"]):
        raise ValueError(
            f"{path}: cannot verify that it was trained on the same split: a word list came from stdin; pass a file"
        )
    for name in SPLIT:
        if theirs.get(name) != ours[name]:
            raise ValueError(f"{path}: trained on other words: its {name} is {theirs.get(name)}, not {ours[name]}")


def next_batch(trainer: Trainer, loader: Batches) -> int:
    """The batch that comes next, of all batches of a run: a function of the steps that its optimizer took.

    Where the gradients of several batches are accumulated, Lightning takes a step at the end of an epoch, too.
    """
    length = min(loader.steps_per_epoch, int(trainer.num_training_batches) * loader.steps_per_execution)
    epoch, step = divmod(trainer.global_step, math.ceil(length / trainer.accumulate_grad_batches))
    start = 0 if trainer.overfit_batches else epoch * length  # type: ignore[attr-defined]
    return start + step * trainer.accumulate_grad_batches


class NamesDataModule(LightningDataModule):
    """Turns a list of words into windows.

    Args:
        path: a list of words, one a line, in UTF-8; `-` for stdin; the 32,033 names of names.txt if omitted.
        normalization: the Unicode form that words are put into, so that letters which look the same are the same:
            `NFC` has é as one character; `none` leaves words as they are.
        max_word_length: characters that a word may have.
        num_words: use only the first N words of the list; all if omitted.
        vocabulary: the characters, sorted, in one string; those of the list if omitted.
        block_size: T, how many characters a context holds.
        counted: collapse equal contexts into one row that counts what came next: the same loss and gradient
            at a fraction of the cost. If false, one row per window, as in the notebook. If omitted, true
            unless a batch size is given.
        batch_size: windows per training step; all of them if omitted.
        replacement: draw each window of a batch anew, as the notebook does, instead of every one once per pass.
        steps_per_epoch: updates in an epoch, after which the Trainer validates and saves; if omitted, one pass over the
            windows, or 25 updates where each takes all windows.
        steps_per_execution: updates that the Trainer takes as one batch; callbacks run once per block. Above 1 it saves
            the Trainer's own work where batches are small: the lecture's 32 windows take 500.
        train_fraction: the share of words to train on.
        val_fraction: the share to validate on; what is left is for the test. With 0, validation runs on
            the training words.
        split: `shuffled`, as in the lecture; or `hashed`: a hash of its characters decides about each word, so that
            equal words stay together and no process need hold the list: counted in pieces, it may be of any length.
        unique: shuffle the distinct words, so that equal words stay together; the lecture has some in train and val.
        split_seed: random seed for the split.
        smoothing: the share of each training target that is what Kneser-Ney counting expects to come next, in place
            of what came; train/loss is then measured against such targets.
        teacher: a checkpoint of a larger network that learnt from the same words; half of what is expected is then
            what it expects (Hinton et al. 2015, "Distilling the knowledge in a neural network").
        order_seed: random seed for the order of batches.

    Raises:
        ValueError: if the list cannot be used, a size or share is out of range, `counted` meets a batch size, or there
            is a teacher without smoothing.
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
    ) -> None:
        super().__init__()
        sizes = {"num_words": num_words, "block_size": block_size, "batch_size": batch_size}
        sizes |= {"steps_per_epoch": steps_per_epoch, "steps_per_execution": steps_per_execution}
        for name, size in [*sizes.items(), ("max_word_length", max_word_length)]:
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}: expected 1 or more")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing is {smoothing:g}: expected a share from 0 to 1")
        if teacher is not None:
            if not smoothing:
                raise ValueError("smoothing is 0: expected more than 0 where there is a teacher (null for none)")
            refuse_url(teacher)
            teacher = str(Path(teacher).absolute())
        if counted and (batch_size or replacement):
            raise ValueError(
                "counted goes with all rows at once: in a part of them, rare contexts would weigh as much as frequent "
                "ones; leave out counted, or batch_size and replacement"
            )
        if counted is None:
            counted = not (batch_size or replacement)
        self.source = Path(path or shipped("names.txt"))
        self.is_stream = is_stream(self.source)
        if path is not None:  # the checkpoint keeps it, and may be used from another folder
            path = STREAM if self.is_stream else str(Path(path).absolute())
        # Kept for validate and test; not logged, since model and data share keys.
        self.save_hyperparameters(logger=False)
        self.tensors: dict[str, tuple[Tensor, Tensor]] = {}
        self.counts: dict[str, tuple[Tensor, Tensor]] = {}
        self.teacher: NextLogits | None = None
        self.changed: Counter[str] = Counter()  # what of the list was not taken as it stands
        if self.in_pieces and self.is_stream:
            raise ValueError(f"{self.source}: a list in pieces is read more than once, so it must be a file")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        weights_only: Literal[True] = True,
        **hparams: Any,
    ) -> Self:
        """Makes the data that a checkpoint was trained on, but for what is given. No code runs from the file.

        Raises:
            ValueError: if it is not a checkpoint of this project, or broken.
        """
        if not weights_only:
            raise ValueError("weights_only is False: expected True, as no code is run from a file")
        checkpoint = read(checkpoint_path)
        return make(cls, checkpoint_path, checkpoint.get("datamodule_hyper_parameters", {}), hparams)

    @property
    def _path(self) -> Path:
        if str(self.source) == STREAM:
            raise ValueError("the list of this run came from stdin, which is read once: name a file with --data.path")
        return self.source

    @property
    def _rules(self) -> dict[str, Any]:
        return {name: self.hparams[name] for name in ("normalization", "max_word_length")}

    @cached_property
    def _list(self) -> list[str]:
        return read_words(self._path, **self._rules, changed=self.changed)

    @property
    def words(self) -> list[str]:
        """The words in use, in the order of the list."""
        num_words = self.hparams["num_words"]
        return self._list if num_words is None else self._list[:num_words]

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """The words of `train`, `val` and `test`."""
        return self._split(self.words)

    def _split(self, words: list[str]) -> dict[str, list[str]]:
        hparams = self.hparams
        how = {"shuffled": split_words, "hashed": hash_words}[hparams["split"]]
        copies = Counter(words) if hparams["unique"] and hparams["split"] == "shuffled" else Counter[str]()
        parts = how(list(copies) or words, hparams["train_fraction"], hparams["val_fraction"], hparams["split_seed"])
        train, val, test = ([copy for word in part for copy in [word] * (copies[word] or 1)] for part in parts)
        return {"train": train, "val": val if hparams["val_fraction"] else train, "test": test}

    def where(self, words: Iterable[str]) -> list[str]:
        """Returns the split that each word is in: `train`, `val` or `test`, the first that has it, or `new`."""
        words = list(words)
        if not self.in_pieces:
            return [self._places.get(word, "new") for word in words]
        wanted, found = set(words), set[str]()
        for piece in read_pieces(self._path, **self._rules):
            found |= wanted.intersection(piece)
        places = self._by_word(self._split(list(found)))
        return [places.get(word, "new") for word in words]

    @cached_property
    def _places(self) -> dict[str, str]:
        try:
            return self._by_word(self.splits)
        except ValueError:  # too few to split: names are compared with all of them
            return dict.fromkeys(self.words, "train")

    @staticmethod
    def _by_word(splits: dict[str, list[str]]) -> dict[str, str]:
        return {word: split for split in ("test", "val", "train") for word in splits[split]}

    def unseen(self, split: str) -> list[str] | None:
        """The words of a split that are not in train; None where no word can be in both."""
        if self.hparams["unique"] or self.hparams["split"] == "hashed":
            return None
        train = set(self.splits["train"])
        return [word for word in self.splits[split] if word not in train]

    @property
    def in_pieces(self) -> bool:
        """Whether the list is read piece by piece and never held."""
        return self.hparams["split"] == "hashed" and self.hparams["counted"] and self.hparams["num_words"] is None

    @property
    def takes_all(self) -> bool:
        """Whether each training step takes all windows."""
        return self.hparams["batch_size"] is None and not self.hparams["replacement"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The characters of the whole list, also where few of its words are in use, or those that were given."""
        given = self.hparams["vocabulary"]
        if given is not None:
            return Vocabulary(given)
        pieces = read_pieces(self._path, **self._rules, changed=self.changed) if self.in_pieces else [self._list]
        characters: set[str] = set().union(*(set("".join(piece)) for piece in pieces))
        if not characters:
            raise ValueError(f"{self._path}: no words in this list; expected one a line")
        return Vocabulary.from_words(characters)

    def setup(self, stage: str) -> None:
        """Builds the tensors of the splits that the stage needs, on the Trainer's device where there is one."""
        splits = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}.get(stage, [])
        # Evaluation needs no order, so it always takes the counted form: the same figures, sooner.
        windows, smoothing = "train" in splits and not self.hparams["counted"], self.hparams["smoothing"]
        views = self.count(*(split for split in splits if split != "train" or not windows or smoothing))
        if windows:
            views["train"] = self.view("train", counted=False)
        if "train" in splits and smoothing:
            X, Y = views["train"]
            require_memory(40 * len(X) * len(self.vocabulary), "targets smoothed by counting")
            views["train"] = X, smooth(Y, self._expect(X), smoothing)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self.tensors |= {split: (X.to(device), Y.to(device)) for split, (X, Y) in views.items()}

    def learn_from(self, teacher: NextLogits, vocabulary: Vocabulary, block_size: int) -> None:
        """Hands in the network of the checkpoint that `teacher` names, before the data is set up.

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
                raise ValueError(f"teacher {path}: its {name} is {found[name]!r}, and that of the data {ours!r}")
        require_same_split(path, self.hparams)
        self.teacher = teacher

    def _expect(self, X: Tensor) -> Tensor:
        """Computes the probabilities (N, V) of what comes after contexts (N, T), by counting and a teacher."""
        expected: NextLogits = NGram(*self.counts["train"])
        if (path := self.hparams["teacher"]) is not None:
            if self.teacher is None:
                raise ValueError(f"teacher {path}: load its network and hand it in with learn_from")
            expected = Mixture(self.teacher, expected, 0.5)
        with torch.no_grad():
            return torch.cat([expected(x).exp() for x in torch.split(X, CONTEXTS_AT_ONCE)])

    @property
    def _place(self) -> tuple[int, int]:
        """This process among all: its rank and their number."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def count(self, *splits: str, together: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
        """Counts the windows of some splits, each once.

        Args:
            splits: of `train`, `val` and `test`.
            together: all processes of a run call this, each counts its share of the words, and they add up; if false,
                this process counts all.

        Returns:
            For each split what `count_windows` gives.

        Raises:
            ValueError: if a split has no words, or a word a character that the vocabulary does not know.
        """
        missing = [split for split in splits if split not in self.counts]
        if missing:
            self.counts |= self._count(missing, *(self._place if together else (0, 1)))
        return {split: self.counts[split] for split in splits}

    def _count(self, splits: list[str], rank: int, world_size: int) -> dict[str, tuple[Tensor, Tensor]]:
        counted: Any
        try:
            pieces: Iterable[dict[str, list[str]]]
            if self.in_pieces:
                pieces = map(self._split, read_pieces(self._path, rank, world_size, **self._rules))
            else:
                pieces = [{split: self.splits[split][rank::world_size] for split in splits}]
            V, T = len(self.vocabulary), self.hparams["block_size"]
            counted = {split: (torch.empty(0, T).long(), torch.empty(0, V).long()) for split in splits}
            for piece in pieces:
                for split in splits:
                    part = count_words(piece[split], self.vocabulary, T)
                    counted[split] = add_counts(counted[split], part)
        except ValueError as error:
            counted = error  # all processes shall end with it, and none wait for this one
        if world_size > 1:
            everyone = [counted] * world_size
            all_gather_object(everyone, counted)
        else:
            everyone = [counted]
        for counted in everyone:
            if isinstance(counted, ValueError):
                raise counted
        totals = {split: reduce(add_counts, (counted[split] for counted in everyone)) for split in splits}
        for split, (X, _) in totals.items():
            self._require(split, len(X))
        return totals

    def _require(self, split: str, size: int) -> None:
        if not size:
            raise ValueError(f"no words in the {split} split: give it a larger share, or more words")

    def view(self, split: str, counted: bool) -> tuple[Tensor, Tensor]:
        """Builds one split.

        Args:
            split: `train`, `val` or `test`.
            counted: which of the two forms.

        Returns:
            X (N, T) int64 and Y (N,) int64, or counted X (M, T) int64 and Y (M, V) int64.

        Raises:
            ValueError: if the split has no words, or a word a character that the vocabulary does not know.
        """
        if counted:
            return self.count(split, together=False)[split]
        self._require(split, len(self.splits[split]))
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
        """Twenty names: `Trainer.predict(model, data)` draws them. A `Sampler` of one's own goes in instead of data."""
        return Sampler()

    def _evaluation(self, split: str) -> Batches:
        rank, world_size = self._place
        return Batches(self.tensors[split], EVALUATION_ROWS, rank=rank, world_size=world_size)
