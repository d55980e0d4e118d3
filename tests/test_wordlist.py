import notebook
import pytest

from makemore_pl.wordlist import default_path, read_words, split_words


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
