"""Trains the recipes that are compared with counting, on several seeds, and prints a table: `make records`.

The table is that of docs/results.md. The recipes were chosen by their validation loss; the test figure is what came
out of those chosen. No loss may be below the floor of its block size, the conditional entropy of the training split.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from run import HERE, best_model, fit, like_the_command_line, machine

from makemore_pl import MLP, NamesDataModule, NGram
from makemore_pl.comparison import Comparison, Mixture, loss
from makemore_pl.ngram import Smoothed
from makemore_pl.windows import count_words

PLAIN = ["--data.smoothing=0", "--model.hidden_size=500", "--model.lr=0.02", "--model.weight_decay=1"]
"""Of wide networks for an average or as teachers: what counting knows is added to them later."""


class Taught(NamesDataModule):
    """Smooths its targets by counting and a larger network (Hinton et al. 2015), each half of the share.

    Set `teacher` to a network that was trained on the same words.
    """

    teacher: MLP

    def setup(self, stage):
        super().setup(stage)
        if stage == "fit":
            counts = self.count("train")
            expected = Mixture(self.teacher, NGram(counts), 0.5)
            V, share = len(self.vocabulary), self.hparams["smoothing"]
            self.tensors["train"] = counts.contexts, Smoothed(counts.contexts, counts, expected, V, share)[:]


@torch.no_grad()
def average(models):
    """Builds the network whose logits are the mean of the networks' logits: five tensors, only larger.

    Embeddings and hidden units are concatenated; W1 connects each unit with the embeddings of its own network only:
    C (V, sum E), W1 (T * sum E, sum H), b1 (sum H), W2 (sum H, V), b2 (V).
    """
    E, H = (sum(model.hparams[name] for model in models) for name in ("embedding_dim", "hidden_size"))
    whole = MLP(**{**models[0].hparams, "embedding_dim": E, "hidden_size": H})
    whole.C.copy_(torch.cat([model.C for model in models], dim=1))
    # For each of the T positions, the (E, H) blocks of the networks along the diagonal.
    blocks = zip(*(model.W1.chunk(whole.block_size) for model in models), strict=True)
    whole.W1.copy_(torch.cat([torch.block_diag(*place) for place in blocks]))
    whole.b1.copy_(torch.cat([model.b1 for model in models]))
    whole.W2.copy_(torch.cat([model.W2 for model in models]) / len(models))
    whole.b2.copy_(torch.stack([model.b2 for model in models]).mean(dim=0))
    return whole


def train(config, networks, folder, flags=(), teachers=()):
    """Trains networks, each with its own seed, and its own teacher if there are any.

    Returns:
        Their best weights, and the mean seconds of a fit on one thread.
    """
    models, begin = [], time.process_time()
    for i in range(networks):
        data = type("Taught", (Taught,), {"teacher": teachers[i]}) if teachers else NamesDataModule
        cli = fit(folder, "--config", config, "--seed_everything", 2147483647 + i, *flags, data=data)
        models.append(best_model(cli))
    return models, (time.process_time() - begin) / networks


def judge(title, models, seconds, together=False):
    """Scores networks, or the mixture of their average with counting; prints and returns their row."""
    block_size, each = models[0].block_size, sum(tensor.numel() for tensor in models[0].parameters())
    counts, floor = splits(block_size)
    found = []
    for model in [average(models)] if together else models:
        compared = Comparison(model, counts["train"], counts["val"])
        predictor = list(compared.predictors.values())[2 if together else 0]
        found.append([loss(predictor, each) for each in counts.values()])
        assert found[-1][0] >= floor, "below the floor: a bug"
    return printed(
        {
            "recipe": title,
            "parameters": f"{len(models)} x {each:,}" if together else f"{each:,}",
            "block": block_size,
            "floor": floor,
            "losses": dict(zip(counts, zip(*found, strict=True), strict=True)),
            "seconds": seconds,
        }
    )


def counting(block_size):
    counts, floor = splits(block_size)
    begin = time.perf_counter()
    predictor = NGram(counts["train"])
    losses = [[loss(predictor, each)] for each in counts.values()]
    row = {"recipe": f"Kneser-Ney, block {block_size}", "parameters": "", "block": block_size, "floor": floor}
    took = time.perf_counter() - begin
    return printed(row | {"losses": dict(zip(counts, losses, strict=True)), "seconds": took})


def splits(block_size):
    """Counts the windows of the sets of words; returns them, and the floor of the training loss."""
    data = NamesDataModule(block_size=block_size)
    counts = {name: data.count(name) for name in ("train", "val", "test")}
    counts["val, new words"] = count_words(data.unseen(data.splits["val"]), data.vocabulary, block_size)
    train, n = counts["train"], counts["train"].n.double()
    return counts, -(n * (n / train.totals()[train.row]).log()).sum().item() / n.sum().item()


def printed(row):
    """Prints a row of the table: mean and half the range of each loss."""
    figures = [
        f"{statistics.mean(each):.4f}" + (f" ± {(max(each) - min(each)) / 2:.4f}" if len(each) > 1 else "")
        for each in row["losses"].values()
    ]
    cells = [row["recipe"], row["parameters"], row["block"], f"{row['floor']:.4f}", *figures, f"{row['seconds']:.3g} s"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return row


def main():
    like_the_command_line()
    print("| recipe | parameters | block | floor | train | val | test | val, new words | time |")
    print(f"|{'---|' * 9}", flush=True)
    rows = [counting(block_size) for block_size in (3, 5, 6, 8)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wide, wide_s = train("wide", 3, folder)
        rows.append(judge("block 3, one wide network", wide, wide_s))
        plain, plain_s = train("wide", 3, folder, [*PLAIN, "--trainer.max_steps=600"])
        title = "block 3, three wide networks averaged, mixed with Kneser-Ney"
        rows.append(judge(title, plain, 3 * plain_s, together=True))
        smoothed, smoothed_s = train("smoothed", 3, folder)
        rows.append(judge("block 3, the lecture's network, smoothed targets", smoothed, smoothed_s))
        taught, taught_s = train("smoothed", 3, folder, teachers=plain)
        rows.append(judge("block 3, the lecture's network, taught by a wide one", taught, plain_s + taught_s))
        deep, deep_s = train("deep", 4, folder)
        rows.append(judge("block 7, one network", deep, deep_s))
        title = "block 7, four networks averaged, mixed with Kneser-Ney"
        rows.append(judge(title, deep, 4 * deep_s, together=True))
    (HERE / "records.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
