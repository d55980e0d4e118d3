"""The command line: LightningCLI with links, recipes by name, resume, a screen of help, and mistakes in one line.

Flags that were not typed come from the run that is resumed, from the checkpoint that is read, or from the rule for a
list. They are put before the flags of the user, which therefore win.
"""

import math
import sys
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from makemore_pl import process, resume
from makemore_pl.callbacks import Progress, Run, StopNotFinite, choose_threads
from makemore_pl.checkpoints import RUNS, RunCheckpoint, WholeCheckpoints, new_folder, remove_unused
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.export import export
from makemore_pl.lr_find import lr_find
from makemore_pl.model import MLP
from makemore_pl.parser import COMMANDS, Parser, explain, in_one_line, silence_stock_noise
from makemore_pl.predict import NamesWriter, Request, mix_with_counting
from makemore_pl.report import command_line, compare, describe, report, say, table
from makemore_pl.resume import TRAINING, Source, as_json

UPDATES = 500  # of a run whose flags name no length
SWITCHES = ["--pictures", "--sample.unique", "--sample.novel", "--sample.counting"]  # `true` may be omitted after these


class Trainer(LightningTrainer):
    """Lightning's Trainer with two more methods: LightningCLI takes the flags of a command from a method."""

    lr_find = lr_find
    export = export


class CLI(LightningCLI):
    """LightningCLI for MLP and NamesDataModule, or subclasses; it takes LightningCLI's options."""

    def __init__(self, model: type[MLP] = MLP, data: type[NamesDataModule] = NamesDataModule, **options: Any) -> None:
        self.parsers: dict[str, Parser] = {}
        self.source = Source(model)  # of the flags that were not typed
        self.folder: Path | None = None  # of the run
        ours: dict[str, Any] = {
            "trainer_class": Trainer,
            "trainer_defaults": {"log_every_n_steps": 10, "num_sanity_val_steps": 0, "enable_model_summary": False},
            "parser_class": Parser,
            "parser_kwargs": {name: {"command": name} for name in COMMANDS},
            "seed_everything_default": False,  # each generator has a seed of its own
            "auto_configure_optimizers": False,
            "save_config_callback": None,  # `Run` writes it whole, and not before a resumed run is restored
            "load_from_checkpoint_support": False,  # it writes the name of a function to call into the checkpoint
        }
        try:
            super().__init__(model, data, **ours | options)
        except BaseException:
            if self.folder is not None and self.source.folder is None:  # a new one
                remove_unused(self.folder)
            raise

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {"model", "datamodule"}
        methods = LightningCLI.subcommands() | {"lr_find": ours, "export": ours}
        return {name: methods[name] | {"weights_only", "return_predictions", "verbose"} for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        command = kwargs.pop("command", "")
        self.parsers[command] = Parser(command=command, **kwargs)
        return self.parsers[command]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser)
        parser.link_arguments("model.block_size", "data.block_size")
        if parser.command == "fit":
            parser.add_argument("--pictures", type=bool, default=True)
            parser.add_argument("--init_from", type=str | None)
        if parser.command == "validate":
            parser.add_argument("--split", type=Literal["train", "val", "test"], default="val")
        if parser.command == "predict":
            parser.add_class_arguments(Request, "sample", skip={"where"})
        if parser.command == "export":
            parser.add_argument("--ckpt_path", type=str | None)
        if parser.command in ("", *TRAINING):
            # The list decides the alphabet ...
            characters = attrgetter("characters")
            parser.link_arguments("data.vocabulary", "model.vocabulary", characters, apply_on="instantiate")
        else:
            # ... and later the checkpoint does: predict needs no list, and the others must read theirs in the same way.
            parser.link_arguments("model.vocabulary", "data.vocabulary")
            off = ["trainer.logger", "trainer.enable_checkpointing", "trainer.enable_progress_bar"]
            parser.set_defaults(dict.fromkeys(off, False))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = sys.argv[1:] if args is None else args
        if isinstance(words, Mapping) and "subcommand" in words:
            words = [words["subcommand"], "--config", as_json(words[words["subcommand"]])]
        if not isinstance(words, list):
            self.parse(parser, words)
            return
        followed = zip(words, [*words[1:], "--"], strict=False)
        words = [f"{word}=true" if word in SWITCHES and after.startswith("--") else word for word, after in followed]
        self.parse(parser, words)
        command = self.config.get("subcommand")
        if command is None:
            return
        options = self.config[command]
        start = words.index(command) + 1
        flags = self.source.flags(command, options, words[start:])
        self.parse(parser, [*words[:start], *flags, *words[start:]])
        options, given = self.config[command], self.source.given
        callbacks = as_list(options.trainer.callbacks)
        early = [each for each in callbacks if each.class_path.endswith("EarlyStopping")]
        latest = {each.init_args.monitor: each for each in early}  # of the flags, before that of the run or of the rule
        options.trainer.callbacks = [each for each in callbacks if each not in early] + list(latest.values()) or None
        for each in early:  # where it checks at the end of an epoch, `last.ckpt` does not know that it ended the run
            each.init_args.check_on_train_epoch_end = each.init_args.check_on_train_epoch_end or False
        if "ckpt_path" in options:
            options.ckpt_path = None  # Lightning would let the hyperparameters of a checkpoint override the flags
        if given("trainer.max_epochs", "trainer.max_time") and not given("trainer.max_steps"):
            options.trainer.max_steps = -1  # they replace the number of updates of the run that is resumed

    def parse(self, parser: LightningArgumentParser, words: Any) -> None:
        """Parses flags, and gives a run without a length 500 updates; a mistake in them is a ValueError."""
        try:
            self.config = parser.parse_args(words) if isinstance(words, list) else parser.parse_object(words)
        except ArgumentError as error:
            command = next((word for word in words if word in COMMANDS), "")
            flags = self.parsers[command].get_defaults(skip_validation=True)
            raise ValueError(explain(error.message, flags.keys())) from None
        trainer = (self.config[self.config.subcommand] if "subcommand" in self.config else self.config).trainer
        if (trainer.max_steps, trainer.max_epochs, trainer.max_time) == (-1, None, None):
            trainer.max_steps = UPDATES

    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        options = self.config[self.subcommand]
        self.kept = options.clone()  # for config.yaml
        writes = self.subcommand == "fit" or (self.subcommand == "lr_find" and options.trainer.logger is not False)
        if not writes or options.trainer.fast_dev_run or options.trainer.barebones or not process.is_first():
            return
        self.folder = self.source.folder or new_folder(self.source.root)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand is not None:
            if self.subcommand in TRAINING:
                resume.require_known_words(self.source, self.datamodule)
            trainer = self.config_init[self.subcommand].trainer
            kwargs["callbacks"] = [*as_list(trainer.callbacks), *self.callbacks(trainer)]
            kwargs["plugins"] = [*as_list(trainer.plugins), WholeCheckpoints()]
            if self.folder is not None and trainer.logger in (None, True):
                kwargs["logger"] = TensorBoardLogger(self.source.root, RUNS, self.folder.name, default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)  # type: ignore[return-value]

    def callbacks(self, trainer: Namespace) -> list[Callback]:
        """Lists the callbacks of a command, which the Trainer calls after those of the user."""
        options = self.config_init[self.subcommand]
        if trainer.barebones:
            return []
        if self.subcommand == "predict":
            return [NamesWriter(options.sample)]
        if self.subcommand != "fit":
            return []
        ours: list[Callback] = [StopNotFinite()]
        if trainer.enable_progress_bar is not False:
            ours += [Progress()] * (not any(isinstance(each, ProgressBar) for each in as_list(trainer.callbacks)))
        if trainer.fast_dev_run:
            return ours
        folder = self.folder or Path(self.source.root, RUNS)  # of several processes the first one makes it
        if trainer.logger is not False:
            # In blocks of updates the model logs the learning rate by itself.
            ours += [LearningRateMonitor("step")] * (options.data.hparams["steps_per_execution"] == 1)
            if options.pictures:
                from makemore_pl.pictures.board import Board  # matplotlib takes half a second to import

                ours.append(Board(resume.recipe(self.parsers["fit"], self.kept, self.source)))
        if trainer.enable_checkpointing is not False:
            validates = trainer.limit_val_batches != 0
            last = RunCheckpoint(folder / "checkpoints", "last", validates=validates)
            text = resume.config_text(self.parsers["fit"], self.kept, self.source, self.datamodule)
            ours.append(Run(folder / "config.yaml", text, self.command("fit", "--ckpt_path", "last")))
            ours += [*[RunCheckpoint(folder / "checkpoints", "best", "val/loss")] * validates, last]
        return ours

    def command(self, *words: str) -> str:
        """Returns a command about the runs of this root, to be pasted."""
        root = ["--trainer.default_root_dir", self.source.root] if self.source.root != "." else []
        return command_line(type(self.model), *words, *root)

    def after_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        rows = math.inf
        if self.subcommand in TRAINING:
            rows = self.datamodule.hparams["batch_size"] or len(self.datamodule.count("train"))
        choose_threads(rows * sum(parameter.numel() for parameter in self.model.parameters()))
        if self.source.checkpoint and not self.source.resumes:
            say(f"checkpoint: {self.source.ckpt_path}")
            self.trainer.precision_plugin.convert_module(self.model)  # 64 bits would not fit into 32
            self.model.load_state_dict(self.source.checkpoint["state_dict"])

    def fit(self, **options: Any) -> None:
        """Trains, then says how well and prints names."""
        finished = self.source.resumes and resume.is_finished(self.source, self.trainer)
        if self.source.resumes:
            say(f"resuming {self.source.ckpt_path}, step {self.source.checkpoint['global_step']:,}")
        describe(self.datamodule, self.model)
        if not finished:
            ckpt_path = self.source.ckpt_path if self.source.resumes else None
            self.trainer.fit(**options | {"ckpt_path": ckpt_path, "weights_only": True})
        report(self.trainer, self.model, self.datamodule, self.command("predict"))

    def validate(self, **_: Any) -> None:
        self.judge(self.trainer.validate, self.config_init["validate"].split)

    def test(self, **_: Any) -> None:
        self.judge(self.trainer.test, "test")

    def judge(self, evaluate: Callable[..., Any], split: str) -> None:
        """Prints the metrics of the network on a split, and its losses beside counting."""
        trained = resume.trained_words(self.source, self.datamodule)
        evaluate(self.model, self.datamodule.loader(split))
        if self.trainer.is_global_zero:
            compared, sets = compare(self.model, self.datamodule, trained, self.trainer, [split])
            print(*table(compared.losses(*sets.values()), sets), sep="\n", flush=True)

    def predict(self, **_: Any) -> None:
        request = self.config_init["predict"].sample
        request.where = self.datamodule.where
        if request.counting:
            mix_with_counting(self.model, self.datamodule)
        self.trainer.predict(self.model, dataloaders=request, return_predictions=False)

    def export(self, output: str, **_: Any) -> None:
        export(self.trainer, self.model, output)


def as_list(value: Any) -> list[Any]:
    """Makes a list of one thing, of several, or of None or a switch."""
    return value if isinstance(value, list) else [] if value in (None, True, False) else [value]


def main(model: type[MLP] = MLP) -> None:
    """Runs the command line of a class, MLP or a subclass. A mistake ends in one line on stderr and exit status 2.

    Of several processes the first one alone returns.
    """
    silence_stock_noise()
    torch.set_float32_matmul_precision("high")
    choose_threads(0)  # reading and counting are small operations
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # names may hold any character, in every locale
    with in_one_line():
        CLI(model)
        sys.stdout.flush()
    process.end_unless_first()
