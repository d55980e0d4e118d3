import io
import math
import re
import subprocess
import sys
import time
from collections import Counter

import notebook
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_ngram import kneser_ney

from makemore_pl import MLP, NamesDataModule
from makemore_pl.pictures.board import Board, escape, frequent_contexts, update_to_data
from makemore_pl.windows import Counts

SGD = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant"}
MATRICES = ["C", "W1", "W2"]
PICTURES = ["pictures/letters", "pictures/next_character", "pictures/saturated"]


def fit(folder, *callbacks, model=None, data=None, datamodule=None, logger=None, ckpt_path=None, **options):
    """Returns the Trainer and the model."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    sparse = {"log_every_n_steps": 5, "val_check_interval": 11, "check_val_every_n_epoch": None, "max_steps": 47}
    trainer = Trainer(
        logger=TensorBoardLogger(folder, "", "run", default_hp_metric=False) if logger is None else logger,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        accelerator="cpu",
        **quiet | sparse | options,
    )
    module = MLP(**{"hidden_size": 16} | (model or {}))
    trainer.fit(module, datamodule or NamesDataModule(**{"num_words": 60} | (data or {})), ckpt_path=ckpt_path)
    return trainer, module


def events(run):
    every = dict.fromkeys(["images", "scalars", "histograms", "tensors"], 0)
    return EventAccumulator(str(run), size_guidance=every).Reload()


def curve(run, chart, name):
    """A curve of a chart, which is a run of its own."""
    return events(run / f"{chart}_{name}").Scalars(chart)


def steps(of):
    return [event.step for event in of]


def text(run, tag):
    """The last text under a tag."""
    return events(run).Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def place(name, splits):
    """The split that a name is in."""
    return next((split for split, words in zip(["train", "val", "test"], splits, strict=True) if name in words), "new")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A short run with a board. Gives (folder, model)."""
    folder = tmp_path_factory.mktemp("board")
    _, model = fit(folder, Board(), model=SGD, precision="64-true")
    return folder / "run", model


# The default fit.


def test_a_default_fit_shows_it_all(default_fit, names):
    folder, process = default_fit
    assert "pictures are off" not in process.stderr
    run = folder / "lightning_logs" / "version_0"
    found = events(run)
    for tag in PICTURES:
        assert steps(found.Images(tag)) == [0, 25, 50, 100, 200, 400, 500]
    assert {f"weights/{name}{of}" for name in ("C", "W1", "b1", "W2", "b2") for of in ("", "_gradient")} | {
        "tanh/h"
    } == set(found.Tags()["histograms"])
    scalars = set(found.Tags()["scalars"])
    assert {"val/perplexity", "val/bits_per_character", "tanh/saturated", "val/loss_best"} < scalars
    assert "epoch" not in scalars
    runs = {folder.name for folder in run.iterdir() if folder.is_dir()} - {"checkpoints", "00500"}
    assert runs == {"loss_train", "loss_val", "loss_Kneser-Ney", *(f"update_to_data_{name}" for name in MATRICES)}
    # It is the first chart: TensorBoard sorts them.
    assert min({"loss"} | scalars | set(found.Tags()["histograms"] + found.Tags()["images"])) == "loss"
    # The lecture: about -3. The full steps of the default recipe are larger, and end small.
    ratios = [event.value for event in curve(run, "update_to_data", "W1")]
    assert -3.5 < ratios[-1] < ratios[0] < 0
    assert "    hidden_size: 200\n" in text(run, "recipe")
    # Which names come is a matter of a processor's rounding; they are those of the last weights, which are saved.
    sampled = MLP.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True).sample(10, max_length=30)
    table = [f"| {name} | {place(name, notebook.split(names))} |" for name in sampled]
    assert text(run, "names").split("\n") == ["| name | split |", "| --- | --- |", *table]


# When.


def test_pictures_come_at_steps_that_double_and_at_the_end(shown):
    found = events(shown[0])
    for tag in PICTURES:
        assert steps(found.Images(tag)) == [0, 11, 22, 44, 47]
    assert steps(found.Histograms("weights/C")) == [0, 11, 22, 44, 47]
    assert steps(found.Histograms("weights/C_gradient")) == [11, 22, 44, 47]
    assert steps(found.Tensors("names/text_summary")) == [0, 11, 22, 44, 47]


def test_a_resumed_run_goes_on(tmp_path, caplog):
    trainer, _ = fit(tmp_path, Board(), max_steps=24)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path, Board(), max_steps=60, ckpt_path=tmp_path / "last.ckpt")
    # Two files of one second may be read in another order.
    assert sorted(steps(events(tmp_path / "run").Images("pictures/letters"))) == [0, 11, 22, 24, 55, 60]
    assert "pictures are off" not in caplog.text


@pytest.mark.parametrize("data", [{}, {"batch_size": 16}, {"counted": False}], ids=["counted", "minibatch", "windows"])
@pytest.mark.parametrize("model", [{}, SGD], ids=["adamw", "sgd"])
def test_the_training_does_not_notice(model, data, tmp_path, caplog, capsys):
    random = torch.get_rng_state()
    with_board, ours = fit(tmp_path / "with", Board(), model=model, data=data)
    assert torch.equal(torch.get_rng_state(), random)
    _, theirs = fit(tmp_path / "without", model=model, data=data)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])
    assert with_board.global_step == 47
    assert "pictures are off" not in caplog.text
    assert capsys.readouterr().out == ""
    assert len(events(tmp_path / "with" / "run").Images("pictures/letters")) == 5


class Modes(Callback):
    def on_validation_end(self, trainer, pl_module):
        self.before = pl_module.training, pl_module.device

    def on_train_end(self, trainer, pl_module):
        self.after = pl_module.training, pl_module.device


def test_the_model_stays_in_its_mode(tmp_path):
    with_board, without = Modes(), Modes()
    fit(tmp_path / "with", Board(), with_board)
    fit(tmp_path / "without", without)
    assert (with_board.before, with_board.after) == (without.before, without.after)


# What.


def test_the_update_to_data_ratio_is_the_lectures(shown, names):
    """For plain SGD: the logarithm of lr * std(gradient) / std(data), after the step."""
    X, Y = notebook.build_dataset(notebook.split(names[:60])[0], notebook.stoi(names))
    weights = {name: tensor.double() for name, tensor in MLP(hidden_size=16).state_dict().items()}
    expected = []
    for _ in range(47):
        for tensor in weights.values():
            tensor.requires_grad_()
        gradients = torch.autograd.grad(notebook.negative_log_likelihood(weights, X, Y), list(weights.values()))
        weights = {
            name: (tensor - 0.1 * gradient).detach()
            for (name, tensor), gradient in zip(weights.items(), gradients, strict=True)
        }
        expected.append(
            {
                name: (0.1 * gradient.std() / weights[name].std()).log10().item()
                for name, gradient in zip(weights, gradients, strict=True)
            }
        )
    due, last = [], 0  # each update that comes a tenth later than the last one measured
    for update in range(1, 48):
        if update >= 1.1 * last:
            due.append(update - 1)
            last = update
    for name in MATRICES:
        ratios = curve(shown[0], "update_to_data", name)
        assert steps(ratios) == due
        for event in ratios:
            assert event.value == pytest.approx(expected[event.step][name], abs=1e-4)


def test_one_number_alone_has_no_ratio(tmp_path, caplog):
    assert update_to_data(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])) == pytest.approx(-0.30103)
    alone = {"hidden_size": 1, "embedding_dim": 1, "block_size": 1}  # W1 is a single number
    fit(tmp_path, Board(), model=alone, data={"block_size": 1}, max_steps=11)
    assert curve(tmp_path / "run", "update_to_data", "W2")
    assert not (tmp_path / "run" / "update_to_data_W1").exists()
    assert "pictures are off" not in caplog.text


def test_the_saturation_map_is_that_of_the_lecture(shown, names):
    run, model = shown
    X, _ = notebook.build_dataset(notebook.split(names[:60])[0], notebook.stoi(names))
    contexts = torch.unique(X, dim=0)
    rows = contexts[torch.linspace(0, len(contexts) - 1, min(200, len(contexts))).long()]
    weights = model.state_dict()
    h = torch.tanh(weights["C"][rows].view(len(rows), -1) @ weights["W1"] + weights["b1"])
    expected = (h.abs() > 0.99).numpy()
    found = events(run)
    image = np.asarray(Image.open(io.BytesIO(found.Images("pictures/saturated")[-1].encoded_image_string)))
    wide, high = 30, 400 // len(rows)  # pixels of a cell of 16 units
    dark = (image == [47, 102, 144]).all(axis=2)[78:, 36:][: high * len(rows), : wide * 16]
    assert np.array_equal(dark, expected.repeat(high, axis=0).repeat(wide, axis=1))
    assert 0 < expected.mean() < 1
    assert found.Scalars("tanh/saturated")[-1].value == pytest.approx(expected.mean())


def test_the_heat_map_shows_the_most_frequent_contexts():
    X = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 1]])
    counts = torch.tensor([[0, 2, 1], [0, 0, 1], [2, 0, 0], [0, 3, 1]])
    row, y = counts.nonzero(as_tuple=True)
    assert frequent_contexts(Counts(X, row, y, counts[row, y], 3)).tolist() == [[0, 0], [0, 1], [2, 1], [1, 2]]


def test_names_stand_with_their_split(shown, names):
    run, model = shown
    sampled = model.float().sample(10, max_length=30)
    table = [line.strip("| ").split(" | ") for line in text(run, "names").split("\n")]
    assert table[0] == ["name", "split"]
    assert [name for name, _ in table[2:]] == sampled
    assert [where for _, where in table[2:]] == [place(name, notebook.split(names[:60])) for name in sampled]


def test_names_cannot_break_their_table():
    assert escape("Aix en Zoë") == "Aix en Zoë"
    assert escape("a|b*<i>") == "a&#124;b&#42;&#60;i&#62;"


def test_the_table_of_runs_holds_choices_and_results(shown):
    found = events(shown[0])
    losses = [event.value for event in found.Scalars("val/loss")]
    (best,) = found.Scalars("val/loss_best")
    assert best.value == pytest.approx(min(losses))
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {"val/loss", "val/loss_best"}
    metadata = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert {name: chosen[name].number_value for name in ("hidden_size", "num_words", "lr", "steps", "vocabulary")} == {
        **{"hidden_size": 16, "num_words": 60, "lr": 0.1},
        **{"steps": 47, "vocabulary": 27},
    }
    assert "batch_size" not in chosen


def test_the_losses_to_compare_are_in_one_chart(shown):
    found, train, val = events(shown[0]), *(curve(shown[0], "loss", name) for name in ("train", "val"))
    assert [(event.step, event.value) for event in val] == [
        (event.step, event.value) for event in found.Scalars("val/loss")
    ]
    logged = {event.step: event.value for event in found.Scalars("train/loss")}
    shared = {event.step: event.value for event in train if event.step in logged}
    assert len(shared) > 5
    assert shared == {step: logged[step] for step in shared}
    due, last = [], 0  # each update that comes a twentieth later than the last one
    for update in range(1, 48):
        if update >= 1.05 * last:
            due.append(update - 1)
            last = update
    assert steps(train) == due


def test_counting_is_a_level_line_beside_the_loss(shown, names):
    first, last = curve(shown[0], "loss", "Kneser-Ney")
    assert (first.step, last.step) == (0, 47)
    assert first.value == last.value
    train, val, _ = notebook.split(names[:60])
    X, Y = notebook.build_dataset(val, notebook.stoi(names))
    # The alphabet is that of all names: 26 letters, also where 60 names lack one.
    slow = kneser_ney(train, 3, notebook.stoi(names))
    nll = [-math.log(slow(tuple(x), y)) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    assert first.value == pytest.approx(sum(nll) / len(nll), rel=1e-6)


def test_the_projector_has_the_letters(towns, tmp_path, caplog):
    path, words = towns
    _, model = fit(
        tmp_path, Board(), data={"path": str(path), "num_words": None}, model={"vocabulary": alphabet(words)}
    )
    folder = tmp_path / "run" / "00047" / "C"
    header, boundary, *rows = (folder / "metadata.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    assert (header, boundary) == ("letter\tkind", ".\tboundary")
    assert rows == [f"{character.replace(' ', '␣')}\t{expected_kind(character)}" for character in alphabet(words)]
    numbers = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(numbers, model.C.detach().numpy(), rtol=1e-6)
    side = math.ceil(len(numbers) ** 0.5)  # each point is drawn as its letter
    assert Image.open(folder / "sprite.png").size == (32 * side, 32 * side)
    assert "pictures are off" not in caplog.text


def test_the_projector_shows_embeddings_of_two_numbers(tmp_path):
    _, model = fit(tmp_path, Board(), model={"embedding_dim": 2}, max_steps=3)
    numbers = np.loadtxt(tmp_path / "run" / "00003" / "C" / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(numbers[:, :2], model.C.detach().numpy(), rtol=1e-6)
    assert numbers.shape == (27, 3)
    assert not numbers[:, 2].any()


def test_the_projector_shows_the_most_frequent_of_thousands(tmp_path):
    han = list(map(chr, range(0x4E00, 0x4E00 + 1500)))
    words = [a + b for a, b in zip(han, han[700:] + han[1000:1400] * 2, strict=False)]
    (tmp_path / "list.txt").write_text("\n".join(words), encoding="utf-8")
    data = NamesDataModule(str(tmp_path / "list.txt"))
    _, model = fit(tmp_path, Board(), datamodule=data, model={"vocabulary": "".join(han)}, max_steps=3)
    folder = tmp_path / "run" / "00003" / "C"
    shown = [row.split("\t")[0] for row in (folder / "metadata.tsv").read_text(encoding="utf-8").split("\n")[1:-1]]
    assert shown == [".", *sorted(shown[1:])]
    often = Counter("".join(data.splits["train"] + data.splits["val"]))
    least = min(often[character] for character in shown[1:])
    assert len(shown) == 501
    assert all(often[character] <= least for character in han if character not in shown)
    numbers = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    rows = [0, *(1 + han.index(character) for character in shown[1:])]
    np.testing.assert_allclose(numbers, model.C.detach().numpy()[rows], rtol=1e-6)
    assert Image.open(folder / "sprite.png").size == (32 * 23, 32 * 23)


def alphabet(words):
    return "".join(sorted(set("".join(words))))


def expected_kind(character):
    if character in "AÄÅEaeiouöëó":
        return "vowel"
    return "consonant" if character in "GŁMNPSZbcdghlmnprstvxyź" else "other"


# Nothing of it ends a run.


class Spoil(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 11:
            pl_module.W1.data[0, 0] = torch.nan


class NoRoom(Board):
    def write_names(self, writer, step):
        raise OSError("No space left\non device")


class Batches(NamesDataModule):
    def setup(self, stage):
        super().setup(stage)
        del self.tensors["val"]

    def val_dataloader(self):
        return []


@pytest.mark.parametrize(
    ("callbacks", "options", "reason"),
    [
        ([Spoil, Board], {}, "ValueError: W1 is not finite after 11 steps"),
        ([NoRoom], {}, "OSError: No space left on device"),
        ([Board], {"datamodule": lambda: Batches(num_words=60)}, "KeyError: 'val'"),
    ],
)
def test_what_goes_wrong_is_said_once_and_the_run_goes_on(callbacks, options, reason, tmp_path, caplog):
    options = {name: make() for name, make in options.items()}
    trainer, _ = fit(tmp_path, *(callback() for callback in callbacks), **options)
    assert trainer.global_step == 47
    lines = [record.getMessage() for record in caplog.records if "pictures" in record.getMessage()]
    assert lines == [f"pictures are off: {reason}"]


def test_foreign_batches_have_no_pictures(tmp_path, caplog):
    data = NamesDataModule(num_words=60)
    data.setup("fit")
    trainer = Trainer(
        logger=TensorBoardLogger(tmp_path),
        callbacks=[Board()],
        max_steps=3,
        accelerator="cpu",
        enable_checkpointing=False,
    )
    trainer.fit(MLP(hidden_size=4), data.train_dataloader())
    assert trainer.global_step == 3
    assert caplog.text.count("pictures are off: TypeError: they need an MLP and a NamesDataModule") == 1


def test_another_logger_has_no_pictures(tmp_path, caplog):
    fit(tmp_path, Board(), logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("*events*"))
    assert "pictures" not in caplog.text


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"block_size": 1, "embedding_dim": 1}, {"block_size": 1}),
        ({"embedding_dim": 2}, {"split": "hashed", "num_words": None}),
        ({"vocabulary": "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))}, {"num_words": None}),
    ],
    ids=["smallest", "in pieces", "thousands of characters"],
)
def test_sizes_out_of_the_ordinary(model, data, names, tmp_path, caplog):
    words = names[:300]
    if "vocabulary" in model:
        words = [model["vocabulary"][3 * i : 3 * i + 3] for i in range(1000)]
    (tmp_path / "list.txt").write_text("\n".join(words), encoding="utf-8")
    fit(tmp_path, Board(), model=model, data={"path": str(tmp_path / "list.txt")} | data, max_steps=11)
    found = events(tmp_path / "run")
    for tag in PICTURES:
        assert steps(found.Images(tag)) == [0, 11]
    assert ("split" in text(tmp_path / "run", "names")) == (data.get("split") != "hashed")
    assert "pictures are off" not in caplog.text


@pytest.mark.parametrize(("flag", "pictures"), [("true", 2), ("false", 0)])
def test_one_flag_turns_them_off(flag, pictures, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(
        "fit", "--data.num_words", 50, "--trainer.max_steps", 4, "--model.hidden_size", 8, "--pictures", flag
    )
    assert status == 0, err
    assert "pictures" not in err
    found = events(tmp_path / "lightning_logs" / "version_0")
    assert len([event for tag in found.Tags()["images"] for event in found.Images(tag)]) == 3 * pictures
    assert {"train/loss", "val/loss"} <= set(found.Tags()["scalars"])


def test_several_devices_show_one_board(command, tmp_path):
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    result = command(
        "fit", "--data.num_words", 50, "--trainer.max_steps", 4, "--model.hidden_size", 8, *two, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "pictures are off" not in result.stderr
    (file,) = tmp_path.glob("lightning_logs/version_0/*events*")
    assert steps(events(file).Images("pictures/letters")) == [0, 4]
    assert {len(list(folder.glob("*events*"))) for folder in file.parent.glob("loss_*")} == {1}


# In a browser.


@pytest.fixture
def tensorboard(shown):
    """TensorBoard on a free port of this machine, over a finished run. Gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", shown[0], "--host", "127.0.0.1", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if address := re.search(r"http://127.0.0.1:\d+/", line):
                yield address[0]
                break
        else:
            pytest.fail("TensorBoard did not start")
    finally:
        process.terminate()
        process.wait()


WHOLE_TEXT = """
const texts = [], visit = root => {
  for (const node of root.childNodes) {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.data);
    if (node.shadowRoot) visit(node.shadowRoot);
    if (node.nodeName === "IFRAME" && node.contentDocument?.body) visit(node.contentDocument.body);
    if (node.nodeName === "INPUT") texts.push(node.value);
    if (!["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) visit(node);
    if (node.nodeName === "IMG" && node.naturalWidth) texts.push(`image ${node.naturalWidth} x ${node.naturalHeight}`);
  }
};
visit(document.body);
return texts.join("\\n");
"""


@pytest.mark.browser
def test_tensorboard_shows_what_was_logged(browser, tensorboard, shown):
    def shows(tab, *expected):
        browser.get("about:blank")
        browser.get(f"{tensorboard}#{tab}")
        end = time.monotonic() + 120
        while missing := [words for words in expected if words not in browser.execute_script(WHOLE_TEXT)]:
            assert time.monotonic() < end, f"{tab} shows no {missing}"
            time.sleep(0.1)

    height = 88 + 27 * 10 + 12  # ten contexts
    shows("scalars", "loss", "update_to_data", "tanh", "train", "val", "loss_Kneser-Ney")
    shows("scalars&tagFilter=character|perplexity", "bits_per_character", "perplexity")
    shows("images", *PICTURES, "image 640 x 560", f"x {height}", "image 530 x ")
    shows("text", "names", "split", *shown[1].float().sample(1, max_length=30), "recipe")
    shows("hparams", "embedding_dim", "hidden_size", "val/loss_best")
    shows("projector", "C:00047", "27x10", "letter", "kind", "Dimension:")
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe
