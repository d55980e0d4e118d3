"""Trains and samples on one, two and four processes, and saves what came of it: started by test_ranks.py.

Forked processes need no imports, so that all cases take seconds; a parent with threads could not fork safely.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from makemore_pl import MLP, NamesDataModule, sampling
from makemore_pl.predict import NamesWriter, Request

CASES = {
    "counted": ({}, {}),
    # 1,095 windows: each pass ends with a batch of 3 rows, which leaves one of four processes without any.
    "minibatches": ({"batch_size": 78}, {}),
    "replacement": ({"batch_size": 31, "replacement": True}, {"optimizer": "sgd", "lr": 0.5}),
    "smoothed": ({"smoothing": 0.5}, {}),
}
REQUESTS = {"names": {"num_names": 2000}, "picky": {"num_names": 500, "unique": True, "pattern": ".{1,3}"}}


class Save(Callback):
    """Saves what each process ends with."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/end.ckpt")

    def on_fit_end(self, trainer, pl_module):
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        torch.save(pl_module.state_dict() | metrics, f"{trainer.default_root_dir}/{trainer.global_rank}.pt")


def trainer(folder, ranks, *callbacks, **options):
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    strategy = "ddp_fork" if ranks > 1 else "auto"
    options = {"accelerator": "cpu", "devices": ranks, "strategy": strategy, "default_root_dir": folder} | options
    return Trainer(**quiet, **options, callbacks=list(callbacks), precision="64-true", enable_checkpointing=False)


def train(folder, ranks, data, model, max_steps=20, ckpt_path=None):
    run = trainer(folder, ranks, Save(), max_steps=max_steps)
    model = MLP(hidden_size=17, embedding_dim=5, schedule="constant", **model)
    names = NamesDataModule(num_words=180, **{"steps_per_epoch": 10} | data)
    run.fit(model, names, ckpt_path=ckpt_path, weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for ranks in (1, 2, 4):
        for case, options in CASES.items():
            train(root / case / str(ranks), ranks, *options)
        for name, request in REQUESTS.items():
            sampling.CHUNK = 256  # of which each process draws some
            with (root / f"{name} {ranks}").open("w") as file, redirect_stdout(file):
                request = Request(**request)
                run = trainer(root, ranks, NamesWriter(request))
                run.predict(MLP(hidden_size=8), request, return_predictions=False)
    ckpt_path = None
    for ranks, max_steps in [(2, 7), (4, 12), (1, 15), (2, 20)]:
        train(root / "resumed" / str(max_steps), ranks, *CASES["minibatches"], max_steps, ckpt_path)
        ckpt_path = root / "resumed" / str(max_steps) / "end.ckpt"
