"""The pictures, names, histograms and charts of a run in TensorBoard, drawn at steps that double."""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from makemore_pl.comparison import loss
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.ngram import NGram
from makemore_pl.pictures import figures
from makemore_pl.pictures.alphabet import kinds, most_frequent, visible
from makemore_pl.pictures.plane import flatten
from makemore_pl.sampling import Draw, Sampler
from makemore_pl.windows import Counts

NAMES = 10
"""Names sampled at each drawing."""

LONGEST = 30
"""Their maximum length in characters: an untrained network hardly ever ends a name."""

ROWS = 200
"""Contexts in the picture of the hidden layer."""

WORDS_LOOKED_UP = 2**20
"""Longest list in which names are looked up: it takes a second copy of the list."""

log = logging.getLogger(__name__)

Hook = Callable[..., None]


def harmless(hook: Hook) -> Hook:
    """Makes an error in a hook a one-line warning that turns the pictures off; the run continues."""

    @functools.wraps(hook)
    def run(self: "Board", trainer: Trainer, *arguments: Any) -> None:
        try:
            hook(self, trainer, *arguments)
        except Exception as error:
            self.stop()
            log.warning("pictures are off: %s", " ".join(f"{type(error).__name__}: {error}".split()))

    return run


class Board(Callback):
    """Writes pictures and figures of a run to TensorBoard.

    It draws before the first step, then at each validation whose step is at least twice that of the last drawing, and
    at the end, so the cost grows with the logarithm of the number of steps. It works on a copy of the weights on the
    CPU and on no global random generator, so the training is the same with and without it.

    A picture at step N shows the weights after N updates; Lightning logs the losses of that update at N - 1.

    TensorBoard gives each run a colour, and none to the curves of one chart. So the curves that are to be compared,
    `loss` and `update_to_data`, are each a run of their own beside this one: `loss_train`, `loss_val`, ...
    """

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None  # None with another logger, on another rank, after an error
        self.before: list[Tensor] | None = None
        self.gradients: dict[str, Tensor | None] = {}

    def stop(self) -> None:
        """Turns the pictures off."""
        self.writer = self.before = None
        self.gradients = {}

    @harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes charts, counting and recipe, and draws the initial weights."""
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        data, strategy = trainer.datamodule, trainer.strategy  # type: ignore[attr-defined]
        if not isinstance(pl_module, MLP) or not isinstance(data, NamesDataModule):
            raise TypeError("they need an MLP and a NamesDataModule")
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise TypeError(f"{type(strategy).__name__} may shard the weights")
        self.data, self.still = data, type(pl_module)(**pl_module.hparams)
        self.drawn = self.measured = self.compared = trainer.global_step
        self.best = math.inf
        self.points: Tensor | None = None
        self.contexts = frequent_contexts(data.tensors["val"][1])
        self.characters = most_frequent(self.still.vocabulary, data.counts.values())
        X = data.tensors["train"][0]
        self.rows = X[torch.linspace(0, len(X) - 1, min(ROWS, len(X)), device=X.device).long()].cpu()
        self.looks_up = not data.in_pieces and len(data.words) <= WORDS_LOOKED_UP

        self.writer = logger.experiment
        self.counting: float | None = None
        if data.hparams["counted"] or self.looks_up:
            counts = data.count("train", "val", together=False)
            self.counting = loss(NGram(counts["train"]), counts["val"])
        self.write_counting(self.writer, trainer.global_step)
        self.write_recipe(self.writer, Path(logger.log_dir, "config.yaml"), pl_module)
        if trainer.global_step == 0:
            self.draw(trainer, pl_module)

    @harmless
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Copies the weights before an update that will be measured: each a tenth later than the last one."""
        # In a block of updates the callback does not see the single ones.
        single = pl_module.automatic_optimization
        if self.writer is not None and single and trainer.global_step + 1 >= 1.1 * self.measured:
            self.before = [weight.detach().clone() for weight in pl_module.parameters()]

    @harmless
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes the training loss and the update-to-data ratio of each matrix, and keeps the gradients."""
        if self.writer is None:
            return
        step = logged_step(trainer, pl_module)
        # Points each a twentieth later than the last one: reading the loss waits for the device.
        if trainer.global_step >= 1.05 * self.compared and "train/loss" in trainer.callback_metrics:
            self.writer.add_scalars("loss", {"train": float(trainer.callback_metrics["train/loss"])}, step)
            self.compared = trainer.global_step
        self.gradients = {name: weight.grad for name, weight in pl_module.named_parameters()}  # validation clears them
        if self.before is None:
            return
        pairs = zip(pl_module.named_parameters(), self.before, strict=True)
        ratios = {name: update_to_data(before, weight.detach()) for (name, weight), before in pairs if weight.ndim == 2}
        # Infinite if nothing moved, NaN for a single number.
        finite = {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
        self.writer.add_scalars("update_to_data", finite, step)
        self.before, self.measured = None, trainer.global_step

    @harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation loss, and draws if the step has doubled since the last drawing."""
        if self.writer is None:
            return
        val_loss = float(trainer.callback_metrics.get("val/loss", math.inf))
        if math.isfinite(val_loss):
            self.writer.add_scalars("loss", {"val": val_loss}, logged_step(trainer, pl_module))
        self.best = min(self.best, val_loss)
        if trainer.global_step >= max(1, 2 * self.drawn):
            self.draw(trainer, pl_module)

    @harmless
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final weights, and writes the projector and the table of runs."""
        if self.writer is None:
            return
        if trainer.global_step > self.drawn:
            self.draw(trainer, pl_module)
        self.write_counting(self.writer, trainer.global_step)
        self.write_letters(self.writer, trainer.global_step)
        self.write_hparams(self.writer, trainer, pl_module)
        self.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drops the writer, also after an interrupted run."""
        self.stop()

    def draw(self, trainer: Trainer, model: LightningModule) -> None:
        """Draws everything that depends on the weights.

        Raises:
            ValueError: if a weight is not finite.
        """
        assert self.writer is not None
        self.drawn = step = trainer.global_step
        self.still.load_state_dict(model.state_dict())
        for name, weight in self.still.named_parameters():
            if not weight.isfinite().all():
                raise ValueError(f"{name} is not finite after {step:,} steps")
        with torch.no_grad():
            self.draw_letters(self.writer, step)
            self.draw_next(self.writer, step)
            self.draw_hidden(self.writer, step)
            self.write_histograms(self.writer, step)
            self.write_names(self.writer, step)

    def draw_letters(self, writer: SummaryWriter, step: int) -> None:
        """Draws the map of letters, rotated to the previous one."""
        C, vocabulary = self.still.C.detach(), self.still.vocabulary
        figure = figures.draw_letters(C, vocabulary, f"step {step:,}", self.points, self.characters)
        self.points, _ = flatten(C[self.characters], self.points)
        writer.add_image("pictures/letters", figures.rasterise(figure), step, dataformats="HWC")

    def draw_next(self, writer: SummaryWriter, step: int) -> None:
        """Draws next-character probabilities after the most frequent contexts of the validation words."""
        probabilities = torch.softmax(self.still(self.contexts), dim=1)
        figure = figures.draw_next(probabilities, self.contexts.tolist(), self.still.vocabulary, f"step {step:,}")
        writer.add_image("pictures/next_character", figures.rasterise(figure), step, dataformats="HWC")

    def draw_hidden(self, writer: SummaryWriter, step: int) -> None:
        """Draws the saturation of the tanh layer after some contexts of the training words."""
        h = self.still.hidden(self.rows)
        figure = figures.draw_saturated(h, f"step {step:,}")
        writer.add_image("pictures/saturated", figures.rasterise(figure), step, dataformats="HWC")
        writer.add_scalar("tanh/saturated", (h.abs() > figures.SATURATED).float().mean(), step)
        writer.add_histogram("tanh/h", h, step)

    def write_histograms(self, writer: SummaryWriter, step: int) -> None:
        """Writes histograms of the five tensors and of their last gradients."""
        for name, weight in self.still.named_parameters():
            writer.add_histogram(f"weights/{name}", weight, step)
        for name, gradient in self.gradients.items():
            if gradient is not None and gradient.isfinite().all():
                writer.add_histogram(f"weights/{name}_gradient", gradient.float(), step)

    def write_names(self, writer: SummaryWriter, step: int) -> None:
        """Writes the first names that `predict` would print, and the split that each is in."""
        draw = Draw(Sampler(NAMES, max_length=LONGEST), self.still, self.still.vocabulary, self.still.block_size)
        draw.looks_up = False  # a few names do not repay a table of all contexts
        columns = {"name": list(draw.names())}
        if self.looks_up:
            columns["split"] = self.data.where(columns["name"])
        rows = zip(*(map(escape, cells) for cells in columns.values()), strict=True)
        lines = [list(columns), ["---"] * len(columns), *rows]
        writer.add_text("names", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def write_letters(self, writer: SummaryWriter, step: int) -> None:
        """Writes the embeddings for the projector, which draws each as its letter, in the colour of its kind."""
        C, vocabulary = self.still.C.detach().float(), self.still.vocabulary
        C = torch.cat([C, C.new_zeros(len(C), max(0, 3 - C.shape[1]))], dim=1)  # it shows nothing of less than three
        rows = list(zip([".", *map(visible, vocabulary.characters)], kinds(vocabulary), strict=True))
        drawn = sorted(self.characters)
        marks = torch.from_numpy(figures.draw_marks(vocabulary, drawn)).permute(0, 3, 1, 2) / 255
        metadata, header = [list(rows[i]) for i in drawn], ["letter", "kind"]
        writer.add_embedding(C[drawn], metadata, marks, global_step=step, tag="C", metadata_header=header)

    def write_counting(self, writer: SummaryWriter, step: int) -> None:
        """Writes one end of the horizontal line of Kneser-Ney's validation loss."""
        if self.counting is not None:
            writer.add_scalars("loss", {"Kneser-Ney": self.counting}, step)

    def write_recipe(self, writer: SummaryWriter, config: Path, model: LightningModule) -> None:
        """Writes the run's configuration, or its hyperparameters where there is no file."""
        if config.is_file():
            recipe = config.read_text(encoding="utf-8")
        else:
            recipe = "".join(f"{name}: {value}\n" for name, value in self.hparams(model).items())
        writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.split("\n")), self.drawn)

    def write_hparams(self, writer: SummaryWriter, trainer: Trainer, model: LightningModule) -> None:
        """Writes a row of the table of runs: hyperparameters and results."""
        results = {}
        if math.isfinite(self.best):
            writer.add_scalar("val/loss_best", self.best, trainer.global_step)
            results = dict.fromkeys(["val/loss", "val/loss_best"], self.best)  # the table has each curve's last value
        chosen = self.hparams(model) | {"steps": trainer.global_step}
        # `add_hparams` would write them to a run of their own.
        for summary in hparams_summaries(chosen, results):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary, trainer.global_step)  # type: ignore[attr-defined]

    def hparams(self, model: LightningModule) -> dict[str, Any]:
        """The hyperparameters of model and data that are set, with file names for paths."""
        chosen = {**self.data.hparams, **model.hparams}
        paths = {name: value and Path(value).name for name, value in chosen.items() if name in ("path", "teacher")}
        chosen |= {"vocabulary": len(self.still.vocabulary), **paths}
        return {name: value for name, value in chosen.items() if value is not None}


def logged_step(trainer: Trainer, model: LightningModule) -> int:
    """Returns the step at which Lightning logs the update just taken; a block of updates is logged at its end."""
    return trainer.global_step - model.automatic_optimization


def update_to_data(before: Tensor, after: Tensor) -> float:
    """log10 of std(update) / std(data), which should be about -3 (makemore part 3)."""
    after, before = after.cpu().double(), before.cpu().double()
    return float(((after - before).std(correction=0) / after.std(correction=0)).log10())


def frequent_contexts(counts: Counts) -> Tensor:
    """The five most frequent contexts at the start of a word, and the five most frequent inside words.

    Returns:
        At most (10, T) int64, on the CPU.
    """
    X, often = counts.contexts, counts.totals()
    starts = (X == 0).any(dim=1)
    picked = []
    for some in (starts, ~starts):
        rows = X[some]
        picked.append(rows[often[some].topk(min(5, len(rows))).indices])
    return torch.cat(picked).cpu()


def escape(text: str) -> str:
    """Escapes a text for Markdown and HTML: all but letters, digits and spaces as character references."""
    return "".join(x if x.isalnum() or x == " " else f"&#{ord(x)};" for x in text)
