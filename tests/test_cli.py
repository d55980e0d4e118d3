"""The command line: what its commands print and leave, mistakes in one line, and its use from Python."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import notebook
import pytest
import torch
import yaml
from conftest import ROOT, Dropout

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


# The default recipe, as a user runs it.


def loss_by_hand(folder, words, listed):
    """The notebook's mean loss on words of a run's best network, whose characters are those of a list."""
    weights = load(folder / RUN / "checkpoints/best.ckpt")["state_dict"]
    assert set(weights) == {"C", "W1", "b1", "W2", "b2"}
    X, Y = notebook.build_dataset(words, notebook.stoi(listed))
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
    train, val, _ = (loss_by_hand(folder, words, names) for words in notebook.split(names))
    assert (train <= 2.05, val <= 2.10) == (True, True)
    found = [float(number) for number in re.findall(r"\d\.\d{4}", network)]
    assert [*found[:2], float(checkpoint[-7:-1])] == pytest.approx([train, val, val], abs=1e-4)
    assert counting.startswith("Kneser-Ney   ")
    assert re.match(r"mixture \(\d\d % network\) +1\.", mixture)
    assert optimistic.endswith("`test` is unbiased.")
    assert more.endswith("python -m makemore_pl predict")
    assert curves.endswith("tensorboard --logdir lightning_logs")


@pytest.mark.parametrize(("line", "split"), [("validate", 1), ("test", 2), ("validate --split train", 0)])
def test_the_checkpoint_is_judged_on_its_own_split(line, split, default_fit, call, monkeypatch, names):
    folder, _ = default_fit
    monkeypatch.chdir(folder)
    before = files(folder)
    status, out, err = call(*line.split())
    assert (status, err) == (0, f"checkpoint: {RUN}/checkpoints/best.ckpt\n")
    printed = float(re.search(r"^network +([\d.]+)", out, re.MULTILINE)[1])
    assert printed == pytest.approx(loss_by_hand(folder, notebook.split(names)[split], names), abs=1e-4)
    assert re.search(r"^loss +(\w+)", out, re.MULTILINE)[1] == ("train", "val", "test")[split]
    assert float(re.search(r"\w+/loss +│ +([\d.]+)", out)[1]) == pytest.approx(printed, abs=1e-4)  # Lightning's table
    assert files(folder) == before


def test_predict_needs_nothing_but_the_checkpoint(default_fit, call, folder):
    (folder / "alone.ckpt").write_bytes((default_fit[0] / RUN / "checkpoints/best.ckpt").read_bytes())
    flags = ["--sample.num_names=7", "--sample.unique", "--sample.prompt", "ma", "--sample.temperature", "0.8"]
    line = ["predict", "--ckpt_path", "alone.ckpt", "--data.path", "nowhere.txt", *flags, "--sample.seed", 1]
    status, out, err = call(*line)
    assert (status, err.splitlines()[0], err.count("\n")) == (0, "checkpoint: alone.ckpt", 2)
    model = MLP.load_from_checkpoint("alone.ckpt")
    assert out.split() == model.sample(7, unique=True, prompt="ma", temperature=0.8, seed=1)
    assert files(folder) == ["alone.ckpt"]


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
    assert "not the list that the network was trained on, so all its 200 words are judged\n" in err
    assert call("validate", "--data.path", "null")[0] == 0  # names.txt
    expected = loss_by_hand(folder, names[1000:1200], names[:300])
    assert float(re.search(r"^network +([\d.]+)", out, re.MULTILINE)[1]) == pytest.approx(expected, abs=1e-4)
    assert "\nKneser-Ney" in out

    Path("list.txt").unlink()  # then there is nothing to count
    status, out, _ = call("validate", "--data.path", "heldout.txt")
    assert (status, "\nnetwork" in out, "Kneser-Ney" in out) == (0, True, False)


def test_the_table_of_losses_is_computed_without_dropout(folder, capsys):
    cli.CLI(Dropout, args=["fit", *map(str, FEW)])
    capsys.readouterr()
    cli.CLI(Dropout, args=["validate"])
    out = capsys.readouterr().out
    lightnings, ours = re.search(r"val/loss\D+([\d.]+)", out)[1], re.search(r"^network +([\d.]+)", out, re.M)[1]
    assert float(lightnings) == pytest.approx(float(ours), abs=1e-4)


@pytest.mark.parametrize("flag", ["--data.split_seed=7", "--data.train_fraction=0.7"])
def test_another_split_than_that_of_the_run_is_warned_of_and_does_not_resume_it(flag, folder, call):
    assert call("fit", *FEW)[0] == 0
    name, value = flag.removeprefix("--data.").split("=")
    for command in (["validate"], ["test"], ["fit", "--ckpt_path", "last", "--trainer.max_steps", 6]):
        status, _, err = call(*command, flag)
        assert status == (2 if "fit" in command else 0), err
        assert re.search(rf"^(warning|error): .*has changed \({name} {value} instead of ", err, re.MULTILINE)


def test_a_list_may_come_from_stdin_and_what_is_odd_about_it_is_said(folder, call, monkeypatch):
    rows = "".join(f"{i},anno{i}\n" for i in range(40))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    status, _, err = call("fit", "--data.path", "-", *QUICK)
    assert status == 0, err
    assert "\n40 words, 40 distinct: 32 train / 4 val / 4 test\n" in err
    assert "\nhint: this list looks like a table with commas; name the column" in err
    assert "\nfew words to judge on (val: 4): these losses are very noisy\n" in err


# Flags of the Trainer.


KEPT = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml"]
OWN = "--trainer.callbacks+=TQDMProgressBar --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath=mine"


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ("", [*KEPT, "hparams.yaml", "events"]),
        (OWN, [*KEPT, "hparams.yaml", "events", "mine/epoch=0-step=4.ckpt"]),  # a user's callbacks come beside ours
        ("--trainer.logger=false", KEPT),
        ("--trainer.enable_checkpointing=false", ["hparams.yaml", "events"]),
        ("--trainer.logger=CSVLogger --trainer.logger.save_dir=.", [*KEPT, "hparams.yaml", "metrics.csv"]),
        ("--trainer.fast_dev_run=true", []),
        ("--trainer.barebones=true --trainer.log_every_n_steps=null", []),
    ],
)
def test_what_a_run_leaves(flags, left, folder, call):
    status, out, err = call("fit", *FEW, *flags.split())
    assert status == 0, err
    assert re.search(r"([a-z]+\n){20}$", out)
    found = [re.sub(r"lightning_logs/version_\d/|(?<=events)\..*", "", name) for name in files(folder)]
    assert set(found) == set(left)


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


def test_a_seed_is_that_of_weights_and_batches(folder, call):
    assert call("fit", *FEW, "--seed_everything", 5, "--model.lr", 0)[0] == 0  # so the weights stay as they begin
    last = load()
    assert last["hyper_parameters"]["seed"] == 5
    assert torch.equal(last["state_dict"]["C"], torch.randn(27, 10, generator=torch.Generator().manual_seed(5)))


def test_a_run_that_is_worse_than_chance_says_so(folder, call):
    """Chance is the logarithm of 27 characters, the boundary among them."""
    status, _, err = call("fit", "--data.num_words", 300, *QUICK, "--model.lr", 30)
    assert status == 0, err
    assert "\nworse than chance, 3.2958: this run diverged; try a smaller --model.lr\n" in err


def test_a_network_that_adds_nothing_to_counting_is_said(folder, call):
    """One hidden unit; the training loss on the way is measured against smoothed targets."""
    tiny = ["--model.hidden_size", 1, "--model.embedding_dim", 1, "--data.smoothing", 0.5, "--trainer.max_steps", 20]
    status, _, err = call("fit", "--data.num_words", 3000, *tiny, "--pictures", "false")
    assert status == 0, err
    assert "\ncounting alone is as good: the network adds nothing; try more --model.hidden_size\n" in err
    assert "\nupdate 1/20  train (smoothed targets) 3.29" in err


# Mistakes: one line on stderr, exit status 2, nothing on the disk.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit --data.path nowhere.txt", "nowhere.txt: cannot read this list (No such file or directory)"),
        ("fit --data.num_words 5", "5 words leave none to train or to validate on; add words, or train on all"),
        ("fit --model.block_size 0", "block_size is 0: expected 1 or more"),
        ("fit --model.hidden_size 1000000000000", "out of memory; try smaller sizes"),
        ("fit --model.lr fast", "--model.lr: Expected a float. Got value: fast"),
        ("fit --model.nonsense 3", "unrecognized arguments: --model.nonsense 3; --help lists the flags"),
        ("fit --trainer.max_step 3", "--trainer.max_step 3: did you mean --trainer.max_steps?"),
        ("fit --model.block-size 3", "--model.block-size 3: did you mean --model.block_size?"),
        ("fit --epochs 5", "--epochs 5: did you mean --trainer.max_epochs?"),
        ("fit --learning-rate 1", "--learning-rate 1: did you mean --model.lr?"),
        ("fit list.csv", "unrecognized arguments: list.csv: did you mean --data.path list.csv?"),
        ("fit --config lectur", "--config lectur: no such file or recipe; the recipes are deep, hidden, lecture, "),
        ("fit --config mine.yaml", "Subcommand 'fit' does not accept option 'model.hiden_size'"),
        ("fit --trainer.accelerator abacus", "You selected an invalid accelerator name: `accelerator='abacus'`"),
        ("fit --trainer.default_root_dir list.csv", "list.csv/lightning_logs/version_0: not a directory"),
        ("fit --ckpt_path nowhere.ckpt", "nowhere.ckpt: no such checkpoint; name a file, or `best` or `last`"),
        ("predict", "no run found in lightning_logs; train first (python -m makemore_pl fit), or name a file with"),
        ("predict --ckpt_path a.ckpt --sample.prompt zoë", "prompt 'zoë': character 'ë' is not among the 26 of this"),
        ("predict --ckpt_path a.ckpt --model.hidden_size 9", "the checkpoint has other weights; omit sizes such as"),
        ("lr_find --num_steps 1", "num_steps is 1: expected 2 or more"),
        ("fot", "'lr_find', 'export'): did you mean fit?"),
        ("", "name a command: fit, predict, validate, test, lr_find, export"),
    ],
)
def test_a_mistake_is_answered_in_one_line(line, message, default_fit, folder, call):
    Path("list.csv").write_text("id,name\n1,anno\n2,berta\n")
    Path("mine.yaml").write_text("model: {hiden_size: 3}\n")
    Path("a.ckpt").write_bytes((default_fit[0] / RUN / "checkpoints/best.ckpt").read_bytes())
    before = sorted(folder.rglob("*"))
    status, out, err = call(*line.split())
    assert (status, out) == (2, "")
    *said, mistake = err.splitlines()
    assert re.fullmatch(f"error: .*{re.escape(message)}.*", mistake)
    assert all(each.startswith(("checkpoint: a.ckpt", "seed ")) for each in said)
    assert sorted(folder.rglob("*")) == before


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


# From Python.


FLAGS = ["--data.num_words=60", "--trainer.max_steps=5"]
OPTIONS = {"data": {"num_words": 60}, "trainer": {"max_steps": 5}}


@pytest.mark.parametrize("args", [FLAGS, OPTIONS, {"subcommand": "fit", "fit": OPTIONS | {"pictures": False}}])
def test_options_from_python_are_flags_or_a_dictionary(args, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    made = cli.CLI(args=args, run="fit" in args)
    if "fit" not in args:
        assert files(folder) == []
        made.trainer.fit(made.model, made.datamodule)
    assert (made.trainer.global_step, len(made.datamodule.words)) == (5, 60)
