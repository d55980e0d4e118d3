"""The command line: brings data, model and Trainer together.

Over 300 lines: the hooks of LightningCLI are methods of one class. What they do is in the files beside this one.
"""

import os
import re
import shlex
import sys
import traceback
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from makemore_pl.checkpoint import ARCHITECTURE, refuse_url, require_tensors
from makemore_pl.commands.checks import refuse_numbers, refuse_precision
from makemore_pl.commands.evaluate import compare
from makemore_pl.commands.export import export_average
from makemore_pl.commands.fit import (
    describe,
    fit_callbacks,
    progress,
    report,
    require_memory_to_train,
    run_folder,
)
from makemore_pl.commands.help import COMMANDS
from makemore_pl.commands.lr_find import Found, find_lr
from makemore_pl.commands.messages import fail, open_streams, say, write_utf8
from makemore_pl.commands.parser import Parser, model_class, name_flag, trust
from makemore_pl.commands.predict import NamesWriter, Request
from makemore_pl.commands.process import end_with_parent, keep_freed_memory, silence_stock_noise
from makemore_pl.commands.resume import find_checkpoint, require_resumable
from makemore_pl.commands.threads import MOST, Threads, choose_threads
from makemore_pl.comparison import show
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import RunFolder, WholeCheckpoints
from makemore_pl.durable.interruption import ending_quietly
from makemore_pl.durable.watchdog import Watchdog
from makemore_pl.model import MLP
from makemore_pl.optimization import as_list

TRAINER_DEFAULTS = {
    "max_steps": 500,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}

TRAINING = ["fit", "lr_find"]
"""The commands that read a list and train; the others read a checkpoint."""

MAY_RAISE = ("lightning.pytorch.callbacks.", "lightning.pytorch.accelerators.", "lightning.fabric.accelerators.")
"""Where Lightning raises errors about flags and callbacks that are not of the usual kinds."""

LINKED = ["block_size", "vocabulary"]
"""The hyperparameters that model and data share."""


class Trainer(LightningTrainer):
    """Lightning's Trainer with `lr_find` and `export`: LightningCLI takes the flags of a command from a method."""

    def lr_find(self, model: MLP, datamodule: NamesDataModule, num_steps: int | None = None) -> Found:
        """Finds a learning rate as makemore part 2 does: one step at each of many, from 0.001 to 1.

        Args:
            model: not yet trained.
            datamodule: its data.
            num_steps: how many learning rates to try; default 1,000, or 200 where each step takes all windows.
        """
        return find_lr(self, model, datamodule, num_steps)

    def export(self, model: MLP, datamodule: NamesDataModule, output: str, average: list[str] | None = None) -> None:
        """Writes the model in another format.

        Args:
            model: with its weights.
            datamodule: its data.
            output: a file whose ending names the format: .html, an interactive page; .onnx; .safetensors; .ckpt.
            average: further checkpoints, of networks trained on the same words; the average of all is written.
        """
        export_average(model, datamodule.hparams, output, average)


class Settings(Callback):
    """Settings of each process of a run: spawned ones know nothing of the command line.

    Args:
        matmul_precision: of float32 products.
    """

    def __init__(self, matmul_precision: str) -> None:
        self.matmul_precision = matmul_precision

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        silence_stock_noise()
        write_utf8()
        torch.set_float32_matmul_precision(self.matmul_precision)


class CLI(LightningCLI):
    """LightningCLI that finds checkpoints by itself, samples as `predict`, and has `lr_find` and `export`.

    Args:
        model: MLP or a subclass.
        data: NamesDataModule or a subclass.
        options: of LightningCLI.
    """

    trainer: Trainer
    model: MLP
    datamodule: NamesDataModule

    def __init__(self, model: type[MLP] = MLP, data: type[NamesDataModule] = NamesDataModule, **options: Any) -> None:
        every_parser = {"allow_abbrev": False, "prog": "makemore_pl"}
        parsers = {name: every_parser | {"command": name} for name in COMMANDS}
        ours: dict[str, Any] = {
            "trainer_class": Trainer,
            "parser_class": Parser,
            "parser_kwargs": every_parser | {"command": ""} | parsers,
            "trainer_defaults": TRAINER_DEFAULTS,
            "seed_everything_default": False,  # each generator has a seed of its own
            "auto_configure_optimizers": False,
            "save_config_kwargs": {"overwrite": True},  # a resumed run stays in its folder
            "load_from_checkpoint_support": False,  # it would write the name of a function to call into the checkpoint
        }
        super().__init__(model, data, **ours | options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        theirs = LightningCLI.subcommands()
        ours = {"lr_find": {"model", "datamodule"}, "export": {"model", "datamodule"}}
        return {name: (theirs | ours)[name] for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
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
        parser.add_argument("--trust", type=str | None, help="a module whose classes a config may name")
        parser.add_argument("--model_class", type=str | None, help="a subclass of MLP in a module that you --trust")
        if parser.command == "fit":
            parser.add_argument(
                "--pictures",
                type=bool,
                default=True,
                help="draw in TensorBoard what the network learns: the map of letters, what comes next, names, ...",
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
        # ... and later the checkpoint does: predict needs no list, and the others must read theirs in the same way.
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
        self.checkpoint: dict[str, Any] | None = None
        self.same_run = command == "fit" and options.ckpt_path == "last"
        if command not in TRAINING or options.get("ckpt_path") is not None:
            options.ckpt_path, self.checkpoint = find_checkpoint(options.ckpt_path, options.trainer.default_root_dir)

        # What the user asked for, without the defaults; the links need the values of their sources all the same.
        sources = self.checkpoint["hyper_parameters"] if self.checkpoint else options.model
        known = Namespace({f"{command}.model.{name}": sources.get(name, "") for name in LINKED})  # type: ignore[no-untyped-call]
        self.asked = parser.parse_args(args, known, defaults=False)[command]
        if self.asked.get("trainer.max_epochs") is not None and "trainer.max_steps" not in self.asked:
            options.trainer.max_steps = -1  # a number of epochs replaces our number of steps
        if command in ("validate", "test"):
            options.verbose = self.asked.get("verbose", False)  # our own table has more
        if type(seed := self.asked.get("seed_everything")) is int:
            for name in ("model.seed", "data.order_seed"):
                options[name] = self.asked[name] = self.asked.get(name, seed)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would import a class that the checkpoint names."""

    def before_instantiate_classes(self) -> None:
        command = self.config["subcommand"]
        options = self.config[command]
        if command not in TRAINING or options.trainer.logger is False:
            self.save_config_callback = None  # it would write into the current folder
        if options.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
            raise ValueError("--trainer.accelerator gpu: torch finds no GPU here; omit the flag, or use cpu")
        refuse_numbers(options.trainer)
        if self.checkpoint is None:
            return
        # The hyperparameters are those of the checkpoint, the data's included (validation must not run on words that
        # were trained on); what the user asked for wins where it can.
        fixed, model = self.checkpoint["hyper_parameters"], dict(self.asked.get("model", {}))
        for name in ARCHITECTURE + ["optimizer"] * (command == "fit"):
            if model.get(name, fixed[name]) != fixed[name]:
                raise ValueError(f"--model.{name} {model[name]}: the checkpoint has {fixed[name]}; omit the flag")
        data = {**self.checkpoint.get("datamodule_hyper_parameters", {}), **dict(self.asked.get("data", {}))}
        groups = {"model": fixed | model, "data": {name: value for name, value in data.items() if name not in LINKED}}
        with Parser.about(f"{options.ckpt_path}: its hyperparameters do not fit"):
            self.config = self.parser.parse_object({command: groups}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand]
        trainer = options.trainer
        ours: list[Callback] = [Threads(), Settings(options.matmul_precision)]
        if not any(isinstance(callback, Watchdog) for callback in as_list(trainer.callbacks)):
            ours.append(Watchdog())
        if self.subcommand == "predict":
            ours.append(NamesWriter(options.sample))
        if self.subcommand == "lr_find":
            ours += progress(trainer)
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "fit":
            ours += fit_callbacks(trainer, options.pictures, options.data.hparams["steps_per_execution"] > 1)
            kwargs["plugins"] = [*as_list(trainer.plugins), WholeCheckpoints()]
        if self.subcommand in TRAINING and trainer.logger in (None, True):
            kwargs["logger"] = run_folder(trainer, options.ckpt_path if self.same_run else None)
        return cast(Trainer, super().instantiate_trainer(callbacks=[*as_list(trainer.callbacks), *ours], **kwargs))

    def after_instantiate_classes(self) -> None:
        options, data = self.config_init[self.subcommand], self.datamodule
        if self.subcommand in TRAINING and data.is_stream and self.trainer.world_size > 1:
            raise ValueError("a list from stdin is read by one process: save it to a file, or --trainer.devices 1")
        refuse_precision(options.trainer.precision, self.trainer.strategy.root_device)
        if self.checkpoint is None:
            return
        require_tensors(options.ckpt_path, self.checkpoint["state_dict"], self.model.state_dict())
        if self.subcommand == "fit":
            self.model.automatic_optimization = data.hparams["steps_per_execution"] == 1
            require_resumable(options.ckpt_path, self.checkpoint, self.model, self.trainer)
            options.weights_only = True  # the Trainer reads the file again, for the optimizer and the loops
            return
        # The weights are loaded here: the Trainer would look for the callbacks of the training as well.
        self.trainer.precision_plugin.convert_module(self.model)  # 64 bits would not fit into 32
        self.model.load_state_dict(self.checkpoint["state_dict"])
        self.ckpt_path, options.ckpt_path = options.ckpt_path, None
        if self.subcommand == "predict":
            options.sample.where = data.where
            # Before anything is printed or written.
            options.sample.prepare(self.model.vocabulary, data.hparams["normalization"], data.source)
        say(f"checkpoint: {self.ckpt_path}")

    def before_fit(self) -> None:
        require_memory_to_train(self.model)
        if self.checkpoint is not None:
            say(f"resuming {self.config_init.fit.ckpt_path}, step {self.checkpoint['global_step']:,}")
        describe(self.datamodule, self.model)
        self.load_teacher()
        if isinstance(self.trainer.logger, RunFolder):
            _ = self.trainer.logger.version  # made here, so that spawned processes know of it

    def load_teacher(self) -> None:
        """Hands the data its teacher, if it has one."""
        if (path := self.datamodule.hparams["teacher"]) is not None:
            teacher = MLP.load_from_checkpoint(path, "cpu")
            self.datamodule.learn_from(teacher, teacher.vocabulary, teacher.block_size)
            parameters = sum(parameter.numel() for parameter in teacher.parameters())
            say(f"teacher: {os.path.relpath(path)}, {parameters:,} parameters")

    def after_fit(self) -> None:
        report(self.trainer, self.model, self.datamodule)

    def after_validate(self) -> None:
        self.print_comparison("val")

    def after_test(self) -> None:
        self.print_comparison("test")

    def print_comparison(self, split: str) -> None:
        """Prints the table of losses, on the first rank."""
        if self.trainer.is_global_zero:
            model = type(self.model).load_from_checkpoint(self.ckpt_path, "cpu")
            sets, scores = compare(model, self.datamodule, self.trainer, split)
            print(show(scores, sets), flush=True)

    def lr_find(self, **arguments: Any) -> None:
        """Finds a learning rate, and prints the command that uses it."""
        describe(self.datamodule, self.model)
        self.load_teacher()
        lr, low, high = (f"{lr:.2g}" for lr in self.trainer.lr_find(**arguments))
        picture = os.path.relpath(Path(self.trainer.log_dir or self.trainer.default_root_dir, "lr_find.png"))
        say(f"learning rate {lr}, good from {low} to {high}; the curve: {shlex.quote(picture)}")
        asked = shlex.join(sys.argv[sys.argv.index("lr_find") + 1 :])
        flags = re.split(r" (?=--)", asked) if asked else []
        kept = [flag for flag in flags if re.split("[ =]", flag)[0] not in ("--num_steps", "--model.lr")]
        print("python -m makemore_pl fit", *kept, "--model.lr", lr, flush=True)

    def export(self, output: str, average: list[str] | None, **_: Any) -> None:
        """Writes the checkpoint in another format."""
        if self.trainer.is_global_zero:
            self.trainer.export(self.model, self.datamodule, output, average)
            say(f"{output}: {Path(output).stat().st_size:,} bytes")

    def predict(self, **_: Any) -> None:
        """Samples or scores; the word list takes no part in it."""
        self.trainer.predict(self.model, dataloaders=self.config_init.predict.sample, return_predictions=False)


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
    """Whether Lightning raised an error about what it was given: a flag, or a callback that misses something."""
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(MAY_RAISE) for name in frames[-3:])


def run() -> None:
    """Runs the command line, and puts errors into one line."""
    try:
        trust(sys.argv[1:])
        CLI(model_class(sys.argv[1:]))
        sys.stdout.flush()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # its threads may abort a process that ends before they do
    except BrokenPipeError:
        # The reader of our names has closed the pipe. Python would complain when it closes stdout on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ProcessExitedException, ProcessRaisedException) as error:
        reason = str(error).strip().split("\n")[-1]  # what is above is the trace of another process
        if not reason.startswith("BrokenPipeError"):
            fail(reason)
    except (MemoryError, torch.OutOfMemoryError) as error:
        fail(f"out of memory: {str(error).split('. ')[0] or 'try smaller sizes'}")
    except (RuntimeError, AttributeError, TypeError) as error:
        if "can't allocate memory" in str(error):
            fail("out of memory: try smaller sizes, or --data.batch_size")
        if not raised_by_lightning(error):
            raise
        fail(error)
    except ValueError as error:
        fail(name_flag(str(error)))
    except (OSError, ImportError, MisconfigurationException) as error:
        fail(error)
