"""The command line: the one room that sees both the data and the model."""

import contextlib
import ctypes
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from makemore_pl.board import Board
from makemore_pl.callbacks import Progress, ValidateLastStep
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.faststeps import FastSteps
from makemore_pl.model import MLP
from makemore_pl.parser import COMMANDS, Parser, fail, say
from makemore_pl.predictions import NamesWriter, Request
from makemore_pl.trainer import Trainer
from makemore_pl.watchdog import Watchdog

TRAINER_DEFAULTS = {
    "max_steps": 500,
    # Validation goes by steps, since an epoch of the counted view is a single step.
    "val_check_interval": 25,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}

TRAINING = ["fit", "lr_find"]
"""The subcommands that read a list and train; the others take a checkpoint."""

ARCHITECTURE = ["vocabulary", "block_size", "embedding_dim", "hidden_size"]
"""The hyperparameters that give the five tensors their shapes and meaning."""

UNASKED = {"block_size": -(2**31), "vocabulary": ""}
"""What stands for the hyperparameters that model and data share where nobody asked for them."""


class Settings(Callback):
    """What each process of a run sets for itself: spawned ones know nothing of the command line.

    Args:
        matmul_precision: of float32 products.
        compile: the mode of torch.compile; None to leave it.
    """

    def __init__(self, matmul_precision: str, compile: str | None) -> None:
        self.matmul_precision = matmul_precision
        self.compile = compile

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Sets them."""
        silence_stock_noise()
        torch.set_float32_matmul_precision(self.matmul_precision)
        if self.compile is not None:
            pl_module.compile(mode=self.compile)


class CLI(LightningCLI):
    """LightningCLI with checkpoints found by themselves, sampling as `predict`, `lr_find` and `export`."""

    trainer: Trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The methods of the Trainer that are subcommands, and what of their arguments we give."""
        theirs = LightningCLI.subcommands()
        ours = {"lr_find": {"model", "datamodule"}, "export": {"model"}}
        return {name: (theirs | ours)[name] for name in COMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser)
        parser.link_arguments("model.block_size", "data.block_size")
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="float32 products on GPUs: `highest` in full; `high` with TF32, `medium` with bfloat16 tensor cores",
        )
        if parser.command == "fit":
            parser.add_argument(
                "--compile",
                type=Literal["default", "reduce-overhead", "max-autotune"] | None,
                help="compile the network with torch.compile in this mode; `reduce-overhead` takes CUDA graphs",
            )
            parser.add_argument(
                "--pictures",
                type=bool,
                default=True,
                help="show in TensorBoard what the network learns: the map of letters, what comes next, names, ...",
            )
        if parser.command == "predict":
            parser.add_class_arguments(Request, "sample", skip={"where"})
        parser.allow_bare_switches()
        if parser.command in TRAINING:
            # The list decides the alphabet ...
            parser.link_arguments(
                "data.vocabulary", "model.vocabulary", attrgetter("characters"), apply_on="instantiate"
            )
            return
        # ... and afterwards the checkpoint does: predict needs no list, and the others must read theirs the same way.
        parser.link_arguments("model.vocabulary", "data.vocabulary")
        off = dict.fromkeys(["trainer.logger", "trainer.enable_checkpointing", "trainer.enable_progress_bar"], False)
        parser.set_defaults(off)
        if parser.command == "export":
            parser.add_argument("--ckpt_path", type=str | None, help="`best` or `last` of the newest run, or a file")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        options = self.config[command]
        # The links want their sources even where defaults are left out, so those get values that nobody asks for.
        linked = Namespace({f"{command}.model": Namespace(UNASKED)})  # type: ignore[no-untyped-call]
        self.asked = parser.parse_args(args, linked, defaults=False)[command]
        if self.asked.get("trainer.max_epochs") is not None and "trainer.max_steps" not in self.asked:
            options.trainer.max_steps = -1  # who counts in epochs does not want to stop after our number of steps

        self.checkpoint: dict[str, Any] | None = None
        self.same_run = command == "fit" and options.ckpt_path == "last"
        if command not in TRAINING or options.get("ckpt_path") is not None:
            options.ckpt_path = str(find_checkpoint(options.ckpt_path, options.trainer.default_root_dir))
            self.checkpoint = read_checkpoint(options.ckpt_path)

    def before_instantiate_classes(self) -> None:
        command = self.config["subcommand"]
        options = self.config[command]
        if command not in TRAINING or options.trainer.logger is False:
            self.save_config_callback = None  # it would write into the current folder
        if options.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
            raise ValueError("--trainer.accelerator gpu: torch finds no GPU here; leave the flag out, or say cpu")
        refuse_numbers(options.trainer)
        if self.checkpoint is None:
            return
        # LightningCLI took the model's hyperparameters from the checkpoint. The data's belong to it as well (validation
        # must not run on words that were trained on), and what was asked for wins over both where it can.
        model, data = (
            {name: value for name, value in self.asked.get(group, {}).items() if UNASKED.get(name) != value}
            for group in ("model", "data")
        )
        fixed = self.checkpoint["hyper_parameters"]
        for name in ARCHITECTURE + ["optimizer"] * (command == "fit"):
            if model.get(name, fixed[name]) != fixed[name]:
                raise ValueError(f"--model.{name} {model[name]}: the checkpoint has {fixed[name]}; leave the flag out")
        theirs = self.checkpoint.get("datamodule_hyper_parameters", {})
        data = {name: value for name, value in theirs.items() if name not in UNASKED} | data
        self.config = self.parser.parse_object({command: {"model": model, "data": data}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.config["subcommand"]]
        trainer = options.trainer
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        self.best: ModelCheckpoint | None = None
        callbacks.append(Settings(options.matmul_precision, options.get("compile")))
        if not any(isinstance(callback, Watchdog) for callback in callbacks):
            callbacks.append(Watchdog())
        if self.subcommand == "predict":
            callbacks.append(NamesWriter(options.sample))
        if self.subcommand in TRAINING:
            if trainer.logger in (None, True):
                version = Path(options.ckpt_path).parent.parent.name if self.same_run else None
                root = trainer.default_root_dir or "."
                kwargs["logger"] = TensorBoardLogger(root, "lightning_logs", version, default_hp_metric=False)
            if trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
                callbacks.append(Progress())
        if self.subcommand == "lr_find":
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "fit":
            callbacks += [ValidateLastStep(), FastSteps()]
            if trainer.logger is not False and not trainer.fast_dev_run:
                callbacks.append(LearningRateMonitor("step"))
                if options.pictures:
                    callbacks.append(Board())
            if trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
                checkpoint = partial(ModelCheckpoint, enable_version_counter=False, auto_insert_metric_name=False)
                self.best = checkpoint(filename="best", monitor="val/loss")
                # A second one: `save_last` would only follow the best, and an overfitting run goes on without it.
                callbacks += [self.best, checkpoint(filename="last")]
        return cast(Trainer, super().instantiate_trainer(callbacks=callbacks, **kwargs))

    def after_instantiate_classes(self) -> None:
        refuse_precision(self.config[self.config["subcommand"]].trainer.precision, self.trainer.strategy.root_device)
        if self.checkpoint is None:
            return
        options = self.config_init[self.config["subcommand"]]
        if self.subcommand == "fit":
            self.model.on_load_checkpoint(self.checkpoint)  # refuses another alphabet before a folder is made
            if 0 < options.trainer.max_steps <= self.checkpoint["global_step"]:
                raise ValueError(
                    f"{options.ckpt_path}: this run is finished, at step {self.checkpoint['global_step']:,}; "
                    "give a larger --trainer.max_steps to go on"
                )
            options.weights_only = True  # the Trainer reads the file again, for the optimizer and the loops
        else:
            # All that is wanted are five tensors; the Trainer would look for the callbacks of the training as well.
            self.trainer.precision_plugin.convert_module(self.model)  # 64 bits would not fit into 32
            self.model.load_state_dict(self.checkpoint["state_dict"])
            path, options.ckpt_path = options.ckpt_path, None
            if self.subcommand == "predict":
                options.sample.where = self.datamodule.where
                options.sample.check(self.model.vocabulary, self.datamodule._path)  # before anything is said or written
            say(f"checkpoint: {path}")

    def before_fit(self) -> None:
        if self.checkpoint is not None:
            say(f"going on from {self.config_init.fit.ckpt_path}, step {self.checkpoint['global_step']:,}")
        self._say_words()

    def _say_words(self) -> None:
        data, model = self.datamodule, self.model
        if data.in_pieces:
            words = "words in pieces"
        else:
            sizes = " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
            words = f"{len(data.words):,} words ({sizes})"
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"{words}, {len(data.vocabulary) - 1} characters, {parameters:,} parameters")

    def after_fit(self) -> None:
        log_dir, path, loss = self.trainer.log_dir, "", None  # the folder is asked of all ranks
        if self.best is not None:
            path, loss = self.best.best_model_path, self.best.best_model_score
            if not path:  # nothing was validated
                path = str(Path(log_dir or "", "checkpoints", "last.ckpt"))
                self.trainer.save_checkpoint(path)
        if not self.trainer.is_global_zero:
            return
        if loss is not None and not torch.isfinite(loss):
            raise ValueError("the validation loss was never a finite number; try a smaller --model.lr")
        if path:
            path = os.path.relpath(path)
            say(f"checkpoint: {path}" + (f" (val/loss {loss:.4f})" if loss is not None else ""))
            say(f"more names: python -m makemore_pl predict --ckpt_path {path}")
        if log_dir and isinstance(self.trainer.logger, TensorBoardLogger):
            say(f"the curves: tensorboard --logdir {os.path.relpath(Path(log_dir).parent)}")
        model = MLP.load_from_checkpoint(path, "cpu", weights_only=True) if path else self.model
        print(*model.sample(), sep="\n", flush=True)

    def lr_find(self, **arguments: Any) -> None:
        """Looks for a learning rate, and prints the command that takes it."""
        self._say_words()
        lr, low, high = (f"{lr:.2g}" for lr in self.trainer.lr_find(**arguments))
        picture = os.path.relpath(Path(self.trainer.log_dir or self.trainer.default_root_dir, "lr_find.png"))
        say(f"learning rate {lr}, good from {low} to {high}; the curve: {picture}")
        asked = shlex.join(sys.argv[sys.argv.index("lr_find") + 1 :])
        flags = re.split(r" (?=--)", asked) if asked else []
        kept = [flag for flag in flags if re.split("[ =]", flag)[0] not in ("--num_steps", "--model.lr")]
        if self.trainer.is_global_zero:
            print("python -m makemore_pl fit", *kept, "--model.lr", lr, flush=True)

    def export(self, output: str, **_: Any) -> None:
        """Writes the checkpoint in another form."""
        self.trainer.export(self.model, output)
        say(f"{output}: {Path(output).stat().st_size:,} bytes")

    def predict(self, **_: Any) -> None:
        """Samples names; the word list takes no part in it."""
        self.trainer.predict(self.model, dataloaders=self.config_init.predict.sample, return_predictions=False)


def refuse_numbers(trainer: Namespace) -> None:
    """Refuses numbers that the Trainer takes and stumbles over later.

    Raises:
        ValueError: if there is one.
    """
    expected = {
        **dict.fromkeys(["num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch"], "1 or more"),
        **dict.fromkeys(["devices", "max_steps", "max_epochs"], "1 or more, or -1 for no limit"),
        **dict.fromkeys(["log_every_n_steps", "gradient_clip_val"], "0 or more"),
        **dict.fromkeys(["val_check_interval", "limit_train_batches", "limit_predict_batches"], "more than 0"),
    }
    for name, range_ in expected.items():
        value = str(trainer[name])
        if not re.fullmatch(r"-?[\d.]+", value):
            continue
        number = float(value)
        if number < range_.startswith("1") or (number == 0 and range_ == "more than 0"):
            if number == -1 and "-1" in range_:
                continue
            raise ValueError(f"--trainer.{name} {value}: expected {range_}")


def refuse_precision(precision: object, device: torch.device) -> None:
    """Refuses what a device cannot compute with, of which Lightning would take something else, or torch stumble.

    Raises:
        ValueError: if so.
    """
    precision = {"16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}.get(str(precision), str(precision))
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError("--trainer.precision 16-mixed needs a GPU; on a CPU, bf16-mixed does the like")
    if precision == "64-true" and device.type == "mps":
        raise ValueError("--trainer.precision 64-true: Apple's GPUs have no 64 bits; add --trainer.accelerator cpu")
    if precision.startswith("bf16") and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--trainer.precision {precision}: this GPU has no bfloat16; take 16-mixed or 32-true")


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
        if Path(name).is_dir():
            raise ValueError(f"--ckpt_path {name}: is a folder; name a file in its checkpoints")
        if not Path(name).is_file():
            raise ValueError(f"--ckpt_path {name}: no such file")
        return Path(name)
    logs = Path(root or "") / "lightning_logs"
    newest = max(logs.glob("version_*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(
            f"no checkpoint under {logs}: train first (python -m makemore_pl fit) or name a file with --ckpt_path"
        )
    path = newest.with_name(f"{name}.ckpt")
    if not path.is_file():
        raise ValueError(f"the newest run, {path.parent.parent}, has no {name}.ckpt: name a file with --ckpt_path")
    return path


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
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not set(ARCHITECTURE) <= hparams.keys():
        raise ValueError(f"{path}: not a checkpoint of makemore_pl")
    return checkpoint


def silence_stock_noise() -> None:
    """Drops the lines that Lightning prints on every run and that ask nothing of anybody; real warnings stay."""
    noise = (
        *("💡 Tip:", "GPU available: ", "TPU available: ", "`Trainer.fit` stopped: `max_"),
        *("Using 16bit Automatic", "Using bfloat16 Automatic", "Restoring states from the", "Restored all states from"),
        "You are using a CUDA device",  # and should choose: --matmul_precision
        *("Initializing distributed: ", f"{'-' * 100}\ndistributed_backend="),
    )
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(noise))
    # torch renamed the first, Lightning still uses it; the second is false, since steps are counted across epochs;
    # the third is what happens to a run that begins from a file of another, the fourth to one that goes on; the fifth
    # we refuse.
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "The number of training batches .+ is smaller",
        "The dirpath has changed from",
        "Checkpoint directory .+ exists and is not empty",
        "You passed `Trainer\\(accelerator='cpu', precision='16-mixed'\\)`",
    ]:
        warnings.filterwarnings("ignore", message)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: by default it returns every block of some megabytes to the system.

    Each step would get the same blocks back page by page, which is a quarter of its time on counted rows.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, gigabyte = -1, -3, 2**30
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, gigabyte)
        mallopt(M_TRIM_THRESHOLD, gigabyte)


def end_with_parent() -> None:
    """Has Linux end a process that Lightning launched once its parent is gone, also before the watchdog is awake."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ:
        PR_SET_PDEATHSIG = 1
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another system
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Runs the command line. A user's mistake ends in one line on stderr and exit status 2."""
    silence_stock_noise()
    keep_freed_memory()
    end_with_parent()
    every_parser = {"allow_abbrev": False, "prog": "makemore_pl"}
    parsers = {name: every_parser | {"command": name} for name in CLI.subcommands()}
    try:
        CLI(
            MLP,
            NamesDataModule,
            trainer_class=Trainer,
            parser_class=Parser,
            parser_kwargs=every_parser | {"command": ""} | parsers,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=False,  # every generator here has a seed of its own
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},  # a resumed run goes on in its folder
            load_from_checkpoint_support=False,  # it would put the name of a function to call into the checkpoint
        )
        sys.stdout.flush()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # its threads may abort a process that ends before they do
    except BrokenPipeError:
        # Whoever reads our names has seen enough. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ProcessExitedException, ProcessRaisedException) as error:
        reason = str(error).strip().split("\n")[-1]  # what is above is the trace of another process
        if not reason.startswith("BrokenPipeError"):
            fail(reason)
    except RuntimeError as error:
        if type(error).__module__ != "torch._inductor.exc":
            raise
        fail(f"--compile: {error}".split("\n")[0])
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        fail(error)
