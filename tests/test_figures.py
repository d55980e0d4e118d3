import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontEntry, fontManager

from makemore_pl import Vocabulary
from makemore_pl.pictures import alphabet, figures
from makemore_pl.pictures.alphabet import kind, kinds, most_frequent, tokens, visible
from makemore_pl.pictures.figures import draw_letters, draw_marks, draw_next, draw_saturated, rasterise
from makemore_pl.pictures.plane import flatten, uncovered
from makemore_pl.pictures.writing import FONT, find_fonts
from makemore_pl.windows import build_windows, count_windows

ODD = Vocabulary("".join(sorted(" '-.$\\_^|<&\"aÄéłyZ1名🙂\u0301\u200d")))
LARGE = Vocabulary("".join(chr(0x4E00 + i) for i in range(3000)))


@pytest.fixture
def written(monkeypatch):
    """The texts that are drawn."""
    texts, write = [], figures.write
    monkeypatch.setattr(
        figures, "write", lambda axes, some, *style, **more: (texts.extend(some), write(axes, some, *style, **more))
    )
    return texts


@pytest.fixture(autouse=True)
def only_its_own_fonts(monkeypatch):
    """Whatever fonts the machine has, the figures find those of matplotlib alone."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in Path(entry.fname).parts]
    monkeypatch.setattr(fontManager, "ttflist", own)
    find_fonts.cache_clear()
    yield
    find_fonts.cache_clear()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


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


def test_what_cannot_be_drawn_goes_by_its_code_point():
    assert [visible(x) for x in "a 名\u0301\u200d\ud800"] == ["a", "␣", "名", "◌\u0301", "U+200D", "U+D800"]
    assert tokens(Vocabulary(" aéł\u200d名😀𠀀")) == [".", "␣", "a", "é", "ł", "U+200D", "U+540D", "😀", "U+20000"]
    assert kinds(Vocabulary(" ab")) == ["boundary", "other", "vowel", "consonant"]


def test_up_to_two_dimensions_stay_as_they_are():
    C = torch.randn(27, 2)
    points, share = flatten(C)
    assert torch.equal(points, C)
    assert share == 1
    points, _ = flatten(C[:, :1])
    assert torch.equal(points, torch.stack([C[:, 0], torch.zeros(27)], dim=1))


def test_more_dimensions_lie_in_the_plane_of_most_variance():
    C = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points, share = flatten(C)
    variances = torch.linalg.eigvalsh(torch.cov(C.T)).flip(0)
    torch.testing.assert_close(points.var(dim=0), variances[:2])
    assert share == pytest.approx((variances[:2].sum() / variances.sum()).item())
    assert points.T.cov()[0, 1].item() == pytest.approx(0, abs=1e-12)


def test_what_is_flat_keeps_its_distances():
    generator = torch.Generator().manual_seed(1)
    C = torch.randn(20, 2, dtype=torch.float64, generator=generator) @ torch.randn(
        2, 5, dtype=torch.float64, generator=generator
    )
    points, share = flatten(C)
    assert share == pytest.approx(1)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(C, C))


@pytest.mark.parametrize("flip", [1, -1])
def test_the_plane_is_turned_to_where_the_points_were(flip):
    C = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sin, cos = math.sin(1), math.cos(1)
    near = flatten(C)[0] @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64) * torch.tensor([1, flip])
    torch.testing.assert_close(flatten(C, near)[0], near)


def test_equal_letters_can_be_drawn():
    points, share = flatten(torch.ones(27, 4))
    assert not points.any()
    assert share == 1
    rasterise(draw_letters(torch.ones(4, 4), Vocabulary("abc")))


def test_the_map_says_what_it_shows(written):
    C = torch.randn(27, 10, generator=torch.Generator().manual_seed(1))
    image = rasterise(draw_letters(C, Vocabulary("abcdefghijklmnopqrstuvwxyz"), "step 25"))
    assert image.dtype == np.uint8
    assert image.shape == (560, 640, 3)
    share = f"{flatten(C)[1]:.0%}"
    how = f"C, 10 dimensions in the plane of the first two principal components (PCA): {share} of the variance"
    assert {"The map of letters", how, "step 25", "vowels", "consonants", "boundary"} < set(written)
    assert "other" not in written
    assert set(".abcdefghijklmnopqrstuvwxyz") < set(written)
    written.clear()
    draw_letters(C[:, :2], Vocabulary("abcdefghijklmnopqrstuvwxyz"))
    assert "C, 2 dimensions" in written


def test_vowels_and_consonants_have_their_colours():
    def has(characters, name):
        colour = [int(figures.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]
        C = torch.arange(2.0 + 2 * len(characters)).view(-1, 2)
        drawn = rasterise(draw_letters(C, Vocabulary(characters)))[100:]  # below the legend
        return bool((drawn == colour).all(axis=2).any())

    assert [has("ae", name) for name in ("vowel", "consonant", "other")] == [True, False, False]
    assert [has("by", name) for name in ("vowel", "consonant", "other")] == [False, True, False]
    assert [has("1", name) for name in ("vowel", "consonant", "other")] == [False, False, True]


def test_odd_characters_are_drawn_without_a_warning(written):
    V = len(ODD)
    rasterise(draw_letters(torch.randn(V, 3), ODD))
    rasterise(draw_next(torch.eye(V), [[0, 0, i] for i in range(V)], ODD))
    assert {"U+540D", "U+1F642", "◌\u0301", "..\u25cc\u0301", "␣", "$", "\\", "..$", ". . U+540D"} < set(written)


@pytest.mark.parametrize("letters", ["אבגדהוזחטיכךלמםנןסעפףצץקרשת", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", "αβγδε", "абвгд"])
def test_the_letters_of_these_alphabets_are_drawn(letters, written):
    """They are in the font that matplotlib brings with it."""
    vocabulary = Vocabulary("".join(sorted(letters)))
    V = len(vocabulary)
    rasterise(draw_letters(torch.randn(V, 3), vocabulary))
    rasterise(draw_next(torch.eye(V), [[0, 0, i] for i in range(V)], vocabulary))
    assert set(letters) | {f"..{letter}" for letter in letters} < set(written)
    assert not any(text.startswith("U+") for text in written)


def test_a_character_is_taken_from_a_font_that_has_it(written, caplog):
    """Another font that matplotlib brings with it has signs that the font of the figures lacks."""
    vocabulary = Vocabulary("a⌖⌽名")
    assert find_fonts(vocabulary.characters) == ((FONT, "STIXGeneral"), {"名"})
    assert tokens(vocabulary) == [".", "a", "⌖", "⌽", "U+540D"]
    rasterise(draw_letters(torch.randn(5, 2), vocabulary))
    rasterise(draw_next(torch.eye(5)[:2], [[0, 2, 3], [1, 2, 0]], vocabulary))
    assert {"⌖", ".⌖⌽", "a⌖."} < set(written)
    marks = draw_marks(vocabulary, range(5))
    assert (marks[2] != marks[3]).any()
    assert not caplog.records  # matplotlib warns of fonts and weights that it does not find


def test_fonts_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    for name in ("damaged", "gone"):
        fontManager.ttflist.append(FontEntry(str(tmp_path / f"{name}.ttf"), name=name, style="normal", weight=400))
    assert find_fonts("名") == ((FONT,), {"名"})


def test_the_most_frequent_are_chosen(monkeypatch):
    vocabulary = Vocabulary("abcdef")
    counts = [count_windows(*build_windows(words, vocabulary, 2), 7) for words in (["dab", "ad"], ["ffd", "fa"])]
    assert vocabulary.decode(most_frequent(vocabulary, counts)) == ".adfbce"  # 3, 3, 3, 1, 0, 0
    assert vocabulary.decode(most_frequent(vocabulary)) == ".abcdef"
    monkeypatch.setattr(alphabet, "LETTERS", 2)
    assert vocabulary.decode(most_frequent(vocabulary, counts)) == ".ad"


def test_of_large_alphabets_a_part_is_drawn(written):
    C = torch.randn(3001, 4, generator=torch.Generator().manual_seed(1))
    rasterise(draw_letters(C, LARGE, drawn=[0, *range(3000, 2500, -1)]))
    assert {"The map of letters: the most frequent 500 of 3,000", "dots without a label: no room for it"} < set(written)
    codes = [text for text in written if text.startswith("U+")]
    assert codes[0] == f"U+{ord(LARGE.characters[-1]):04X}"
    assert 50 < len(codes) < 500
    assert set(codes) <= set(tokens(LARGE)[2501:])
    written.clear()
    draw_letters(C, LARGE)
    assert "The map of letters: the first 500 of 3,000" in written
    written.clear()
    probabilities = torch.zeros(2, 3001)
    probabilities[:, 100:140] = 1 / 40
    rasterise(draw_next(probabilities, [[0], [5]], LARGE))
    assert "probability in %, after each context (the 40 likeliest of 3,001)" in written
    assert set(tokens(LARGE)[100:140]) <= set(written)
    assert "U+4E90" not in written


def test_labels_on_a_crowded_map_do_not_cover_each_other(monkeypatch):
    """By the boxes of the outlines that are drawn. Latin letters with accents: a font of the figures has them."""
    letters = [chr(i) for i in range(0x100, 0x250) if chr(i).isalpha()]
    vocabulary, paths = Vocabulary("".join(letters)), []
    write = figures.write

    def noted(axes, texts, *style, **more):
        write(axes, texts, *style, **more)
        if more.get("anchor") == "middle":
            paths.extend(axes.collections[-1].get_paths())

    monkeypatch.setattr(figures, "write", noted)
    draw_letters(torch.randn(len(vocabulary), 2, generator=torch.Generator().manual_seed(1)), vocabulary)
    assert 50 < len(paths) < len(letters)
    boxes = [path.get_extents() for path in paths]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_labels_give_way_to_more_important_ones():
    xy = np.array([[0.0, 0], [3, 0], [5, 0], [5, 9], [5, 0]])
    box = np.array([[4.0, 4], [4, 4], [4, 4], [4, 4], [1, 1]])
    assert uncovered(xy, box, np.full(5, False)).tolist() == [True, False, True, True, False]
    fixed = np.array([False, True, False, False, False])
    assert uncovered(xy, box, fixed).tolist() == [False, True, False, True, False]


def test_wide_contexts_leave_the_heat_map_alone(written):
    """The labels of the rows end on the left of the first column, and begin inside of the figure."""
    vocabulary = Vocabulary("名🙂")
    figure = draw_next(torch.eye(3), [[1] * 8, [2] * 8, [0] * 8], vocabulary)
    rows = next(c for c in figure.axes[0].collections if len(c.get_paths()) == 3 and c.get_facecolor()[0, 0] < 0.2)
    assert min(path.get_extents().x0 for path in rows.get_paths()) > 5


def test_the_heat_map_shows_probabilities(written):
    vocabulary = Vocabulary("ab")
    image = rasterise(draw_next(torch.tensor([[0.0, 1.0, 0.0]]), [[0, 0]], vocabulary, "step 7"))
    assert {"What comes next", "..", "100", "step 7"} < set(written)
    assert "0" not in written
    # A cell is a square of some 25 pixels: the dark one holds a number, the pale ones do not.
    dark, pale = ((image == colour).all(axis=2).sum() for colour in ([18, 44, 69], [246, 248, 250]))
    assert 25**2 * 0.6 < dark < 26**2
    assert 2 * 25**2 <= pale <= 2 * 26**2


def test_saturated_units_are_dark_under_a_title_with_axes_and_a_scale(written):
    h = torch.tensor([[0.995, 0.0], [-1.0, 0.989], [0.5, -0.991]])
    image = rasterise(draw_saturated(h, "step 7"))
    cells = image[78 + 15 : 78 + 90 : 30, 36 + 15 : 36 + 60 : 30]  # their middles: 30 pixels each
    assert (cells == [47, 102, 144]).all(axis=2).tolist() == [[True, False], [True, False], [False, True]]
    assert {"Saturated units", "step 7", "50% of the tanh layer; dark columns hardly learn"} < set(written)
    assert {"hidden units, 1 to 2", "contexts, 1 to 3", "|h| up to 0.99", "above 0.99"} < set(written)
    written.clear()
    assert rasterise(draw_saturated(torch.ones(200, 1500))).shape == (78 + 400 + 34, 36 + 1000 + 14, 3)
    assert "100% of the tanh layer; dark columns hardly learn, the first 1,000 of 1,500 units" in written


def test_each_token_is_drawn_in_a_square_of_its_own(written):
    marks = draw_marks(ODD, range(len(ODD)))
    assert marks.shape == (len(ODD), 32, 32, 3)
    place = 1 + ODD.characters.index("a")
    assert (marks[place] == [200, 67, 79]).all(axis=2).mean() > 0.3  # the red of vowels
    assert not (marks[place - 1] == [200, 67, 79]).all(axis=2).any()
    assert {"U+540D", "␣", "a", "Z"} < set(written)
    np.testing.assert_array_equal(draw_marks(ODD, [place, 0]), marks[[place, 0]])
