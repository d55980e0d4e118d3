import io
import string
from collections import Counter

import notebook
import pytest
import torch
from test_ngram import kneser_ney

from makemore_pl import MLP, NamesDataModule, Vocabulary, datamodule, memory, pieces
from makemore_pl.commands.export import export
from makemore_pl.split import hash_words


def test_the_splits_are_the_windows_of_the_lecture(names):
    data = NamesDataModule(counted=False)
    data.setup("fit"), data.setup("test")
    for split, words, windows in zip(
        ["train", "val", "test"], notebook.split(names), [182518, 22939, 22689], strict=True
    ):
        X, Y = data.view(split, counted=False)
        expected_X, expected_Y = notebook.build_dataset(words, notebook.stoi(names))
        assert torch.equal(X, expected_X)
        assert torch.equal(Y, expected_Y)
        assert len(X) == windows
    assert torch.equal(data.tensors["train"][0], data.view("train", counted=False)[0])


def test_few_words_of_a_list_keep_its_alphabet():
    data = NamesDataModule(num_words=50)
    assert len(data.words) == 50
    assert len(data.vocabulary) == 27


def test_without_words_held_back_validation_runs_on_the_training_words():
    data = NamesDataModule(num_words=5, train_fraction=1, val_fraction=0)
    assert data.splits["val"] == data.splits["train"]
    with pytest.raises(ValueError, match="no words in the test split"):
        data.setup("test")


def test_a_given_vocabulary_must_cover_the_list(tmp_path):
    (tmp_path / "list.txt").write_text("emma\nzoë\n" * 10, encoding="utf-8")
    data = NamesDataModule(str(tmp_path / "list.txt"), vocabulary="aemoz")
    with pytest.raises(ValueError, match="'zoë': character 'ë'"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["num_words", "block_size", "batch_size"])
def test_sizes_outside_their_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0: expected 1 or more"):
        NamesDataModule(**{name: 0})


# Targets smoothed by counting, and copies of a word in one split.


@pytest.mark.parametrize("counted", [True, False])
def test_smoothed_targets_are_what_came_and_what_counting_expects(counted):
    data = NamesDataModule(num_words=400, counted=counted, smoothing=0.3, block_size=2)
    data.setup("fit")
    words, stoi = data.splits["train"], {character: i for i, character in enumerate(string.ascii_lowercase, start=1)}
    X, Y = data.tensors["train"]
    slow, expected = kneser_ney(words, 2, stoi), {}
    windows = (tensor.tolist() for tensor in notebook.build_dataset(words, stoi, 2))
    for x, y in zip(*windows, strict=True):
        expected.setdefault(tuple(x), Counter())[y] += 1
    for x, target in list(zip(X.tolist(), Y, strict=True))[::50]:
        came = expected[tuple(x)]
        p = torch.tensor([slow(tuple(x), y) for y in range(27)])
        if counted:
            seen = torch.tensor([float(came[y]) for y in range(27)])
            torch.testing.assert_close(target, 0.7 * seen + 0.3 * came.total() * p)
        else:
            (y,) = (target - 0.3 * p > 0.6).nonzero()
            assert came[y.item()]
            torch.testing.assert_close(target, 0.3 * p + 0.7 * torch.eye(27)[y[0]])
    _, Y = data.tensors["val"]
    assert Y[:].dtype == torch.int64  # what is measured is not smoothed


def test_both_views_of_smoothed_targets_have_one_loss():
    losses = []
    for counted in (True, False):
        data = NamesDataModule(num_words=400, counted=counted, smoothing=0.5)
        data.setup("fit")
        X, Y = data.tensors["train"]
        model = MLP(init="lecture").double()
        losses.append(model.loss(model(X), Y).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_copies_of_a_word_stay_together(names):
    words = names[:1000] + names[:500] + names[:10]
    data = NamesDataModule(unique=True, num_words=None)
    data.list.all_words = words
    splits = data.splits
    assert sum(map(Counter, splits.values()), Counter()) == Counter(words)
    assert not set(splits["train"]) & set(splits["val"]) | set(splits["val"]) & set(splits["test"])
    assert not set(splits["train"]) & set(splits["test"])
    # The distinct words are shuffled and cut as the lecture does it with all.
    for split, expected in zip(splits.values(), notebook.split(dict.fromkeys(words)), strict=True):
        assert list(dict.fromkeys(split)) == expected


def test_a_list_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "list.txt"
    path.write_text("emma\n" * 1000)
    monkeypatch.setattr(memory, "LITTLE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 8 * 5000 - 1)
    with pytest.raises(ValueError, match=r"list.txt: all words at once \(--data.split hashed holds none\) would take "):
        NamesDataModule(str(path)).setup("fit")
    monkeypatch.setattr(memory, "free_memory", lambda: 8 * 5000)
    assert NamesDataModule(str(path)).words == ["emma"] * 1000


@pytest.mark.parametrize("options", [{}, {"counted": False}, {"split": "hashed"}])
def test_windows_beyond_memory_are_refused(options, names, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("\n".join(names[:300]))
    monkeypatch.setattr(memory, "LITTLE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**5)  # 8 bytes for each of 1,800 x 100 characters
    with pytest.raises(ValueError, match=r"windows of 100 characters would take 0\.\d+ GB of memory"):
        NamesDataModule(str(tmp_path / "list.txt"), block_size=100, **options).setup("fit")


def test_smoothed_targets_beyond_memory_are_refused(names, monkeypatch):
    monkeypatch.setattr(memory, "LITTLE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**6)
    data = NamesDataModule(num_words=400, counted=False, smoothing=0.5)
    data.list.all_words = names  # that is not what memory is too small for
    with pytest.raises(ValueError, match="targets smoothed by counting would take"):
        data.setup("fit")


@pytest.mark.parametrize("updates", [1, 4])
def test_smoothed_targets_are_the_same_held_or_made_batch_by_batch(updates, monkeypatch):
    """Those of all windows may not fit into memory: 349,046 words of 12,045 characters would take 46 GB."""
    options = {"num_words": 400, "batch_size": 50, "smoothing": 0.5, "steps_per_execution": updates}
    held, made = NamesDataModule(**options), NamesDataModule(**options)
    held.setup("fit")
    monkeypatch.setattr(datamodule, "CELLS_HELD", 0)
    made.setup("fit")
    assert torch.is_tensor(held.tensors["train"][1])
    assert not torch.is_tensor(made.tensors["train"][1])
    for (X, Y), (same, targets) in zip(held.train_dataloader(), made.train_dataloader(), strict=True):
        assert all(map(torch.equal, X, same))
        assert all(map(torch.equal, Y, targets))


@pytest.fixture
def teacher(tmp_path):
    """The path of a network for the first 400 names, and its tensors."""
    model, data = MLP(block_size=2, hidden_size=30, init="lecture"), NamesDataModule(num_words=400, block_size=2)
    export(model, tmp_path / "teacher.ckpt", data.hparams)
    return tmp_path / "teacher.ckpt", model.state_dict()


@pytest.mark.parametrize("counted", [True, False])
def test_half_of_what_a_taught_network_expects_is_its_teachers(counted, teacher):
    path, tensors = teacher
    data = NamesDataModule(num_words=400, counted=counted, smoothing=0.3, teacher=str(path), block_size=2)
    with pytest.raises(ValueError, match=r"teacher .*teacher.ckpt: load its network and pass it to learn_from"):
        data.setup("fit")
    hand_in(data)
    data.setup("fit")
    plain = NamesDataModule(num_words=400, counted=counted, smoothing=0.3, block_size=2)
    plain.setup("fit")
    (X, Y), (same, by_counting) = data.tensors["train"], plain.tensors["train"]
    assert torch.equal(X, same)
    windows = by_counting.sum(1, keepdim=True)
    # Of 0.3 of each target, half is the teacher's by the notebook's formula, and half stays what counting expects.
    words, stoi = data.splits["train"], {character: i for i, character in enumerate(string.ascii_lowercase, start=1)}
    slow = kneser_ney(words, 2, stoi)
    for row in range(0, len(X), 50):
        counting = torch.tensor([slow(tuple(X[row].tolist()), y) for y in range(27)])
        network = notebook.probabilities(tensors, X[row : row + 1])[0].float()
        expected = by_counting[row] + 0.15 * windows[row] * (network - counting)
        torch.testing.assert_close(Y[row], expected)


def test_a_taught_run_goes_on_with_its_teacher(teacher, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--data.num_words", 400, "--model.block_size", 2, "--model.hidden_size", 8, "--pictures", "false"]
    quick += ["--model.schedule", "constant", "--data.steps_per_epoch", 5]
    taught = ["--data.smoothing", 1, "--data.teacher", "teacher.ckpt"]
    for steps, more in [(10, taught), (5, taught), (10, ["--ckpt_path", "last"])]:
        status, _, err = call("fit", *quick, *more, "--trainer.max_steps", steps)
        assert status == 0, err
        parameters = sum(tensor.numel() for tensor in teacher[1].values())
        assert f"\nteacher: teacher.ckpt, {parameters:,} parameters\n" in err
    whole, resumed = (
        torch.load(f"lightning_logs/version_{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (0, 1)
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    teacher[0].unlink()  # what is trained needs it no more
    assert call("test")[0] == 0
    assert call("predict")[0] == 0


def hand_in(data):
    """As the command line does."""
    network = MLP.load_from_checkpoint(data.hparams["teacher"])
    data.learn_from(network, network.vocabulary, network.block_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 0.0}, "smoothing is 0: expected more than 0 with a teacher"),
        ({"block_size": 3}, "its block_size is 2, that of the data 3"),
        ({"vocabulary": "".join(sorted(string.ascii_letters))}, "its vocabulary is 'a.*z', that of the data 'A"),
        ({"num_words": 300}, "trained on other words: its num_words is 400, not 300"),
        ({"split_seed": 1}, "trained on other words: its split_seed is 42, not 1"),
        ({"teacher": "https://x/y.ckpt"}, "https://x/y.ckpt: is a URL, and nothing is downloaded"),
        ({"teacher": __file__}, "not a checkpoint: it does not begin as a zip archive"),
        ({"path": "-"}, "cannot verify that it was trained on the same split: a word list came from stdin"),
    ],
)
def test_who_cannot_teach_is_refused(options, message, teacher, names, monkeypatch):
    fitting = {"num_words": 400, "block_size": 2, "smoothing": 0.5, "teacher": str(teacher[0])}
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names[:400]).encode())))
    with pytest.raises(ValueError, match=message):
        hand_in(NamesDataModule(**fitting | options))


def test_mistakes_with_a_teacher_are_one_line(teacher, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--data.num_words", 400, "--data.teacher"]
    for flags, message in [
        (["gone.ckpt", "--data.smoothing", 1], f"{tmp_path / 'gone.ckpt'}: no such file or directory"),
        (["teacher.ckpt"], "--data.smoothing 0: expected more than 0 with a teacher (null for none)"),
        (["teacher.ckpt", "--data.smoothing", 1], f"teacher {teacher[0]}: its block_size is 2, that of the data 3"),
    ]:
        status, out, err = call("fit", *few, *flags)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == f"error: {message}"
        assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_smoothing_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"smoothing is \S+: expected a share from 0 to 1"):
        NamesDataModule(smoothing=share)


@pytest.mark.parametrize("vocabulary", [None, string.ascii_lowercase])
def test_a_list_in_pieces_gives_what_the_whole_list_gives(vocabulary, names, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1000)
    (tmp_path / "list.txt").write_text("\n".join(names[:3000]), encoding="utf-8")
    in_pieces = NamesDataModule(str(tmp_path / "list.txt"), vocabulary=vocabulary, split="hashed")
    whole = NamesDataModule(str(tmp_path / "list.txt"), split="hashed", num_words=3000)
    for data in (in_pieces, whole):
        data.setup("fit"), data.setup("test")
    assert in_pieces.in_pieces
    assert not whole.in_pieces
    assert "all_words" not in vars(in_pieces.list)  # never held
    assert in_pieces.vocabulary == whole.vocabulary == Vocabulary.from_words(names)
    stoi = notebook.stoi(names)
    for split, (X, Y) in in_pieces.tensors.items():
        Y = Y[:]
        assert torch.equal(X, whole.tensors[split][0])
        assert torch.equal(Y, whole.tensors[split][1][:])
        words = hash_words(names[:3000])[["train", "val", "test"].index(split)]
        slow_X, slow_Y = notebook.build_dataset(words, stoi)
        slow = Counter(map(tuple, torch.cat([slow_X, slow_Y[:, None]], dim=1).tolist()))
        assert {(*X[i].tolist(), v): int(Y[i, v]) for i, v in Y.nonzero().tolist()} == slow


def test_minibatches_of_a_hashed_list_are_windows_of_its_words(names):
    data = NamesDataModule(split="hashed", batch_size=8)
    assert not data.in_pieces
    data.setup("fit")
    X, Y = data.tensors["train"]
    expected = notebook.build_dataset(hash_words(names)[0], notebook.stoi(names))
    assert torch.equal(X, expected[0])
    assert torch.equal(Y, expected[1])


def test_a_split_without_words_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("emma\n" * 10)
    with pytest.raises(ValueError, match="no words in the val split: give it a larger share, or more words"):
        NamesDataModule(str(tmp_path / "list.txt"), split="hashed").setup("fit")


def test_a_word_stands_in_the_first_split_that_has_it(names):
    train, val, test = (set(words) for words in notebook.split(names))
    asked = names[::100] + ["", "notaname", "Emma"] + sorted(train & val & test)[:5] + sorted(val & test - train)[:5]
    expected = [
        "train" if word in train else "val" if word in val else "test" if word in test else "new" for word in asked
    ]
    assert len(set(expected)) == 4
    assert NamesDataModule().where(asked) == expected


@pytest.mark.parametrize("num_words", [None, 3000])
def test_a_word_of_a_hashed_list_is_found_in_pieces_too(num_words, names, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 5000)
    (tmp_path / "list.txt").write_text("\n".join(names[:3000]), encoding="utf-8")
    data = NamesDataModule(str(tmp_path / "list.txt"), split="hashed", num_words=num_words)
    splits = dict(zip(["train", "val", "test"], hash_words(names[:3000]), strict=True))
    for split, words in splits.items():
        assert set(data.where(words)) == {split}
    assert data.where(["notaname"]) == ["new"]
