"""The command line: brings data, model and Trainer together."""

import contextlib
import ctypes
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.optim.lr_scheduler import LambdaLR

from makemore_pl.board import Board
from makemore_pl.callbacks import Progress, StopNotFinite
from makemore_pl.checkpointing import (
    CheckpointFolder,
    RunCheckpoint,
    RunFolder,
    WholeCheckpoints,
    find,
    stopped_early,
)
from makemore_pl.comparison import Comparison, Score, show
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.export import export_average
from makemore_pl.interruption import Interruption, ending_quietly
from makemore_pl.loading import ARCHITECTURE, BrokenCheckpointError, check_resume, read, refuse_url, require_tensors
from makemore_pl.lr_find import Found, find_lr
from makemore_pl.memory import require_memory
from makemore_pl.model import MLP
from makemore_pl.parser import COMMANDS, Parser, fail, name_flag, open_streams, say, trust, write_utf8
from makemore_pl.predictions import NamesWriter, Request
from makemore_pl.threads import MOST, Threads, choose_threads
from makemore_pl.watchdog import Watchdog
from makemore_pl.windows import count_words

TRAINER_DEFAULTS = {
    "max_steps": 500,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}

TRAINING = ["fit", "lr_find"]
"""The subcommands that read a list and train; the others take a checkpoint."""

COUNTED_WORDS = 2**22
"""Up to so many words, fit says how many are distinct; to know it of more would take too much memory."""

UNASKED = {"block_size": -(2**31), "vocabulary": ""}
"""What stands for the hyperparameters that model and data share where nobody asked for them."""


class Trainer(LightningTrainer):
    """Lightning's Trainer with a method for each command of ours: LightningCLI takes the flags of one from there."""

    def lr_find(self, model: MLP, datamodule: NamesDataModule, num_steps: int | None = None) -> Found:
        """Looks for a learning rate as makemore part 2 does: one step at each of many, from 0.001 to 1.

        Args:
            model: as it is before training.
            datamodule: its data.
            num_steps: how many learning rates to try; if omitted 1,000, or 200 where each step takes all windows.
        """
        return find_lr(self, model, datamodule, num_steps)

    def export(self, model: MLP, datamodule: NamesDataModule, output: str, average: list[str] | None = None) -> None:
        """Writes the model in another form.

        Args:
            model: with its weights.
            datamodule: what it was trained on.
            output: a file whose ending says the form: .html, a page to play with; .onnx; .safetensors; .ckpt.
            average: further checkpoints, of networks trained on the same words; what is written is one network that is
                the average of all.
        """
        export_average(model, datamodule.hparams, output, average)


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
        write_utf8()
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
        ours = {"lr_find": {"model", "datamodule"}, "export": {"model", "datamodule"}}
        return {name: (theirs | ours)[name] for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser that knows recipes by their names."""
        parser = Parser(**kwargs)
        parser.add_config()
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser)
        parser.link_arguments("model.block_size", "data.block_size")
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="float32 products on GPUs: `highest` in full; `high` with TF32, `medium` with bfloat16 tensor cores",
        )
        parser.add_argument("--trust", type=str | None, help="a module whose classes a config may name, with its code")
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
        for group in ("trainer", "model", "data"):
            if not isinstance(options.get(group), Namespace):
                raise ValueError(f"--config: {group} is {options.get(group)}: expected names with values")
        if options.trainer.default_root_dir is not None:
            refuse_url(options.trainer.default_root_dir)
        # The links want their sources even where defaults are left out, so those get values that nobody asks for.
        linked = Namespace({f"{command}.model": Namespace(UNASKED)})  # type: ignore[no-untyped-call]
        self.asked = parser.parse_args(args, linked, defaults=False)[command]
        if self.asked.get("trainer.max_epochs") is not None and "trainer.max_steps" not in self.asked:
            options.trainer.max_steps = -1  # who counts in epochs does not want to stop after our number of steps
        if command in ("validate", "test"):
            options.verbose = self.asked.get("verbose", False)  # our own table has more

        self.checkpoint: dict[str, Any] | None = None
        self.same_run = command == "fit" and options.ckpt_path == "last"
        if command not in TRAINING or options.get("ckpt_path") is not None:
            options.ckpt_path, self.checkpoint = find_checkpoint(options.ckpt_path, options.trainer.default_root_dir)

    def _parse_ckpt_path(self) -> None:
        """Leaves the checkpoint, in which Lightning would look up a class, to us."""

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
        # The model's hyperparameters are those of the checkpoint. The data's belong to it as well (validation must not
        # run on words that were trained on), and what was asked for wins over both where it can.
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
        with Parser.about(f"{options.ckpt_path}: its hyperparameters do not fit"):
            self.config = self.parser.parse_object({command: {"model": fixed | model, "data": data}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.config["subcommand"]]
        trainer = options.trainer
        callbacks = as_list(trainer.callbacks)
        self.best: RunCheckpoint | None = None
        callbacks.append(Threads())
        callbacks.append(Settings(options.matmul_precision, options.get("compile")))
        if not any(isinstance(callback, Watchdog) for callback in callbacks):
            callbacks.append(Watchdog())
        if self.subcommand == "predict":
            callbacks.append(NamesWriter(options.sample))
        if self.subcommand in TRAINING:
            if trainer.logger in (None, True):
                version = Path(options.ckpt_path).parent.parent.name if self.same_run else None
                root = trainer.default_root_dir or "."
                kwargs["logger"] = RunFolder(root, "lightning_logs", version, default_hp_metric=False)
            if trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
                callbacks.append(Progress())
        if self.subcommand == "lr_find":
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "fit":
            checkpoints: list[RunCheckpoint] = []
            callbacks.append(StopNotFinite())
            if trainer.logger is not False and not trainer.fast_dev_run:
                if options.data.hparams["steps_per_execution"] == 1:  # in blocks the model logs it
                    callbacks.append(LearningRateMonitor("step"))
                if options.pictures:
                    callbacks.append(Board())
            if trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
                self.best = RunCheckpoint("best", monitor="val/loss")
                # A second one: `save_last` would only follow the best, and an overfitting run continues without it.
                checkpoints = [self.best, RunCheckpoint("last")]
                callbacks += [CheckpointFolder(), *checkpoints]
                kwargs["plugins"] = [*as_list(trainer.plugins), WholeCheckpoints()]
            callbacks.append(Interruption(*checkpoints))
        return cast(Trainer, super().instantiate_trainer(callbacks=callbacks, **kwargs))

    def after_instantiate_classes(self) -> None:
        if self.subcommand in TRAINING and self.datamodule.is_stream and self.trainer.world_size > 1:
            raise ValueError("a list from stdin is read by one process: save it to a file, or --trainer.devices 1")
        refuse_precision(self.config[self.config["subcommand"]].trainer.precision, self.trainer.strategy.root_device)
        if self.checkpoint is None:
            return
        options = self.config_init[self.config["subcommand"]]
        require_tensors(options.ckpt_path, self.checkpoint["state_dict"], self.model.state_dict())
        if self.subcommand == "fit":
            optimizer = self.model.make_optimizer()
            schedule = LambdaLR(optimizer, lambda step: 1.0)
            check_resume(
                options.ckpt_path,
                self.checkpoint,
                self.trainer.fit_loop.state_dict(),
                optimizer.state_dict(),
                schedule.state_dict(),
                {each.state_key: each.state_dict() for each in self.trainer.checkpoint_callbacks},
            )
            # Refuses another alphabet, and blocks where there were none, before a folder is made.
            self.model.automatic_optimization = options.data.hparams["steps_per_execution"] == 1
            self.model.on_load_checkpoint(self.checkpoint)
            for name, state in self.checkpoint["callbacks"].items():
                if name.startswith("EarlyStopping") and stopped_early(state):
                    how = f"EarlyStopping ended it at step {self.checkpoint['global_step']:,}"
                    raise ValueError(f"{options.ckpt_path}: this run is finished: {how}")
            loop = self.checkpoint["loops"]["fit_loop"]
            ended = loop["epoch_loop.batch_progress"][
                "is_last_batch"
            ]  # with the validation, an epoch is not processed yet
            epochs = loop["epoch_progress"]["current"]["ready" if ended else "processed"]
            for limit, done in [("max_steps", self.checkpoint["global_step"]), ("max_epochs", epochs)]:
                if 0 < (options.trainer[limit] or 0) <= done:
                    raise ValueError(
                        f"{options.ckpt_path}: this run is finished, at step {self.checkpoint['global_step']:,}; "
                        f"give a larger --trainer.{limit} to go on"
                    )
            options.weights_only = True  # the Trainer reads the file again, for the optimizer and the loops
        else:
            # All that is wanted are five tensors; the Trainer would look for the callbacks of the training as well.
            self.trainer.precision_plugin.convert_module(self.model)  # 64 bits would not fit into 32
            self.model.load_state_dict(self.checkpoint["state_dict"])
            self.ckpt_path, options.ckpt_path = options.ckpt_path, None
            if self.subcommand == "predict":
                options.sample.where = self.datamodule.where
                # before anything is said or written
                data = self.datamodule
                options.sample.prepare(self.model.vocabulary, data.hparams["normalization"], data.source)
            say(f"checkpoint: {self.ckpt_path}")

    def before_fit(self) -> None:
        # Besides the weights, each parameter has a gradient, and two moments of AdamW's; a checkpoint of all but the
        # gradient is put together in memory.
        require_memory(24 * sum(parameter.numel() for parameter in self.model.parameters()), "training this model")
        if self.checkpoint is not None:
            say(f"going on from {self.config_init.fit.ckpt_path}, step {self.checkpoint['global_step']:,}")
        self._say_words()
        if isinstance(self.trainer.logger, RunFolder):
            _ = self.trainer.logger.version  # taken here, so that processes that are spawned know of it

    def _say_words(self) -> None:
        data, model = self.datamodule, self.model
        if data.in_pieces:
            words = "words in pieces"
        else:
            sizes = " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
            words = f"{len(data.words):,} words ({sizes})"
            if len(data.words) <= COUNTED_WORDS:
                words += f", {len(set(data.words)):,} distinct"
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"{words}, {len(data.vocabulary) - 1} characters, {parameters:,} parameters")
        if changed := describe_changes(data.changed):
            say(f"of the list, {changed}")
        if data.teacher is not None:
            parameters = sum(parameter.numel() for parameter in data.teacher.parameters())
            say(f"teacher: {os.path.relpath(data.hparams['teacher'])}, {parameters:,} parameters")

    def after_fit(self) -> None:
        log_dir, path, loss = self.trainer.log_dir, "", None  # the folder is asked of all ranks
        if self.best is not None:
            path, loss = self.best.best_model_path, self.best.best_model_score
            if not path:  # nothing was validated
                path = str(Path(log_dir or "", "checkpoints", "last.ckpt"))
        if not self.trainer.is_global_zero:
            return
        if loss is not None and not torch.isfinite(loss):
            raise ValueError("the validation loss was never a finite number; try a smaller --model.lr")
        model = MLP.load_from_checkpoint(path, "cpu", weights_only=True) if path else self.model
        if path:
            path = os.path.relpath(path)
            say(f"checkpoint: {path}" + (f" (val/loss {loss:.4f})" if loss is not None else ""))
        if self.datamodule.hparams["val_fraction"]:
            _, scores = self._compare(model, "val")
            losses = [f"{name.split(',')[0]} {of[0].loss:.4f}" for name, of in scores.items()][:3]
            unseen = [f"{score.loss:.4f}" for of in scores.values() for score in of[1:]][:3]
            line = f"; on words not in train {', '.join(unseen)}" if unseen else ""
            say(f"compared: {', '.join(losses)}{line}")
        if path:
            say(f"more names: python -m makemore_pl predict --ckpt_path {path}")
        if log_dir and isinstance(self.trainer.logger, TensorBoardLogger):
            say(f"the curves: tensorboard --logdir {os.path.relpath(Path(log_dir).parent)}")
        print(*model.sample(), sep="\n", flush=True)

    def _compare(self, model: MLP, split: str) -> tuple[list[str], dict[str, list[Score]]]:
        """Holds a model against counting, on the words of a split and on those of them that it has not seen.

        Returns:
            What the two are called, and the scores.
        """
        data, trainer = self.datamodule, self.trainer
        device = trainer.strategy.root_device
        trainer.precision_plugin.convert_module(model.eval().to(device))

        def network(X: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return model(X.to(device))

        few = not data.in_pieces and len(data.words) <= COUNTED_WORDS
        counting = ["train", "val"] if few or data.hparams["counted"] else []  # what is not counted yet may not fit
        try:
            counts = data.count(*dict.fromkeys([*counting, split]), together=False)
        except ValueError as error:
            counts = data.count(split, together=False)
            say(f"without counting: {error}")
        sets = {f"{split}, all words": counts[split]}
        if few and (unseen := data.unseen(split)) and len(unseen) < len(data.splits[split]):
            sets[f"{split}, {len(unseen):,} words not in train"] = count_words(
                unseen, model.vocabulary, model.block_size
            )
        held_out = counts.get("val") if data.hparams["val_fraction"] else None
        return list(sets), Comparison(network, counts.get("train"), held_out).score(*sets.values())

    def after_validate(self) -> None:
        """Prints the loss of the network beside that of counting."""
        self._print_comparison("val")

    def after_test(self) -> None:
        """Prints the same of the test."""
        self._print_comparison("test")

    def _print_comparison(self, split: str) -> None:
        if self.trainer.is_global_zero:
            sets, scores = self._compare(MLP.load_from_checkpoint(self.ckpt_path, "cpu"), split)
            print(show(scores, sets), flush=True)

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

    def export(self, output: str, average: list[str] | None, **_: Any) -> None:
        """Writes the checkpoint in another form."""
        self.trainer.export(self.model, self.datamodule, output, average)
        say(f"{output}: {Path(output).stat().st_size:,} bytes")

    def predict(self, **_: Any) -> None:
        """Samples names; the word list takes no part in it."""
        self.trainer.predict(self.model, dataloaders=self.config_init.predict.sample, return_predictions=False)


def describe_changes(changed: Mapping[str, int]) -> str:
    """Says what of a list was not taken as it stands; empty if all of it was."""
    blank, space = changed.get("blank", 0), changed.get("space", 0)
    parts = [f"{blank:,} blank line{'s' * (blank > 1)} dropped"] * (blank > 0)
    parts += [f"the space around {space:,} word{'s' * (space > 1)} dropped"] * (space > 0)
    for form in ("NFC", "NFD"):
        if number := changed.get(form, 0):
            parts.append(f"{number:,} word{'s' * (number > 1)} put into the form {form} (--data.normalization)")
    return ", ".join(parts)


def as_list(value: Any) -> list[Any]:
    """What may be given alone, in a list, or not at all."""
    return value if isinstance(value, list) else [] if value is None else [value]


def refuse_numbers(trainer: Namespace) -> None:
    """Refuses numbers that the Trainer takes and stumbles over later.

    Raises:
        ValueError: if there is one.
    """
    expected = {
        **dict.fromkeys(["num_nodes", "accumulate_grad_batches", "check_val_every_n_epoch"], "1 or more"),
        **dict.fromkeys(["devices", "max_steps", "max_epochs"], "1 or more, or -1 for no limit"),
        **dict.fromkeys(["log_every_n_steps", "gradient_clip_val"], "0 or more"),
        **dict.fromkeys(["limit_val_batches", "limit_test_batches"], "0 or more"),
        **dict.fromkeys(["val_check_interval", "limit_train_batches", "limit_predict_batches"], "more than 0"),
    }
    for name, range_ in expected.items():
        value = trainer[name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # left out, or a word, a list, a time
        if not number >= range_.startswith("1") or (number == 0 and range_ == "more than 0"):
            if number == -1 and "-1" in range_:
                continue
            raise ValueError(f"--trainer.{name} {value}: expected {range_}")
        if isinstance(value, float) and number > 1 and name.startswith(("limit_", "val_")):
            raise ValueError(f"--trainer.{name} {value}: expected a share up to 1, or a whole number")
    processes, most = str(trainer.devices), max(64, os.cpu_count() or 1)
    if processes.isdecimal() and int(processes) > most:
        raise ValueError(f"--trainer.devices {processes}: expected at most {most}, each a process of this machine")


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


def find_checkpoint(ckpt_path: str | None, root: str | None) -> tuple[str, dict[str, Any]]:
    """Finds and reads the checkpoint that is meant. Where it is broken, the one before takes its place, and says so.

    Args:
        ckpt_path: a file; or `best` (as None) or `last`, of the newest run.
        root: the folder that holds `lightning_logs`; None for the current one.

    Returns:
        Its path and what it holds.

    Raises:
        ValueError: if there is no such file, or no whole one.
    """
    name = ckpt_path or "best"
    if name not in ("best", "last"):
        refuse_url(name)
        if Path(name).is_dir():
            raise ValueError(f"--ckpt_path {name}: is a folder; name a file in its checkpoints")
        if not Path(name).is_file():
            what = "is no file, but a device" if Path(name).exists() else "no such file"
            raise ValueError(f"--ckpt_path {name}: {what}")
        return name, read(name)
    problem: ValueError | None = None
    for path in find(name, root or "."):
        try:
            checkpoint = read(path)
        except (BrokenCheckpointError, FileNotFoundError) as error:
            missing = f"the newest run, {path.parent.parent}, has no {path.name}"
            problem = problem or (error if isinstance(error, ValueError) else ValueError(missing))
            continue
        if problem is not None:
            say(f"warning: {problem}; taking {path}, step {checkpoint.get('global_step', 0):,}, in its place")
        return str(path), checkpoint
    logs = Path(root or "") / "lightning_logs"
    raise problem or ValueError(
        f"no checkpoint under {logs}: train first (python -m makemore_pl fit) or name a file with --ckpt_path"
    )


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
    # the third is what happens to a run that begins from a file of another; the fourth is false, since batches follow
    # from the step; the fifth is what happens to one that resumes; the sixth we refuse.
    for message in [
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "The number of training batches .+ is smaller",
        "The dirpath has changed from",
        "You're resuming from a checkpoint that ended before the epoch ended",
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
    open_streams()
    silence_stock_noise()
    keep_freed_memory()
    end_with_parent()
    choose_threads(0)  # reading and counting are small operations
    try:
        with ending_quietly():
            run()
    finally:
        torch.set_num_threads(MOST)


def raised_by_lightning(error: BaseException) -> bool:
    """Whether one of Lightning's callbacks raised an error: it misses something in the model or the data."""
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith("lightning.pytorch.callbacks.") for name in frames[-3:])


def run() -> None:
    """Runs it."""
    every_parser = {"allow_abbrev": False, "prog": "makemore_pl"}
    parsers = {name: every_parser | {"command": name} for name in CLI.subcommands()}
    try:
        trust(sys.argv[1:])
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
    except (MemoryError, torch.OutOfMemoryError) as error:
        fail(f"out of memory: {str(error).split('. ')[0] or 'try smaller sizes'}")
    except (RuntimeError, AttributeError) as error:
        if "can't allocate memory" in str(error):
            fail("out of memory: try smaller sizes, or --data.batch_size")
        if type(error).__module__ == "torch._inductor.exc":
            fail(f"--compile: {error}".split("\n")[0])
        if not raised_by_lightning(error):
            raise
        fail(error)
    except ValueError as error:
        fail(name_flag(str(error)))
    except (OSError, ImportError, MisconfigurationException) as error:
        fail(error)
