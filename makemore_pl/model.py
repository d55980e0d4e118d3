"""The neural probabilistic language model of Bengio et al. 2003, as in makemore part 2.

Shapes: B batch, T block size (context length), E embedding dimension, H hidden units, V vocabulary size.
"""

import string
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from makemore_pl.checkpoint import FromCheckpoint
from makemore_pl.gradient import tanh
from makemore_pl.memory import require_memory
from makemore_pl.metrics import Evaluation, KeepMetrics, count
from makemore_pl.optimization import (
    EndOfRun,
    OptimizerName,
    ScheduleName,
    loss_and_mean,
    make_optimizer,
    make_schedule,
    require_optimizer,
    take_steps,
    takes_blocks,
)
from makemore_pl.options import require_choice, require_fit, require_same_run, require_sizes
from makemore_pl.sampling import Draw, NextLogits, Sampler, score_words
from makemore_pl.vocabulary import Vocabulary

Init = Literal["lecture", "scaled"]


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
        optimizer: OptimizerName = "adamw",
        lr: float = 0.04,
        schedule: ScheduleName = "linear",
        weight_decay: float = 0.3,
        momentum: float = 0.85,
    ) -> None:
        super().__init__()
        require_sizes(block_size=block_size, embedding_dim=embedding_dim, hidden_size=hidden_size)
        require_choice("init", init, Init)
        require_optimizer(optimizer, schedule, lr, weight_decay, momentum)
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

        self.evaluation = Evaluation()
        self.mixture: NextLogits | None = None  # names are drawn and scored from it if there is one

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(parameter.shape)}" for name, parameter in self.named_parameters())
        return f"{type(self).__name__}({', '.join(shapes)})"

    def forward(self, X: Tensor) -> Tensor:
        """Computes the logits (B, V) of the next character after contexts X (B, T) int64."""
        h = self.hidden(X)
        return torch.addmm(self.b2, h, self.W2)  # h @ W2 + b2, in one pass over memory

    def hidden(self, X: Tensor) -> Tensor:
        """Computes the activations h (B, H) of the tanh layer; a subclass with more layers overrides it."""
        emb = F.embedding(X, self.C)  # C[X] (B, T, E), with a far cheaper gradient
        return tanh(torch.addmm(self.b1, emb.flatten(1), self.W1))  # tanh(emb.view(B, T*E) @ W1 + b1)

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
        return nll / count(Y) if reduction == "mean" else nll

    def configure_callbacks(self) -> list[Callback]:
        return [KeepMetrics(), EndOfRun()]

    def setup(self, stage: str) -> None:
        """Prepares a run.

        Raises:
            ValueError: if the data has another block size or other characters than the model.
        """
        # Lightning does this after a checkpoint was loaded, and would so round weights of 64 bits to 32.
        self.trainer.precision_plugin.convert_module(self)
        if stage != "predict":
            require_fit(self, getattr(self.trainer, "datamodule", None))
        if stage == "fit":
            self.automatic_optimization = not takes_blocks(self.trainer)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the mean loss of a batch; takes the optimizer steps of a block of batches.

        Args:
            batch: X (B, T) and Y, (B,) or (B, V). Of a block X (K, B, T) and Y (K, B) or (K, B, V), or lists of K.
            batch_idx: the number of the batch in its epoch.
        """
        X, Y = batch
        if self.automatic_optimization:
            loss, mean = loss_and_mean(self, X, Y)
        else:
            mean, lr = take_steps(self, X, Y)
            loss = mean
            self.log(f"lr-{type(self.trainer.optimizers[0]).__name__}", lr)  # as LearningRateMonitor calls it
            self.log("step", float(self.global_step))  # the x axis, which would count blocks
        self.log("train/loss", mean, prog_bar=True)
        return loss

    @property
    def is_plain(self) -> bool:
        """Whether a subclass has changed neither the network nor its loss."""
        return (type(self).forward, type(self).hidden, type(self).loss) == (MLP.forward, MLP.hidden, MLP.loss)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        X, Y = batch
        logits = self(X)
        self.evaluation.update(logits, Y, self.loss(logits, Y, reduction="sum"))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.evaluation.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        stage = "test" if self.trainer.testing else "val"
        for name, mean in self.evaluation.compute().items():
            self.log(f"{stage}/{name}", mean, prog_bar=name == "loss", sync_dist=True)
        if not self.automatic_optimization:
            self.log("step", float(self.global_step))

    on_test_epoch_end = on_validation_epoch_end

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
        """Computes the natural logarithm of the probability of each word and its end."""
        return score_words(words, self.mixture or self, self.vocabulary, self.block_size, self.device).tolist()

    def sample(self, num_names: int = 20, **options: Any) -> list[str]:
        """Draws new words; the options are those of `Sampler`: prompt, temperature, unique, ..., seed."""
        return list(self._draw(Sampler(num_names, **options)).names())

    def _draw(self, sampler: Sampler) -> Draw:
        return Draw(sampler, self.mixture or self, self.vocabulary, self.block_size, self.device)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self)
        schedule = make_schedule(optimizer, self)
        if not self.automatic_optimization:
            return [optimizer], [schedule]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_same_run(self, checkpoint)
