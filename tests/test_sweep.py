import re
import subprocess
import sys

import optuna
import pytest
from conftest import ROOT
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

sys.path.insert(0, str(ROOT / "examples"))
import sweep


@pytest.fixture
def few(tmp_path, names, monkeypatch):
    """A short list in the current folder, and the flags of a sweep over it."""
    (tmp_path / "few names.txt").write_text("\n".join(names[:300]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return ["--path", "few names.txt", "--max_steps", "20"]


def test_two_processes_share_one_study(few, tmp_path, call):
    long_enough = ["--max_steps", "100"]  # that one process cannot be done before the other begins
    line = [sys.executable, ROOT / "examples" / "sweep.py", "--trials", "6", *few, *long_enough]
    pair = [subprocess.Popen(line, cwd=tmp_path, text=True, stdout=-1, stderr=-1) for _ in range(2)]
    outputs = [process.communicate(timeout=900) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    for _, err in outputs:
        assert re.search(r"Trial \d+ (finished|pruned)", err)

    study = optuna.load_study(
        study_name="makemore_pl", storage=JournalStorage(JournalFileBackend(str(tmp_path / "sweep.journal")))
    )
    assert [trial.number for trial in study.trials] in (list(range(6)), list(range(7)))
    assert all(trial.state.is_finished() for trial in study.trials)
    assert all(set(trial.params) == {"block_size", "embedding_dim", "hidden_size", "lr"} for trial in study.trials)

    # Whoever ends last prints the best; it can be pasted, and gives the loss that was promised.
    fits = {out for out, _ in outputs if f"{study.best_params['lr']:g}" in out}
    assert len(fits) == 1
    arguments = fits.pop().split("makemore_pl ")[1].replace("'few names.txt'", "few#names.txt").split()
    status, _, err = call(*(argument.replace("#", " ") for argument in arguments))
    assert status == 0, err
    (loss,) = re.findall(r"\(val/loss ([\d.]+)\)", err)
    assert float(loss) <= study.best_value + 1e-3  # `fit` keeps the best of a run, the sweep takes its end


def test_a_sweep_goes_on_and_ends(few, tmp_path, capsys):
    sweep.sweep(1, "sqlite:///sweep.db", path=few[1], max_steps=4)
    sweep.sweep(2, "sqlite:///sweep.db", path=few[1], max_steps=4)
    said = capsys.readouterr()
    assert said.out.count("python -m makemore_pl fit --model.block_size") == 2
    sweep.sweep(2, "sqlite:///sweep.db", path=few[1], max_steps=4)
    assert capsys.readouterr().out.strip() == said.out.strip().split("\n")[-1]
    (study,) = optuna.get_all_study_summaries("sqlite:///sweep.db")
    assert study.n_trials == 2


def test_hopeless_trials_are_cut_short(few, monkeypatch):
    """The median of five sensible trials against one that learns nothing."""
    suggested = [0.05] * 5 + [1e-6]
    monkeypatch.setattr(sweep, "suggest", lambda trial: {"block_size": 3, "lr": suggested[trial.number]})
    sweep.sweep(6, "sweep.journal", path=few[1], max_steps=60)
    study = optuna.load_study(study_name="makemore_pl", storage=JournalStorage(JournalFileBackend("sweep.journal")))
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"]


def test_mistakes_are_one_line(few, monkeypatch, capsys):
    for arguments, message in [
        (["--trails", "3"], "unknown flag --trails: did you mean --trials?"),
        (["--path", "nowhere.txt", "--trials", "1"], "nowhere.txt: cannot read this word list (No such file or"),
        (["--trials", "0"], "trials 0 and max_steps 500: expected 1 or more"),
        (["--max_steps", "0"], "max_steps 0: expected 1 or more"),
        (["--accelerator", "abacus"], "You selected an invalid accelerator name: `accelerator='abacus'`"),
        (["--storage", "nosuch://x"], "--storage nosuch://x cannot hold a study"),
        (["--storage", "few names.txt"], "--storage few names.txt cannot hold a study"),
        (["--path", "few names.txt", "--max_steps", "4"], "holds a study with other words: use another --storage"),
    ]:
        sweep.sweep(1, path=None, max_steps=4) if "4" in arguments else None
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as stop:
            sweep.main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().split("\n")
        assert line.startswith("error: ")
        assert message in line


def test_an_interrupted_trial_does_not_count(few, monkeypatch):
    fit = sweep.Trainer.fit

    def interrupted(self, *args):
        monkeypatch.setattr(sweep.Trainer, "fit", fit)
        raise SystemExit(1)  # as Lightning answers Ctrl-C

    monkeypatch.setattr(sweep.Trainer, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(1, path=few[1], max_steps=4)
    sweep.sweep(1, path=few[1], max_steps=4)
    study = optuna.load_study(study_name="makemore_pl", storage=JournalStorage(JournalFileBackend("sweep.journal")))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
