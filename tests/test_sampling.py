import math
from collections import Counter
from itertools import chain

import pytest
import torch

from makemore_pl import MLP, Sampler, Vocabulary, sampling, windows
from makemore_pl.sampling import Draw, score_words

AB = Vocabulary("ab")


def coins(context):
    """After `b` the word ends with probability 1/2 or goes on with a; after anything else b comes up 3 times in 4."""
    after_b = torch.tensor([0.5, 0.5, 0.0]).log()
    otherwise = torch.tensor([1.0, 1.0, 6.0]).log()
    return torch.where(context[:, -1:] == 2, after_b, otherwise)


def shares(context):
    """End 4/10, a 3/10, b 3/10 less a little, whatever came before."""
    return torch.tensor([4.0, 3.0, 2.9]).log().repeat(len(context), 1)


def draw(next_logits=coins, vocabulary=AB, block_size=2, **options):
    return list(chain.from_iterable(Draw(Sampler(**options), next_logits, vocabulary, block_size)))


@pytest.fixture(params=["table", "forward"], autouse=True)
def way(request, monkeypatch):
    """Both ways to a distribution: looked up in a table of all contexts, or computed step by step."""
    if request.param == "forward":
        monkeypatch.setattr(sampling, "TABLE_CONTEXTS", 0)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)


@pytest.mark.parametrize(
    ("next_logits", "options", "expected"),
    [
        # First a 1/7 or b 6/7, since no word is empty; then, after a, the end 1/8, a 1/8 or b 6/8.
        (coins, {}, {"": 0, "a": 1 / 7 * 1 / 8, "b": 6 / 7 * 1 / 2, "ba": 6 / 7 * 1 / 2 * 1 / 8, "bb": 0}),
        # The square roots of these shares, 1 to 1 to 6.
        (coins, {"temperature": 2}, {"a": 1 / (1 + 6**0.5) * 1 / (2 + 6**0.5), "b": 6**0.5 / (1 + 6**0.5) * 1 / 2}),
        (coins, {"temperature": 1e300}, {"a": 1 / 2 * 1 / 3, "b": 1 / 2 * 1 / 2, "bb": 0}),
        # First a or b, since no word is empty; then the end or a, 4 to 3.
        (shares, {"top_k": 2}, {"a": 3 / 5.9 * 4 / 7, "b": 2.9 / 5.9 * 4 / 7, "ab": 0, "bb": 0, "bab": 0}),
        (shares, {"top_k": 99}, {"a": 3 / 5.9 * 4 / 9.9, "b": 2.9 / 5.9 * 4 / 9.9}),
    ],
)
def test_words_come_as_often_as_their_probability(next_logits, options, expected):
    """Within 4.5 standard deviations."""
    found = Counter(draw(next_logits, num_names=40_000, **options))
    for word, p in expected.items():
        assert abs(found[word] - 40_000 * p) <= 4.5 * (40_000 * p * (1 - p)) ** 0.5, word


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-300}, {"top_k": 1}])
def test_at_temperature_0_each_character_is_the_likeliest(options):
    assert draw(shares, num_names=50, **options) == ["a"] * 50  # the end is likelier, but a name has a character
    assert draw(shares, num_names=2, prompt="bb", **options) == ["bb"] * 2


@pytest.mark.usefixtures("small_chunks")
def test_the_same_seed_gives_the_same_names_and_fewer_are_the_first_of_more():
    sampler = Sampler(num_names=200, seed=5)
    many, again = (list(chain.from_iterable(Draw(sampler, coins, AB, 2))) for _ in range(2))
    assert many == again
    for n in (1, 63, 64, 65, 150, 200):
        assert draw(num_names=n, seed=5) == many[:n]
    assert draw(num_names=200, seed=6) != many
    assert many[:64] != many[64:128]
    assert len({Sampler(seed="random").seed for _ in range(20)}) == 20


def test_names_begin_with_the_prompt_and_the_model_sees_it():
    seen = []

    def spy(context):
        seen.append(context[0].tolist())
        return torch.tensor([[100.0, 0.0, 0.0]]).repeat(len(context), 1)

    assert all(name.startswith("bb") and not name.startswith("bbb") for name in draw(num_names=50, prompt="bb"))
    for prompt, context in [("a", [0, 0, 1]), ("abba", [2, 2, 1])]:
        assert draw(spy, num_names=1, prompt=prompt, block_size=3) == [prompt]
        assert seen[-1] == context or seen[-1] == [0, 0, 0]  # a table asks for all contexts


def test_a_prompt_is_taken_as_the_list_has_it():
    assert draw(prompt="AB") == draw(prompt="ab")
    assert draw(prompt="e\u0301", vocabulary=Vocabulary("a\xe9"))[0][0] == "\xe9"  # lists are put into this form


def test_a_model_that_never_ends_is_cut_off():
    def endless(context):
        """Takes turns, with characters that others take for an end, or for two."""
        return torch.where(context[:, -1:] == 1, torch.tensor([-100.0, 0.0, 100.0]), torch.tensor([-100.0, 100.0, 0.0]))

    assert draw(endless, Vocabulary(".🙂"), num_names=2) == [".🙂" * 50] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_names": 0}, "num_names is 0: expected 1 or more"),
        ({"temperature": -1}, "temperature is -1: expected 0 or more"),
        ({"pattern": "["}, r"pattern '\[' is not a regular expression: unterminated character set at position 0$"),
        ({"pattern": "ette"}, r"pattern 'ette' is for the whole name: write '\.\*ette\.\*' for a part of it$"),
        ({"pattern": "*ette"}, r"pattern '\*ette' is not a regular expression: .*; did you mean '\.\*ette'\?"),
        ({"novel": True}, "novel compares names with a list"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)


def test_table_and_forward_draw_the_same_words(monkeypatch):
    model = MLP(block_size=2, hidden_size=20)
    # A word that rounding ends elsewhere gives other random numbers to the words after it, but only in its chunk.
    monkeypatch.setattr(sampling, "CHUNK", 25)
    monkeypatch.setattr(sampling, "TABLE_CONTEXTS", 27**2)
    table = model.sample(3000)
    monkeypatch.setattr(sampling, "TABLE_CONTEXTS", 27**2 - 1)
    forward = model.sample(3000)
    # Float32 against float64 sums: a number between the two totals may choose otherwise.
    assert sum(a != b for a, b in zip(table, forward, strict=True)) <= 50


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, lambda name: True),
        ({"pattern": "a|ba"}, {"a", "ba"}.__contains__),
        ({"pattern": ".{3,4}"}, lambda name: 3 <= len(name) <= 4),
        ({"novel": True}, lambda name: name not in {"b", "ba"}),
    ],
)
def test_names_that_are_picked_are_the_others_without_the_rest(unique, options, fits):
    def where(names):
        return ["train" if name in {"b", "ba"} else "new" for name in names]

    picked = [name for name in draw(num_names=1000) if fits(name)]
    picked = list(dict.fromkeys(picked)) if unique else picked
    for n in (1, 2, min(len(picked), 60)):
        assert draw(num_names=n, unique=unique, where=where, **options) == picked[:n]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("options", "found", "message"),
    [
        # The words of one character, or two, over a and b without bb.
        ({"unique": True}, ["a", "aa", "ab", "b", "ba"], "found 5 of 10 names, and no other in 4,096 drawn; lower"),
        (
            {"pattern": "[xy]"},
            [],
            r"found 0 of 10 names, and .* \(a pattern is for the whole name, and \.\* ",
        ),
    ],
)
def test_names_that_run_out_are_said_and_none_is_lost(options, found, message, monkeypatch):
    monkeypatch.setattr(sampling, "LONGEST", 2)
    names = []
    with pytest.raises(ValueError, match=f"^{message}"):
        for chunk in Draw(Sampler(num_names=10, **options), coins, AB, 2):
            names += chunk
    assert sorted(names) == found


def test_a_large_alphabet_is_drawn_and_scored_in_parts(monkeypatch):
    """The distributions of all words that are drawn side by side may not fit into memory."""
    letters = "".join(chr(0x4E00 + i) for i in range(400))
    model = MLP(letters, block_size=2, init="lecture").double()
    names = model.sample(300)
    scores = model.score(names)
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 401 * 7)
    assert model.sample(300)[:7] == names[:7]
    assert model.score(names) == pytest.approx(scores, rel=1e-12)


def test_a_score_by_hand():
    """After anything: the end 1/2, a 1/4, b 1/4. Capitals are taken as the list has them; ñ is unknown."""

    def next_logits(context):
        return torch.tensor([2.0, 1.0, 1.0]).log().repeat(len(context), 1)

    words = ["a", "ñ", "abba", "", "aB", "bñ"]
    expected = [math.log(1 / 8), -math.inf, math.log(1 / 512), math.log(1 / 2), math.log(1 / 32), -math.inf]
    scores = score_words(words, next_logits, AB, 2)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)
    for few in ["ñ"], []:
        assert score_words(few, next_logits, AB, 2).tolist() == [-math.inf] * len(few)
    impossible = torch.tensor([0.5, 0.5, 0.0]).log()  # b, as in a bigram that has counted none
    scores = score_words(["b", "a"], lambda context: impossible.repeat(len(context), 1), AB, 2)
    assert scores.tolist() == [-math.inf, pytest.approx(math.log(1 / 4))]
