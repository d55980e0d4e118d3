"""The command line: the one room that sees both the data and the model."""

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from makemore_pl.callbacks import NamesWriter, Progress, ValidateLastStep
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.sampling import Sampler

TRAINER_DEFAULTS = {
    "max_steps": 500,
    # Validation goes by steps, since an epoch of the counted view is a single step.
    "val_check_interval": 25,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


@rank_zero_only
def say(line: str) -> None:
    """Tells the user something on stderr; stdout is for predictions."""
    print(line, file=sys.stderr, flush=True)


UNASKED = {"block_size": 0, "vocabulary": ""}
"""What stands for the hyperparameters that model and data share where nobody asked for them."""


class Parser(LightningArgumentParser):
    """Answers a mistake in one line, and knows which subcommand it parses.

    Args:
        command: the name of the subcommand; None for the parser above them.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command = command

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(message)


def fail(message: object) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    say("error: " + " ".join(str(message).split()))
    sys.exit(2)


class CLI(LightningCLI):
    """LightningCLI with checkpoints found by themselves, and sampling as `predict`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser)
        parser.link_arguments("model.block_size", "data.block_size")
        if parser.command == "fit":
            # The list decides the alphabet ...
            parser.link_arguments(
                "data.vocabulary", "model.vocabulary", lambda vocabulary: vocabulary.characters, apply_on="instantiate"
            )
            return
        # ... and afterwards the checkpoint does: predict needs no list, and the others must read theirs the same way.
        parser.link_arguments("model.vocabulary", "data.vocabulary")
        off = dict.fromkeys(["trainer.logger", "trainer.enable_checkpointing", "trainer.enable_progress_bar"], False)
        parser.set_defaults(off)
        if parser.command == "predict":
            parser.add_class_arguments(Sampler, "sample")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        options = self.config[command]
        # The links want their sources even where defaults are left out, so those get values that nobody asks for.
        linked = Namespace({f"{command}.model": Namespace(UNASKED)})  # type: ignore[no-untyped-call]
        self.asked = parser.parse_args(args, linked, defaults=False)[command]
        if "trainer.max_epochs" in self.asked and "trainer.max_steps" not in self.asked:
            options.trainer.max_steps = -1  # who counts in epochs does not want to stop after our number of steps

        self.checkpoint: dict[str, Any] | None = None
        if command != "fit" or options.ckpt_path is not None:
            options.ckpt_path = str(find_checkpoint(options.ckpt_path, options.trainer.default_root_dir))
            self.checkpoint = read_checkpoint(options.ckpt_path)
            say(f"checkpoint: {options.ckpt_path}")

    def before_instantiate_classes(self) -> None:
        command = self.config["subcommand"]
        options = self.config[command]
        if command != "fit" or options.trainer.logger is False:
            self.save_config_callback = None  # it would write into the current folder
        if options.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
            raise ValueError("--trainer.accelerator gpu: torch finds no GPU here; leave the flag out, or say cpu")
        if self.checkpoint is None:
            return
        # LightningCLI took the model's hyperparameters from the checkpoint. The data's belong to it as well (validation
        # must not run on words that were trained on), and what was asked for wins over both where it can.
        model, data = (
            {name: value for name, value in self.asked.get(group, {}).items() if UNASKED.get(name) != value}
            for group in ("model", "data")
        )
        fixed = self.checkpoint["hyper_parameters"]
        for name in ["vocabulary", "block_size", "embedding_dim", "hidden_size"]:
            if model.get(name, fixed[name]) != fixed[name]:
                raise ValueError(f"--model.{name} {model[name]}: the checkpoint has {fixed[name]}; leave the flag out")
        theirs = {k: v for k, v in self.checkpoint["datamodule_hyper_parameters"].items() if k not in UNASKED}
        self.config = self.parser.parse_object({command: {"model": model, "data": theirs | data}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self.config_init[self.config["subcommand"]].trainer
        callbacks = list(trainer.callbacks or [])
        if self.subcommand == "predict":
            callbacks.append(NamesWriter())
        if self.subcommand == "fit":
            callbacks.append(ValidateLastStep())
            if trainer.logger is not False and not trainer.fast_dev_run:
                callbacks.append(LearningRateMonitor())
            if trainer.enable_checkpointing is not False:
                checkpoint = partial(ModelCheckpoint, enable_version_counter=False, auto_insert_metric_name=False)
                callbacks.append(checkpoint(filename="best", monitor="val/loss"))
                # A second one: `save_last` would only follow the best, and an overfitting run goes on without it.
                callbacks.append(checkpoint(filename="last"))
            if trainer.enable_progress_bar is not False:
                callbacks.append(Progress())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_instantiate_classes(self) -> None:
        options = self.config_init[self.config["subcommand"]]
        if self.checkpoint is None:
            return
        if self.subcommand == "fit":
            options.weights_only = True  # the Trainer reads the file again, for the optimizer and the loops
        else:
            # All that is wanted are five tensors; the Trainer would look for the callbacks of the training as well.
            self.model.load_state_dict(self.checkpoint["state_dict"])
            options.ckpt_path = None

    def before_fit(self) -> None:
        data, model = self.datamodule, self.model
        sizes = " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"{len(data.words):,} words ({sizes}), {len(data.vocabulary) - 1} characters, {parameters:,} parameters")

    def after_fit(self) -> None:
        if not self.trainer.is_global_zero:
            return
        model, saved = self.model, [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        if saved and Path(saved[0].best_model_path).is_file():
            model = MLP.load_from_checkpoint(saved[0].best_model_path, "cpu", weights_only=True)
        print(*model.sample(), sep="\n", flush=True)
        if model is not self.model:
            path = os.path.relpath(saved[0].best_model_path)
            say(f"checkpoint: {path} (val/loss {saved[0].best_model_score:.4f})")
            say(f"more names: python -m makemore_pl predict --ckpt_path {path}")
        if self.trainer.log_dir and self.trainer.logger:
            say(f"the curves: tensorboard --logdir {os.path.relpath(Path(self.trainer.log_dir).parent)}")

    def predict(self, **_: Any) -> None:
        """Samples names; the word list takes no part in it."""
        self.trainer.predict(self.model, dataloaders=self.config_init.predict.sample, return_predictions=False)


def find_checkpoint(ckpt_path: str | None, root: str | None) -> Path:
    """Returns the checkpoint that is meant.

    Args:
        ckpt_path: a file; or `best` (as None) or `last`, of the newest run.
        root: the folder that holds `lightning_logs`; None for the current one.

    Raises:
        ValueError: if there is no such file.
    """
    name = ckpt_path or "best"
    if name not in ("best", "last"):
        if not Path(name).is_file():
            raise ValueError(f"--ckpt_path {name}: no such file")
        return Path(name)
    logs = Path(root or "") / "lightning_logs"
    found = logs.glob(f"version_*/checkpoints/{name}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(
            f"no {name}.ckpt under {logs}: train first (python -m makemore_pl fit) or name a file with --ckpt_path"
        )
    return newest


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint, tensors and plain values only.

    Raises:
        ValueError: if it is none, or not one of this project's.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a broken file throws: a dozen types, from zip, pickle and torch.
        raise ValueError(f"{path}: cannot read this checkpoint ({type(error).__name__})") from None
    keys = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters"}
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        raise ValueError(f"{path}: not a checkpoint of makemore_pl")
    return checkpoint


def silence_stock_noise() -> None:
    """Drops the lines that Lightning prints on every run and that ask nothing of anybody; real warnings stay."""
    noise = ("💡 Tip:", "GPU available: ", "TPU available: ", "`Trainer.fit` stopped: `max_")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(noise))
    # torch renamed the first, Lightning still uses it; the second is false, since steps are counted across epochs.
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "The number of training batches .+ is smaller",
    ]:
        warnings.filterwarnings("ignore", message)


def main() -> None:
    """Runs the command line. A user's mistake ends in one line on stderr and exit status 2."""
    silence_stock_noise()
    every_parser = {"allow_abbrev": False}
    try:
        CLI(
            MLP,
            NamesDataModule,
            parser_class=Parser,
            parser_kwargs=every_parser | {name: every_parser | {"command": name} for name in CLI.subcommands()},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=False,  # every generator here has a seed of its own
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # it would put the name of a function to call into the checkpoint
        )
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads our names has seen enough. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MisconfigurationException) as error:
        fail(error)
