from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import MLP, Sampler, Vocabulary, sampling, windows
from makemore_pl.sampling import Draw
from makemore_pl.terminal import brief

AB = Vocabulary("ab")


def coins(context):
    """After `b` the word ends with probability 1/2 or goes on with a; after anything else b comes up 3 times in 4."""
    after_b = torch.tensor([0.5, 0.5, 0.0]).log()
    otherwise = torch.tensor([1.0, 1.0, 6.0]).log()
    return torch.where(context[:, -1:] == 2, after_b, otherwise)


def draw(next_logits=coins, vocabulary=AB, block_size=2, **options):
    return list(Draw(Sampler(**options), next_logits, vocabulary, block_size).names())


@pytest.fixture(params=["table", "forward"], autouse=True)
def way(request, monkeypatch):
    """Both ways to a distribution: looked up in a table of all contexts, or computed step by step."""
    if request.param == "forward":
        monkeypatch.setattr(sampling, "TABLE_CONTEXTS", 0)


def test_words_come_as_often_as_their_probability():
    n = 40_000
    found = Counter(draw(num_names=n, max_length=50))
    # First character: a 1/7, b 6/7, since no word is empty. Later: end 1/8, a 1/8, b 6/8 after a.
    expected = {
        "a": 1 / 7 * 1 / 8,
        "b": 6 / 7 * 1 / 2,
        "aa": 1 / 7 * 1 / 8 * 1 / 8,
        "ab": 1 / 7 * 6 / 8 * 1 / 2,
        "ba": 6 / 7 * 1 / 2 * 1 / 8,
        "bab": 6 / 7 * 1 / 2 * 6 / 8 * 1 / 2,
    }
    for word, p in expected.items():
        assert abs(found[word] - n * p) < 4.5 * (n * p * (1 - p)) ** 0.5, word
    assert "" not in found
    assert not any("bb" in word for word in found)


def test_temperature_divides_the_logits():
    n = 40_000
    p = Counter(name[0] for name in draw(num_names=n, temperature=2.0))["a"] / n
    expected = 1 / (1 + 6**0.5)
    assert abs(p - expected) < 4.5 * (expected * (1 - expected) / n) ** 0.5
    assert set(draw(num_names=100, temperature=1e-3, max_length=4)) <= {"b", "bab", "baba"}


def shares(context):
    """End 4/10, a 3/10, b 3/10 less a little, whatever came before."""
    return torch.tensor([4.0, 3.0, 2.9]).log().repeat(len(context), 1)


def test_top_k_draws_from_the_likeliest():
    n = 40_000
    found = Counter(draw(shares, num_names=n, top_k=2, max_length=9))
    # The first character is a or b, since the end is not among them; then the end or a, 4 to 3.
    for word, p in {"a": 3 / 5.9 * 4 / 7, "b": 2.9 / 5.9 * 4 / 7, "ba": 2.9 / 5.9 * 3 / 7 * 4 / 7}.items():
        assert abs(found[word] - n * p) < 4.5 * (n * p * (1 - p)) ** 0.5, word
    assert not any("b" in word[1:] for word in found)
    assert set(draw(shares, num_names=50, top_k=1)) == {"a"}
    assert draw(shares, num_names=50, top_k=99) == draw(shares, num_names=50)


@pytest.mark.parametrize(("top_p", "later"), [(0.3, ""), (0.41, "a"), (0.7, "a"), (0.71, "ab"), (1.0, "ab")])
def test_top_p_draws_from_those_that_have_the_share(top_p, later):
    """4/9.9 is 0.404, with 3/9.9 it is 0.707; at first, without the end, 3/5.9 is 0.508."""
    found = draw(shares, num_names=2000, top_p=top_p, max_length=9)
    assert {character for word in found for character in word[1:]} == set(later)
    assert {word[0] for word in found} == ({"a"} if top_p <= 0.508 else {"a", "b"})


def test_no_name_is_shorter_than_asked():
    n = 40_000
    found = Counter(map(len, draw(shares, num_names=n, min_length=3, max_length=20)))
    assert min(found) == 3
    p = 4 / 9.9  # that the third character is the last: before it, no end could come up
    assert abs(found[3] - n * p) < 4.5 * (n * p * (1 - p)) ** 0.5
    assert set(map(len, draw(shares, num_names=50, prompt="ab", min_length=4, max_length=4))) == {4}


def test_the_same_seed_gives_the_same_names_and_fewer_are_the_first_of_more(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    many = draw(num_names=200, seed=5)
    assert len(many) == 200
    assert draw(num_names=200, seed=5) == many
    for n in (1, 63, 64, 65, 150):
        assert draw(num_names=n, seed=5) == many[:n]
    assert draw(num_names=200, seed=6) != many
    assert many[:64] != many[64:128]


def test_chunks_can_be_drawn_in_any_order(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    sampler = Sampler(num_names=150)
    assert list(sampler) == [0, 1, 2]
    draw_any = Draw(sampler, coins, AB, 2)
    backwards = [draw_any.chunk(number) for number in (2, 1, 0)]
    assert [name for chunk in reversed(backwards) for name in chunk] == draw(num_names=150)


def test_names_begin_with_the_prompt_and_the_model_sees_it():
    assert all(name.startswith("bb") and not name.startswith("bbb") for name in draw(num_names=50, prompt="bb"))


def test_the_prompt_may_be_shorter_or_longer_than_the_block():
    seen = []

    def spy(context):
        seen.append(context[0].tolist())
        return torch.tensor([[100.0, 0.0, 0.0]]).repeat(len(context), 1)

    assert draw(spy, num_names=1, prompt="a", block_size=3) == ["a"]
    assert draw(spy, num_names=1, prompt="abba", block_size=3) == ["abba"]
    assert seen[-1] == [2, 2, 1] or len(seen) == 2  # a table asks for all contexts, once


def test_a_model_that_never_ends_is_cut_off():
    def endless(context):
        return torch.tensor([[-torch.inf, 1.0, -torch.inf]]).repeat(len(context), 1)

    assert draw(endless, num_names=2, max_length=7) == ["aaaaaaa"] * 2
    assert draw(endless, num_names=1, prompt="b", max_length=1) == ["b"]


def test_a_full_stop_of_the_alphabet_is_no_end():
    def dots(context):
        ends = (context == 1).all(dim=1, keepdim=True)
        return torch.where(ends, torch.tensor([100.0, 0.0]), torch.tensor([0.0, 100.0]))

    assert draw(dots, Vocabulary("."), num_names=2) == [".."] * 2


def test_a_prompt_is_taken_as_the_list_has_it():
    with pytest.warns(UserWarning, match="^prompt 'AB' taken in small letters: the list has no capitals$"):
        assert draw(prompt="AB") == draw(prompt="ab")
    with pytest.raises(ValueError, match="prompt 'b': character 'b' is not among the 2"):
        draw(vocabulary=Vocabulary("Aa"), prompt="b")  # a list with capitals has its own case


def test_of_a_large_alphabet_a_message_has_a_part():
    large = Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + 3000))))
    with pytest.raises(ValueError) as refused:
        draw(vocabulary=large, prompt="é")
    first = "".join(map(chr, range(0x4E00, 0x4E14)))
    assert str(refused.value) == (
        f"prompt 'é': character 'é' is not among the 3,000 of this vocabulary: {first!r} and 2,980 others"
    )
    assert brief(large.characters, large.characters[:2990]) == f"{large.characters[2990:]!r} and 2,990 others"


def test_an_unknown_character_in_the_prompt_is_named():
    with pytest.raises(ValueError, match="prompt 'aë': character 'ë' is not among the 2 of this vocabulary: 'ab'"):
        draw(prompt="aë")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_names": 0}, "num_names is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_length": 0}, "min_length is 1: expected 1 or more, no more than max_length, 0"),
        ({"min_length": 0}, "min_length is 0"),
        ({"min_length": 5, "max_length": 4}, "min_length is 5: expected 1 or more, no more than max_length, 4"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"max_length": 2, "prompt": "aba"}, "room for the prompt 'aba'"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


@given(
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.floats(0, 1, exclude_min=True),
    st.none() | st.integers(1, 10**30),
    st.integers(1, 5),
    st.integers(0, 10**30),
    st.integers(),
)
def test_any_options_give_words_of_the_alphabet(temperature, top_p, top_k, min_length, more, seed):
    lengths = {"min_length": min_length, "max_length": min(min_length + more, 30)}
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    names = draw(num_names=3, **options, **lengths)
    assert len(names) == 3
    for name in names:
        assert set(name) <= {"a", "b"}
        assert lengths["min_length"] <= len(name) <= lengths["max_length"]


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 1e-46}, {"top_p": 1e-300}, {"top_k": 1}])
def test_the_tamest_names_are_the_likeliest(options):
    assert draw(num_names=3, max_length=4, **options)[0][0] == "b"
    assert draw(num_names=1, max_length=4, **options) == draw(num_names=1, max_length=4, top_k=1)


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


def test_unique_names_are_the_others_without_those_that_came_before(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    ordinary = draw(num_names=1000, max_length=6)
    unique = list(dict.fromkeys(ordinary))
    for n in (1, 2, 10, 20):
        assert draw(num_names=n, max_length=6, unique=True) == unique[:n]


def test_novel_names_are_the_others_without_those_of_the_list(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)

    def where(names):
        return ["train" if name in {"b", "ba"} else "new" for name in names]

    novel = [name for name in draw(num_names=1000) if name not in {"b", "ba"}]
    assert draw(num_names=200, novel=True, where=where) == novel[:200]
    with pytest.raises(ValueError, match="novel compares names with a list"):
        draw(novel=True)


@pytest.mark.parametrize(
    ("pattern", "fits"), [("a|ba", {"a", "ba"}.__contains__), ("b.*", lambda name: name[0] == "b")]
)
def test_a_pattern_is_for_the_whole_name(pattern, fits, monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    ordinary = [name for name in draw(num_names=1000, max_length=6) if fits(name)]
    assert draw(num_names=50, max_length=6, pattern=pattern) == ordinary[:50]
    unique = list(dict.fromkeys(ordinary))[:2]
    assert draw(num_names=2, max_length=6, pattern=pattern, unique=True) == unique


def test_a_pattern_that_nothing_matches_is_given_up(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    with pytest.raises(ValueError, match="0 of 1 names: no other one that matches 'x' among 1,024 drawn"):
        draw(num_names=1, max_length=6, pattern="x")
    with pytest.raises(ValueError, match=r"pattern '\[' is not a regular expression: unterminated character set"):
        Sampler(pattern="[")


def test_a_random_seed_is_another_one_each_time():
    seeds = {Sampler(seed="random").seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_names_that_run_out_are_said_and_none_is_lost():
    """The words of one character, or two, over a and b without bb: 5."""
    found = []
    words = Draw(Sampler(num_names=10, unique=True, max_length=2), coins, AB, 2).names()
    with pytest.raises(ValueError, match="5 of 10 names: no other unique one among 65,536 drawn"):
        found.extend(iter(words.__next__, None))
    assert sorted(found) == ["a", "aa", "ab", "b", "ba"]


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"top_p": 1e-300}, {"top_k": 1}])
def test_at_the_edge_the_likeliest_is_left(options):
    assert set(draw(num_names=50, max_length=3, **options)) <= {"b", "bab"}


def test_at_the_highest_temperature_all_are_alike():
    n = 40_000
    found = Counter(name[0] for name in draw(num_names=n, temperature=1e300))
    assert abs(found["a"] - n / 2) < 4.5 * (n / 4) ** 0.5


@pytest.mark.parametrize("options", [{}, {"unique": True}])
def test_a_sampler_keeps_no_count_of_the_names(options, monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    sampler = Sampler(num_names=20, max_length=6, **options)
    before = vars(sampler).copy()
    first, again = (list(Draw(sampler, coins, AB, 2).names()) for _ in range(2))
    assert first == again
    assert len(first) == 20
    assert vars(sampler) == before


def test_a_large_alphabet_is_drawn_in_parts(monkeypatch):
    """The distributions of all words that are drawn side by side may not fit into memory."""
    letters = "".join(chr(0x4E00 + i) for i in range(400))
    model = MLP(letters, block_size=2, init="lecture").double()
    names = model.sample(300)
    scores = model.score(names)
    monkeypatch.setattr(windows, "CELLS_AT_ONCE", 401 * 7)
    assert model.sample(300) == names
    assert model.score(names) == pytest.approx(scores, rel=1e-12)
