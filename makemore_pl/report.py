"""What `fit`, `validate` and `test` print: the list, the losses beside counting, and what to do next."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from makemore_pl.checkpoints import RunCheckpoint
from makemore_pl.comparison import Comparison
from makemore_pl.datamodule import NamesDataModule
from makemore_pl.model import MLP
from makemore_pl.windows import Counts, count_words
from makemore_pl.words import looks_like


@rank_zero_only
def say(line: str) -> None:
    """Prints a line to stderr; stdout is for names and tables."""
    print(line, file=sys.stderr, flush=True)


def four_digits(loss: float) -> str:
    """Returns a loss with four digits after the point, or a very large one in short: `2.0886`, `4.85e+08`."""
    return f"{loss:.4f}" if loss < 1e5 else f"{loss:.3g}"


def program(name: str) -> str:
    """Returns what starts a program of this environment from the shell that started this one."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found).parent == beside.parent else shown(beside)


def shown(path: Path) -> str:
    """Returns a path from the current folder, if it is in there."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)


def command_line(model: type[MLP], *words: str) -> str:
    """Joins words to a command that can be pasted, of the script that brings its own class or of `python -m`."""
    script = ["-m", "makemore_pl"] if model is MLP else [sys.argv[0]]
    return shlex.join([program("python"), *script, *words])


def describe(data: NamesDataModule, model: MLP) -> None:
    """Prints the size of the data and of the network."""
    splits = " / ".join(f"{len(words):,} {split}" for split, words in data.splits.items())
    say(f"{len(data.words):,} words, {len(set(data.words)):,} distinct: {splits}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{len(data.vocabulary) - 1:,} characters, {parameters:,} parameters")
    if data.hparams["column"] is None and (hint := looks_like(data.words)):
        say(f"hint: this list {hint}")


def compare(
    model: MLP, data: NamesDataModule, trained: NamesDataModule | None, trainer: Trainer, splits: Iterable[str]
) -> tuple[Comparison, dict[str, Counts]]:
    """Compares a network with counting the words that it was trained on, if they are known, and with both mixed.

    Returns it and, by name, the windows to judge on: of some splits of `data`, and of their words not in train.
    """
    device = trainer.strategy.root_device
    trainer.precision_plugin.convert_module(model.eval().to(device))

    def network(X: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return model(X.to(device))

    sets = {}
    for split in splits:
        name = split if trained is data else Path(data.hparams["path"] or "names.txt").name
        sets[name] = data.count(split)
        unseen = (trained or data).unseen(data.splits[split])
        if split != "train" and 0 < len(unseen) < len(data.splits[split]):
            sets[f"{name}, new words"] = count_words(unseen, data.vocabulary, model.block_size)
        if len(data.splits[split]) <= 50:
            say(f"few words to judge on ({name}: {len(data.splits[split])}): these losses are very noisy")
    counting = trained and trained.count("train")
    held_out = trained and trained.hparams["val_fraction"] and trained.count("val")
    return Comparison(network, counting or None, held_out or None), sets


def table(losses: dict[str, list[float]], sets: Iterable[str]) -> list[str]:
    """Formats the losses of predictors, a line for each, on sets of words, a column for each."""
    width = max(map(len, losses)) + 2
    rows = {"loss": [*sets]} | {name: [four_digits(loss) for loss in row] for name, row in losses.items()}
    return [name.ljust(width) + "".join(f"  {cell:>14}" for cell in row) for name, row in rows.items()]


def report(trainer: Trainer, model: MLP, data: NamesDataModule, predict: str) -> None:
    """Prints where the best checkpoint of a fit is and its losses on stderr, and names on stdout."""
    log_dir = trainer.log_dir  # a broadcast: all ranks call it
    if not trainer.is_global_zero:
        return
    ours = [each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint) and each.path.exists()]
    for best in ours[:1]:  # the last one, where the run has no validation
        model = type(model).load_from_checkpoint(best.path, map_location="cpu")
        score = best.best_model_score
        judged = f" (val/loss {four_digits(float(score))})" if score is not None else ""
        say(f"checkpoint: {shown(best.path)}{judged}")
    if data.hparams["val_fraction"]:
        say_losses(trainer, model, data)
    if ours:
        say(f"more names: {predict}")
    if log_dir and isinstance(trainer.logger, TensorBoardLogger):
        say(f"the curves: {shlex.join([program('tensorboard'), '--logdir', shown(Path(log_dir).parent)])}")
    print(*model.sample(), sep="\n", flush=True)


def say_losses(trainer: Trainer, model: MLP, data: NamesDataModule) -> None:
    """Prints the losses of the network, of counting and of their mixture, and what to make of them."""
    train = data.count("train")
    # Over a large training split it would take long.
    splits = ["train", "val"] if len(train) * train.vocab_size <= 2**26 else ["val"]
    compared, sets = compare(model, data, data, trainer, splits)
    losses = compared.losses(*sets.values())
    for line in table(losses, sets):
        say(line)
    if losses["network"][0] > (chance := math.log(len(data.vocabulary))):
        say(f"worse than chance, {chance:.4f}: this run diverged; try a smaller --model.lr")
    elif compared.weight is not None and compared.weight < 0.01:
        memorised = losses["network"][0] < losses["Kneser-Ney"][0]
        remedy = "--data.smoothing 0.8, or more --model.weight_decay" if memorised else "more --model.hidden_size"
        say(f"counting alone is as good: the network adds nothing; try {remedy}")
    elif trainer.checkpoint_callbacks:
        say("These val losses are slightly optimistic: this checkpoint was chosen by them. `test` is unbiased.")
