import gzip
import hashlib
import io
import json
import re
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

import notebook
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl.words import UNPRINTABLE, _stdin, looks_like, read_words, shipped, split_words


@pytest.fixture
def written(tmp_path):
    """Writes a list, and gives its path."""

    def write(content, name="list.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, **options):
    """The message with which a list is refused, without its path."""
    with pytest.raises(ValueError) as error:
        read_words(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


def test_names_are_those_of_the_notebook_in_the_order_that_all_figures_rest_on():
    names = read_words(shipped("names.txt"))
    assert len(names) == 32033
    assert names[:8] == ["emma", "olivia", "ava", "isabella", "sophia", "charlotte", "mia", "amelia"]
    digests = [
        hashlib.sha256(text.encode()).hexdigest() for text in ("\n".join(sorted(names)), "\n".join(names) + "\n")
    ]
    assert digests == [
        "a9709ebc7a567f82800674afbc0e06c5f37b266b339e78de606f7a8023d4b118",
        "3a83b1b3f3b9535eeb070f19ae678c29d83558ede501a863b19b82c4807450d2",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("emma\nolivia\n", ["emma", "olivia"]),
        ("emma\r\n\r\nolivia\rava", ["emma", "olivia", "ava"]),
        ("\ufeffemma\n", ["emma"]),
        ("  emma \n\n \t\nava\u3000\n\xa0\n\tc d", ["emma", "ava", "c d"]),
        ("St. Gallen\nemma\nemma", ["St. Gallen", "emma", "emma"]),
        ("Zoë\nZoe\u0308", ["Zoë", "Zoë"]),
        # Joiners, marks of direction, variation selectors: Hindi, emoji, Hebrew.
        ("क्\u200dष\n👩\u200d💻\n❤\ufe0f\nא\u200e1\u200fב", ["क्\u200dष", "👩\u200d💻", "❤\ufe0f", "א\u200e1\u200fב"]),
    ],
)
def test_a_list_is_read_line_by_line(content, words, written):
    assert read_words(written(content)) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": no words in this list; expected one a line"),
        (b" \n\r\n\xe3\x80\x80", ": no words in this list; expected one a line"),
        (b"emma\r\nzo\xeb\n", ", line 2: byte 0xeb is not utf-8; save the list as UTF-8, or name its encoding (--data"),
        ("emma\nava\n".encode("utf-16"), ", line 1: byte 0xff is not utf-8"),
        (b"emma\n\nav\0a\n", ", line 3: control character '\\x00' in a word; delete it, or name the"),
        ("é\nb\x85c".encode(), ", line 2: control character '\\x85' in a word"),
        (b"a\x0cb", ", line 1: control character '\\x0c' in a word"),
        ("a\nb\u2028c".encode(), ", line 2: control character '\\u2028' in a word"),
        ("a\nb\u202ec".encode(), ", line 2: control character '\\u202e' in a word"),
        (
            b"\tx\nemma\tF\t3",
            ", line 2: control character '\\t' in a word; delete it, or name the column of the wo",
        ),
        (b"PK\x03\x04\x14\0xl/worksheets", " is compressed, or a workbook; unpack it, or save its sheet as CSV and"),
        (gzip.compress(b"emma\n", mtime=0), " is compressed, or a workbook; unpack it"),
        (json.dumps(["emma", "olivia"]).encode(), " looks like JSON; write its words one a line, without quotes"),
        (b"emma, olivia, ava, mia\n", " looks like words on one line; write one a line (tr ',' '\\n')"),
    ],
)
def test_an_unusable_list_is_refused_in_one_line(content, message, written):
    assert refused(written(content)).startswith(message)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert refused(tmp_path / "nowhere.txt") == ": cannot read this list (No such file or directory)"
    assert refused(tmp_path) == ": cannot read this list (Is a directory)"


def test_stdin_is_read_once_and_kept(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Zoë\nemma\n".encode())))
    monkeypatch.setattr("makemore_pl.words._stdin", cache(_stdin.__wrapped__))  # a cache of its own
    assert read_words("-") == read_words("-") == ["Zoë", "emma"]


@given(st.characters(exclude_categories=["Cs"]))
def test_characters_that_change_the_lines_around_them_are_unprintable(character):
    """By the Unicode category of control characters, and a list of those for directions and line ends."""
    expected = unicodedata.category(character) == "Cc" or character in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e"
    assert bool(UNPRINTABLE.search(character)) == (expected or "\u2066" <= character <= "\u2069")


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\u0301\x85 ")))
def test_any_text_gives_its_lines_or_an_error(text):
    """By the plainest code there is: split at line ends, strip, normalise."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))]
    words = [unicodedata.normalize("NFC", line) for line in lines if line]
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(text.encode())
        if words and not UNPRINTABLE.search("".join(words)) and len(words) > 1:
            assert read_words(file.name) == words
        elif len(words) != 1:
            refused(file.name)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "utf-8-sig", "cp037"])
def test_lists_in_other_encodings(encoding, written):
    assert read_words(written("Zoë\n\n Ångström\n".encode(encoding)), encoding) == ["Zoë", "Ångström"]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"emma\n", "latin-3.14", "encoding is latin-3.14: expected a name such as utf-8, latin-1, cp1252 or utf-16"),
        (b"emma\n", "hex", "encoding is hex: expected a name such as utf-8, latin-1, cp1252 or utf-16"),
        (b"emma\n\nzo\x98\n", "ascii", ", line 3: byte 0x98 is not ascii; save the list as UTF-8, or name its enc"),
        ("emma\nava\n".encode("utf-16-le") + b"\x00\xdc", "utf-16-le", ", line 3: byte 0x00 is not utf-16-le"),
    ],
)
def test_an_encoding_that_does_not_fit_is_refused(content, encoding, message, written):
    assert refused(written(content), encoding=encoding).startswith(message)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_of_a_table_by_name_or_number(delimiter, written):
    rows = ["kind|name|year", 'hill|"O""Dell"|1', "", f'x|"Ober{delimiter} Unter"|2', "town| Mora |3"]
    path = written("\r\n".join(rows).replace("|", delimiter))
    words = ['O"Dell', f"Ober{delimiter} Unter", "Mora"]
    if delimiter == "\t":  # no word may have a tab
        assert refused(path, column="name").startswith(", line 4: control character '\\t' in a word")
    else:
        assert read_words(path, column="name") == words
        assert read_words(path, column=2) == ["name", *words]
    assert read_words(path, column="kind") == ["hill", "x", "town"]


def test_a_column_without_a_delimiter_is_the_whole_line(written):
    assert read_words(written("name\nDoe, John\n"), column="name") == ["Doe, John"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("town", ": no column 'town' in the first row: name, kind"),
        (3, ", line 1: no column 3; this row has 2"),
        ("kind", ", line 4: no column 2; this row has 1"),
        ("name", ", line 6: control character '\\n' in a word"),
        (0, "column is 0: expected a name in the first row, or a number from 1 on"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused(column, message, written):
    path = written("name,kind\nanna,a\n\nberta\n" if column == "kind" else 'name,kind\nanna,a\n\nx,y\n"two\nlines",b\n')
    assert refused(path, column=column).startswith(message)


def test_an_open_quote_is_refused(written):
    message = refused(written('name,kind\n"anna,a\nberta,b\n'), column="name")
    assert message == ", line 3: unexpected end of data; mend the quotes of this row"


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        (["[", '"anna",', '"berta"', "]"], "looks like JSON;"),
        (['{"name": "anna"}', '{"name": "berta"}'], "looks like JSON;"),
        (["anna,f,1900", "bert,m,1901"], "looks like a table with commas; name the column"),
        (["anna;f", "bert;m"], "looks like a table with semicolons; name the column"),
        (["First Name", "Anna", "Bert"], "begins with 'First Name', as the header of a column would; drop it with"),
        (["anna bert carl dora"], "looks like words on one line; write one a line (tr ' ' '\\n')"),
        (["Rome, Georgia", "Paris"], ""),
        (["[sic]", "anna"], ""),
        (["de la Rue"], ""),
        (["anna", "name"], ""),
        (read_words(shipped("names.txt")), ""),
    ],
)
def test_what_is_no_list_of_words_is_recognised(lines, hint):
    assert looks_like(lines).startswith(hint)
    assert bool(looks_like(lines)) == bool(hint)


# The split.


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


@pytest.mark.parametrize(
    ("count", "missing"), [(5, "10% of 5 words leaves no validation"), (1, "80% of 1 word leaves no training")]
)
def test_too_few_words_for_the_split_are_refused(count, missing):
    option = "val_fraction" if count > 1 else "train_fraction"
    with pytest.raises(
        ValueError, match=rf"^{missing} word; add words or raise {option} \(train_fraction 1 and val_fra"
    ):
        split_words(["a"] * count)
