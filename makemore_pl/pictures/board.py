"""What a run learns, in TensorBoard: pictures, names, histograms and charts at a few steps."""

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

CHART = ["train/loss$", "val/loss$", "val/loss_kneser_ney$"]  # in the tab "Custom scalars", as regular expressions
COLUMNS = ("batch_size", "embedding_dim", "hidden_size", "lr", "optimizer")  # as many as TensorBoard's table shows


class Board(Callback):
    """Writes pictures, numbers and names of a run to its TensorBoard logger; for an MLP and a NamesDataModule.

    It draws before the first update, at the end, and at a few validations between: at step N the weights after N
    updates. It works on a copy of them on the CPU and on no global random generator, so the training is the same with
    and without it. The recipe is the first text of the run, as Markdown.
    """

    logger: Any = None

    def __init__(self, recipe: str = "") -> None:
        self.recipe = recipe

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, writes the layout of the charts, and draws the initial weights."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        self.logger = loggers[0] if loggers and trainer.is_global_zero else None
        if self.logger is None:
            return
        data: NamesDataModule = trainer.datamodule  # type: ignore[attr-defined]
        train, val = data.count("train"), data.count("val")
        assert isinstance(pl_module, MLP)
        self.still = type(pl_module)(**pl_module.hparams).eval()
        self.points: Tensor | None = None
        self.characters = most_frequent(self.still.vocabulary, [train, val])
        self.contexts = frequent_contexts(val)
        self.rows = train.contexts[torch.linspace(0, len(train) - 1, min(200, len(train))).long()].cpu()
        self.counting = loss(NGram(train), val)
        self.logger.experiment.add_custom_scalars({"loss": {"loss": ["Multiline", CHART]}})
        self.logger.experiment.add_text("recipe", self.recipe, updates(trainer))
        self.draw(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws at five times the step of the last drawing, so a few times in a run of any length."""
        if self.logger and updates(trainer) >= max(1, 5 * self.drawn):
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final weights, and writes the projector and the table of runs."""
        if self.logger is None:
            return
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
        names = still.sample(10)  # the first that `predict` would print
        places = trainer.datamodule.where(names)  # type: ignore[attr-defined]
        # Four spaces before each line: Markdown then shows any character as it is.
        lines = [f"    {split:5}  {name}" for name, split in zip(names, places, strict=True)]
        writer.add_text("sampled_names", "\n".join(lines), self.drawn)


def frequent_contexts(counts: Counts) -> Tensor:
    """Finds the five most frequent contexts at the start of a word and the five inside: (10, T) int64 at most."""
    starts, often = (counts.contexts == 0).any(dim=1), counts.totals()
    picked = [(often * some).topk(min(5, int(some.sum()))).indices for some in (starts, ~starts)]
    return counts.contexts[torch.cat(picked)].cpu()
