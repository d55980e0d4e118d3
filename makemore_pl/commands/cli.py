"""The command line: LightningCLI, wired to data, model and Trainer. What a command does is in the file of its name.

Over 300 lines: a sixth of them are imports, since everything meets here.
"""

import sys
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from makemore_pl.checkpoint import require_tensors
from makemore_pl.commands.callbacks import Progress, Settings, StopNotFinite
from makemore_pl.commands.checks import refuse_numbers, refuse_precision
from makemore_pl.commands.choice import end_early, fit_to_list
from makemore_pl.commands.evaluate import print_comparison
from makemore_pl.commands.export import export_average
from makemore_pl.commands.fit import describe, load_teacher, report, require_memory_to_train, run_logger
from makemore_pl.commands.help import COMMANDS
from makemore_pl.commands.lr_find import lr_find
from makemore_pl.commands.messages import open_streams, say
from makemore_pl.commands.mistakes import in_one_line
from makemore_pl.commands.outputs import refuse_overwriting, refuse_urls
from makemore_pl.commands.parser import Parser, model_class, trust
from makemore_pl.commands.predict import NamesWriter, Request, mix_with_counting
from makemore_pl.commands.process import keep_freed_memory, silence_stock_noise
from makemore_pl.commands.recipe import LINKED, Recipe, SaveConfig, recipe
from makemore_pl.commands.resume import (
    RequestedCheckpoints,
    avoid_requeued,
    find_checkpoint,
    find_others,
    require_resumable,
)
from makemore_pl.commands.threads import MOST, Threads, choose_threads
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.durable.checkpoints import CheckpointFolder, RunCheckpoint, RunFolder
from makemore_pl.durable.interruption import Interruption, ending_quietly
from makemore_pl.durable.loopback import LocalStore
from makemore_pl.durable.runs import folder_without_logger
from makemore_pl.durable.watchdog import Watchdog
from makemore_pl.model import MLP
from makemore_pl.optimization import as_list
from makemore_pl.pictures.board import Board

TRAINER_DEFAULTS = {
    "max_steps": 500,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}

local_store = LocalStore()

TRAINING = ["fit", "lr_find"]
"""The commands that read a list and train; the others read a checkpoint."""


class Trainer(LightningTrainer):
    """Lightning's Trainer with two more methods: LightningCLI takes the flags of a command from a method."""

    lr_find = lr_find
    export = export_average


def callbacks(command: str, options: Namespace, folder: Path | None) -> list[Callback]:
    """Lists the callbacks of a command, in the order in which the Trainer calls them, after those of the user.

    Args:
        command: its name.
        options: of the command, with its callbacks, loggers and data made.
        folder: for the checkpoints; if omitted, in that of the logger.
    """
    trainer = options.trainer
    given = as_list(trainer.callbacks)
    fit = command == "fit"
    saves = fit and trainer.enable_checkpointing is not False and not trainer.fast_dev_run
    logs = fit and trainer.logger is not False and not trainer.fast_dev_run
    bar = fit and trainer.enable_progress_bar is not False and not any(isinstance(each, ProgressBar) for each in given)
    # Two: `save_last` of one saves only beside a new best, and an overfitting run has none.
    best, last = RunCheckpoint("best", "val/loss", folder), RunCheckpoint("last", dirpath=folder)
    ours: list[Callback | bool] = [
        Threads(),
        Settings(options.matmul_precision),
        not any(isinstance(each, Watchdog) for each in given) and Watchdog(),
        command == "predict" and NamesWriter(options.sample),
        bar and Progress(),
        fit and StopNotFinite(),
        fit and Recipe(trainer),
        # In blocks of updates the model logs the learning rate by itself.
        logs and options.data.hparams["steps_per_execution"] == 1 and LearningRateMonitor("step"),
        logs and options.pictures and Board(),
        saves and CheckpointFolder(best),
        saves and best,
        saves and last,
        fit and Interruption(*[best, last] * saves),
    ]
    return [callback for callback in ours if isinstance(callback, Callback)]


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
            "save_config_callback": SaveConfig,
            "save_config_kwargs": {"save_to_log_dir": False},
            "load_from_checkpoint_support": False,  # it would write the name of a function to call into the checkpoint
        }
        super().__init__(model, data, **ours | options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {"model", "datamodule"}
        methods = LightningCLI.subcommands() | {"lr_find": ours, "export": ours}
        # Nothing in a checkpoint runs, whatever a flag says, and predictions are written, not returned.
        return {name: methods[name] | {"weights_only", "return_predictions"} for name in COMMANDS}

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
        if parser.command == "validate":
            splits = Literal["train", "val", "test"]
            parser.add_argument("--split", type=splits, default="val", help="the words that the table is about")
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
        refuse_urls(options.trainer, "--trainer", Parser.trusted)
        self.checkpoint: dict[str, Any] | None = None
        self.same_run = command == "fit" and options.ckpt_path == "last"
        if command not in TRAINING or options.get("ckpt_path") is not None:
            options.ckpt_path, self.checkpoint = find_checkpoint(options.ckpt_path, options.trainer.default_root_dir)
        if options.get("average"):
            options.average = find_others(options.average, options.ckpt_path, options.trainer.default_root_dir)

        # What the user asked for, without the defaults; the links need the values of their sources all the same.
        sources = self.checkpoint["hyper_parameters"] if self.checkpoint else options.model
        known = Namespace({f"{command}.model.{name}": sources.get(name, "") for name in LINKED})  # type: ignore[no-untyped-call]
        self.asked = parser.parse_args(args, known, defaults=False)[command]
        if self.asked.get("trainer.max_epochs") is not None and "trainer.max_steps" not in self.asked:
            # A number of epochs replaces our number of steps.
            options.trainer.max_steps = self.asked["trainer.max_steps"] = -1
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
        if self.checkpoint is not None:
            groups, self.changed = recipe(command, options.ckpt_path, self.checkpoint, self.asked)
            with Parser.about(f"{options.ckpt_path}: its hyperparameters do not fit"):
                self.config = self.parser.parse_object({command: groups}, self.config)
        refuse_numbers(self.config[command].trainer)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand in TRAINING and self.checkpoint is None:
            both = [self.config[self.subcommand], self.config_init[self.subcommand]]
            self.model = fit_to_list(self.datamodule, self.model, both, self.asked)
        options = self.config_init[self.subcommand]
        trainer = options.trainer
        requested = options.get("ckpt_path")
        writes, run, folder = self.subcommand in TRAINING and not trainer.fast_dev_run, None, None
        if writes and trainer.logger in (False, []):
            resumes = self.same_run or Path(requested or "").name == "last.ckpt"
            folder = folder_without_logger(trainer.default_root_dir or ".", requested if resumes else None)
        if writes and trainer.logger in (None, True):
            run = kwargs["logger"] = run_logger(trainer, requested if self.same_run else None)
        kwargs["default_root_dir"] = avoid_requeued(trainer.default_root_dir, requested, writes, run)
        early = end_early(options, self.asked, self.checkpoint) if self.subcommand == "fit" else []
        ours = callbacks(str(self.subcommand), options, folder)
        kwargs["callbacks"] = [*as_list(trainer.callbacks), *early, *ours]
        kwargs["plugins"] = [*as_list(trainer.plugins), RequestedCheckpoints(requested)]
        return cast(Trainer, super().instantiate_trainer(**kwargs))

    def after_instantiate_classes(self) -> None:
        options, data = self.config_init[self.subcommand], self.datamodule
        if self.subcommand in TRAINING and data.is_stream and self.trainer.world_size > 1:
            raise ValueError("a list from stdin is read by one process: save it to a file, or --trainer.devices 1")
        refuse_precision(options.trainer.precision, self.trainer.strategy.root_device)
        local_store.start(self.trainer)
        flags, states = self.config[self.subcommand].trainer, (self.checkpoint or {}).get("callbacks")
        path = options.ckpt_path if self.subcommand == "fit" else None
        refuse_overwriting(str(self.subcommand), self.trainer, flags, path, states if isinstance(states, dict) else {})
        if self.checkpoint is None:
            return
        require_tensors(options.ckpt_path, self.checkpoint["state_dict"], self.model.state_dict())
        data.continue_from(options.ckpt_path, self.checkpoint)
        # Sampling and exporting need no list: words that `predict` looks up are compared then.
        reads = self.subcommand in ("fit", "validate", "test")
        data.require_same_words(reads)
        if data.other_words and (why := data.difference(reads)) is not None:
            say(f"warning: {options.ckpt_path}: {why}: losses may be too low")
        if self.subcommand == "fit":
            self.model.automatic_optimization = data.hparams["steps_per_execution"] == 1
            require_resumable(options.ckpt_path, self.checkpoint, self.model, self.trainer)
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
        if self.subcommand == "predict" and options.sample.counting:
            mix_with_counting(self.model, data)

    def fit(self, **options: Any) -> None:
        """Trains, then says how well and prints names."""
        require_memory_to_train(self.model)
        if self.checkpoint is not None:
            say(f"resuming {options['ckpt_path']}, step {self.checkpoint['global_step']:,}")
            if self.changed:
                say(f"changed: {', '.join(self.changed)}")
        describe(self.datamodule, self.model)
        load_teacher(self.datamodule)
        if isinstance(self.trainer.logger, RunFolder):
            _ = self.trainer.logger.version  # made here, so that spawned processes know of it
        self.trainer.fit(**options, weights_only=True)
        report(self.trainer, self.model, self.datamodule)

    def after_validate(self) -> None:
        split = self.config_init.validate.split
        print_comparison(self.trainer, type(self.model), self.ckpt_path, self.datamodule, split)

    def after_test(self) -> None:
        print_comparison(self.trainer, type(self.model), self.ckpt_path, self.datamodule, "test")

    def predict(self, **_: Any) -> None:
        """Samples or scores."""
        self.trainer.predict(self.model, dataloaders=self.config_init.predict.sample, return_predictions=False)


def main() -> None:
    """Runs the command line. A mistake of the user ends in one line on stderr and exit status 2."""
    open_streams()
    silence_stock_noise()
    keep_freed_memory()
    choose_threads(0)  # reading and counting are small operations
    try:
        with ending_quietly(), in_one_line():
            trust(sys.argv[1:])
            CLI(model_class(sys.argv[1:]))
            sys.stdout.flush()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # its threads may abort a process that ends before they do
    finally:
        local_store.stop()
        torch.set_num_threads(MOST)
