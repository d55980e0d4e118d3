"""Trains the recipes that are compared with counting, on three seeds, and prints a table: `make records`.

The table is that of docs/records.md. The recipes were chosen by their validation loss; the test figure is what came
out of those chosen. No loss may be below the floor of its block size, the conditional entropy of the training split.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from run import machine

from makemore_pl import MLP, NamesDataModule, NGram
from makemore_pl.comparison import Comparison, entropy, measure
from makemore_pl.windows import count_words

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
SEEDS = 3


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Args:
        config: the file in configs/.
        networks: how many are trained and averaged for each figure.
        mixed: whether the row is that of the mixture with Kneser-Ney.
        minutes: the limit for training, on two cores.
        at_least: the validation loss to reach.
        aim: the one to hope for.
        teacher: the config of a network to learn from, whose training counts as well.
    """

    config: str
    networks: int
    mixed: bool
    minutes: float
    at_least: float
    aim: float
    teacher: str | None = None


RECIPES = {
    "the lecture's network, taught by a wide one": Recipe("smoothed", 1, False, 1, 2.087, 2.070, "wide"),
    "block 3, three wide networks averaged, mixed with Kneser-Ney": Recipe("wide", 3, True, 2, 2.046, 2.036),
    "block 7, one network": Recipe("deep", 1, False, 15, 1.980, 1.93),
    "block 7, four networks averaged, mixed with Kneser-Ney": Recipe("deep", 4, True, 15, 1.93, 1.89),
}


def command(*arguments):
    """Runs the command line; returns its output."""
    line = [sys.executable, "-m", "makemore_pl", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
    return done.stderr


def train(config, network, folder, teacher=None):
    """Trains one network. Returns its checkpoint and the seconds it took, from launch to exit."""
    taught = ("--data.teacher", teacher) if teacher else ()
    begin = time.perf_counter()
    said = command(
        *("fit", "--config", CONFIGS / f"{config}.yaml", "--trainer.default_root_dir", folder / f"{config} {network}"),
        *("--model.seed", 2147483647 + network, "--data.order_seed", 2147483647 + network),
        *("--pictures", "false", "--trainer.accelerator", "cpu", *taught),
    )
    return re.search(r"checkpoint: (.+) \(val", said)[1], time.perf_counter() - begin


def first(config, seed):
    """The index of a seed's first network: indices of different seeds do not overlap, and all rows use the same."""
    return seed * max(recipe.networks for recipe in RECIPES.values() if recipe.config == config)


def average(paths, output):
    """Averages the networks of some checkpoints. Returns the checkpoint and the seconds it took."""
    if len(paths) == 1:
        return paths[0], 0.0
    begin = time.perf_counter()
    command("export", "--ckpt_path", paths[0], "--average", json.dumps(paths[1:]), "--output", output)
    return output, time.perf_counter() - begin


def judge(path):
    """Scores a checkpoint: the network and the mixture on train, val, test, and the words of val not in train."""
    model = MLP.load_from_checkpoint(path)
    data = NamesDataModule(block_size=model.block_size)
    counts = data.count("train", "val", "test")
    counts["unseen val"] = count_words(data.unseen("val"), data.vocabulary, model.block_size)
    compared = Comparison(model, counts["train"], counts["val"])
    scores = {who.split(",")[0]: of for who, of in compared.score(*counts.values()).items()}
    found = {who: dict(zip(counts, (score.loss for score in scores[who]), strict=True)) for who in ("network", "mixed")}
    floor = entropy(counts["train"])
    assert all(losses["train"] >= floor for losses in found.values()), "below the floor: a bug"
    return found | {"weight": compared.weight, "block": model.block_size, "floor": floor}


def counting(block_size):
    """The row of Kneser-Ney alone."""
    data = NamesDataModule(block_size=block_size)
    counts = data.count("train", "val", "test")
    begin = time.perf_counter()
    model = NGram(counts["train"])
    scores = measure(model, *counts.values(), count_words(data.unseen("val"), data.vocabulary, block_size))
    took = time.perf_counter() - begin
    losses = {name: score.loss for name, score in zip([*counts, "unseen val"], scores, strict=True)}
    return losses | {"seconds": took, "floor": entropy(counts["train"])}


def spread(values):
    """Mean and half the range."""
    return f"{statistics.mean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    configs = sorted({recipe.config for recipe in RECIPES.values()})
    parser.add_argument("--only", choices=configs, help="this config alone; the other rows stay as they are")
    parser.add_argument("--output", type=Path, default=HERE / "records.json")
    options = parser.parse_args()
    recipes = {name: recipe for name, recipe in RECIPES.items() if options.only in (None, recipe.config)}
    columns = "recipe | parameters | block | floor | train | val | test | val, unseen words | time"
    print(f"| {columns} |\n|{'---|' * 9}", flush=True)
    before = json.loads(options.output.read_text())["rows"] if options.only and options.output.exists() else []
    rows, trained = {row["recipe"]: row for row in before}, {}
    with tempfile.TemporaryDirectory() as name:
        for title, recipe in recipes.items():
            found = []
            for seed in range(SEEDS):
                teachers = [(recipe.teacher, first(recipe.teacher, seed))] if recipe.teacher else []
                trained |= {key: train(*key, Path(name)) for key in teachers if key not in trained}
                teacher = trained[teachers[0]][0] if teachers else None
                own = [(recipe.config, first(recipe.config, seed) + network) for network in range(recipe.networks)]
                trained |= {key: train(*key, Path(name), teacher) for key in own if key not in trained}
                paths = [trained[key][0] for key in own]
                path, took = average(paths, str(Path(name, f"{recipe.config}-{seed}.ckpt")))
                found.append(judge(path) | {"seconds": took + sum(trained[key][1] for key in teachers + own)})
            each = sum(tensor.numel() for tensor in MLP.load_from_checkpoint(paths[0]).parameters())
            parameters = f"{recipe.networks} x {each:,}" if recipe.networks > 1 else f"{each:,}"
            losses = [run["mixed" if recipe.mixed else "network"] for run in found]
            seconds = [run["seconds"] for run in found]
            figures = [spread([loss[split] for loss in losses]) for split in ("train", "val", "test", "unseen val")]
            cells = [title, parameters, found[0]["block"], f"{found[0]['floor']:.4f}", *figures]
            cells.append(f"{statistics.mean(seconds):.0f} s")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            val = statistics.mean(loss["val"] for loss in losses)
            reached = val <= recipe.at_least and max(seconds) <= 60 * recipe.minutes
            about = {"recipe": title, "cells": cells, "val": val, "reached": reached}
            rows[title] = asdict(recipe) | about | {"seeds": found}
    count = {f"block {block_size}": counting(block_size) for block_size in (3, 5, 6, 8)}
    for title, losses in count.items():
        figures = [f"{losses[split]:.4f}" for split in ("floor", "train", "val", "test", "unseen val")]
        print(f"| Kneser-Ney, {title} | | {title[-1]} | {' | '.join(figures)} | {losses['seconds']:.2f} s |")
    results = {"machine": machine(), "rows": [rows[title] for title in RECIPES if title in rows], "Kneser-Ney": count}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    missed = [title for title in recipes if not rows[title]["reached"]]
    if missed:
        sys.exit(f"not reached: {', '.join(missed)}")


if __name__ == "__main__":
    main()
