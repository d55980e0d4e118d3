"""What a run shows in TensorBoard: pictures, names, histograms and charts, at steps that grow sparser."""

import functools
import logging
import math
from collections.abc import Callable
from contextlib import suppress
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

from makemore_pl.comparison import Score, measure
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.ngram import NGram
from makemore_pl.pictures import figures
from makemore_pl.sampling import Draw, Sampler

NAMES = 10
"""Names sampled at each drawing."""

LONGEST = 30
"""Characters at which they are cut off: an untrained network hardly ever ends a name."""

ROWS = 200
"""Contexts whose hidden units are looked at."""

SATURATED = 0.99
"""Beyond it a unit of the tanh layer passes hardly any gradient on (makemore part 3)."""

WORDS_LOOKED_UP = 2**20
"""In longer lists it is not looked up where a name stands, since that takes a second copy of the list."""

log = logging.getLogger(__name__)

Hook = Callable[..., None]


def harmless(hook: Hook) -> Hook:
    """Turns an error in a hook into one line, and the pictures off; the run continues."""

    @functools.wraps(hook)
    def run(self: "Board", trainer: Trainer, *arguments: Any) -> None:
        try:
            hook(self, trainer, *arguments)
        except Exception as error:
            self.stop()
            log.warning("pictures are off: %s", " ".join(f"{type(error).__name__}: {error}".split()))

    return run


class Board(Callback):
    """Fills TensorBoard.

    The pictures are drawn before the first step, then at each validation that comes at least twice as late as the last
    one drawn, and at the end: the cost grows with the logarithm of the run. They look at a copy of the weights on
    the CPU, draw from no global generator, and leave the training, its device and its random numbers as they are.

    The steps of pictures count the updates that were made: 0 shows the weights as they were drawn, N those
    after N updates, whose losses Lightning logs at N - 1.
    """

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None  # None where nothing is shown: another logger, another rank, an error
        self.before: list[Tensor] | None = None
        self.gradients: dict[str, Tensor | None] = {}

    def stop(self) -> None:
        """Shows nothing from now on."""
        self.writer = self.before = None
        self.gradients = {}

    @harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what is known before the first step."""
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        data, strategy = trainer.datamodule, trainer.strategy  # type: ignore[attr-defined]
        if not isinstance(pl_module, MLP) or not isinstance(data, NamesDataModule):
            raise TypeError("they need an MLP and a NamesDataModule")
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise TypeError(f"{type(strategy).__name__} may leave this process a part of the weights")
        self.data, self.still = data, type(pl_module)(**pl_module.hparams)
        self.drawn = self.measured = trainer.global_step
        self.best = math.inf
        self.points: Tensor | None = None
        self.contexts = frequent_contexts(*data.tensors["val"])
        X = data.tensors["train"][0]
        self.rows = X[torch.linspace(0, len(X) - 1, min(ROWS, len(X)), device=X.device).long()].cpu()
        self.looks_up = not data.in_pieces and len(data.words) <= WORDS_LOOKED_UP

        self.writer = logger.experiment
        self.writer.add_custom_scalars(charts())
        self.counting: Score | None = None
        if data.hparams["counted"] or self.looks_up:
            with suppress(ValueError):  # beyond memory: in minibatches, nothing else counts the training words
                counts = data.count("train", "val", together=False)
                (self.counting,) = measure(NGram(*counts["train"]), counts["val"])
        self.write_counting(self.writer, trainer.global_step)
        self.write_recipe(self.writer, Path(logger.log_dir, "config.yaml"), pl_module)
        if trainer.global_step == 0:
            self.draw(trainer, pl_module)

    @harmless
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps the weights before a step that is to be measured."""
        # At ever fewer steps; in a block of them no step is seen by itself.
        single = pl_module.automatic_optimization
        if self.writer is not None and single and trainer.global_step + 1 >= 1.1 * self.measured:
            self.before = [weight.detach().clone() for weight in pl_module.parameters()]

    @harmless
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes how large the update of each tensor was, and holds on to the gradients."""
        if self.writer is None:
            return
        self.gradients = {name: weight.grad for name, weight in pl_module.named_parameters()}  # validation drops them
        if self.before is None:
            return
        for (name, weight), before in zip(pl_module.named_parameters(), self.before, strict=True):
            ratio = update_to_data(before, weight.detach())
            if math.isfinite(ratio):  # nothing moved, or a single number, which has no spread
                self.writer.add_scalar(f"update_to_data/{name}", ratio, trainer.global_step - 1)
        self.before, self.measured = None, trainer.global_step

    @harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, if it is time."""
        if self.writer is None:
            return
        self.best = min(self.best, float(trainer.callback_metrics.get("val/loss", math.inf)))
        if trainer.global_step >= max(1, 2 * self.drawn):
            self.draw(trainer, pl_module)

    @harmless
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the final state, and shows what is shown once."""
        if self.writer is None:
            return
        if trainer.global_step > self.drawn:
            self.draw(trainer, pl_module)
        self.write_counting(self.writer, trainer.global_step)
        self.write_letters(self.writer, trainer.global_step)
        self.write_hparams(self.writer, trainer, pl_module)
        self.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the writer, also of a run that did not come to its end."""
        self.stop()

    def draw(self, trainer: Trainer, model: LightningModule) -> None:
        """Shows the weights as they are now.

        Raises:
            ValueError: if they are not all finite.
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
        """Draws the map of letters, turned to where they were before."""
        C, vocabulary = self.still.C.detach(), self.still.vocabulary
        figure = figures.draw_letters(C, vocabulary, f"step {step:,}", self.points)
        self.points, _ = figures.flatten(C[: figures.LETTERS + 1], self.points)
        writer.add_image("pictures/letters", figures.rasterise(figure), step, dataformats="HWC")

    def draw_next(self, writer: SummaryWriter, step: int) -> None:
        """Draws what comes next after the contexts that are most frequent among the words held out."""
        probabilities = torch.softmax(self.still(self.contexts), dim=1)
        figure = figures.draw_next(probabilities, self.contexts.tolist(), self.still.vocabulary, f"step {step:,}")
        writer.add_image("pictures/next_character", figures.rasterise(figure), step, dataformats="HWC")

    def draw_hidden(self, writer: SummaryWriter, step: int) -> None:
        """Draws where the tanh layer is saturated: a row for a context, a column for a unit, white where it is."""
        h = self.still.hidden(self.rows)
        saturated = (h.abs() > SATURATED).float()
        writer.add_image("pictures/saturated", saturated, step, dataformats="HW")
        writer.add_scalar("hidden/saturated", saturated.mean(), step)
        writer.add_histogram("hidden/h", h, step)

    def write_histograms(self, writer: SummaryWriter, step: int) -> None:
        """Writes histograms of the five tensors, and of the gradients that led to them."""
        for name, weight in self.still.named_parameters():
            writer.add_histogram(f"weights/{name}", weight, step)
        for name, gradient in self.gradients.items():
            if gradient is not None and gradient.isfinite().all():
                writer.add_histogram(f"gradients/{name}", gradient.float(), step)

    def write_names(self, writer: SummaryWriter, step: int) -> None:
        """Writes the first names that `predict` would give, and where they stand."""
        draw = Draw(Sampler(NAMES, max_length=LONGEST), self.still, self.still.vocabulary, self.still.block_size)
        draw.looks_up = False  # a table of all contexts does not pay for a few names
        columns = {"name": list(draw.names())}
        if self.looks_up:
            columns["stands in"] = self.data.where(columns["name"])
        rows = zip(*(map(escape, cells) for cells in columns.values()), strict=True)
        lines = [list(columns), ["---"] * len(columns), *rows]
        writer.add_text("names", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def write_letters(self, writer: SummaryWriter, step: int) -> None:
        """Writes the letters for the projector."""
        vocabulary = self.still.vocabulary
        labels = [".", *map(figures.visible, vocabulary.characters)]
        metadata = [list(row) for row in zip(labels, figures.kinds(vocabulary), strict=True)]
        writer.add_embedding(
            self.still.C.detach().float(), metadata, global_step=step, tag="C", metadata_header=["letter", "kind"]
        )

    def write_counting(self, writer: SummaryWriter, step: int) -> None:
        """Writes an end of the level line that the validation loss is to fall below."""
        if self.counting is not None:
            writer.add_scalar("val/kneser_ney", self.counting.loss, step)

    def write_recipe(self, writer: SummaryWriter, config: Path, model: LightningModule) -> None:
        """Writes the run's configuration, or at least the hyperparameters."""
        if config.is_file():
            recipe = config.read_text(encoding="utf-8")
        else:
            recipe = "".join(f"{name}: {value}\n" for name, value in self.hparams(model).items())
        writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.split("\n")), self.drawn)

    def write_hparams(self, writer: SummaryWriter, trainer: Trainer, model: LightningModule) -> None:
        """Writes a line for the table of runs: what was chosen, and what came out."""
        loss = float(trainer.callback_metrics.get("val/loss", math.inf))
        results = {"end/val_loss": loss, "end/best_val_loss": self.best}
        results = {name: value for name, value in results.items() if math.isfinite(value)}
        for name, value in results.items():
            writer.add_scalar(name, value, trainer.global_step)
        chosen = self.hparams(model) | {"steps": trainer.global_step}
        # `add_hparams` would make a run of its own for them.
        for summary in hparams_summaries(chosen, results):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary, trainer.global_step)  # type: ignore[attr-defined]

    def hparams(self, model: LightningModule) -> dict[str, Any]:
        """The hyperparameters of model and data that were chosen, in short."""
        chosen = {**self.data.hparams, **model.hparams}
        paths = {name: value and Path(value).name for name, value in chosen.items() if name in ("path", "teacher")}
        chosen |= {"vocabulary": len(self.still.vocabulary), **paths}
        return {name: value for name, value in chosen.items() if value is not None}


def update_to_data(before: Tensor, after: Tensor) -> float:
    """The logarithm to base 10 of std(update) / std(data), which should be about -3 (makemore part 3)."""
    after, before = after.cpu().double(), before.cpu().double()
    return float(((after - before).std(correction=0) / after.std(correction=0)).log10())


def frequent_contexts(X: Tensor, counts: Tensor) -> Tensor:
    """Picks a few contexts: those most frequent at the start of a word, and those inside.

    Args:
        X: (M, T) int64 contexts.
        counts: (M, V) int64, how often each character came next.

    Returns:
        At most (10, T) int64, on the CPU.
    """
    often = counts.sum(dim=1)
    starts = (X == 0).any(dim=1)
    picked = []
    for some in (starts, ~starts):
        rows = X[some]
        picked.append(rows[often[some].topk(min(5, len(rows))).indices])
    return torch.cat(picked).cpu()


def escape(text: str) -> str:
    """Protects a text from Markdown and HTML: every sign but letters, digits and spaces by its number."""
    return "".join(x if x.isalnum() or x == " " else f"&#{ord(x)};" for x in text)


def charts() -> dict[str, Any]:
    """The layout of the tab Custom Scalars."""
    return {
        "makemore": {
            "loss": ["Multiline", ["train/loss", "val/loss", "val/kneser_ney"]],
            "update to data, log10": ["Multiline", ["update_to_data/.*"]],
            "bits per character": ["Multiline", ["val/bits_per_character"]],
        }
    }
