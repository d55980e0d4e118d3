import hashlib
from itertools import zip_longest

import notebook
import pytest

from makemore_pl import wordlist
from makemore_pl.wordlist import default_path, hash_words, read_pieces, read_words, split_words


def test_the_default_list_is_names_txt(names):
    assert read_words(default_path()) == names


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"emma\nolivia\n", ["emma", "olivia"]),
        (b"emma\r\nolivia", ["emma", "olivia"]),
        (b"\xef\xbb\xbfemma\n", ["emma"]),
        (b"  emma \n\n \t\nava", ["emma", "ava"]),
        ("a\u2028b\x85c\nd".encode(), ["a\u2028b\x85c", "d"]),
        (b"St. Gallen\nemma\nemma", ["St. Gallen", "emma", "emma"]),
    ],
)
def test_lists_are_read_line_by_line(raw, words, tmp_path):
    (tmp_path / "list.txt").write_bytes(raw)
    assert read_words(tmp_path / "list.txt") == words


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "list.txt: no words"),
        (b" \n\r\n", "list.txt: no words"),
        (b"emma\nzo\xeb\n", "list.txt, line 2: byte 0xeb is not UTF-8"),
    ],
)
def test_unusable_lists_are_refused(raw, message, tmp_path):
    (tmp_path / "list.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_words(tmp_path / "list.txt")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.txt: cannot read this word list \(No such file or directory\)"):
        read_words(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="cannot read this word list"):
        read_words(tmp_path)


def test_the_split_is_that_of_the_lecture(names):
    assert split_words(names) == notebook.split(names)
    assert [sum(len(word) + 1 for word in part) for part in split_words(names)] == [182518, 22939, 22689]


def test_another_seed_and_other_fractions_split_otherwise():
    words = [str(i) for i in range(100)]
    train, val, test = split_words(words, 0.7, 0.1, seed=1)
    assert [len(train), len(val), len(test)] == [70, 10, 20]
    assert sorted(train + val + test) == sorted(words)
    assert split_words(words, 0.7, 0.1, seed=2)[0] != train


def test_nothing_need_be_held_back():
    train, val, test = split_words(["a", "b", "c"], 1, 0)
    assert sorted(train) == ["a", "b", "c"]
    assert (val, test) == ([], [])


@pytest.mark.parametrize("fractions", [(0, 0.5), (0.8, -0.1), (0.8, 0.3), (1.1, 0), (float("nan"), 0)])
def test_fractions_outside_their_range_are_refused(fractions):
    with pytest.raises(ValueError, match="expected shares of 1"):
        split_words(["a"] * 100, *fractions)


def test_too_few_words_for_the_split_are_refused():
    with pytest.raises(ValueError, match="5 words are too few: 10% for validation"):
        split_words(["a"] * 5)


# Piece by piece.


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(wordlist, "PIECE", 50)


@pytest.mark.parametrize("readers", [1, 2, 3, 7])
@pytest.mark.parametrize("end", ["", "\n"])
def test_readers_share_the_pieces_of_a_list(readers, end, names, tmp_path, small_pieces):
    words = names[:300] + ["a" * 200, "", "名前", "b"] + names[300:305]
    (tmp_path / "list.txt").write_text("\n".join(words) + end, encoding="utf-8")
    shares = [list(read_pieces(tmp_path / "list.txt", rank, readers)) for rank in range(readers)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) > 3
    in_turn = [piece for pieces in zip_longest(*shares, fillvalue=()) for piece in pieces]
    assert [word for piece in in_turn for word in piece] == [word for word in words if word]


def test_a_mistake_in_a_later_piece_is_found_where_it_is(tmp_path, small_pieces):
    (tmp_path / "list.txt").write_bytes(b"emma\n" * 100 + b"zo\xeb\n" + b"ava\n" * 100)
    with pytest.raises(ValueError, match=r"list.txt, line 101: byte 0xeb is not UTF-8"):
        read_words(tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"list.txt, byte 502: byte 0xeb is not UTF-8"):
        for rank in range(2):
            list(read_pieces(tmp_path / "list.txt", rank, 2))


# The split by hash.


def test_the_hash_sends_equal_words_together(names):
    train, val, test = hash_words(names * 2)
    assert not set(train) & set(val)
    assert not set(val) & set(test)
    assert not set(test) & set(train)
    assert sorted(train + val + test) == sorted(names * 2)
    chosen = set(train)
    assert train == [word for word in names * 2 if word in chosen]


def test_the_hash_is_one_that_anybody_can_compute(names):
    """Blake2b of the seed, a space and the word: the first 8 bytes as a share of 2**64."""
    shares = [
        int.from_bytes(hashlib.blake2b(f"7 {word}".encode(), digest_size=8).digest(), "big") / 2**64
        for word in names[:2000]
    ]
    train, val, test = hash_words(names[:2000], 0.7, 0.1, seed=7)
    assert train == [word for word, share in zip(names, shares, strict=False) if share < 0.7]
    assert val == [word for word, share in zip(names, shares, strict=False) if 0.7 <= share < 0.8]
    assert test == [word for word, share in zip(names, shares, strict=False) if share >= 0.8]


def test_the_hash_keeps_the_shares():
    """Of distinct words, to five standard deviations."""
    words = [f"{number}" for number in range(100_000)]
    for seed in (1, 2):
        sizes = [len(split) for split in hash_words(words, 0.8, 0.1, seed)]
        for size, share in zip(sizes, (0.8, 0.1, 0.1), strict=True):
            assert abs(size - share * 100_000) < 5 * (100_000 * share * (1 - share)) ** 0.5
    assert hash_words(words, seed=1)[1] != hash_words(words, seed=2)[1]


def test_the_hash_need_hold_nothing_back(names):
    assert hash_words(names, 1, 0) == (names, [], [])
    assert hash_words(names, 0.8, 0)[1] == []
    assert hash_words(names, 0.8, 0.2)[2] == []
    with pytest.raises(ValueError, match="expected shares of 1"):
        hash_words(names, 0.8, 0.3)
