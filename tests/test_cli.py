import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import notebook
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import makemore_pl
from makemore_pl.commands import cli
from makemore_pl.commands.help import OPENINGS

LETTERS = ["00004/C/metadata.tsv", "00004/C/sprite.png", "00004/C/tensors.tsv"]
QUICK = ["--trainer.max_steps", 4, "--model.hidden_size", 8]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scalars(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The default recipe, as a user runs it.


def test_fit_trains_to_the_promised_loss(default_fit, names):
    folder, fit = default_fit
    assert fit.returncode == 0, fit.stderr
    checkpoint = torch.load(folder / "lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"C", "W1", "b1", "W2", "b2"}
    stoi = notebook.stoi(names)
    _, val, _ = notebook.split(names)
    val_loss = notebook.negative_log_likelihood(checkpoint["state_dict"], *notebook.build_dataset(val, stoi)).item()
    loss = notebook.negative_log_likelihood(checkpoint["state_dict"], *notebook.build_dataset(names, stoi)).item()
    assert val_loss <= 2.10
    assert loss <= 2.06
    (said,) = re.findall(r"\(val/loss (\d\.\d{4})\)", fit.stderr)
    assert float(said) == pytest.approx(val_loss, abs=6e-5)  # half of its last digit, and float32


def test_fit_ends_with_names_and_the_way_on(default_fit):
    _, fit = default_fit
    assert len(fit.stdout.split("\n")) == 21
    assert all(name.isascii() and name.isalpha() for name in fit.stdout.split())
    path = Path("lightning_logs", "version_0", "checkpoints", "best.ckpt")
    lines = fit.stderr.rstrip("\n").split("\n")
    words, sizes, start, *progress, checkpoint, _, network, _, _, optimistic, names, curves = lines
    assert words == "32,033 words, 29,494 distinct: 25,626 train / 3,203 val / 3,204 test"
    assert sizes == "26 characters, 11,897 parameters"
    # The loss of the first update is that of a network which is about as good as chance: 3.2958.
    assert start.startswith("step 1/500  train 3.3")
    assert progress
    assert all(line.startswith("step ") for line in progress)
    assert checkpoint.startswith(f"checkpoint: {path} (val/loss 2.0")
    assert re.match(r"network +2\.0\d{3} +2\.0\d{3} +2\.\d{4}$", network)
    assert optimistic.endswith("so it is optimistic: see `test`")
    assert names == "more names: python -m makemore_pl predict"
    assert curves == "the curves: tensorboard --logdir lightning_logs"
    assert max(map(len, lines)) <= 80


def test_fit_leaves_best_and_last_and_curves(default_fit):
    folder, _ = default_fit
    run = folder / "lightning_logs" / "version_0"
    assert [name for name in files(run) if "events" not in name] == [
        "00500/C/metadata.tsv",
        "00500/C/sprite.png",
        "00500/C/tensors.tsv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "hparams.yaml",
        "projector_config.pbtxt",
    ]
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 500
    assert len(last["optimizer_states"][0]["state"]) == 5
    assert {type(value) for value in last["hyper_parameters"].values()} <= {str, int, float}

    curves = scalars(run)
    assert {"train/loss", "val/loss", "val/perplexity", "val/accuracy", "lr-AdamW"} <= curves.keys()
    steps, losses = zip(*curves["val/loss"], strict=True)
    assert steps[-1] == 499
    assert losses[-1] < losses[0]
    for (_, loss), (_, perplexity) in zip(curves["val/loss"], curves["val/perplexity"], strict=True):
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert curves["lr-AdamW"][0][1] > curves["lr-AdamW"][-1][1]


def test_predict_gives_the_names_of_the_newest_run_and_nothing_else(default_fit, command):
    folder, fit = default_fit
    before = files(folder)
    predict = command("predict", cwd=folder)
    assert predict.stdout == fit.stdout
    checkpoint, seed = predict.stderr.splitlines()
    assert checkpoint == "checkpoint: lightning_logs/version_0/checkpoints/best.ckpt"
    assert seed == "seed 2147483647: the same names each time; --sample.seed random draws others"
    assert files(folder) == before


def test_predict_needs_no_word_list_and_no_run_folder(default_fit, command, tmp_path):
    folder, fit = default_fit
    (tmp_path / "alone.ckpt").write_bytes((folder / "lightning_logs/version_0/checkpoints/best.ckpt").read_bytes())
    predict = command("predict", "--ckpt_path", "alone.ckpt", "--data.path", "nowhere.txt", cwd=tmp_path)
    assert predict.stdout == fit.stdout
    assert files(tmp_path) == ["alone.ckpt"]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_predict_into_head_is_quiet(default_fit):
    folder, fit = default_fit
    line = f"set -o pipefail; {sys.executable} -m makemore_pl predict --sample.num_names 200000 | head -3"
    head = subprocess.run(["bash", "-c", line], cwd=folder, text=True, capture_output=True, timeout=300)
    assert head.stdout.split("\n") == fit.stdout.split("\n")[:3] + [""]
    assert head.stderr.count("\n") == 2  # the checkpoint and the seed
    assert head.returncode == 0


def test_sample_options_reach_the_sampler(default_fit, call, monkeypatch):
    folder, _ = default_fit
    monkeypatch.chdir(folder)

    def names(**options):
        flags = [item for key, value in options.items() for item in (f"--sample.{key}", value)]
        status, out, _ = call("predict", *flags)
        assert status == 0
        return out.split("\n")[:-1]

    assert len(names(num_names=5000)) == 5000
    assert names(num_names=7, seed=1) == names(num_names=20, seed=1)[:7] != names(num_names=7, seed=2)
    assert all(name.startswith("mar") for name in names(prompt="mar"))
    assert len(set(names(num_names=50, temperature=1e-6))) == 1  # the likeliest alone
    assert max(len(name) for name in names(num_names=50, max_length=4)) == 4


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_judge_the_checkpoint_on_its_own_split(stage, default_fit, call, monkeypatch, names):
    folder, _ = default_fit
    monkeypatch.chdir(folder)
    before = files(folder)
    status, out, _ = call(stage, "--verbose", "true")
    assert status == 0
    checkpoint = torch.load(folder / "lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    words = notebook.split(names)[1 if stage == "validate" else 2]
    X, Y = notebook.build_dataset(words, notebook.stoi(names))
    loss = notebook.negative_log_likelihood(checkpoint["state_dict"], X, Y).item()
    (logged,) = re.findall(rf"{'val' if stage == 'validate' else 'test'}/loss\W+([\d.]+)", out)
    assert float(logged) == pytest.approx(loss, rel=1e-6)
    (printed, _) = re.findall(r"(?m)^network +([\d.]+)", out)
    assert float(printed) == pytest.approx(loss, abs=1e-4)
    assert files(folder) == before


# A list of one's own.


def test_a_list_of_ones_own(folder, call, towns):
    path, words = towns
    status, out, err = call("fit", "--data.path", path, *QUICK, "--model.block_size", 2, "--data.split_seed", 7)
    assert status == 0, err
    assert set(out) <= set("".join(words)) | {"\n"}

    # The list, the split and the block size come back with the checkpoint; what was asked for wins.
    status, out, err = call("validate")
    assert status == 0, err
    status, _, err = call("validate", "--data.path", "elsewhere.txt")
    assert status == 2
    assert err.endswith("error: elsewhere.txt: cannot read this word list (No such file or directory)\n")
    status, out, err = call("predict", "--sample.prompt", "名", "--sample.num_names", 3)
    assert status == 0
    assert all(name.startswith("名") for name in out.split("\n")[:-1])


def test_a_list_is_put_into_one_form_and_the_checkpoint_knows(folder, call):
    (folder / "list.txt").write_bytes("\r\n Zoe\u0308 \r\n".encode() + "Zoë\nZoé\n".encode() * 20)
    status, _, err = call("fit", "--data.path", "list.txt", *QUICK)
    assert status == 0
    assert err.startswith("chosen for this list:\n  --data.")
    assert err[err.index("\n41 ") :].startswith(
        "\n41 words, 2 distinct: 32 train / 4 val / 5 test\n4 characters, 981 parameters\n"
        "in the list, 1 blank line dropped, the space around 1 word dropped, 1 word normalised to NFC "
        "(--data.normalization)\nstep "
    )
    assert max(map(len, err.splitlines()[1:3])) <= 80
    (folder / "score.txt").write_text("Zoe\u0301\n", encoding="utf-8")
    assert call("predict", "--sample.score", "score.txt")[1].endswith("\tZoé\n")
    assert call("predict", "--sample.prompt", "Zoe\u0301", "--sample.num_names", 1)[1].startswith("Zoé")

    assert call("fit", "--data.path", "list.txt", *QUICK, "--data.normalization", "none")[0] == 0
    checkpoint = torch.load("lightning_logs/version_1/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["vocabulary"] == "Zeoéë\u0308"
    assert checkpoint["datamodule_hyper_parameters"]["normalization"] == "none"
    assert call("validate")[0] == 0
    assert "character '\u0301' is not among" in call("predict", "--sample.score", "score.txt")[2]


@pytest.fixture
def piped(folder, towns, monkeypatch):
    """Gives the towns through a pipe, and the name to read it by."""

    def pipe(name):
        if name == "a pipe.txt":
            os.mkfifo(folder / name)
            threading.Thread(target=lambda: (folder / name).write_bytes(towns[0].read_bytes()), daemon=True).start()
            return name
        read, write = os.pipe()
        os.write(write, towns[0].read_bytes())
        os.close(write)
        monkeypatch.setattr("sys.stdin", os.fdopen(read, encoding="utf-8"))
        return name.format(read)

    return pipe


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
@pytest.mark.parametrize("name", ["-", "a pipe.txt", "/dev/fd/{}"])
def test_a_list_may_come_from_a_pipe(name, call, piped):
    status, _, err = call("fit", "--data.path", piped(name), *QUICK)
    assert status == 0, err
    assert "\n30 words, 10 distinct: 24 train / 3 val / 3 test\n" in err


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_what_came_from_a_pipe_is_gone_afterwards(call, piped, towns):
    assert call("fit", "--data.path", piped("-"), *QUICK)[0] == 0
    gone = "error: the list of this run came from stdin, which is read once; name a file with --data.path"
    status, _, err = call("validate")
    assert (status, err) == (2, gone + "\n")
    assert call("test", "--data.path", towns[0])[0] == 0
    status, _, err = call("predict", "--sample.novel")
    assert (status, err) == (
        2,
        f"{gone} (novel, jsonl and csv look names up in the list; --data.path, if it was moved)\n",
    )

    status, _, err = call("lr_find", "--data.path", piped("-"), "--num_steps", 20, *QUICK[2:])
    assert status == 0, err
    several = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    status, _, err = call("fit", "--data.path", piped("-"), *several)
    only = "error: a list from stdin is read by one process: save it to a file, or --trainer.devices 1\n"
    assert (status, err.splitlines(keepends=True)[-1]) == (2, only)
    status, _, err = call("fit", "--data.path", "-", "--data.split", "hashed")
    assert (status, err) == (2, "error: -: a list in pieces is read more than once; save it to a file\n")


LISTS = {
    "json": ('[\n"anno",\n"berta",\n"cilli"\n]\n', "JSON; write its words one a line"),
    "objects": ('{"name": "anno"}\n{"name": "berta"}\n', "JSON; "),
    "nested": ('{\n"names": [\n"anno",\n"berta"\n]\n}\n', "JSON; "),
    "csv": ("name,year\nanno,1\nberta,2\n", "a table with commas; --data.column 1 takes its first column"),
    "excel": ("name;year\nanno;1\nberta;2\n", "a table with semicolons; --data.column 1"),
    "hunspell": ("3\nanker/AB\nboje\ndeich/C\n", "a hunspell dictionary; drop its first line"),
    "john": ("#!comment: words\nanno\nberta\n", "one of John the Ripper; drop the lines"),
    "words": ("anno, the first\nberta\n[dora]\n", None),
    "towns": ('3\nDar es Salaam/East\nN\'Djamena\n"x"\n', None),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("split", ["shuffled", "hashed"])
def test_a_list_that_looks_like_something_else_gets_a_hint(kind, split, folder, call):
    text, hint = LISTS[kind]
    Path("list").write_text(text * (1 if kind in ("hunspell", "towns") else 20))
    flags = ["--data.path", "list", "--data.split", split, "--data.train_fraction", 1, "--data.val_fraction", 0]
    status, _, err = call("fit", *flags, *QUICK)
    assert status == 0, err
    found = [line for line in err.splitlines() if line.startswith("hint: ")]
    assert [line.startswith(f"hint: this list looks like {hint}") for line in found] == [True] * (hint is not None)


@pytest.mark.parametrize("split", ["shuffled", "hashed"])
def test_a_list_is_read_as_it_is(split, folder, call):
    """A table in another encoding, with a bad row: trained on, validated with, looked up by predict."""
    rows = [f'{number},"Zoë {letter}, {number % 7}"' for number, letter in enumerate("abcdefghij" * 5)]
    Path("list.csv").write_text("\n".join(["id,name", *rows, "7", ""]), encoding="latin-1")
    flags = ["--data.path", "list.csv", "--data.split", split, "--data.encoding", "latin-1", "--data.column", "name"]
    status, _, err = call("fit", *flags, *QUICK)
    assert (status, err.count("\n")) == (2, 1)
    assert "list.csv, line 52: no column 'name': this row has 1 (--data.skip_bad_lines omits it)" in err
    status, _, err = call("fit", *flags, "--data.skip_bad_lines", *QUICK)
    assert status == 0, err
    assert "\nin the list, 1 bad line omitted\n" in err
    saved = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["vocabulary"] == " ,0123456Zabcdefghijoë"
    assert call("validate")[0] == 0
    Path("score.txt").write_text("Zoë a, 0\n", encoding="utf-8")
    status, out, _ = call("predict", "--sample.score", "score.txt", "--sample.format", "jsonl")
    assert status == 0
    assert '"where": "new"' not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.encoding", "klingon"], "--data.encoding klingon: expected a name such as utf-8, latin-1, cp1252"),
        (["--data.encoding", "rot13"], "--data.encoding rot13: expected a name"),
        (["--data.column", 0], "--data.column 0: expected a name in the header, or a number from 1 on"),
        (["--data.column", "town"], "list.csv: no column 'town' in the header: id, name"),
        (["--data.column", 3], "list.csv, line 1: no column 3: this row has 2; line 2: no column 3"),
    ],
)
def test_a_mistake_about_a_table_is_one_line(flags, message, folder, call):
    Path("list.csv").write_text("id,name\n1,anno\n2,berta\n")
    status, out, err = call("fit", "--data.path", "list.csv", *QUICK, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}"), err
    assert files(folder) == ["list.csv"]


def test_one_word_is_one_word(folder, call):
    Path("one.txt").write_text("a")
    flags = ["--data.path", "one.txt", "--data.train_fraction", 1, "--data.val_fraction", 0]
    status, _, err = call("fit", *flags, *QUICK)
    assert status == 0, err
    assert "\n1 word, 1 distinct: 1 train / 1 val / 0 test\n1 character, " in err
    assert call("fit", "--data.path", "one.txt", *QUICK)[2].startswith("error: 80% of 1 word leaves no training word")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_a_list_from_stdin_is_no_change_of_the_list(call, piped):
    assert call("fit", "--data.path", piped("-"), *QUICK)[0] == 0
    again = "fit", "--ckpt_path", "last", "--trainer.max_steps", 5, "--data.path"
    status, _, err = call(*again, piped("-"))
    assert status == 0, err
    assert "\nchanged: max_steps 5 instead of 4\n" in err


def test_without_a_logger_no_run_writes_over_another(folder, call):
    """In folders with the names that Lightning gives to files: `checkpoints`, `checkpoints-v1`."""

    def saved():
        return {str(path): path.read_bytes() for path in sorted(Path().rglob("*.ckpt"))}

    few = ["--data.num_words", 50, "--trainer.logger", "false"]
    assert call("fit", *few, *QUICK)[0] == 0
    first = saved()
    assert list(first) == ["checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    assert call("fit", *few, *QUICK, "--model.seed", 1)[0] == 0
    both = saved()
    assert list(both) == [*first, "checkpoints-v1/best.ckpt", "checkpoints-v1/last.ckpt"]
    assert first.items() <= both.items()
    assert call("predict")[2].startswith("checkpoint: checkpoints-v1/best.ckpt\n")

    # Each resumes in its own folder.
    for path, name in [("last", "checkpoints-v1"), ("checkpoints/last.ckpt", "checkpoints")]:
        status, _, err = call("fit", "--ckpt_path", path, "--trainer.max_steps", 6, *few[2:])
        assert status == 0, err
        assert err.startswith(f"resuming {name}/last.ckpt, step 4\n")
        assert {path for path, content in saved().items() if both.get(path) != content} >= {f"{name}/last.ckpt"}
        assert list(saved()) == list(both)
    # From `best` begins another run: the steps after it are in `last`.
    before = saved()
    status, _, err = call("fit", "--ckpt_path", "checkpoints/best.ckpt", "--trainer.max_steps", 8, *few[2:])
    assert status == 0, err
    assert saved().items() > before.items()
    assert set(saved()) - set(before) == {"checkpoints-v2/best.ckpt", "checkpoints-v2/last.ckpt"}


def test_a_run_that_saved_meanwhile_is_not_written_over(folder, call, monkeypatch):
    few = ["--data.num_words", 50, "--trainer.logger", "false", *QUICK]
    assert call("fit", *few)[0] == 0
    monkeypatch.setattr(cli, "folder_without_logger", lambda *_: folder / "checkpoints")  # as if it had been free
    status, out, err = call("fit", *few)
    path = folder / "checkpoints" / "best.ckpt"
    assert (status, out) == (2, "")
    assert err.endswith(f"error: {path}: exists, and this run would write over it; move it, or use another name\n")


def test_a_resumed_fit_goes_on(folder, call):
    words = ["--data.num_words", 50, "--model.schedule", "constant"]
    assert call("fit", *words, *QUICK)[0] == 0
    status, _, err = call("fit", "--trainer.max_steps", 6, "--ckpt_path", "last", "--model.lr", 0.5)
    assert status == 0, err
    assert err.startswith(
        "resuming lightning_logs/version_0/checkpoints/last.ckpt, step 4\n"
        "changed: max_steps 6 instead of 4, lr 0.5 instead of 0.04\n50 words, "
    )
    assert not Path("lightning_logs/version_1").exists()
    resumed = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 6
    assert resumed["hyper_parameters"]["hidden_size"] == 8
    assert resumed["hyper_parameters"]["schedule"] == "constant"
    assert resumed["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5

    status, out, err = call("fit", "--trainer.max_steps", 6, "--ckpt_path", "last")
    assert (status, out) == (2, "")
    assert err == (
        "error: lightning_logs/version_0/checkpoints/last.ckpt: this run is finished, at step 6; "
        "to resume it, raise --trainer.max_steps\n"
    )


def test_a_resumed_run_keeps_its_best(folder, call):
    words = ["--data.num_words", 60, "--data.steps_per_epoch", 10, "--model.schedule", "constant"]
    status, _, first = call("fit", *words, "--model.hidden_size", 8, "--trainer.max_steps", 60, "--model.lr", 0.05)
    assert status == 0
    worse = ["--trainer.max_steps", 80, "--model.lr", 5]
    status, _, second = call("fit", *words[2:], *worse, "--ckpt_path", "last")
    assert status == 0, second
    best = re.compile(r"checkpoint: .*best.ckpt \(val/loss .*\)")
    assert best.findall(first) == best.findall(second) != []


def test_a_run_from_a_file_is_a_new_run(folder, call):
    assert call("fit", "--data.num_words", 50, *QUICK)[0] == 0
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    before = Path(path).read_bytes()
    status, _, err = call("fit", "--ckpt_path", path, "--trainer.max_steps", 6)
    assert status == 0, err
    assert Path("lightning_logs/version_1/checkpoints/best.ckpt").exists()
    assert Path(path).read_bytes() == before


def test_a_run_without_validation_is_saved_too(folder, call):
    status, _, err = call("fit", "--data.num_words", 50, *QUICK, "--trainer.limit_val_batches", 0)
    assert status == 0, err
    assert "checkpoint: lightning_logs/version_0/checkpoints/last.ckpt\n" in err
    status, _, err = call("predict")
    folder = "lightning_logs/version_0"
    assert status == 0
    assert err.splitlines()[:-1] == [
        f"warning: the newest run, {folder}, has no best.ckpt; taking {folder}/checkpoints/last.ckpt, step 4, instead",
        f"checkpoint: {folder}/checkpoints/last.ckpt",
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_diverged_run_says_so(optimizer, folder, call, monkeypatch):
    """The first step leaves a weight that is no number, whatever the order of a processor's sums."""
    monkeypatch.setattr(
        "makemore_pl.optimization.lr_factor", lambda schedule, step, steps: math.nan if step == 0 else 0.3
    )
    status, out, err = call("fit", "--data.num_words", 50, *QUICK, "--model.optimizer", optimizer)
    assert (status, out) == (2, "")
    assert err.endswith("error: step 2: the loss is nan; try a smaller --model.lr, or --trainer.precision 32\n")


def test_a_run_that_is_worse_than_chance_says_so(folder, call):
    """Chance is the logarithm of 27 characters, the boundary among them."""
    status, _, err = call("fit", "--data.num_words", 300, *QUICK, "--model.lr", 30)
    assert status == 0, err
    assert "\nworse than chance, 3.2958: this run diverged; try a smaller --model.lr\n" in err
    assert max(map(len, err.splitlines())) < 200


def test_callbacks_of_ones_own_come_beside_ours(folder, call):
    (folder / "mine.yaml").write_text(
        """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: mine, monitor: val/accuracy, mode: max}
    - class_path: lightning.pytorch.callbacks.TQDMProgressBar
"""
    )
    status, _, err = call("fit", "--config", "mine.yaml", "--data.num_words", 50, *QUICK)
    assert status == 0, err
    assert "checkpoint: lightning_logs/version_0/checkpoints/best.ckpt (val/loss" in err
    assert list((folder / "mine").iterdir())


def test_the_newest_run_is_taken(folder, call):
    for words in (50, 60):
        assert call("fit", "--data.num_words", words, *QUICK)[0] == 0
    assert call("predict")[2].startswith("checkpoint: lightning_logs/version_1/checkpoints/best.ckpt\n")
    assert call("predict", "--ckpt_path", "last")[2].startswith(
        "checkpoint: lightning_logs/version_1/checkpoints/last.ckpt\n"
    )
    os.utime("lightning_logs/version_0/checkpoints/best.ckpt")
    assert call("predict")[2].startswith("checkpoint: lightning_logs/version_0/checkpoints/best.ckpt\n")


def test_runs_go_where_they_are_sent(folder, call):
    assert call("fit", "--data.num_words", 50, *QUICK, "--trainer.default_root_dir", "elsewhere")[0] == 0
    assert not (folder / "lightning_logs").exists()
    assert call("predict", "--trainer.default_root_dir", "elsewhere")[2].startswith("checkpoint: elsewhere/lightning")


def test_epochs_can_be_counted_instead_of_steps(folder, call):
    options = ["--data.num_words", 50, "--data.batch_size", 30, "--trainer.max_epochs", 2]
    status, _, err = call("fit", *options, "--model.hidden_size", 8)
    assert status == 0, err
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    assert last["global_step"] > 2


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("root", ["-out", 'it\'s "$HOME" a;b&c'])
def test_printed_commands_can_be_pasted(root, folder, call):
    status, names, err = call("fit", "--data.num_words", 50, *QUICK, f"--trainer.default_root_dir={root}")
    assert status == 0, err
    (names_line,) = re.findall(r"(?m)^more names: (.*)$", err)
    (curves_line,) = re.findall(r"(?m)^the curves: (.*)$", err)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "tensorboard").write_text('#!/bin/sh\ntest "$1" = --logdir && ls "$2"\n')
    (folder / "bin" / "tensorboard").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    pasted = [
        subprocess.run(line, shell=True, env=environment, text=True, capture_output=True, timeout=300)
        for line in (names_line, curves_line)
    ]
    assert [done.stdout for done in pasted] == [names, "version_0\n"], pasted


@pytest.mark.parametrize(
    ("flags", "dtype", "steps"),
    [
        (["--trainer.precision", "64-true"], torch.float64, 4),
        (["--trainer.precision", "bf16-true"], torch.bfloat16, 4),
        (["--trainer.precision", "bf16-mixed"], torch.float32, 4),
        (["--trainer.accumulate_grad_batches", "2", "--data.batch_size", "16"], torch.float32, 4),
        (["--trainer.enable_progress_bar", "false"], torch.float32, 4),
        (["--trainer.max_steps", "7"], torch.float32, 7),
    ],
)
def test_trainer_flags_go_through(flags, dtype, steps, folder, call):
    status, out, err = call("fit", "--data.num_words", 50, *QUICK, *flags)
    assert status == 0, err
    assert len(out.split("\n")) == 21
    assert ("\nstep " in err) == ("--trainer.enable_progress_bar" not in flags)
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert {tensor.dtype for tensor in last["state_dict"].values()} == {dtype}
    assert last["global_step"] == steps


@pytest.mark.parametrize(
    ("flag", "left"),
    [
        ("--trainer.logger=false", ["checkpoints/best.ckpt", "checkpoints/last.ckpt"]),
        ("--trainer.enable_checkpointing=false", [*LETTERS, "config.yaml", "hparams.yaml", "projector_config.pbtxt"]),
        ("--trainer.fast_dev_run=true", []),
    ],
)
def test_what_is_turned_off_leaves_nothing(flag, left, folder, call):
    status, out, err = call("fit", "--data.num_words", 50, *QUICK, flag)
    assert status == 0, err
    assert len(out.split("\n")) == 21
    assert [name.replace("lightning_logs/version_0/", "") for name in files(folder) if "events" not in name] == left


# Mistakes: one line on stderr, exit status 2, nothing half-written.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--data.path", "nowhere.txt"], "nowhere.txt: cannot read this word list (No such file or directory)"),
        (["fit", "--data.path", "."], ".: cannot read this word list (Is a directory)"),
        (["fit", "--data.path", "empty.txt"], "empty.txt: no words in this list; expected one a line"),
        (
            ["fit", "--data.path", "latin1.txt"],
            "latin1.txt, line 2, byte 7: 0xeb is not UTF-8; save the list as UTF-8, or name its --data.encoding "
            "(--data.skip_bad_lines omits it)",
        ),
        (
            ["fit", "--data.num_words", "5"],
            "10% of 5 words leaves no validation word; add words or raise val_fraction "
            "(train_fraction 1 and val_fraction 0 hold no words back)",
        ),
        (["fit", "--model.block_size", "0"], "--model.block_size 0: expected 1 or more"),
        (["fit", "--model.lr", "fast"], "--model.lr fast: expected a number"),
        (["fit", "--model.init", "random"], "--model.init random: expected lecture or scaled"),
        (["fit", "--model.nonsense", "3"], "unknown flag --model.nonsense; --help lists them"),
        (["fit", "--trainer.max_step", "3"], "unknown flag --trainer.max_step: did you mean --trainer.max_steps?"),
        (["fit", "--data.train_fraction", "0.95"], "train_fraction 0.95 and val_fraction 0.1: expected shares of 1"),
        (["fit", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (
            ["fit", "--ckpt_path", "last"],
            "no checkpoint found: looked in lightning_logs/version_*/checkpoints, checkpoints",
        ),
        (["fit", "--trainer.gradient_clip_val=-1e-5"], "--trainer.gradient_clip_val -1e-05: expected 0 or more"),
        (["fit", "--ckpt_path", "/dev/zero"], "--ckpt_path /dev/zero: is not a file, but a device"),
        (["fit", "--config", "null.yaml"], "--config: trainer is None: expected names with values"),
        (["predict", "--config", "null.yaml"], "--config: trainer is None: expected names with values"),
        (["fit", "--config", "empty_model.yaml"], 'Key "model.block_size" not found'),
        (["fit", "--trainer.devices", "[0,0]", "--trainer.accelerator", "cpu"], "`devices` selected with `CPUAcc"),
        (["fit", "--config", "nul.yaml"], "'a\\x00b': cannot read this word list (its name holds a NUL)"),
        (
            ["fit", "--trainer.default_root_dir", "http://127.0.0.1:1/x"],
            "--trainer.default_root_dir http://127.0.0.1:1/x: is a URL; name a folder",
        ),
        (["fit", "--ckpt_path", "nowhere.ckpt"], "--ckpt_path nowhere.ckpt: no such file"),
        (["predict"], "no checkpoint found: looked in lightning_logs/version_*/checkpoints, checkpoints"),
        (["predict", "--ckpt_path", "latin1.txt"], "latin1.txt: not a checkpoint: it does not begin as a zip archive"),
        (["predict", "--ckpt_path", "foreign.ckpt"], "foreign.ckpt: not a checkpoint of makemore_pl"),
        (["fit", "--data.counted", "true", "--data.batch_size", "32"], "counted needs all rows at once"),
        (["fot"], "unknown command fot: did you mean fit?"),
        (["train"], "unknown command train: did you mean fit?"),
        (["flt"], "unknown command flt: did you mean fit?"),
        (["dance"], "unknown command dance: expected fit, predict, validate, test, lr_find or export"),
        ([], "no command: expected fit, predict, validate, test, lr_find or export"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, message, folder, call):
    (folder / "empty.txt").write_bytes(b"\n")
    (folder / "latin1.txt").write_bytes(b"emma\nzo\xeb\n")
    torch.save({"weights": torch.zeros(3)}, folder / "foreign.ckpt")
    (folder / "null.yaml").write_text("trainer: null")
    (folder / "empty_model.yaml").write_text("model: null")
    (folder / "nul.yaml").write_text('data: {path: "a\\0b"}')
    before = files(folder)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert files(folder) == before


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_streams_may_be_closed(default_fit, tmp_path):
    folder, _ = default_fit
    line = f"{sys.executable} -m makemore_pl {{}}"
    for command, cwd, expected in [
        (line.format("fit --data.path - <&-"), tmp_path, (2, "error: -: no words in this list; expected one a line\n")),
        (line.format("predict --sample.num_names 3 >&-"), folder, (0, None)),
        (line.format("predict --sample.num_names 3 <&- 2>&-"), folder, (0, "")),
    ]:
        done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == expected[0], done.stderr
        assert done.stderr == expected[1] or (expected[1] is None and done.stderr.startswith("checkpoint: "))
        assert len(done.stdout.splitlines()) == 3 * ("2>" in command)


def link_loop(path):
    path.symlink_to(path.name)


def endless_line(path):
    path.touch()
    os.truncate(path, 2**26)  # zeros; not so many that a machine without room for their words would say that


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (Path.mkdir, "cannot read this word list (Is a directory)"),
        (Path.touch, "no words in this list; expected one a line"),
        (lambda path: path.write_text("emma\n", encoding="utf-16"), "this looks like UTF-16"),
        (lambda path: path.write_bytes(b"em\0ma\n"), "control character U+0000 (NUL)"),
        (endless_line, "a line over 16,777,216 bytes; expected one word a line"),
        (link_loop, "cannot read this word list ("),
    ],
)
def test_a_list_that_is_none_is_answered_in_one_line(write, message, folder, call):
    write(folder / "list")
    status, out, err = call("fit", "--data.path", "list")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: list")
    assert message in err
    assert not (folder / "lightning_logs").exists()


HUGE = "a model of these sizes would take {} GB of memory; "


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--model.block_size", "0", "expected 1 or more"),
        ("--model.embedding_dim", "-1", "expected 1 or more"),
        ("--model.hidden_size", "0", "expected 1 or more"),
        ("--model.hidden_size", "1.5", "expected a whole number"),
        ("--model.lr", "-1", "expected 0 or more"),
        ("--model.lr", "nan", "expected a number"),
        ("--model.weight_decay", "-0.5", "expected 0 or more"),
        ("--model.momentum", "1", "expected 0 or more, less than 1"),
        ("--model.seed", "1000000000000000000000", "expected a number of 64 bits, with its sign"),
        ("--data.num_words", "0", "expected 1 or more"),
        ("--data.batch_size", "-3", "expected 1 or more"),
        ("--data.max_word_length", "0", "expected 1 or more"),
        ("--trainer.max_steps", "0", "expected 1 or more, or -1 for no limit"),
        ("--trainer.max_epochs", "-2", "expected 1 or more, or -1 for no limit"),
        ("--trainer.val_check_interval", "0", "expected more than 0"),
        ("--trainer.accumulate_grad_batches", "0", "expected 1 or more"),
        ("--trainer.gradient_clip_val", "-1", "expected 0 or more"),
        ("--trainer.limit_val_batches", "-1", "expected 0 or more"),
        ("--trainer.limit_val_batches", "1.5", "expected a share up to 1, or a whole number"),
        ("--trainer.devices", "100000", "expected at most "),
        # 4 bytes for each number: nearly (27 + 600) E, 2,000 T or (30 + 1 + 27) H.
        ("--model.embedding_dim", "1000000000", HUGE.format("2.34e+03")),
        ("--model.block_size", "1000000000000000000000000", HUGE.format("7.45e+18")),
        ("--model.hidden_size", "1000000000000", HUGE.format("2.16e+05")),
    ],
)
def test_numbers_out_of_their_range_are_refused_before_anything_is_made(flag, value, message, folder, call):
    status, out, err = call("fit", flag, value)
    assert (status, out, files(folder)) == (2, "", [])
    assert err.startswith(
        f"error: {flag} {value}: {message}" if message.startswith("expected") else f"error: {message}"
    )
    assert err.count("\n") == 1


def test_what_does_not_fit_into_memory_is_one_line(folder, call, names, monkeypatch):
    (folder / "few.txt").write_text("\n".join(names[:3000]))
    monkeypatch.setattr("makemore_pl.memory.LITTLE", 0)
    monkeypatch.setattr("makemore_pl.memory.free_memory", lambda: 1_000_000)
    # 2,700 words have about 19,000 windows of 8 x 6 bytes, and 11,897 parameters 24 bytes more each.
    quick = ["--data.path", "few.txt", "--trainer.max_steps", 2]
    status, _, err = call("fit", *quick, "--model.block_size", 8)
    assert status == 2
    assert re.search(
        r"^error: windows of 8 characters would take 0\.\d+ GB of memory; 0.000931 GB are free$", err, re.M
    )
    status, _, err = call("fit", *quick, "--model.hidden_size", 2000)
    assert status == 2
    assert re.search(r"^error: training this model would take 0\.\d+ GB of memory; 0.000931 GB are free$", err, re.M)
    monkeypatch.setattr("makemore_pl.memory.free_memory", lambda: float("inf"))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.empty(2**60))
    status, _, err = call("fit", *quick)
    assert (status, err) == (2, "error: out of memory: try smaller sizes, or --data.batch_size\n")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said_in_one_line(command, tmp_path):
    fit = command("fit", "--trainer.accelerator", "gpu", cwd=tmp_path)
    assert fit.returncode == 2
    assert fit.stderr == ("error: --trainer.accelerator gpu: torch finds no GPU here; omit the flag, or use cpu\n")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sample.prompt", "Zoë"],
            "prompt 'zoë': character 'ë' is not among the 26 of this vocabulary: 'abcdefghijklmnopqrstuvwxyz'",
        ),
        (["--sample.temperature", "0"], "--sample.temperature 0: expected a number above 0"),
        (["--sample.num_names", "-1"], "--sample.num_names -1: expected 1 or more"),
        (["--model.hidden_size", "100"], "--model.hidden_size 100: the checkpoint has 200; omit the flag"),
        (["--model.vocabulary", "abc"], "--model.vocabulary abc: the checkpoint has abcdef"),
    ],
)
def test_a_mistake_of_predict_is_answered_in_one_line(arguments, message, default_fit, call, monkeypatch):
    monkeypatch.chdir(default_fit[0])
    status, out, err = call("predict", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_resumed_fit_refuses_other_sizes(folder, call):
    assert call("fit", "--data.num_words", 50, *QUICK)[0] == 0
    for name, asked, has in [("hidden_size", 9, 8), ("block_size", 0, 3), ("optimizer", "sgd", "adamw")]:
        status, _, err = call("fit", "--ckpt_path", "last", f"--model.{name}", asked)
        assert (status, err) == (2, f"error: --model.{name} {asked}: the checkpoint has {has}; omit the flag\n")


def test_a_resumed_fit_refuses_another_alphabet(folder, call, towns):
    assert call("fit", "--data.num_words", 50, *QUICK)[0] == 0
    before = files(folder)
    status, _, err = call("fit", "--ckpt_path", "last", "--data.path", towns[0], "--data.other_words")
    assert status == 2
    assert "error: the checkpoint's characters are 'abc" in err
    assert files(folder) == before


# Help.


@pytest.mark.parametrize("command", OPENINGS)
def test_every_option_is_documented(command, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call(command, "--help")
    assert status == 0
    opening, last = out.split("\nAll flags: ")
    assert last == f"makemore_pl {command} --help all\n"
    assert call(command, "-h")[1] == out
    status, out, _ = call(*last.split()[1:])
    assert status == 0
    assert "help:" not in out
    assert out.startswith(f"{opening}\nAll flags:\n")
    flags = out.removeprefix(opening)
    ours = [part for part in re.split(r"\n  --", flags) if part.startswith(("model.", "data.", "sample.", "num_s"))]
    assert len(ours) >= 18
    for part in ours:
        name, _, text = " ".join(part.split()).partition(" ")
        assert len(text.partition("(type")[0].split()) > 2, name
    # It opens with what matters, within a screen.
    assert opening.startswith(f"usage: makemore_pl {command} [--flag value ...]\n\n")
    assert opening.count("\n") < 24
    assert max(map(len, opening.split("\n"))) <= 80
    named = re.findall(r"^  (--\S+)", opening, re.MULTILINE)
    assert ("--num_steps" in named) == (command == "lr_find")
    assert len(named) >= (12 if command == "fit" else 1)
    for flag in set(named):
        assert f" {flag} " in flags, flag


def test_help_names_every_command(call):
    status, out, _ = call("--help")
    assert status == 0
    assert re.findall(r"^  (\w+) +\w", out, re.MULTILINE)[: len(OPENINGS)] == list(OPENINGS)
    assert call("--version")[:2] == (0, f"makemore_pl {makemore_pl.__version__}\n")


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_the_shell_completes_flags(call, tmp_path):
    status, out, _ = call("--print_completion", "shtab-bash")
    assert status == 0
    (tmp_path / "completion").write_text(out)
    for words, expected in [("predict --sample.tem", "--sample.temperature"), ("lr_", "lr_find")]:
        line = f"""source completion; COMP_WORDS=(makemore_pl {words}); COMP_CWORD={len(words.split())}
        $(complete -p makemore_pl | sed 's/.*-F \\([^ ]*\\) .*/\\1/') 2>/dev/null; echo "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, text=True, capture_output=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr


def test_print_config_is_a_config(folder, call):
    status, out, _ = call("fit", "--model.hidden_size", 9, "--print_config")
    assert status == 0
    (folder / "mine.yaml").write_text(out)
    status, again, _ = call("fit", "--config", "mine.yaml", "--print_config")
    assert (status, again) == (0, out)
