import csv
import io
import json
import math
import re
import sys

import notebook
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import MLP, NGram
from makemore_pl.commands import predict as predictions
from makemore_pl.commands.predict import NamesWriter, Request, as_cell


@pytest.fixture
def predict(default_fit, call, monkeypatch):
    """Gives what `predict` writes, of the default fit."""
    monkeypatch.chdir(default_fit[0])

    def run(*flags):
        status, out, err = call("predict", *flags)
        assert status == 0, err
        assert [line.split()[0] for line in err.splitlines()] in (["checkpoint:"], ["checkpoint:", "seed"])
        return out

    return run


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def expected_score(folder, word, names):
    """The notebook's formula, from the checkpoint: log-probability and perplexity."""
    checkpoint = torch.load(folder / "lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    X, Y = notebook.build_dataset([word], notebook.stoi(names))
    mean = notebook.negative_log_likelihood(checkpoint["state_dict"], X, Y).item()
    return -mean * len(Y), math.exp(mean)


def test_every_format_tells_the_same_names(predict, default_fit, names):
    text = predict("--sample.num_names", 200)
    lines = rows(predict("--sample.num_names", 200, "--sample.format", "jsonl"))
    table = list(csv.DictReader(io.StringIO(predict("--sample.num_names", 200, "--sample.format", "csv"))))
    assert text.split() == [line["name"] for line in lines] == [line["name"] for line in table]
    assert [{key: str(value) for key, value in line.items()} for line in lines] == table

    train, val, test = (set(words) for words in notebook.split(names))
    for line in lines[:20]:
        score, perplexity = expected_score(default_fit[0], line["name"], names)
        assert line["log_probability"] == pytest.approx(score, abs=1e-3)
        assert line["perplexity"] == pytest.approx(perplexity, rel=1e-3)
    for line in lines:
        name = line["name"]
        where = "train" if name in train else "val" if name in val else "test" if name in test else "new"
        assert line["where"] == where
    assert {"train", "new"} <= {line["where"] for line in lines}


def test_temperature_changes_the_names_and_not_their_score(predict, default_fit, names):
    (line,) = rows(predict("--sample.num_names", 1, "--sample.temperature", 3, "--sample.format", "jsonl"))
    assert line["log_probability"] == pytest.approx(expected_score(default_fit[0], line["name"], names)[0], abs=1e-3)


def test_unique_and_novel(predict, names):
    ordinary = predict("--sample.num_names", 3000).split()
    assert len(set(ordinary)) < 3000
    assert set(ordinary) & set(names)
    unique = predict("--sample.num_names", len(set(ordinary)), "--sample.unique").split()
    assert unique == list(dict.fromkeys(ordinary))
    novel = [name for name in ordinary if name not in set(names)]
    assert predict("--sample.num_names", len(novel), "--sample.novel").split() == novel
    both = list(dict.fromkeys(novel))
    assert predict("--sample.num_names", len(both), "--sample.novel", "--sample.unique", "true").split() == both


def test_names_that_match_a_pattern(predict):
    ordinary = predict("--sample.num_names", 3000).split()
    expected = [name for name in ordinary if name[0] in "aeiou" and name.endswith("na")]
    assert expected
    assert predict("--sample.num_names", len(expected), "--sample.pattern", "[aeiou].*na").split() == expected


def test_a_line_says_how_to_repeat_the_names(default_fit, call, monkeypatch):
    monkeypatch.chdir(default_fit[0])
    _, out, err = call("predict")
    assert "seed 2147483647: the same names each time; --sample.seed random draws others\n" in err
    _, other, err = call("predict", "--sample.seed", "random")
    assert other != out
    seed, again = re.search(r"^seed (\d+): --sample.seed (\d+) draws these names again$", err, re.M).groups()
    assert seed == again
    _, repeated, err = call("predict", "--sample.seed", seed)
    assert repeated == other
    assert "seed" not in err


def test_names_may_come_from_the_mixture_with_counting(default_fit, call, monkeypatch, names):
    """Against the notebook's formulas: probabilities of the network and of counting, mixed as the line says."""
    folder = default_fit[0]
    monkeypatch.chdir(folder)
    status, out, err = call("predict", "--sample.counting", "--sample.format", "jsonl", "--sample.num_names", 200)
    assert status == 0, err
    weight = float(re.search(r"mixed: (0\.\d\d) of the network, (0\.\d\d) of Kneser-Ney", err)[1])
    parameters = torch.load(folder / "lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    counting = NGram.from_words(notebook.split(names)[0], MLP().vocabulary, 3)
    lines = rows(out)
    for line in lines[:50]:
        X, Y = notebook.build_dataset([line["name"]], notebook.stoi(names))
        p = weight * notebook.probabilities(parameters, X) + (1 - weight) * counting(X).exp()
        expected = p[torch.arange(len(Y)), Y].log().sum().item()
        assert line["log_probability"] == pytest.approx(expected, abs=0.02)  # the weight has two digits
    drawn = [line["name"] for line in lines]
    assert drawn != call("predict", "--sample.num_names", 200)[1].split()
    assert call("predict", "--sample.counting", "--sample.num_names", 200)[1].split() == drawn


def test_the_mixture_needs_the_words_of_the_run(default_fit, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    (tmp_path / "other.txt").write_text("emma\nolivia\n" * 20)
    for path, why in [("gone.txt", "gone.txt: cannot read"), (tmp_path / "other.txt", "trained on another list than")]:
        status, out, err = call("predict", "--sample.counting", "--data.path", path)
        assert (status, out) == (2, "")
        assert why in err


def test_given_words_are_scored(predict, default_fit, names, tmp_path):
    words = ["emma", "xqzt", "olsrick", "a"]
    (tmp_path / "mine.txt").write_text("\n".join(words), encoding="utf-8")
    text = predict("--sample.score", tmp_path / "mine.txt")
    for word, line in zip(words, text.splitlines(), strict=True):
        score, perplexity, name = line.split("\t")
        assert name == word
        assert float(score) == pytest.approx(expected_score(default_fit[0], word, names)[0], abs=1e-3)
        assert float(perplexity) == pytest.approx(expected_score(default_fit[0], word, names)[1], rel=1e-3)
    lines = rows(predict("--sample.score", tmp_path / "mine.txt", "--sample.format", "jsonl"))
    assert [line["name"] for line in lines] == words
    assert [line["where"] for line in lines] == ["train", "new", "new", "new"]
    assert [f"{line['log_probability']:.4f}" for line in lines] == [line.split("\t")[0] for line in text.splitlines()]


def test_capitals_are_taken_as_the_list_has_them(default_fit, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    (tmp_path / "mine.txt").write_text("Emma\nolivia\nAVA\n")
    (tmp_path / "small.txt").write_text("emma\nolivia\nava\n")
    small = call("predict", "--sample.score", tmp_path / "small.txt")
    status, out, err = call("predict", "--sample.score", tmp_path / "mine.txt")
    assert (status, out) == small[:2]
    assert err == f"2 words, such as 'Emma', taken in small letters: the list has no capitals\n{small[2]}"
    small = call("predict", "--sample.prompt", "mar")
    status, out, err = call("predict", "--sample.prompt", "Mar")
    assert (status, out) == small[:2]
    assert err == f"prompt 'Mar' taken in small letters: the list has no capitals\n{small[2]}"


def test_words_come_from_stdin_and_go_into_a_file(default_fit, command, tmp_path):
    output = tmp_path / "scores.csv"
    flags = ["--sample.score", "-", "--sample.format", "csv", "--sample.output", output]
    finished = command("predict", *flags, cwd=default_fit[0], input="emma\n\nolivia\n")
    assert (finished.returncode, finished.stdout) == (0, "")
    with output.open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["name", "emma", "olivia"]


@pytest.mark.parametrize(
    ("flags", "out", "message"),
    [
        (
            ["--sample.unique", "--sample.top_k", 1, "--sample.num_names", 5],
            1,
            "1 of 5 names: no other unique one among 65,536 drawn; lower num_names",
        ),
        (
            ["--sample.novel", "--sample.prompt", "emma", "--sample.max_length", 4],
            0,
            "0 of 20 names: no other novel one among 65,536 drawn",
        ),
        (["--sample.novel", "--data.path", "gone.txt"], 0, "gone.txt: cannot read this word list"),
        (["--sample.format", "csv", "--data.path", "gone.txt"], 0, "gone.txt: cannot read this word list"),
        (["--sample.score", "odd.txt"], 0, "odd.txt: 'zoë': character 'ë' is not among the 26 of this vocabulary"),
        (["--sample.score", "gone.txt"], 0, "gone.txt: cannot read this word list"),
        (["--sample.output", "gone/names.txt"], 0, "output gone/names.txt: cannot be written (No such file or dir"),
        (["--sample.output", "odd.txt", "--data.path", "odd.txt"], 0, "output odd.txt is the list of words"),
        (["--sample.score", "odd.txt", "--sample.unique"], 0, "score takes words as they are"),
        (["--data.vocabulary", "abc"], 0, "--data.vocabulary: the checkpoint has its own; omit the flag"),
        (["--num_steps", 5], 0, "--num_steps is a flag of lr_find, not of predict"),
        (["--ckpt_path", "lightning_logs"], 0, "--ckpt_path lightning_logs: is a folder"),
        (["--sample.pattern", "("], 0, "pattern '(' is not a regular expression: missing ), unterminated subpattern"),
        (["--sample.format", "xml"], 0, "--sample.format xml: expected text, jsonl or csv"),
        (["--sample.unique", "maybe"], 0, "--sample.unique maybe: expected true or false"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(flags, out, message, default_fit, call, monkeypatch, tmp_path):
    (tmp_path / "lightning_logs").symlink_to(default_fit[0] / "lightning_logs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.txt").write_text("emma\nZoë\n", encoding="utf-8")
    status, names, err = call("predict", *flags)
    assert status == 2
    assert len(names.split()) == out
    assert err.rstrip("\n").rpartition("\n")[2].startswith(f"error: {message}")
    assert err.count("error") == 1


def test_a_file_keeps_its_content_until_the_new_one_is_complete(default_fit, call, monkeypatch, tmp_path):
    monkeypatch.chdir(default_fit[0])
    output = tmp_path / "names.txt"
    output.write_text("kept\n")
    status, _, _ = call("predict", "--sample.unique", "--sample.top_k", 1, "--sample.output", output)
    assert (status, output.read_text()) == (2, "kept\n")
    assert call("predict", "--sample.output", output)[0] == 0
    assert len(output.read_text().split()) == 20
    assert list(tmp_path.iterdir()) == [output]


def test_novel_can_be_told_from_a_list_too_short_to_split(predict, tmp_path):
    ordinary = predict("--sample.num_names", 9).split()
    (tmp_path / "few.txt").write_text("\n".join(ordinary[:2]))
    novel = [name for name in ordinary if name not in ordinary[:2]]
    flags = ["--sample.num_names", len(novel), "--sample.novel", "--data.path", tmp_path / "few.txt"]
    flags += ["--data.other_words"]
    assert predict(*flags).split() == novel


def test_odd_names_keep_their_characters_in_every_format(towns, call, tmp_path, monkeypatch):
    path, words = towns
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quotes.txt").write_text('a,b\n"c"\n' + path.read_text("utf-8"), encoding="utf-8")
    flags = ["--trainer.max_steps", 2, "--trainer.logger", "false"]
    assert call("fit", "--data.path", "quotes.txt", *flags, "--trainer.default_root_dir", ".")[0] == 0
    asked = ["--ckpt_path", next(tmp_path.rglob("*.ckpt")), "--sample.score", "quotes.txt"]
    status, out, _ = call("predict", *asked, "--sample.format", "csv")
    assert status == 0
    table = list(csv.reader(io.StringIO(out)))
    assert [row[0] for row in table[1:]] == ["a,b", '"c"', *words]
    assert {row[3] for row in table[1:]} <= {"train", "val", "test"}
    status, out, _ = call("predict", *asked, "--sample.format", "jsonl")
    assert [row["name"] for row in rows(out)] == ["a,b", '"c"', *words]
    assert "名前" in out


@given(st.text(st.sampled_from("'=+-@\t\r\uff1d\uff0b\uff0d\uff20ab,\"; ")) | st.text())
def test_a_cell_is_no_formula_and_reads_back_as_its_name(name):
    """The first characters are those that OWASP lists ("CSV injection")."""
    cell = as_cell(name)
    assert cell.removeprefix("'") == name
    assert not re.match("[=+@\t\r\uff1d\uff0b\uff0d\uff20-]", cell)
    assert cell == name or re.match("['=+@\t\r\uff1d\uff0b\uff0d\uff20-]", name)


def test_csv_holds_no_formulas(towns, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["=1+2", "+1", "-1", "@SUM(A1)", "'quoted'", "'=1", "plain-name", "a=b", "\uff1d1", "a;=1"]
    (tmp_path / "list.txt").write_text("\n".join(words * 3), encoding="utf-8")
    flags = ["--trainer.max_steps", 2, "--trainer.logger", "false", "--trainer.default_root_dir", "."]
    assert call("fit", "--data.path", "list.txt", *flags)[0] == 0
    asked = ["--ckpt_path", next(tmp_path.rglob("*.ckpt")), "--sample.score", "list.txt"]
    status, out, _ = call("predict", *asked, "--sample.format", "csv")
    assert status == 0
    header, *table = csv.reader(io.StringIO(out))
    assert header == predictions.COLUMNS
    cells = ["'=1+2", "'+1", "'-1", "'@SUM(A1)", "''quoted'", "''=1", "plain-name", "a=b", "'\uff1d1", "a;=1"]
    assert [row[0] for row in table] == cells * 3
    assert [row[0].removeprefix("'") for row in table] == words * 3
    assert [line.rpartition(";")[0] for line in out.splitlines() if ";" in line] == ['"a'] * 3  # quoted
    assert all(float(row[1]) < 0 for row in table)  # numbers stay numbers
    text = call("predict", *asked)[1]
    assert [line.split("\t")[2] for line in text.splitlines()] == words * 3


def test_a_word_that_is_next_to_impossible_has_a_perplexity():
    writer = NamesWriter(Request())
    writer.file = io.StringIO()
    writer.write(None, ["ab"], [-1e30])
    score, perplexity, name = writer.file.getvalue().split("\t")
    assert (float(score), name) == (-1e30, "ab\n")
    assert 1e300 < float(perplexity) < math.inf


def test_the_first_device_writes_what_others_drew(monkeypatch, capsys):
    class Trainer:
        world_size = 2

        def __init__(self, rank):
            self.global_rank, self.is_global_zero = rank, rank == 0

    post = []
    monkeypatch.setattr(predictions, "send_object_list", lambda objects, dst, device: post.extend(objects))
    monkeypatch.setattr(
        predictions, "recv_object_list", lambda objects, src, device: objects.__setitem__(0, post.pop(0))
    )
    model = MLP(hidden_size=2)
    first, second = NamesWriter(Request()), NamesWriter(Request())
    first.file = second.file = sys.stdout
    second.on_predict_batch_end(Trainer(1), model, [], 0, 0)
    first.on_predict_batch_end(Trainer(0), model, ["emma"], 0, 0)
    second.on_predict_batch_end(Trainer(1), model, ["名 前"], 1, 1)
    first.on_predict_batch_end(Trainer(0), model, [], 1, 1)
    assert capsys.readouterr().out == "emma\n名 前\n"


def test_stdout_is_utf8_whatever_the_locale(towns, command, tmp_path, monkeypatch):
    path, words = towns
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    fit = command("fit", "--data.path", path, "--trainer.max_steps", 20, cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr
    assert not fit.stdout.isascii()
    assert set(fit.stdout) <= set("".join(words) + "\n")
    predict = command("predict", cwd=tmp_path)
    assert predict.stdout == fit.stdout
    score = command("predict", "--sample.score", "-", cwd=tmp_path, input="名前\n")
    assert score.stdout.endswith("\t名前\n")
