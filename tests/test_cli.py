"""The command line: what its commands print and leave, mistakes in one line, and its use from Python."""

import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import notebook
import pytest
import torch
import yaml
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import makemore_pl
from makemore_pl import MLP, cli
from makemore_pl.parser import COMMANDS, MEANT

QUICK = ["--trainer.max_steps", 4, "--model.hidden_size", 8, "--pictures", "false"]
FEW = ["--data.num_words", 60, *QUICK]
RUN = "lightning_logs/version_0"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def load(path=f"{RUN}/checkpoints/last.ckpt"):
    return torch.load(path, weights_only=True)


def scalars(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# The default recipe, as a user runs it.


def loss_by_hand(folder, names, split):
    """The notebook's mean loss of a run's best network on train, val or test."""
    weights = load(folder / RUN / "checkpoints/best.ckpt")["state_dict"]
    assert set(weights) == {"C", "W1", "b1", "W2", "b2"}
    X, Y = notebook.build_dataset(notebook.split(names)[split], notebook.stoi(names))
    return notebook.negative_log_likelihood(weights, X, Y).item()


def test_fit_says_what_it_did_and_how_to_go_on(default_fit, names):
    folder, fit = default_fit
    assert fit.returncode == 0, fit.stderr
    assert re.fullmatch(r"([a-z]+\n){20}", fit.stdout)
    lines = fit.stderr.rstrip("\n").split("\n")
    words, sizes, start, *progress, checkpoint, _, network, counting, mixture, optimistic, more, curves = lines
    assert words == "32,033 words, 29,494 distinct: 25,626 train / 3,203 val / 3,204 test"
    assert sizes == "26 characters, 11,897 parameters"
    assert start.startswith("update 1/500  train 3.3")  # about as good as chance, ln 27
    assert progress[-1].startswith("update 500/500  train ")
    assert checkpoint.startswith(f"checkpoint: {RUN}/checkpoints/best.ckpt (val/loss 2.0")
    train, val = (loss_by_hand(folder, names, split) for split in (0, 1))
    assert (train <= 2.05, val <= 2.10) == (True, True)
    found = [float(number) for number in re.findall(r"\d\.\d{4}", network)]
    assert [*found[:2], float(checkpoint[-7:-1])] == pytest.approx([train, val, val], abs=1e-4)
    assert counting.startswith("Kneser-Ney   ")
    assert re.match(r"mixture \(\d\d % network\) +1\.", mixture)
    assert optimistic.endswith("`test` is unbiased.")
    assert more.endswith("python -m makemore_pl predict")
    assert curves.endswith("tensorboard --logdir lightning_logs")


def test_fit_leaves_best_last_config_and_curves(default_fit):
    run = default_fit[0] / RUN
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "hparams.yaml"} <= set(files(run))
    curves = scalars(run)
    assert curves["val/loss"][-1] < curves["val/loss"][0]
    for loss, perplexity in zip(curves["val/loss"], curves["val/perplexity"], strict=False):  # the last loss is twice
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert curves["lr-AdamW"][0] > curves["lr-AdamW"][-1]


@pytest.mark.parametrize(("line", "split"), [("validate", 1), ("test", 2), ("validate --split train", 0)])
def test_the_checkpoint_is_judged_on_its_own_split(line, split, default_fit, call, monkeypatch, names):
    folder, _ = default_fit
    monkeypatch.chdir(folder)
    before = files(folder)
    status, out, err = call(*line.split())
    assert (status, err) == (0, f"checkpoint: {RUN}/checkpoints/best.ckpt\n")
    printed = float(re.search(r"^network +([\d.]+)", out, re.MULTILINE)[1])
    assert printed == pytest.approx(loss_by_hand(folder, names, split), abs=1e-4)
    assert re.search(r"^loss +(\w+)", out, re.MULTILINE)[1] == ("train", "val", "test")[split]
    assert float(re.search(r"\w+/loss +│ +([\d.]+)", out)[1]) == pytest.approx(printed, abs=1e-4)  # Lightning's table
    assert files(folder) == before


def test_predict_needs_nothing_but_the_checkpoint(default_fit, call, folder):
    first, fit = default_fit
    (folder / "alone.ckpt").write_bytes((first / RUN / "checkpoints/best.ckpt").read_bytes())
    status, out, err = call("predict", "--ckpt_path", "alone.ckpt", "--data.path", "nowhere.txt")
    assert (status, out) == (0, fit.stdout)
    assert err.splitlines()[0] == "checkpoint: alone.ckpt"
    assert files(folder) == ["alone.ckpt"]


def test_sample_flags_reach_the_sampler(default_fit, call, monkeypatch):
    monkeypatch.chdir(default_fit[0])
    model = MLP.load_from_checkpoint(f"{RUN}/checkpoints/best.ckpt")
    flags = ["--sample.num_names=7", "--sample.unique", "--sample.prompt", "ma", "--sample.temperature", "0.8"]
    status, out, err = call("predict", *flags, "--sample.seed", 1)
    assert status == 0, err
    assert out.split() == model.sample(7, unique=True, prompt="ma", temperature=0.8, seed=1)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_predict_into_head_is_quiet(default_fit):
    line = f"set -o pipefail; {sys.executable} -m makemore_pl predict --sample.num_names 200000 | head -3"
    head = subprocess.run(["bash", "-c", line], cwd=default_fit[0], text=True, capture_output=True, timeout=300)
    assert head.stdout.split("\n") == default_fit[1].stdout.split("\n")[:3] + [""]
    assert head.stderr.count("\n") == 2  # the checkpoint and the seed
    assert head.returncode == 0


# A list of one's own.


def test_a_list_and_its_split_come_back_with_the_checkpoint(folder, call, towns):
    path, words = towns
    status, out, err = call("fit", "--data.path", path, *QUICK, "--model.block_size", 2, "--data.split_seed", 7)
    assert status == 0, err
    assert err.startswith("chosen for this list:\n  --data.smoothing=0.8 ")
    assert set(out) <= set("".join(words)) | {"\n"}
    assert max(map(len, err.split("\ncheckpoint: ")[0].splitlines())) <= 80
    status, _, err = call("validate")
    assert (status, "warning" in err) == (0, False), err
    status, out, _ = call("predict", "--sample.prompt", "名", "--sample.num_names", 3)
    assert re.fullmatch("(名.*\n){3}", out)


def test_words_held_out_in_a_file_are_judged_whole(folder, call, names):
    """The network and counting know the words of the list alone; each judges all words of the other file."""
    Path("list.txt").write_text("\n".join(names[:300]))
    Path("heldout.txt").write_text("\n".join(names[1000:1200]))
    assert call("fit", "--data.path", "list.txt", *QUICK)[0] == 0
    status, out, err = call("validate", "--data.path", "heldout.txt")
    assert status == 0, err
    assert "not the list that the network was trained on, so all 200 words count\n" in err
    X, Y = notebook.build_dataset(names[1000:1200], notebook.stoi(names[:300]))
    weights = load(f"{RUN}/checkpoints/best.ckpt")["state_dict"]
    expected = notebook.negative_log_likelihood(weights, X, Y).item()
    assert float(re.search(r"^network +([\d.]+)", out, re.MULTILINE)[1]) == pytest.approx(expected, abs=1e-4)
    assert "\nKneser-Ney" in out

    Path("list.txt").unlink()  # then there is nothing to count
    status, out, _ = call("validate", "--data.path", "heldout.txt")
    assert (status, "\nnetwork" in out, "Kneser-Ney" in out) == (0, True, False)


@pytest.mark.parametrize("flag", ["--data.split_seed=7", "--data.train_fraction=0.7"])
def test_another_split_than_that_of_the_run_is_warned_of(flag, folder, call):
    assert call("fit", *FEW)[0] == 0
    name, value = flag.removeprefix("--data.").split("=")
    for command in (["validate"], ["test"], ["fit", "--ckpt_path", "last", "--trainer.max_steps", 6]):
        status, _, err = call(*command, flag)
        assert status == 0, err
        assert re.search(rf"^warning: .*trained on other words.*\({name} {value} instead of ", err, re.MULTILINE)


def test_a_list_may_come_from_stdin(folder, call, towns, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(towns[0].read_bytes())))
    status, _, err = call("fit", "--data.path", "-", *QUICK)
    assert status == 0, err
    assert "\n30 words, 10 distinct: 24 train / 3 val / 3 test\n" in err


def test_few_words_and_a_list_that_looks_like_a_table_are_said(folder, call):
    Path("list.csv").write_text("".join(f"{i},anno{i}\n" for i in range(40)))
    status, _, err = call("fit", "--data.path", "list.csv", *QUICK)
    assert status == 0, err
    assert "\nhint: this list looks like a table with commas; name the column" in err
    assert "\nval has only 4 words: its losses are mostly chance\n" in err


# Flags of the Trainer.


KEPT = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml"]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--trainer.logger=false"], KEPT),
        (["--trainer.enable_checkpointing=false"], ["hparams.yaml"]),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."], [*KEPT, "hparams.yaml", "metrics.csv"]),
        (["--trainer.fast_dev_run=true"], []),
        (["--trainer.barebones=true", "--trainer.log_every_n_steps=null"], []),
    ],
)
def test_what_a_run_leaves(flags, left, folder, call):
    status, out, err = call("fit", *FEW, *flags)
    assert status == 0, err
    assert out.count("\n") == 20
    found = [re.sub(r"lightning_logs/version_\d/", "", name) for name in files(folder) if "events" not in name]
    assert set(left) == set(found)


def test_callbacks_come_beside_ours(folder, call):
    own = ["ModelCheckpoint", "--trainer.callbacks.dirpath=mine", "--trainer.callbacks.monitor=val/accuracy"]
    status, _, err = call("fit", *FEW, "--trainer.callbacks+", *own, "--trainer.callbacks+", "TQDMProgressBar")
    assert status == 0, err
    assert f"checkpoint: {RUN}/checkpoints/best.ckpt (val/loss" in err
    assert len(files(Path("mine"))) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_printed_commands_can_be_pasted(folder, call, towns):
    """Also where the locale does not have the characters of the names."""
    root = 'it\'s "$HOME" a;b&c'
    status, names, err = call("fit", "--data.path", towns[0], *QUICK, f"--trainer.default_root_dir={root}")
    assert status == 0, err
    assert not names.isascii()
    (line,) = re.findall(r"(?m)^more names: (.*)$", err)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, timeout=300)
    assert done.stdout.decode("utf-8") == names, done.stderr


def test_epochs_replace_updates_and_a_seed_is_that_of_weights_and_batches(folder, call):
    flags = ["--data.num_words", 60, "--data.batch_size", 16, "--pictures", "false", "--trainer.max_epochs", 2]
    for seed in (5, 5, 6):
        assert call("fit", *flags, "--seed_everything", seed)[0] == 0
    first, same, other = (load(f"lightning_logs/version_{n}/checkpoints/last.ckpt") for n in range(3))
    assert (first["hyper_parameters"]["seed"], first["epoch"]) == (5, 1)
    assert first["global_step"] > 4
    assert torch.equal(first["state_dict"]["C"], same["state_dict"]["C"])
    assert not torch.equal(first["state_dict"]["C"], other["state_dict"]["C"])


def test_a_run_that_is_worse_than_chance_says_so(folder, call):
    """Chance is the logarithm of 27 characters, the boundary among them."""
    status, _, err = call("fit", "--data.num_words", 300, *QUICK, "--model.lr", 30)
    assert status == 0, err
    assert "\nworse than chance, 3.2958: this run diverged; try a smaller --model.lr\n" in err


# Mistakes: one line on stderr, exit status 2, nothing on the disk.


FILES = {
    "latin1.txt": b"emma\nzo\xeb\n",
    "list.csv": b"id,name\n1,anno\n2,berta\n",
    "list.yaml": b"- a\n- b\n",
    "mine.yaml": b"model: {hiden_size: 3}\n",
    "class.yaml": b"trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: x}}]}\n",
    "timer.yaml": b"trainer: {callbacks: [{class_path: Timer, init_args: {duration: {minutes: 1}}}]}\n",  # a timedelta
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit --data.path nowhere.txt", "nowhere.txt: cannot read this list (No such file or directory)"),
        ("fit --data.path .", ": cannot read this list (Is a directory)"),
        ("fit --data.path=", "path is '': expected a list of words, one a line, or - for stdin"),
        ("fit --data.path latin1.txt", "latin1.txt, line 2: byte 0xeb is not utf-8; save the list as UTF-8, or name"),
        ("fit --data.path list.csv --data.column town", "list.csv: no column 'town' in the first row: id, name"),
        (
            "fit --data.num_words 5",
            "5 words leave none to train or to validate on; add words, or take all to",
        ),
        ("fit --model.block_size 0", "block_size is 0: expected 1 or more"),
        ("fit --model.hidden_size 1000000000000", "out of memory; try smaller sizes"),
        ("fit --model.lr fast", "--model.lr: Expected a float. Got value: fast"),
        ("fit --model.nonsense 3", "unrecognized arguments: --model.nonsense 3; --help lists the flags"),
        ("fit --trainer.max_step 3", "--trainer.max_step 3: did you mean --trainer.max_steps?"),
        ("fit --model.block-size 3", "--model.block-size 3: did you mean --model.block_size?"),
        ("fit --epochs 5", "--epochs 5: did you mean --trainer.max_epochs?"),
        ("fit -i names.txt", "-i names.txt: did you mean --data.path?"),
        ("fit list.csv", "unrecognized arguments: list.csv: did you mean --data.path list.csv?"),
        ("fit --config lectur", "--config lectur: no such file or recipe; the recipes are deep, hidden, lecture, "),
        ("fit --config list.yaml", "Unexpected config: - a - b"),
        ("fit --config mine.yaml", "Subcommand 'fit' does not accept option 'model.hiden_size'"),
        ("fit --config class.yaml", "lightning.pytorch.callbacks.EarlyStopping': Option 'monitr' is not accepted"),
        ("fit --config timer.yaml", "config.yaml cannot hold lightning.pytorch.callbacks.Timer; use it from Python"),
        ("fit --trainer.logger foo", "--trainer.logger: "),
        ("fit --trainer.accelerator abacus", "You selected an invalid accelerator name: `accelerator='abacus'`"),
        ("fit --trainer.default_root_dir list.csv", "list.csv/lightning_logs: not a directory"),
        ("fit --ckpt_path nowhere.ckpt", "nowhere.ckpt: no such checkpoint; name a file, or `best` or `last`"),
        ("fit --ckpt_path latin1.txt", "latin1.txt: damaged, or no checkpoint (BadZipFile)"),
        ("predict", "no run found in lightning_logs; train first (python -m makemore_pl fit), or name a file with"),
        ("predict --ckpt_path foreign.ckpt", "foreign.ckpt: no checkpoint of makemore_pl; name another"),
        ("lr_find --num_steps 1", "num_steps is 1: expected 2 or more"),
        ("fot", "'lr_find', 'export'): did you mean fit?"),
        ("dance", "invalid choice: 'dance' (choose from 'fit', "),
        ("", 'expected "subcommand" to be one of {fit,predict,'),
    ],
)
def test_a_mistake_is_answered_in_one_line(line, message, folder, call):
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    torch.save({"weights": torch.zeros(3)}, "foreign.ckpt")
    before = sorted(folder.rglob("*"))
    status, out, err = call(*line.split())
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", err), err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict --sample.prompt zoë", "prompt 'zoë': character 'ë' is not among the 26 of this vocabulary"),
        ("predict --sample.temperature -1", "temperature is -1: expected 0 or more"),
        ("predict --sample.num_names lots", "--sample.num_names: Expected a int. Got value: lots"),
        ("predict --model.hidden_size 100", "the checkpoint has other weights; omit sizes such as --model.hidden_size"),
        ("validate --data.path nowhere.txt", "nowhere.txt: cannot read this list (No such file or directory)"),
        ("export --output page.pdf", "output is page.pdf: expected a name that ends in .html"),
        ("fit --ckpt_path last", "last.ckpt: this run is finished, at step 500; to train longer, raise --trainer.max"),
        ("fit --init_from best --data.path TOWNS", "does not know ' '.-ALNZgoxÄÅéëŁłód"),
    ],
)
def test_a_mistake_about_a_checkpoint_is_answered_in_one_line(line, message, default_fit, call, monkeypatch, towns):
    monkeypatch.chdir(default_fit[0])
    before = sorted(default_fit[0].rglob("*"))
    status, out, err = call(*line.replace("TOWNS", str(towns[0])).split())
    assert (status, out, err.splitlines()[-1].count("error: ")) == (2, "", 1)
    assert all(each.startswith(("error: ", "checkpoint: ", "seed ")) for each in err.splitlines())
    assert message in err or "TOWNS" in line
    assert sorted(default_fit[0].rglob("*")) == before


# Help.


def has(config, flag):
    """Whether a config, as --print_config gives it, has the option of a flag."""
    for part in flag.removeprefix("--").split("."):
        if part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_one_screen_of_flags_that_exist(command, call):
    status, out, _ = call(command, "--help")
    assert (status, call(command, "-h")[1]) == (0, out)
    assert out.startswith(f"usage: makemore_pl {command} [--flag value ...]\n\n")
    assert out.count("\n") <= 24
    assert max(map(len, out.split("\n"))) <= 80
    config = yaml.safe_load(call(*out.rstrip().rsplit(": makemore_pl ", 1)[1].split())[1])
    named = re.findall(r"^  (--\S+)", out, re.MULTILINE)
    assert named
    assert [flag for flag in named if flag != "--config" and not has(config, flag)] == []


def test_help_names_every_command(call):
    status, out, _ = call("--help")
    assert status == 0
    assert re.findall(r"^  (\w+) +\w", out, re.MULTILINE) == list(COMMANDS)
    assert call("--version")[:2] == (0, f"makemore_pl {makemore_pl.__version__}\n")


def test_the_names_of_other_programs_lead_to_flags_that_exist(call):
    config = yaml.safe_load(call("fit", "--print_config")[1])
    assert [flag for flag in MEANT.values() if flag not in COMMANDS and not has(config, flag.split()[0])] == []


# Recipes, and configs.


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_known_by_its_name_in_any_folder(path, call, folder):
    by_name, by_file = (call("fit", "--config", each, "--print_config") for each in (path.stem, path))
    assert by_name == by_file
    assert by_name[0] == 0, by_name[2]
    for group, options in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert options.items() <= yaml.safe_load(by_name[1])[group].items()


def test_a_config_is_a_file_and_flags_win(call, folder):
    Path("quick").write_text("model:\n  hidden_size: 7\n")  # before the recipe of that name
    status, out, _ = call("fit", "--config", "quick", "--model.lr", 0.5, "--print_config")
    assert status == 0
    Path("mine.yaml").write_text(out)
    assert call("fit", "--config", "mine.yaml", "--print_config") == (0, out, "")
    model = yaml.safe_load(out)["model"]
    assert (model["hidden_size"], model["lr"]) == (7, 0.5)


def test_the_config_of_a_run_is_the_same_run(call, folder, towns):
    """What was chosen for the list is in it, EarlyStopping included."""
    quick = ["--trainer.max_epochs", 2, "--data.steps_per_epoch", 3, "--pictures", "false"]
    assert call("fit", "--data.path", towns[0], *quick)[0] == 0
    assert call("fit", "--config", f"{RUN}/config.yaml")[0] == 0
    first, second = (Path(f"lightning_logs/version_{n}/config.yaml").read_text() for n in range(2))
    assert first == second
    weights = [load(f"lightning_logs/version_{n}/checkpoints/last.ckpt")["state_dict"] for n in range(2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# From Python.


OPTIONS = {"data": {"num_words": 60}, "model": {"hidden_size": 8}, "trainer": {"max_steps": 5}, "pictures": False}


def test_options_may_be_a_dictionary(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    done = cli.CLI(args={"subcommand": "fit", "fit": OPTIONS})
    assert done.trainer.global_step == 5
    assert done.model.hparams["hidden_size"] == 8
    assert Path(RUN, "checkpoints", "best.ckpt").exists()


@pytest.mark.parametrize(
    "args",
    [{key: OPTIONS[key] for key in ("data", "model", "trainer")}, ["--data.num_words=60", "--trainer.max_steps=5"]],
    ids=["dictionary", "flags"],
)
def test_without_a_run_there_are_the_objects(args, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    made = cli.CLI(args=args, run=False)
    assert files(folder) == []
    assert len(made.datamodule.words) == 60
    made.trainer.fit(made.model, made.datamodule)
    assert made.trainer.global_step == 5


class Wide(MLP):
    def __init__(self, *args, hidden_size: int = 9, **options):
        super().__init__(*args, hidden_size=hidden_size, **options)


def test_a_subclass_has_the_same_command_line(folder, monkeypatch, capsys):
    fit = cli.CLI(Wide, args=["fit", "--data.num_words=60", "--trainer.max_steps=4", "--pictures=false"])
    assert (type(fit.model), fit.model.hparams["hidden_size"]) == (Wide, 9)
    monkeypatch.setattr(sys, "argv", ["wide.py", "predict", "--sample.num_names", "3"])
    capsys.readouterr()
    cli.main(Wide)
    assert capsys.readouterr().out.split() == Wide.load_from_checkpoint(f"{RUN}/checkpoints/best.ckpt").sample(3)
