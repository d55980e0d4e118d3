import math

import notebook
import pytest
import torch

from makemore_pl import MLP, Vocabulary, windows
from makemore_pl.sampling import score_words


def test_a_word_is_as_likely_as_its_characters_and_its_end(names):
    model = MLP(init="lecture")
    words = names[:40] + ["", "z"]
    for word, score in zip(words, model.score(words), strict=True):
        X, Y = notebook.build_dataset([word], notebook.stoi(names))
        mean = notebook.negative_log_likelihood(dict(model.named_parameters()), X, Y).item()
        assert score == pytest.approx(-mean * len(Y), rel=1e-5)


def test_by_hand(monkeypatch):
    """After anything: the end 1/2, a 1/4, b 1/4."""
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 3 * 3)

    def next_logits(context):
        return torch.tensor([2.0, 1.0, 1.0]).log().repeat(len(context), 1)

    scores = score_words(["a", "abba", ""], next_logits, Vocabulary("ab"), 2)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx([math.log(1 / 8), math.log(1 / 512), math.log(1 / 2)], rel=1e-6)
    assert score_words([], next_logits, Vocabulary("ab"), 2).tolist() == []


def test_a_word_is_taken_as_the_list_has_it():
    def next_logits(context):
        return torch.tensor([2.0, 1.0, 1.0]).log().repeat(len(context), 1)

    with pytest.warns(UserWarning, match="^2 words, such as 'A', taken in small letters: the list has no capitals$"):
        scores = score_words(["A", "a", "aB"], next_logits, Vocabulary("ab"), 2)
    assert scores.tolist() == pytest.approx([math.log(1 / 8), math.log(1 / 8), math.log(1 / 32)], rel=1e-6)


def test_a_character_outside_the_alphabet_is_named():
    with pytest.raises(ValueError, match="'aë': character 'ë' is not among the 2"):
        score_words(["aë"], lambda context: torch.zeros(len(context), 3), Vocabulary("ab"), 2)
