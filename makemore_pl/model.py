"""The neural probabilistic language model of Bengio et al. 2003, as in makemore part 2.

Shapes: B batch, T block size (context length), E embedding dimension, H hidden units, V vocabulary size.
"""

import string
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from makemore_pl.sampling import Sampler
from makemore_pl.vocabulary import Vocabulary


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
        lr: the learning rate at the start.
        schedule: what becomes of lr. `constant`; `linear`: falls to zero over the run; `halfway`: a tenth of it
            from the middle of the run on (the lecture's 0.1, then 0.01).
        weight_decay: AdamW's, applied to all five tensors; sgd uses none.

    Raises:
        ValueError: if a size is below 1, or lr or weight_decay is below 0.
    """

    def __init__(
        self,
        vocabulary: str = string.ascii_lowercase,
        block_size: int = 3,
        embedding_dim: int = 10,
        hidden_size: int = 200,
        init: Literal["lecture", "scaled"] = "scaled",
        seed: int = 2147483647,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 0.02,
        schedule: Literal["constant", "linear", "halfway"] = "linear",
        weight_decay: float = 0.3,
    ) -> None:
        super().__init__()
        for name, size in [("block_size", block_size), ("embedding_dim", embedding_dim), ("hidden_size", hidden_size)]:
            if size < 1:
                raise ValueError(f"{name} is {size}: expected 1 or more")
        for name, value in [("lr", lr), ("weight_decay", weight_decay)]:
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value:g}: expected 0 or more")
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

        # Sums over a whole split, so that its figures do not depend on how it is cut into batches.
        self.nll, self.hits, self.windows = SumMetric(), SumMetric(), SumMetric()

    def forward(self, X: Tensor) -> Tensor:
        """Computes the logits of the next character.

        Args:
            X: (B, T) int64 contexts.

        Returns:
            (B, V) logits.
        """
        emb = F.embedding(X, self.C)  # (B, T, E): C[X], with a far cheaper gradient
        h = torch.tanh(emb.view(len(X), -1) @ self.W1 + self.b1)  # (B, H)
        return h @ self.W2 + self.b2  # (B, V)

    @staticmethod
    def loss(logits: Tensor, Y: Tensor) -> Tensor:
        """Computes the mean negative log likelihood of the next characters (paper, section 2).

        Args:
            logits: (B, V).
            Y: (B,) int64 next characters, or (B, V) how often each came next.

        Returns:
            The mean over the windows, the same for both forms of Y.
        """
        if Y.ndim == 1:
            return F.cross_entropy(logits, Y)
        return F.cross_entropy(logits, Y, reduction="sum") / Y.sum()

    def setup(self, stage: str) -> None:
        # Float64 keeps the sums exact; Apple's GPUs have none.
        dtype = torch.float32 if self.trainer.strategy.root_device.type == "mps" else torch.float64
        for metric in (self.nll, self.hits, self.windows):
            metric.set_dtype(dtype)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        X, Y = batch
        loss = self.loss(self(X), Y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        X, Y = batch
        logits = self(X)
        guess = logits.argmax(dim=1, keepdim=True)
        hits, windows = (guess[:, 0] == Y, len(Y)) if Y.ndim == 1 else (Y.gather(1, guess), Y.sum())
        self.nll.update(self.loss(logits, Y) * windows)
        self.hits.update(hits.sum())
        self.windows.update(windows)

    def _log_means(self, stage: str) -> None:
        windows = self.windows.compute()
        loss = self.nll.compute() / windows
        self.log(f"{stage}/loss", loss, prog_bar=True)
        self.log(f"{stage}/perplexity", loss.exp())
        self.log(f"{stage}/accuracy", self.hits.compute() / windows)
        for metric in (self.nll, self.hits, self.windows):
            metric.reset()

    def predict_step(self, batch: tuple[Sampler, int], batch_idx: int) -> list[str]:
        sampler, chunk = batch
        return sampler.draw(chunk, self, self.vocabulary, self.block_size, self.device)

    def sample(self, num_names: int = 20, **options: Any) -> list[str]:
        """Draws new words; the options are those of `Sampler`: prompt, temperature, max_length, seed."""
        sampler = Sampler(num_names, **options)
        return list(sampler.names(self, self.vocabulary, self.block_size, self.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Holds a resumed run to its own alphabet and to the lr and weight decay that were asked for."""
        theirs, ours = checkpoint["hyper_parameters"], self.hparams
        if theirs["vocabulary"] != ours["vocabulary"]:
            raise ValueError(
                f"the checkpoint's characters are {theirs['vocabulary']!r}, those of the list {ours['vocabulary']!r}"
            )
        # The optimizer and its scheduler keep copies of their own, which would win over new flags.
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                if group["initial_lr"] != ours["lr"]:
                    group["lr"] *= ours["lr"] / group["initial_lr"]
                    group["initial_lr"] = ours["lr"]
                if ours["optimizer"] == "adamw":
                    group["weight_decay"] = ours["weight_decay"]
        for state in checkpoint.get("lr_schedulers", []):
            state["base_lrs"] = [ours["lr"]]

    def configure_optimizers(self) -> Any:
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        optimizer: torch.optim.Optimizer
        if self.hparams["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=lr)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """Returns what lr is multiplied with at a step, counted from 0."""
        if self.hparams["schedule"] == "constant" or step == 0:
            return 1.0
        # Asked for only once the run has begun: asked earlier, Lightning would forget a resumed loader's place.
        steps = self.trainer.estimated_stepping_batches
        if self.hparams["schedule"] == "halfway":
            return 1.0 if step < steps / 2 else 0.1
        return max(0.0, 1 - step / steps)
