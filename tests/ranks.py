"""Trains on one to four processes and writes down all that they saw: run by test_devices.py in a process of its own.

Forked processes need no imports, so that all cases take seconds; a parent with threads could not fork safely.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from makemore_pl import MLP, NamesDataModule, sampling
from makemore_pl.commands.predict import NamesWriter, Request

MODEL = {"hidden_size": 17, "embedding_dim": 5}
CASES = {
    "counted": ({}, {}),
    "counted sgd": ({}, {"optimizer": "sgd", "lr": 0.5}),
    # 1,095 windows: each epoch ends with a batch of 3 rows, which leaves one of four processes without any.
    "minibatch": ({"batch_size": 78}, {}),
    "minibatch sgd": ({"batch_size": 78}, {"optimizer": "sgd", "lr": 0.1}),
    "replacement": ({"batch_size": 31, "replacement": True}, {}),
    "hashed": ({"split": "hashed"}, {}),
    "blocks": ({"batch_size": 78, "steps_per_execution": 4}, {}),
    "blocks sgd": ({"batch_size": 78, "steps_per_execution": 4}, {"optimizer": "sgd", "lr": 0.1}),
}
STEPS = 20
RESUMED = {"batch_size": 78}, {"schedule": "constant"}
SAMPLER = {"num_names": 3 * sampling.CHUNK + 100, "max_length": 3}
UNIQUE = {"num_names": 1000, "max_length": 3, "unique": True}


class Witness(Callback):
    """Keeps the batches of this process, and the gradients and losses of all."""

    def __init__(self):
        self.batches, self.gradients, self.losses = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for X, Y in [batch] if pl_module.automatic_optimization else zip(*batch, strict=True):
            self.batches.append(torch.cat([X, Y if Y.ndim == 2 else Y[:, None]], dim=1))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if any(p.grad is None for p in pl_module.parameters()):
            return  # taken by hand
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(trainer.logged_metrics["train/loss"].item())

    def on_fit_end(self, trainer, pl_module):
        seen = {
            "batches": self.batches,
            "gradients": self.gradients,
            "losses": self.losses,
            "weights": pl_module.state_dict(),
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
        }
        torch.save(seen, f"{trainer.default_root_dir}/{trainer.global_rank}.pt")


def trainer(folder, ranks, precision="64-true", callbacks=(), max_steps=STEPS):
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        precision=precision,
        default_root_dir=folder,
        max_steps=max_steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger(folder),
        callbacks=list(callbacks),
    )


def train(folder, ranks, precision, data, model, max_steps=STEPS, ckpt_path=None):
    data = NamesDataModule(num_words=180, **{"steps_per_epoch": 10} | data)
    model = MLP(data.vocabulary.characters, hidden_size=17, embedding_dim=5, **model)
    callbacks = Witness(), ModelCheckpoint(folder, "last", every_n_train_steps=1)
    trainer(folder, ranks, precision, callbacks, max_steps).fit(model, data, ckpt_path=ckpt_path, weights_only=True)


def predict(folder, ranks, options):
    folder.mkdir(parents=True)
    request = Request(**options)
    with (folder / "names.txt").open("w") as file, redirect_stdout(file):
        trainer(folder, ranks, callbacks=[NamesWriter(request)]).predict(MLP(), request, return_predictions=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for precision in ("64-true", "32-true"):
        for case, (data, model) in CASES.items():
            for ranks in (1, 2, 4):
                train(root / precision / case / str(ranks), ranks, precision, data, model)
    last = None
    for ranks, max_steps in [(2, 7), (1, 16), (2, STEPS)]:
        folder = root / "resumed" / str(max_steps)
        train(folder, ranks, "64-true", *RESUMED, max_steps, last)
        last = folder / "last.ckpt"
    train(root / "never stopped", 1, "64-true", *RESUMED)
    for ranks in (1, 3):
        predict(root / "names" / str(ranks), ranks, SAMPLER)
    sampling.CHUNK = 256  # the unique names are in several chunks
    for ranks in (1, 3):
        predict(root / "unique" / str(ranks), ranks, UNIQUE)
