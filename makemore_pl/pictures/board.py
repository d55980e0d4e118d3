"""What a run learns, in TensorBoard: pictures, names, histograms and charts at a few steps."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from makemore_pl.comparison import loss
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.ngram import NGram
from makemore_pl.optimization import updates
from makemore_pl.pictures import figures
from makemore_pl.pictures.alphabet import most_frequent, visible
from makemore_pl.windows import Counts

NAMES = 10
"""Names sampled at each drawing."""

ROWS = 200
"""Contexts in the picture of the hidden layer."""

FURTHER = 5
"""A drawing comes at this many times the step of the last one, so a run of any length has a few."""

LAYOUT = {"loss": {"loss": ["Multiline", ["train/loss$", "val/loss$", "val/loss_kneser_ney$"]]}}
"""The tab "Custom scalars": a chart of three curves, named by regular expressions."""

COLUMNS = ("batch_size", "embedding_dim", "hidden_size", "lr", "optimizer")
"""Options in the table of runs, as many as TensorBoard shows; config.yaml has them all."""

log = logging.getLogger(__name__)


def harmless(hook: Callable[..., None]) -> Callable[..., None]:
    """Makes a hook do nothing without a logger; after an error the run continues without pictures."""

    @functools.wraps(hook)
    def run(self: "Board", *arguments: Any) -> None:
        try:
            if self.logger is not None:
                hook(self, *arguments)
        except Exception as error:
            self.logger = None
            log.warning("pictures are off: %s", " ".join(f"{type(error).__name__}: {error}".split()))

    return run


class Board(Callback):
    """Writes pictures and figures of a run to its TensorBoard logger; for an MLP and a NamesDataModule.

    It draws before the first update, at the end, and at a few validations between. It works on a copy of the weights
    on the CPU and on no global random generator, so the training is the same with and without it.

    A picture at step N shows the weights after N updates.

    Args:
        recipe: the flags of the run as Markdown, its first text.
    """

    logger: Any = None  # None also with another logger, on other ranks, after an error

    def __init__(self, recipe: str = "") -> None:
        self.recipe = recipe

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the logger of the run."""
        ours = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        self.logger = ours[0] if ours and stage == "fit" and trainer.is_global_zero else None

    @harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, writes the layout of the charts, and draws the initial weights."""
        data: NamesDataModule = trainer.datamodule  # type: ignore[attr-defined]
        train, val = data.count("train"), data.count("val")
        assert isinstance(pl_module, MLP)
        self.still = type(pl_module)(**pl_module.hparams)
        self.points: Tensor | None = None
        self.characters = most_frequent(self.still.vocabulary, [train, val])
        self.contexts = frequent_contexts(val)
        self.rows = train.contexts[torch.linspace(0, len(train) - 1, min(ROWS, len(train))).long()].cpu()
        self.counting = loss(NGram(train), val)
        self.logger.experiment.add_custom_scalars(LAYOUT)
        self.logger.experiment.add_text("recipe", self.recipe, updates(trainer))
        self.draw(trainer, pl_module)

    @harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws if the step is several times that of the last drawing."""
        if not trainer.sanity_checking and updates(trainer) >= max(1, FURTHER * self.drawn):
            self.draw(trainer, pl_module)

    @harmless
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final weights, and writes the projector and the table of runs."""
        if updates(trainer) > self.drawn:
            self.draw(trainer, pl_module)
        C, vocabulary = self.still.C.detach().float(), self.still.vocabulary
        C = torch.cat([C, C.new_zeros(len(C), max(0, 3 - C.shape[1]))], dim=1)  # it shows nothing of less than three
        letters = [".", *map(visible, vocabulary.characters)]
        self.logger.experiment.add_embedding(
            C[self.characters], [letters[i] for i in self.characters], global_step=self.drawn, tag="C"
        )
        options = {**pl_module.hparams, **trainer.datamodule.hparams}  # type: ignore[attr-defined]
        val_loss = {name: value for name, value in trainer.callback_metrics.items() if name == "val/loss"}
        self.logger.log_hyperparams({name: options[name] for name in COLUMNS}, val_loss, self.drawn)

    def draw(self, trainer: Trainer, model: LightningModule) -> None:
        """Draws everything that depends on the weights."""
        writer, self.drawn, still = self.logger.experiment, updates(trainer), self.still
        still.load_state_dict(model.state_dict())
        when, C = f"step {self.drawn:,}", still.C.detach()
        with torch.no_grad():
            probabilities, h = torch.softmax(still(self.contexts), dim=1), still.hidden(self.rows)
        letters = figures.draw_letters(C, still.vocabulary, when, self.points, self.characters)
        self.points, _ = figures.flatten(C[self.characters], self.points)  # the next map is turned to this one
        following = figures.draw_next(probabilities, self.contexts.tolist(), still.vocabulary, when)
        writer.add_figure("pictures/letters", letters, self.drawn)
        writer.add_figure("pictures/next_character", following, self.drawn)
        writer.add_image("pictures/saturated", figures.saturated(h), self.drawn, dataformats="HW")
        writer.add_histogram("tanh/h", h, self.drawn)
        for name, weight in still.named_parameters():
            writer.add_histogram(f"weights/{name}", weight, self.drawn)
        writer.add_scalar("val/loss_kneser_ney", self.counting, self.drawn)
        names = still.sample(NAMES)  # the first that `predict` would print
        places = trainer.datamodule.where(names)  # type: ignore[attr-defined]
        # Four spaces before each line: Markdown then shows any character as it is.
        lines = [f"    {split:5}  {name}" for name, split in zip(names, places, strict=True)]
        writer.add_text("sampled_names", "\n".join(lines), self.drawn)


def frequent_contexts(counts: Counts) -> Tensor:
    """Finds the five most frequent contexts at the start of a word and the five inside: (10, T) int64 at most."""
    X, often = counts.contexts, counts.totals()
    starts = (X == 0).any(dim=1)
    picked = []
    for some in (starts, ~starts):
        rows = X[some]
        picked.append(rows[often[some].topk(min(5, len(rows))).indices])
    return torch.cat(picked).cpu()
