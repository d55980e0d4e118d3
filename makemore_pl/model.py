"""The neural probabilistic language model of Bengio et al. 2003, as in makemore part 2.

Shapes: B batch, T block size (context length), E embedding dimension, H hidden units, V vocabulary size.

Over 300 lines: Lightning wants the hooks of training, evaluation, sampling and checkpoints in one class. The lecture is
in `__init__`, `forward`, `hidden` and `loss`.
"""

import math
import string
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric

from makemore_pl.checkpoint import FromCheckpoint
from makemore_pl.gradient import sgd_steps, tanh
from makemore_pl.memory import require_memory
from makemore_pl.sampling import Draw, Sampler, score_words
from makemore_pl.vocabulary import Vocabulary

Init = Literal["lecture", "scaled"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "linear", "halfway"]


class MLP(FromCheckpoint, LightningModule):  # type: ignore[misc]
    """Predicts the next character from the last `block_size` characters.

    Five tensors, nothing else: C (V, E), W1 (T*E, H), b1 (H), W2 (H, V), b2 (V).

    Args:
        vocabulary: the characters, sorted, in one string.
        block_size: T, how many characters the model looks back.
        embedding_dim: E, numbers that stand for a character.
        hidden_size: H, units of the tanh layer.
        init: how the five tensors begin. `lecture`: all of them `randn`, as the notebook draws them.
            `scaled`: the same draws, W1 times Kaiming's 5/3 / sqrt(T*E) and the output close to zero (makemore part 3).
        seed: random seed for the initial weights.
        optimizer: `adamw`, or `sgd` without momentum as in the lecture.
        lr: the learning rate at its highest.
        schedule: the learning-rate schedule. `constant`; `linear`: rises over the first tenth of the run and falls to
            zero over the rest; `halfway`: a tenth of lr from the middle of the run on (the lecture's 0.1, then 0.01).
            Where no number of steps or epochs ends the run, all three are constant.
        weight_decay: AdamW's, applied to all five tensors; sgd uses none.
        momentum: AdamW's first beta, how much of the mean gradient stays from one step to the next; the second, of its
            square, is a third as far from 1. Near 1 for thousands of steps that take all windows; sgd uses none.

    Raises:
        ValueError: if a size is below 1 or beyond this machine's memory, or another number is out of its range.
    """

    def __init__(
        self,
        vocabulary: str = string.ascii_lowercase,
        block_size: int = 3,
        embedding_dim: int = 10,
        hidden_size: int = 200,
        init: Init = "scaled",
        seed: int = 2147483647,
        optimizer: Optimizer = "adamw",
        lr: float = 0.04,
        schedule: Schedule = "linear",
        weight_decay: float = 0.3,
        momentum: float = 0.85,
    ) -> None:
        super().__init__()
        for name, size in [("block_size", block_size), ("embedding_dim", embedding_dim), ("hidden_size", hidden_size)]:
            if size < 1:
                raise ValueError(f"{name} is {size}: expected 1 or more")
        for name, value in [("lr", lr), ("weight_decay", weight_decay)]:
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value:g}: expected 0 or more")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum:g}: expected 0 or more, less than 1")
        for name, choice, choices in [
            ("init", init, Init),
            ("optimizer", optimizer, Optimizer),
            ("schedule", schedule, Schedule),
        ]:
            if choice not in get_args(choices):
                raise ValueError(f"{name} is {choice}: expected {' or '.join(get_args(choices))}")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed is {seed}: expected a number of 64 bits, with its sign")
        self.save_hyperparameters()
        self.vocabulary = Vocabulary(vocabulary)
        self.block_size = block_size

        V, T, E, H = len(self.vocabulary), block_size, embedding_dim, hidden_size
        require_memory(4 * (V * E + T * E * H + H + H * V + V), "a model of these sizes")
        g = torch.Generator().manual_seed(seed)
        C = torch.randn((V, E), generator=g)
        W1 = torch.randn((T * E, H), generator=g)
        b1 = torch.randn(H, generator=g)
        W2 = torch.randn((H, V), generator=g)
        b2 = torch.randn(V, generator=g)
        if init == "scaled":
            W1 *= (5 / 3) / (T * E) ** 0.5
            b1 *= 0.01
            W2 *= 0.01
            b2 *= 0
        self.C, self.W1, self.b1, self.W2, self.b2 = map(nn.Parameter, (C, W1, b1, W2, b2))

        self.schedule: LambdaLR | None = None  # that of our own optimizer
        self.resumed: dict[str, float] = {}  # metrics of the last validation before a run was stopped

        # Sums over a whole split, so that its figures do not depend on how it is cut into batches.
        # A loss that is no number must stay one: by default the sum would ignore it.
        self.nll, self.hits, self.windows = (SumMetric(nan_strategy="disable") for _ in range(3))

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(parameter.shape)}" for name, parameter in self.named_parameters())
        return f"{type(self).__name__}({', '.join(shapes)})"

    def forward(self, X: Tensor) -> Tensor:
        """Computes the logits of the next character.

        Args:
            X: (B, T) int64 contexts.

        Returns:
            (B, V) logits.
        """
        h = self.hidden(X)  # (B, H)
        return torch.addmm(self.b2, h, self.W2)  # (B, V): h @ W2 + b2, without a second pass over the product

    def hidden(self, X: Tensor) -> Tensor:
        """Computes the activations of the tanh layer.

        Args:
            X: (B, T) int64 contexts.

        Returns:
            h (B, H), between -1 and 1.
        """
        emb = F.embedding(X, self.C)  # (B, T, E): C[X], with a far cheaper gradient
        return tanh(torch.addmm(self.b1, emb.flatten(1), self.W1))  # (B, H): tanh(emb.view(B, T*E) @ W1 + b1)

    @staticmethod
    def loss(logits: Tensor, Y: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """Computes the negative log likelihood of the next characters (paper, section 2), in float32 at least.

        Args:
            logits: (B, V).
            Y: (B,) int64 next characters, or (B, V) int64 counts of how often each came next.
            reduction: the mean over the windows, or their sum.

        Returns:
            A scalar, the same for both forms of Y.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits, Y if Y.ndim == 1 else Y.to(logits.dtype), reduction="sum")
        return nll / MLP.count(Y) if reduction == "mean" else nll

    @staticmethod
    def count(Y: Tensor) -> Tensor:
        """Counts the windows that Y stands for, (B,) next characters or (B, V) counts: a scalar on its device."""
        return Y.new_full((), len(Y)) if Y.ndim == 1 else Y.sum()

    def setup(self, stage: str) -> None:
        """Looks whether the data fits, and which of the two ways of training it asks for.

        Raises:
            ValueError: if the data has another block size or other characters than the model.
        """
        # Lightning does this after a checkpoint was loaded, and would so round weights of 64 bits to 32.
        self.trainer.precision_plugin.convert_module(self)
        data = getattr(self.trainer, "datamodule", None)
        if data is None or stage == "predict":
            return
        theirs = {"block_size": data.hparams.get("block_size"), "vocabulary": getattr(data, "vocabulary", None)}
        for name, ours in {"block_size": self.block_size, "vocabulary": self.vocabulary}.items():
            if theirs[name] not in (None, ours):
                raise ValueError(f"the model's {name} is {describe(ours)}, that of the data {describe(theirs[name])}")
        if stage != "fit":
            return
        self.automatic_optimization = data.hparams.get("steps_per_execution", 1) == 1
        whole = self.trainer.accumulate_grad_batches == 1 and not self.trainer.gradient_clip_val
        if not self.automatic_optimization and not whole:
            raise ValueError(
                f"steps_per_execution is {data.hparams['steps_per_execution']}: expected 1 where gradients are "
                "accumulated or clipped"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the loss of a batch; of a block of batches, takes the steps as well.

        Args:
            batch: X (B, T) with Y (B,) or (B, V). Of a block X (K, B, T) with Y (K, B) or (K, B, V), or lists of K.
            batch_idx: the number of the batch in its epoch.

        Returns:
            The mean loss of the batch, or that of the last batch in a block, before its step.
        """
        X, Y = batch
        if not self.automatic_optimization:
            return self.take_steps(X, Y)
        loss, mean = self.loss_and_mean(X, Y)
        self.log("train/loss", mean, prog_bar=True)
        return loss

    def loss_and_mean(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what to differentiate, and the mean loss over the shares of all devices."""
        nll, windows = self.loss(self(X), Y, reduction="sum"), self.count(Y)
        if self.trainer.world_size == 1:
            return nll / windows, nll.detach() / windows
        # Devices may hold unequal shares of the batch, and their gradients are averaged: divided by the windows of the
        # average device, they give the gradient of the mean over all windows. In one exchange, exact.
        together = torch.stack([nll.detach().double(), windows.double()])
        mean_nll, mean_windows = self.trainer.strategy.reduce(together, reduce_op="mean").to(nll.dtype)
        return nll / mean_windows, mean_nll / mean_windows

    def take_steps(self, X: Tensor, Y: Tensor) -> Tensor:
        """Takes an optimizer step for each of K batches.

        Logged are the loss of the last batch before its step, as a run without blocks logs it there, the learning rate
        of that step, and the number of steps so far as the x axis.
        """
        optimizer, schedulers = cast(Any, self.optimizers()), as_list(self.lr_schedulers())
        by_hand, lrs = self.trains_by_hand(optimizer.optimizer, Y[0]), []
        for x, y in zip(X, Y, strict=True):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            if not by_hand:
                loss, mean = self.loss_and_mean(x, y)
                self.manual_backward(loss)
            optimizer.step()  # by hand there is no gradient: it only counts
            for scheduler in schedulers:
                scheduler.step()
        if by_hand:
            tensors = self.C, self.W1, self.b1, self.W2, self.b2
            sgd_steps(*tensors, X[:-1], Y[:-1], lrs[:-1])
            with torch.no_grad():
                mean = self.loss(self(X[-1]), Y[-1])
            sgd_steps(*tensors, X[-1:], Y[-1:], lrs[-1:])
        self.log("train/loss", mean, prog_bar=True)
        self.log(f"lr-{type(optimizer.optimizer).__name__}", lrs[-1])  # as LearningRateMonitor calls it
        self.log("step", float(self.global_step))
        return mean

    def trains_by_hand(self, optimizer: torch.optim.Optimizer, y: Tensor) -> bool:
        """Whether `sgd_steps` computes what autograd and the optimizer would: this network, examples, plain SGD."""
        plain = {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
        ours = (MLP.forward, MLP.hidden, MLP.loss) == (type(self).forward, type(self).hidden, type(self).loss)
        return (
            type(optimizer) is torch.optim.SGD
            and len(optimizer.param_groups) == 1
            and plain.items() <= optimizer.param_groups[0].items()
            and ours
            and all(parameter.requires_grad for parameter in self.parameters())
            and y.ndim == 1
            and self.trainer.world_size == 1
            and self.trainer.precision in ("32-true", "64-true")
        )

    def on_fit_start(self) -> None:
        """Forgets that a finder of Lightning's, which trains with a limit of its own, has come to its last step."""
        self.trainer.should_stop = False

    def on_train_batch_end(self, *_: Any) -> None:
        """Has the final weights be validated and saved, also where the last step lies inside of an epoch."""
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._add_up(*batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._add_up(*batch)

    def on_validation_epoch_start(self) -> None:
        self._start_sums()

    def on_test_epoch_start(self) -> None:
        self._start_sums()

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _start_sums(self) -> None:
        for metric in (self.nll, self.hits, self.windows):
            metric.set_dtype(self.widest)
            metric.reset()

    @property
    def widest(self) -> torch.dtype:
        """Float64 keeps sums exact, whatever the precision of the model; Apple's GPUs have none."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _add_up(self, X: Tensor, Y: Tensor) -> None:
        logits = self(X)
        guess = logits.argmax(dim=1, keepdim=True)
        self.nll.update(self.loss(logits, Y, reduction="sum"))
        self.hits.update((guess[:, 0] == Y).sum() if Y.ndim == 1 else Y.gather(1, guess).sum())
        self.windows.update(self.count(Y))

    def _log_means(self, stage: str) -> None:
        windows = self.windows.compute()
        loss = self.nll.compute() / windows
        means = {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_character": loss / math.log(2),
            "accuracy": self.hits.compute() / windows,
        }
        for name, mean in means.items():
            self.log(f"{stage}/{name}", mean, prog_bar=name == "loss", sync_dist=True)
        if not self.automatic_optimization:
            self.log("step", float(self.global_step))  # Lightning's own x axis counts blocks

    def on_predict_start(self) -> None:
        self.draw = self._draw(cast(Sampler, self.trainer.predict_dataloaders))

    def predict_step(self, chunk: int | list[str], batch_idx: int) -> list[str] | list[float]:
        # Each rank draws some chunks; if names are rejected, every rank draws every chunk, so all agree on the count.
        if not self.draw.missing:
            raise StopIteration  # the Trainer takes it for the end of the loader, which cannot know how many are enough
        mine = batch_idx % self.trainer.world_size == self.global_rank
        if isinstance(chunk, list):
            return self.score(chunk) if mine else []
        names = self.draw.chunk(chunk) if mine or self.draw.sampler.is_picky else []
        return names if mine else []

    def score(self, words: Sequence[str]) -> list[float]:
        """Computes the natural logarithm of the probability of each word, to its end."""
        return score_words(words, self, self.vocabulary, self.block_size, self.device).tolist()

    def sample(self, num_names: int = 20, **options: Any) -> list[str]:
        """Draws new words; the options are those of `Sampler`: prompt, temperature, unique, ..., seed."""
        return list(self._draw(Sampler(num_names, **options)).names())

    def _draw(self, sampler: Sampler) -> Draw:
        return Draw(sampler, self, self.vocabulary, self.block_size, self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Holds a resumed run to its own alphabet and its own way of counting steps.

        Raises:
            ValueError: if one is another.
        """
        theirs, ours = checkpoint["hyper_parameters"], self.hparams
        if theirs["vocabulary"] != ours["vocabulary"]:
            raise ValueError(
                f"the checkpoint's characters are {theirs['vocabulary']!r}, those of the list {ours['vocabulary']!r}"
            )
        self.resumed = checkpoint.get("validated", {})
        before = checkpoint.get("datamodule_hyper_parameters", {}).get("steps_per_execution", 1)
        if "loops" in checkpoint and (before == 1) != self.automatic_optimization:
            raise ValueError(f"steps_per_execution: the checkpoint has {before}; a run keeps to blocks, or to none")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the metrics of the last validation: Lightning resumes with the end of an epoch, after it.

        EarlyStopping and the like look there for the metric that they monitor.
        """
        metrics = self.trainer.callback_metrics
        checkpoint["validated"] = {name: float(x) for name, x in metrics.items() if name.startswith("val/")}

    def on_train_epoch_end(self) -> None:
        """Gives those of a resumed run back, unless it has validated since."""
        for name, value in self.resumed.items():
            if name not in self.trainer.callback_metrics:
                self.log(name, torch.tensor(value, dtype=self.widest, device=self.device), logger=False)
        self.resumed = {}

    def on_train_start(self) -> None:
        """Has the hyperparameters of this run win over those that the optimizer brought back from a checkpoint."""
        if self.trainer.ckpt_path is None or self.schedule is None or self.lr_schedulers() is not self.schedule:
            return  # not resumed, or an optimizer of one's own
        options, (factor,) = self.optimizer_options(), self.schedule.lr_lambdas
        self.schedule.base_lrs = [options["lr"]]
        (group,) = self.schedule.optimizer.param_groups
        group |= options | {"initial_lr": options["lr"], "lr": options["lr"] * factor(self.schedule.last_epoch)}

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's two decay rates (Kingma and Ba 2015)."""
        momentum = self.hparams["momentum"]
        return momentum, 1 - (1 - momentum) / 3

    def optimizer_options(self) -> dict[str, Any]:
        """The hyperparameters as the optimizer calls them."""
        hparams = self.hparams
        if hparams["optimizer"] == "sgd":
            return {"lr": hparams["lr"]}
        return {"lr": hparams["lr"], "betas": self.betas, "weight_decay": hparams["weight_decay"]}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Makes the optimizer without its schedule."""
        kind = torch.optim.SGD if self.hparams["optimizer"] == "sgd" else torch.optim.AdamW
        return kind(self.parameters(), fused=True, **self.optimizer_options())

    def configure_optimizers(self) -> Any:
        optimizer, name, steps = self.make_optimizer(), self.hparams["schedule"], self.number_of_steps()
        self.schedule = LambdaLR(optimizer, lambda step: lr_factor(name, step, steps))
        if not self.automatic_optimization:
            return [optimizer], [self.schedule]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def number_of_steps(self) -> float:
        """The optimizer steps of the whole run; infinite if nothing but time ends it."""
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        if self.automatic_optimization or trainer.max_epochs in (None, -1):
            return steps
        loader = cast(Any, trainer.train_dataloader)  # of which Lightning counts the blocks
        per_epoch = min(loader.steps_per_epoch, trainer.num_training_batches * loader.steps_per_execution)
        limit = trainer.max_steps if trainer.max_steps != -1 else math.inf
        return min(limit, per_epoch * trainer.max_epochs)


def lr_factor(schedule: Schedule, step: int, steps: float) -> float:
    """Computes the share of the highest learning rate that a step takes.

    Args:
        schedule: its name.
        step: counted from 0.
        steps: of the whole run.
    """
    if schedule == "constant" or math.isinf(steps):
        return 1.0  # without an end there is no part of the run to speak of
    if schedule == "halfway":
        return 1.0 if step < steps / 2 else 0.1
    return max(0.0, min((step + 1) / (steps / 10), (1 - step / steps) / 0.9, 1.0))


def describe(value: object) -> str:
    """A block size, or the characters of a vocabulary, in an error."""
    return repr(value.characters if isinstance(value, Vocabulary) else value)


def as_list(value: Any) -> list[Any]:
    """One, several, or none."""
    return value if isinstance(value, list) else [] if value is None else [value]
