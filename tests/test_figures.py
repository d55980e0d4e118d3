import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.font_manager import fontManager

from makemore_pl import Vocabulary
from makemore_pl.pictures.alphabet import FONT, find_fonts, kind, tokens
from makemore_pl.pictures.figures import draw_learning_rates, draw_letters, draw_next, flatten, saturated

LARGE = Vocabulary("".join(chr(0x4E00 + i) for i in range(3000)))


pytestmark = pytest.mark.filterwarnings("error:Glyph")  # of a character that no font has


@pytest.fixture(autouse=True)
def only_fonts_of_matplotlib(monkeypatch):
    """Whatever fonts the machine has, the figures find those of matplotlib alone."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in Path(entry.fname).parts]
    monkeypatch.setattr(fontManager, "ttflist", own)
    find_fonts.cache_clear()
    yield
    find_fonts.cache_clear()


def texts(figure):
    """All that is written in a figure, which can be rendered."""
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    titles = [axes.get_title(loc="left"), axes.get_title(loc="right"), axes.get_xlabel(), axes.get_ylabel()]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    return [*titles, *(text.get_text() for text in labels)]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("aeiouAÄéÅîæøıİ" + "αέΏ" + "яЁїы" + "աე", "vowel"),  # noqa: RUF001
        ("ybzQñçŻłß" + "βς" + "йўЖ" + "քკ", "consonant"),
        ("名🙂 '1.-" + "ьЪ" + "אあ한", "other"),
    ],
)
def test_letters_are_vowels_or_consonants_by_their_base(characters, expected):
    assert {kind(character) for character in characters} == {expected}


def test_many_dimensions_are_projected_to_the_plane_of_most_variance():
    C = randn(40, 6)
    points, share = flatten(C)
    variances = torch.linalg.eigvalsh(torch.cov(C.T)).flip(0)
    torch.testing.assert_close(points.var(dim=0), variances[:2])
    assert share == pytest.approx((variances[:2].sum() / variances.sum()).item())


@pytest.mark.parametrize("flip", [1, -1])
def test_the_map_does_not_jump_where_principal_components_turn_or_flip(flip):
    C, sin, cos = randn(20, 5), math.sin(1), math.cos(1)
    near = flatten(C)[0] @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64) * torch.tensor([1, flip])
    torch.testing.assert_close(flatten(C, near)[0], near)


def test_a_letter_is_where_its_embedding_is_in_the_colour_of_its_kind():
    figure = draw_letters(torch.tensor([[0.0, 0], [1, 2], [3, 1]]), Vocabulary("ab"), "step 25")
    assert {"The map of letters", "step 25", "C[:, 0]", "C[:, 1]", "boundary"} < set(texts(figure))
    placed = {text.get_text(): (text.get_position(), text.get_color()) for text in figure.axes[0].texts}
    assert placed["a"] == ((1, 2), placed["vowel"][1])
    assert placed["b"] == ((3, 1), placed["consonant"][1])


def test_the_heat_map_writes_what_is_likely_in_percent():
    figure = draw_next(torch.tensor([[0.05, 0.8, 0.15]]), [[0, 2]], Vocabulary("ab"), "step 7")
    assert texts(figure) == ["What comes next, in %", "step 7", "", "", ".", "a", "b", ".b", "80", "15"]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.sqrt([[0.05, 0.8, 0.15]]), rtol=1e-6)


def test_labels_do_not_cover_each_other():
    written = texts(draw_letters(torch.tensor([[0.0, 0], [1, 1], [1, 1], [1, 0]]), Vocabulary("abc")))
    assert {"a", "c", "."} <= set(written)
    assert "b" not in written


@pytest.mark.parametrize(
    ("characters", "fonts", "labels"),
    [
        ("αβγабвאבגابت", [FONT], list("αβγабвאבגابت")),
        (" $\\^_\u0301\u200d", [FONT], ["␣", "$", "\\", "^", "_", "◌\u0301", "U+200D"]),
        ("a⌖⌽名", [FONT, "STIXGeneral"], ["a", "⌖", "⌽", "U+540D"]),
    ],
)
def test_characters_are_drawn_in_a_font_that_has_them_or_named_by_their_code_point(characters, fonts, labels):
    vocabulary = Vocabulary(characters)
    V = len(vocabulary)
    assert find_fonts(characters)[0] == fonts
    assert tokens(vocabulary) == [".", *labels]
    texts(draw_letters(randn(V, 3), vocabulary))
    assert {f".{label}" for label in labels} < set(
        texts(draw_next(torch.eye(V), [[0, i] for i in range(V)], vocabulary))
    )


def test_of_large_alphabets_a_part_is_drawn():
    figure = draw_letters(randn(3001, 4), LARGE)
    written, dots = texts(figure), figure.axes[0].collections[:-1]  # without the ring of the boundary
    assert "The map of letters: 100 of 3,000" in written
    assert sum(text.startswith("U+") for text in written) + len(dots) == 100
    likely = torch.zeros(1, 3001).index_fill(1, torch.arange(100, 140), 1 / 40)
    written = texts(draw_next(likely, [[0]], LARGE))
    assert "What comes next, in %: the 40 likeliest of 3,001" in written
    assert set(tokens(LARGE)[100:140]) <= set(written)


def test_saturated_units_are_white():
    h = torch.tensor([[0.995, 0.0], [-1.0, 0.989], [0.5, -0.991]])
    assert saturated(h).tolist() == [[255, 0], [255, 0], [0, 255]]


def test_learning_rates_that_diverge_leave_the_curve_in_sight():
    figure = draw_learning_rates([0.01, 0.1, 1, 10], [3.0, 2.0, 500.0, math.nan], 0.1, 0.05, 0.2)
    assert figure.axes[0].get_ylim() == pytest.approx((1.8, 3.3))
    assert "take 0.1" in texts(figure)
