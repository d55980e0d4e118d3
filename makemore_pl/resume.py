"""Where the flags that were not typed come from: a run that is resumed, a checkpoint, the rule for a list."""

import json
import os
import re
import shlex
import textwrap
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from makemore_pl.callbacks import stopped_early
from makemore_pl.checkpoints import RUNS, find, newest_run, read_checkpoint
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.defaults import choose
from makemore_pl.model import MLP
from makemore_pl.report import say
from makemore_pl.words import read_words, shipped

TRAINING = ["fit", "lr_find"]  # these commands read a list; the others read a checkpoint
SHAPE = ["block_size", "embedding_dim", "hidden_size"]  # with the vocabulary, the shapes of the five tensors
SPLIT = ["num_words", "train_fraction", "val_fraction", "split_seed"]  # which words of a list are trained on


class Source:
    """The flags of a command that were not typed, and the checkpoint that it reads, of a class of network."""

    def __init__(self, model: type[MLP]) -> None:
        self.model = model
        self.root = "."  # the folder of lightning_logs
        self.words: list[str] = []  # what the user has typed
        self.ckpt_path: str | None = None
        self.checkpoint: dict[str, Any] = {}
        self.begins: str | None = None  # `--init_from`: a new run begins with the weights of the checkpoint
        self.resumes = False  # the run is that of the checkpoint
        self.folder: Path | None = None  # of a run that is resumed in it

    def given(self, *flags: str) -> bool:
        """Tells whether the user has typed one of some flags, or one that begins with it."""
        begins = tuple(flag if flag.startswith("-") else f"--{flag}" for flag in flags)
        return any(word.startswith(begins) for word in self.words)

    def flags(self, command: str, options: Namespace, words: list[str]) -> list[str]:
        """Returns the flags to put before the words of the user, which alone give `options`."""
        self.words, self.root = words, options.trainer.default_root_dir or "."
        trains, ckpt_path, self.begins = command in TRAINING, options.get("ckpt_path"), options.get("init_from")
        if self.begins and ckpt_path:
            raise ValueError("--init_from begins a new run, and --ckpt_path resumes one; omit one of them")
        if "" in (self.begins, ckpt_path):
            raise ValueError("the name of the checkpoint is empty; name best, last or a file")
        seed = options.get("seed_everything")
        flags = [f"--model.seed={seed}"] if type(seed) is int else []
        if name := self.begins or ckpt_path or (None if trains else "best"):
            self.find_checkpoint(name, goes_on=ckpt_path == "last" and trains)
        self.resumes = trains and bool(self.checkpoint) and not self.begins
        if not self.checkpoint:
            begun = ["--config", str(self.folder / "config.yaml")] if self.folder else self.chosen(options)
            return flags + begun if trains else flags
        self.model.require_network(self.checkpoint)
        model = dict(self.checkpoint["hyper_parameters"])
        data = dict(self.checkpoint.get("datamodule_hyper_parameters", {}))
        data = {name: data[name] for name in data.keys() - {"block_size", "vocabulary"}}  # linked to those of the model
        if not trains:
            return [f"--model={as_json(model)}", f"--data={as_json(data)}"]
        vocabulary = {"vocabulary": model.pop("vocabulary")}
        if self.begins:
            shape = {name: model[name] for name in SHAPE}
            return [*flags, f"--model={as_json(shape)}", f"--data={as_json(vocabulary)}"]
        config = Path(str(self.ckpt_path)).parent.parent / "config.yaml"
        if config.is_file():
            return ["--config", str(config), f"--data={as_json(vocabulary)}"]
        return [*flags, f"--model={as_json(model)}", f"--data={as_json(data | vocabulary)}"]

    def find_checkpoint(self, name: str, goes_on: bool) -> None:
        """Finds and reads a file, or `best` or `last` of the newest run: the other one where that is damaged.

        If `goes_on`, the newest run is resumed in its own folder. It need not have a checkpoint, or even exist: one
        command begins and resumes a run.
        """
        if name not in ("best", "last"):
            if not Path(name).is_file():
                raise ValueError(f"{name}: no such checkpoint; name a file, or `best` or `last` of the newest run")
            self.ckpt_path, self.checkpoint = name, read_checkpoint(name)
            return
        folder, problem, runs = newest_run(self.root, begun=goes_on), None, Path(self.root, RUNS)
        self.folder = folder if goes_on else None
        for path in find(name, folder):
            try:
                self.ckpt_path, self.checkpoint = str(path), read_checkpoint(path)
            except ValueError as error:
                problem = problem or error
                continue
            if problem or path.stem != name:
                say(f"warning: {problem or f'the newest run has no {name}.ckpt'}; taking {path} instead")
            return
        if problem or not goes_on:
            train = "train first (python -m makemore_pl fit), or name a file with --ckpt_path"
            raise problem or ValueError(f"no run found in {runs}; {train}")
        say(f"{folder} saved no checkpoint: starting again" if folder else f"no run in {runs}: starting one")

    def chosen(self, options: Namespace) -> list[str]:
        """Chooses flags that suit a list, and prints them.

        A recipe is complete: with `--config` nothing is chosen. Nor is it for the words of names.txt, which keep the
        lecture's network, or for a class with an optimizer of its own.
        """
        own = self.model.configure_optimizers is not MLP.configure_optimizers
        if own or self.given("config", "-c") or options.data.path is None:
            return []
        data = NamesDataModule(**options.data)
        if sorted(data.words) == sorted(read_words(shipped("names.txt"))):
            return []
        counts = data.count("train")
        flags = choose(int(counts.n.sum()), len(counts), counts.vocab_size, self.given)
        say(f"chosen for this list:{'' if flags else ' nothing'}")
        for line in textwrap.wrap(" ".join(flags), 76, break_on_hyphens=False, break_long_words=False):
            say(f"  {line}")
        return flags


def as_json(options: Any) -> str:
    """Returns options for the parser, which reads JSON as YAML: no pairs of surrogates for characters such as emoji."""
    return json.dumps(options, ensure_ascii=False)


def config_text(parser: ArgumentParser, options: Namespace, source: Source, data: NamesDataModule) -> str:
    """Returns all flags of a run as YAML: `fit --config` with it is the same run, from any folder."""
    options.ckpt_path, options.data.path = None, data.hparams["path"]
    options.init_from = source.begins and str(Path(str(source.ckpt_path)).absolute())
    return as_yaml(parser, options, skip_unset=False)


def recipe(parser: ArgumentParser, options: Namespace, source: Source) -> str:
    """Returns what was typed, and the flags that are no defaults, as Markdown: by them a run is recognised."""
    return f"### fit {' '.join(source.words)}\n\n{textwrap.indent(as_yaml(parser, options, skip_default=True), '    ')}"


def as_yaml(parser: ArgumentParser, options: Namespace, **how: bool) -> str:
    """Returns flags as YAML."""
    try:
        text = parser.dump(options, **how)
    except (ArgumentError, ValueError, TypeError) as error:
        named = ", ".join(re.findall(r"class_path='([^']*)'", str(error)))
        raise ValueError(f"config.yaml cannot hold {named}; use it from Python (docs/python.md)") from None
    # Some defaults of Lightning's classes cannot be written; without the line they are taken again.
    return re.sub(r"\n.*Unable to serialize instance.*", "", text)


def require_known_words(source: Source, data: NamesDataModule) -> None:
    """Refuses other words for a run that is resumed, and unknown characters for weights that a run begins with."""
    path = data.hparams["path"] or "names.txt"
    if source.resumes and (changes := differences(source.checkpoint, data)):
        remedy = f"to begin a run with its weights: --init_from {source.ckpt_path}"
        raise ValueError(f"{path}: the list or its split has changed ({changes}); {remedy}")
    if source.begins and (strange := set("".join(data.words)) - set(data.vocabulary.characters)):
        both = shlex.quote("".join(sorted(strange | set(data.vocabulary.characters))))
        raise ValueError(
            f"{path}: the network of {source.ckpt_path} does not know {''.join(sorted(strange))[:40]!r}; "
            f"train it with an alphabet of both: --data.vocabulary {both[:200]}"
        )


def is_finished(source: Source, trainer: Trainer) -> bool:
    """Refuses to resume a run that has ended, unless the flags give it more; True if torchrun has started it again."""
    checkpoint = source.checkpoint
    if "loops" not in checkpoint:
        raise ValueError(f"{source.ckpt_path} holds only weights, so it cannot be resumed; take --init_from")
    step, loop = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
    # After the validation at the end of an epoch, that epoch is not yet counted as processed.
    counted = "ready" if loop["epoch_loop.batch_progress"]["is_last_batch"] else "processed"
    epochs = loop["epoch_progress"]["current"][counted]
    ends = [("max_steps", trainer.max_steps, step), ("max_epochs", trainer.max_epochs or 0, epochs)]
    flag = next((f"--trainer.{name}" for name, limit, done in ends if 0 < limit <= done), None)
    states = checkpoint["callbacks"].items()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if restarted or not source.given("trainer.max_", "trainer.callbacks", "config", "-c"):
        early = [key for key, state in states if key.startswith("EarlyStopping") and stopped_early(state)]
        flag = "--trainer.max_steps (EarlyStopping ended it)" if early else flag
    if flag and not restarted:
        raise ValueError(f"{source.ckpt_path}: this run is finished, at step {step:,}; to train longer, raise {flag}")
    return flag is not None


def trained_words(source: Source, data: NamesDataModule) -> NamesDataModule | None:
    """Returns the data of the training, if it can be read; of another list all words become each split of `data`."""
    if not (changes := differences(source.checkpoint, data)):
        return data
    if not source.given("data.path"):
        say(f"warning: the list or its split has changed ({changes}): the network may have trained on these words")
        return data
    data.splits = dict.fromkeys(("train", "val", "test"), data.words)
    saved = source.checkpoint["datamodule_hyper_parameters"] | {"vocabulary": data.vocabulary.characters}
    say(f"not the list that the network was trained on, so all its {len(data.words):,} words are judged")
    try:
        trained = type(data)(**saved)
        return None if differences(source.checkpoint, trained) else trained
    except (ValueError, OSError):
        return None


def differences(checkpoint: Mapping[str, Any], data: NamesDataModule) -> str:
    """Says in which way data differs from that of a checkpoint; empty if nothing does, or there is none to compare."""
    if not (saved := checkpoint.get("datamodule_hyper_parameters")):
        return ""
    ours = data.hparams
    found = [f"{name} {ours[name]} instead of {saved[name]}" for name in SPLIT if saved[name] != ours[name]]
    if checkpoint.get(type(data).__qualname__, {}).get("digest", data.digest) != data.digest:
        found.insert(0, "another list")
    return ", ".join(found)
