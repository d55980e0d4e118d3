"""The neural probabilistic language model of Bengio et al. 2003, as in makemore part 2.

Shapes: B batch, T block size (context length), E embedding dimension, H hidden units, V vocabulary size.
"""

import math
import string
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from makemore_pl import optimization
from makemore_pl.gradient import tanh
from makemore_pl.optimization import OptimizerName, ScheduleName, num_windows
from makemore_pl.sampling import Draw, NextLogits, Sampler, score_words
from makemore_pl.vocabulary import Vocabulary

Init = Literal["lecture", "scaled"]


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
        seed: random seed for the initial weights and for the order of the batches.
        optimizer: `adamw`, or `sgd` without momentum as in the lecture.
        lr: the learning rate at its highest.
        schedule: the learning-rate schedule. `constant`; `linear`: rises over the first tenth of the run and falls to
            zero over the rest; `halfway`: a tenth of lr from the middle of the run on (the lecture's 0.1, then 0.01).
            Where no number of steps or epochs ends the run, all three are constant.
        weight_decay: AdamW's, applied to all five tensors; sgd uses none.

    Raises:
        ValueError: if an option is out of its range.
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
    ) -> None:
        super().__init__()
        for name, size in [("block_size", block_size), ("embedding_dim", embedding_dim), ("hidden_size", hidden_size)]:
            if size < 1:
                raise ValueError(f"{name} is {size}: expected 1 or more")
        for name, number in {"lr": lr, "weight_decay": weight_decay}.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} is {number:g}: expected 0 or more")
        choices = ("init", init, Init), ("optimizer", optimizer, OptimizerName), ("schedule", schedule, ScheduleName)
        for name, word, words in choices:
            if word not in get_args(words):
                raise ValueError(f"{name} is {word}: expected {' or '.join(get_args(words))}")
        self.save_hyperparameters()
        self.vocabulary = Vocabulary(vocabulary)
        self.block_size = block_size

        V, T, E, H = len(self.vocabulary), block_size, embedding_dim, hidden_size
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

        self.nll, self.hits, self.windows = (SumMetric(nan_strategy="disable") for _ in range(3))  # of a validation
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

        It is the same for next characters Y (B,) int64 and for counts (B, V) of how often each came next.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits, Y if Y.ndim == 1 else Y.to(logits.dtype), reduction="sum")
        return nll / num_windows(Y) if reduction == "mean" else nll

    def configure_callbacks(self) -> list[Callback]:
        return [optimization.KeepMetrics(), optimization.EndOfRun()]

    def setup(self, stage: str) -> None:
        # Lightning does this only after loading a checkpoint, which would round weights of 64 bits to 32.
        self.trainer.precision_plugin.convert_module(self)

    @property
    def takes_blocks(self) -> bool:
        """Whether K updates by hand are the same as K steps of the Trainer."""
        return optimization.takes_blocks(self, MLP)

    def configure_optimizers(self) -> Any:
        optimizer = optimization.make_optimizer(self)
        schedule = optimization.Schedule(optimizer, self)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the mean loss of X (B, T) and Y (B,) or (B, V), or trains on a block, X (K, B, T) and Y (K, B).

        `gradient.sgd_steps` has the lecture's forward pass, backward pass and update of a block, line by line.
        """
        X, Y = batch
        compute = optimization.train_on_block if X.ndim == 3 else optimization.loss_and_mean
        loss, mean = compute(self, X, Y)
        self.log("train/loss", mean, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        for metric in (self.nll, self.hits, self.windows):
            metric.set_dtype(torch.float32).reset()  # sums in 32 bits, whatever the precision of the model

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        X, Y = batch
        logits = self(X)
        guess = logits.argmax(dim=1, keepdim=True)
        self.nll.update(self.loss(logits, Y, reduction="sum"))
        self.hits.update((guess[:, 0] == Y) if Y.ndim == 1 else Y.gather(1, guess))
        self.windows.update(num_windows(Y))

    def on_validation_epoch_end(self) -> None:
        # Sums over all batches and devices give the means over the split, however it is cut.
        nll, hits, windows = (metric.compute() for metric in (self.nll, self.hits, self.windows))
        stage, loss = "test" if self.trainer.testing else "val", nll / windows
        for name, mean in {"loss": loss, "perplexity": loss.exp(), "accuracy": hits / windows}.items():
            self.log(f"{stage}/{name}", mean, prog_bar=name == "loss", sync_dist=True)
        if (updates := optimization.updates(self.trainer)) != self.global_step:
            self.log("step", float(updates))  # the x axis of blocks

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_predict_start(self) -> None:
        loader = self.trainer.predict_dataloaders
        self.chunks = iter(self._draw(loader)) if isinstance(loader, Sampler) else None

    def on_predict_end(self) -> None:
        self.chunks = None  # it cannot be copied

    def predict_step(self, batch: Any, batch_idx: int) -> list[str] | list[float] | Tensor:
        """Draws a chunk of names for a `Sampler`, scores words, or computes the logits of contexts X (B, T)."""
        if isinstance(batch, int) and self.chunks is not None:
            return next(self.chunks)  # its end ends the loop of the Trainer; each rank draws all names
        if isinstance(batch, list | tuple) and all(isinstance(word, str) for word in batch):
            return self.score(batch)
        X = batch[0] if isinstance(batch, list | tuple) else batch
        if isinstance(X, Tensor) and X.dtype == torch.int64 and X.shape[1:] == (self.block_size,):
            return cast(Tensor, self(X))
        given = f"{tuple(X.shape)} {X.dtype}" if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(
            f"predict: the loader gives {given}; pass a Sampler, words, or contexts (B, {self.block_size}) int64"
        )

    def score(self, words: Sequence[str]) -> list[float]:
        """Computes the natural logarithm of the probability of each word and its end: -inf for an unknown character."""
        with evaluating(self):
            return score_words(words, self.mixture or self, self.vocabulary, self.block_size, self.device).tolist()

    def sample(self, num_names: int = 20, **options: Any) -> list[str]:
        """Draws new words; the options are those of `Sampler`: prompt, temperature, unique, ..., seed."""
        with evaluating(self):
            return list(chain.from_iterable(self._draw(Sampler(num_names, **options))))

    def _draw(self, sampler: Sampler) -> Draw:
        return Draw(sampler, self.mixture or self, self.vocabulary, self.block_size, self.device)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """Loads a model as Lightning does, but never executes code in the file; a wrong checksum is a ValueError."""
        if zipfile.is_zipfile(checkpoint_path) and zipfile.ZipFile(checkpoint_path).testzip() is not None:
            raise ValueError(f"{checkpoint_path}: damaged: a checksum does not match; load another checkpoint")
        return super().load_from_checkpoint(checkpoint_path, *args, **options | {"weights_only": True})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["network"] = self.network()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.require_network(checkpoint)
        ours = self.vocabulary.characters
        if checkpoint["hyper_parameters"].get("vocabulary", ours) != ours:
            raise ValueError("the model has another vocabulary than the checkpoint: build it with the checkpoint's")

    @classmethod
    def network(cls) -> str:
        """Names the methods that compute the logits: weights of the same shapes may belong to others."""
        return f"{cls.forward.__qualname__} and {cls.hidden.__qualname__}"

    @classmethod
    def require_network(cls, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another network with a ValueError."""
        ours, theirs = cls.network(), checkpoint.get("network", MLP.network())
        if theirs != ours:
            raise ValueError(f"the checkpoint is of {theirs}, not of {ours}: load it with the class that saved it")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns off what only training has, such as dropout, and on again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
