"""Words that weights were trained on never pass for unseen words."""

import hashlib
import io

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from makemore_pl import MLP, NamesDataModule, pieces
from makemore_pl.trained_on import read_records

QUICK = ["--model.hidden_size", 8, "--pictures", "false", "--trainer.max_steps"]
FLAG = "; keep its words, or accept others with --data.other_words"
COMMANDS = {
    "resume": ["fit", *QUICK, 6, "--ckpt_path", "last"],
    "validate": ["validate"],
    "test": ["test"],
    "export": ["export", "--output", "x.ckpt"],
    "novel": ["predict", "--sample.novel"],
    "csv": ["predict", "--sample.format", "csv"],
}
SHARES = ["--data.num_words", 150, "--data.train_fraction", 0.7, "--data.val_fraction", 0.2]
CHANGED = "trained on another list than {}, or on what it was before it changed"
LAST, BEST = (f"lightning_logs/version_0/checkpoints/{name}.ckpt" for name in ("last", "best"))


@pytest.fixture
def run(names, call, tmp_path, monkeypatch):
    """A run on a list of 200 words with every option at a value of its own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join(names[:200]), encoding="utf-8")
    status, _, err = call("fit", "--data.path", "list.txt", "--data.split_seed", 1, *SHARES, *QUICK, 4)
    assert status == 0, err
    return tmp_path


def further(command, steps):
    """A resumed run has to have steps left."""
    return ["--trainer.max_steps", steps] if command == "resume" else []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "asked", "has"),
    [
        ("split_seed", 42, 1),
        ("num_words", 140, 150),
        ("split", "hashed", "shuffled"),
        ("val_fraction", 0.1, 0.2),
        ("train_fraction", 0.75, 0.7),
        ("unique", True, False),
    ],
)
def test_another_split_is_refused(command, name, asked, has, run, call):
    status, out, err = call(*COMMANDS[command], f"--data.{name}", str(asked).lower() if asked is True else asked)
    assert (status, out) == (2, "")
    path = LAST if command == "resume" else BEST
    assert err == f"error: {path}: trained on other words: its {name} is {has!r}, not {asked!r}{FLAG}\n"
    assert not (run / "x.ckpt").exists()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "export"])
def test_a_list_that_has_changed_is_noticed(command, run, call):
    text = (run / "list.txt").read_text()
    (run / "list.txt").write_text(text.replace("emma", "anna"))
    status, out, err = call(*COMMANDS[command])
    assert (status, out) == (2, "")
    assert CHANGED.format(run / "list.txt") in err
    assert err.count("\n") == 1
    (run / "list.txt").write_text(text)
    assert call(*COMMANDS[command], *["--sample.num_names", 1] * (command == "novel"))[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_words_in_another_file_are_the_same(command, run, call):
    words = (run / "list.txt").read_text()
    (run / "list.txt").rename(run / "moved.txt")
    (run / "moved.txt").write_text("\ufeff" + words.replace("\n", " \r\n\r\n"), encoding="utf-8")
    status, _, err = call(*COMMANDS[command], "--data.path", "moved.txt")
    assert status == 0, err
    (run / "moved.txt").write_text(words + "\nmore")
    status, _, err = call(*COMMANDS[command], "--data.path", "moved.txt", *further(command, 7))
    if command == "export":  # it reads no list
        return
    assert status == 2
    assert CHANGED.format(run / "moved.txt") in err


def test_sampling_and_exporting_need_no_list(run, call):
    (run / "list.txt").unlink()
    assert call("predict", "--sample.num_names", 3)[0] == 0
    assert call("export", "--output", "x.ckpt")[0] == 0
    assert read_records(run / "x.ckpt") == read_records(run / BEST)


def test_other_words_are_on_record_for_good(run, call):
    (before,) = read_records(run / LAST)
    other = ["--data.split_seed", 2, "--data.other_words"]
    status, _, err = call("fit", *QUICK, 6, "--ckpt_path", "last", *other)
    assert status == 0, err
    warning = f"warning: {LAST}: trained on other words: its split_seed is 1, not 2: losses may be too low\n"
    assert warning in err
    expected = [before, before | {"split_seed": 2}]
    assert read_records(run / LAST) == expected
    # It is asked for each time: the checkpoint does not allow itself.
    for command in ("resume", "validate", "test", "export", "novel"):
        status, _, err = call(*COMMANDS[command], *["--ckpt_path", LAST], *further(command, 8))
        assert status == 2
        assert f"{LAST}: trained on other words: its split_seed is 1, not 2{FLAG}\n" in err
    status, _, err = call("validate", "--ckpt_path", LAST, "--data.other_words")
    assert (status, warning in err) == (0, True)
    assert call("export", "--ckpt_path", LAST, "--output", "x.ckpt", "--data.other_words")[0] == 0
    assert read_records(run / "x.ckpt") == expected
    status, _, err = call("fit", *QUICK, 8, "--ckpt_path", "last", "--data.other_words")
    assert status == 0, err
    assert read_records(run / LAST) == expected

    # Both splits count where a network is to teach, or to be averaged.
    data = ["--data.path", "list.txt", "--data.split_seed", 2, *SHARES]
    teacher = ["--data.smoothing", 0.5, "--data.teacher", LAST]
    status, _, err = call("fit", *data, *teacher, *QUICK, 2)
    assert status == 2
    also = "trained on other words: its split_seed is 1, not 2; "
    assert err.endswith(f"{also}take a teacher that was trained on the same words\n")
    assert call("fit", *data, *QUICK, 2)[0] == 0
    clean = "lightning_logs/version_1/checkpoints/last.ckpt"
    status, _, err = call("export", "--ckpt_path", clean, "--output", "y.ckpt", "--average", f"[{LAST}]")
    assert status == 2
    assert err.endswith(f"{also}average networks trained on the same words\n")


def test_a_list_from_stdin_is_known_by_its_words(run, call, monkeypatch):
    def pipe():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((run / "list.txt").read_bytes())))
        return ["--data.path", "-"]

    assert call("fit", *pipe(), "--data.split_seed", 1, *SHARES, *QUICK, 4)[0] == 0
    assert call("validate", "--data.path", "list.txt")[0] == 0
    assert call("fit", *QUICK, 6, "--ckpt_path", "last", *pipe())[0] == 0
    (run / "list.txt").write_text("emma\n" * 200)
    status, _, err = call("validate", "--data.path", "list.txt")
    assert status == 2
    assert CHANGED.format(run / "list.txt") in err


def old(path):
    """Takes the record out of a checkpoint, as in an older version."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["NamesDataModule"]
    del checkpoint["sealed"]
    torch.save(checkpoint, path)


def test_a_checkpoint_without_a_record_is_known_by_its_path(run, call):
    old(run / BEST)
    assert call("validate")[0] == 0
    (run / "list.txt").rename(run / "moved.txt")
    status, _, err = call("validate", "--data.path", "moved.txt")
    assert status == 2
    assert f"its path is {str(run / 'list.txt')!r}, not {str(run / 'moved.txt')!r}{FLAG}" in err
    assert call("export", "--output", "x.ckpt")[0] == 0  # it reads no list


@pytest.mark.parametrize("state", [None, 7, [7], [{}], [{"path": []}], {"a": 1}])
def test_a_record_of_another_form_is_refused(state, run, call):
    checkpoint = torch.load(run / BEST, weights_only=True)
    checkpoint["NamesDataModule"] = {"trained_on": state}
    del checkpoint["sealed"]
    torch.save(checkpoint, run / BEST)
    status, _, err = call("validate", "--ckpt_path", BEST)
    assert (status, err) == (
        2,
        f"error: {BEST}: not a checkpoint of makemore_pl: its record of words has another form\n",
    )


def test_a_trainer_of_ones_own_refuses_other_words_too(names, tmp_path):
    def fit(steps, ckpt_path=None, **options):
        data = NamesDataModule(num_words=100, steps_per_epoch=1, **options)
        saved = ModelCheckpoint(tmp_path, str(steps), every_n_train_steps=1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=steps, callbacks=[saved], **quiet)
        trainer.fit(MLP(data.vocabulary.characters, hidden_size=4), data, ckpt_path=ckpt_path, weights_only=True)

    fit(1)
    first = tmp_path / "1.ckpt"
    with pytest.raises(ValueError, match=r"1.ckpt: trained on other words: its split_seed is 42, not 7"):
        fit(2, first, split_seed=7)
    fit(2, first, split_seed=7, other_words=True)
    assert [each["split_seed"] for each in read_records(tmp_path / "2.ckpt")] == [42, 7]


# Digests.


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_digest_is_that_of_the_words_one_a_line(in_pieces, names, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1000)
    text = "\n".join([*names[:3000], "ñandú", ""]).encode()
    (tmp_path / "list.txt").write_bytes(text)
    data = NamesDataModule(str(tmp_path / "list.txt"), split="hashed", counted=in_pieces)
    assert data.in_pieces is in_pieces
    assert data.list.digest == hashlib.blake2b(text, digest_size=16).hexdigest()
    assert ("all_words" in vars(data.list)) is not in_pieces


def test_a_changed_list_in_pieces_is_noticed(names, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join(names[:3000]), encoding="utf-8")
    hashed = ["--data.path", "list.txt", "--data.split", "hashed"]
    assert call("fit", *hashed, *QUICK, 2)[0] == 0
    for command in ("validate", "test", "csv", "resume"):
        assert call(*COMMANDS[command])[0] == 0
    (tmp_path / "list.txt").write_text("\n".join(names[:2999]), encoding="utf-8")
    for command in ("validate", "test", "csv", "resume"):
        status, _, err = call(*COMMANDS[command], *further(command, 8))
        assert (status, CHANGED.format(tmp_path / "list.txt") in err) == (2, True), command


def test_data_made_from_a_checkpoint_keeps_to_its_words(run):
    def validate(**options):
        trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        return trainer.validate(MLP.load_from_checkpoint(BEST), NamesDataModule.load_from_checkpoint(BEST, **options))

    validate()
    with pytest.raises(ValueError, match=r"best.ckpt: trained on other words: its split_seed is 1, not 7"):
        validate(split_seed=7)
    validate(split_seed=7, other_words=True)
