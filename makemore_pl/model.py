"""The neural probabilistic language model of Bengio et al. 2003, as in makemore part 2.

Shapes: B batch, T block size (context length), E embedding dimension, H hidden units, V vocabulary size.
"""

import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from makemore_pl.gradient import sgd_steps, tanh_
from makemore_pl.loading import make, read
from makemore_pl.memory import require_memory
from makemore_pl.sampling import Draw, Sampler
from makemore_pl.scoring import score_words
from makemore_pl.vocabulary import Vocabulary

Init = Literal["lecture", "scaled"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "linear", "halfway"]


class MLP(LightningModule):
    """Predicts the next character from the last `block_size` characters.

    Five tensors, nothing else: C (V, E), W1 (T*E, H), b1 (H), W2 (H, V), b2 (V).

    Args:
        vocabulary: the characters, sorted, in one string.
        block_size: T, how many characters the model looks back.
        embedding_dim: E, numbers that stand for a character.
        hidden_size: H, units of the tanh layer.
        init: how the five tensors begin. `lecture`: all of them `randn`, as the notebook draws them.
            `scaled`: the same draws, W1 times Kaiming's 5/3 / sqrt(T*E) and the output close to zero (makemore part 3).
        seed: of those draws.
        optimizer: `adamw`, or `sgd` without momentum as in the lecture.
        lr: the learning rate at its highest.
        schedule: what becomes of lr. `constant`; `linear`: rises over the first tenth of the run and falls to zero
            over the rest; `halfway`: a tenth of it from the middle of the run on (the lecture's 0.1, then 0.01).
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

        # Sums over a whole split, so that its figures do not depend on how it is cut into batches.
        # A loss that is no number must stay one: by default it would be left out of the sum.
        self.nll, self.hits, self.windows = (SumMetric(nan_strategy="disable") for _ in range(3))

    def forward(self, X: Tensor) -> Tensor:
        """Computes the logits of the next character.

        Args:
            X: (B, T) int64 contexts.

        Returns:
            (B, V) logits.
        """
        # addmm(b, x, W) is x @ W + b without a second pass over the product.
        return torch.addmm(self.b2, self.hidden(X), self.W2)  # (B, V)

    def hidden(self, X: Tensor) -> Tensor:
        """Computes what the tanh layer gives.

        Args:
            X: (B, T) int64 contexts.

        Returns:
            h (B, H), between -1 and 1.
        """
        emb = F.embedding(X, self.C)  # (B, T, E): C[X], with a far cheaper gradient
        return tanh_(torch.addmm(self.b1, emb.flatten(1), self.W1))

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
        """Gives the weights the precision of the run before a checkpoint is loaded into them.

        Lightning does it afterwards, and would so round those of 64 bits to 32.
        """
        self.trainer.precision_plugin.convert_module(self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        X, Y = batch
        nll, windows = self.loss(self(X), Y, reduction="sum"), self.count(Y)
        # Devices may hold unequal shares of the batch, and the Trainer averages their gradients: divided by the
        # windows of the average device, they give the gradient of the mean over all windows.
        mean_nll, mean_windows = self._average_over_devices(nll, windows)
        self.log("train/loss", mean_nll / mean_windows, prog_bar=True)
        return nll / mean_windows

    def _average_over_devices(self, *numbers: Tensor) -> tuple[Tensor, ...]:
        if self.trainer.world_size == 1:
            return tuple(number.detach() for number in numbers)
        together = torch.stack([number.detach().double() for number in numbers])  # one exchange, exact
        return self.trainer.strategy.reduce(together, reduce_op="mean").to(numbers[0].dtype).unbind()

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
        # Float64 keeps them exact, whatever the precision of the model; Apple's GPUs have none.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        for metric in (self.nll, self.hits, self.windows):
            metric.set_dtype(dtype)
            metric.reset()

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

    def on_predict_start(self) -> None:
        self.draw = self._draw(cast(Sampler, self.trainer.predict_dataloaders))

    def predict_step(self, chunk: int | list[str], batch_idx: int) -> list[str] | list[float]:
        # Chunks go round the devices. Where names are passed over, all draw all, to know when there are enough.
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

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        weights_only: Literal[True] = True,
        **hparams: Any,
    ) -> Self:
        """Loads a model as it was saved, but for the hyperparameters that are given. No code runs from the file.

        Raises:
            ValueError: if it is not a checkpoint of this project, or broken.
        """
        if not weights_only:
            raise ValueError("weights_only is False: expected True, as no code is run from a file")
        checkpoint = read(checkpoint_path)
        model = make(cls, checkpoint_path, checkpoint["hyper_parameters"], hparams)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Holds a resumed run to its own alphabet, and to the weight decay and momentum that were asked for."""
        theirs, ours = checkpoint["hyper_parameters"], self.hparams
        if theirs["vocabulary"] != ours["vocabulary"]:
            raise ValueError(
                f"the checkpoint's characters are {theirs['vocabulary']!r}, those of the list {ours['vocabulary']!r}"
            )
        if ours["optimizer"] == "adamw":
            for state in checkpoint.get("optimizer_states", []):
                for group in state["param_groups"]:  # the optimizer's own copies would win over new ones
                    group |= {"weight_decay": ours["weight_decay"], "betas": self.betas}

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's two decay rates (Kingma and Ba 2015)."""
        momentum = self.hparams["momentum"]
        return momentum, 1 - (1 - momentum) / 3

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        if self.hparams["optimizer"] == "sgd":
            return torch.optim.SGD(self.parameters(), lr=lr, fused=True)
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=self.betas, weight_decay=weight_decay, fused=True)

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0: a pure function, so a resumed run needs no more."""
        lr, schedule = self.hparams["lr"], self.hparams["schedule"]
        if schedule == "constant":
            return lr
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            return lr  # without an end there is no part of the run to speak of
        if schedule == "halfway":
            return lr if step < steps / 2 else lr / 10
        return lr * max(0.0, min((step + 1) / (steps / 10), (1 - step / steps) / 0.9, 1.0))

    def on_train_start(self) -> None:
        self.set_lr()

    def on_train_batch_end(self, *_: Any) -> None:
        self.set_lr()

    def set_lr(self) -> None:
        """Gives the optimizer the learning rate of the step that comes next."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr_at(self.trainer.global_step)

    def train_on(self, X: Tensor, Y: Tensor) -> None:
        """Takes one optimizer step after the other without a word to the Trainer, who must count them himself.

        Args:
            X: (K, B, T) int64 contexts, a batch for each step.
            Y: (K, B) int64 next characters or (K, B, V) counts.
        """
        (optimizer,), step = self.trainer.optimizers, self.trainer.global_step
        lrs = [self.lr_at(step + k) for k in range(len(X))]
        if self.hparams["optimizer"] == "sgd" and Y.ndim == 2:
            sgd_steps(self.C, self.W1, self.b1, self.W2, self.b2, X, Y, lrs)
            return
        for x, y, lr in zip(X, Y, lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(self(x), y))
            optimizer.step()
