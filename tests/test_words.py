import gzip
import hashlib
import json
import re
import tempfile
import unicodedata
from pathlib import Path

import notebook
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl.words import looks_like, read_words, shipped, split_words


@pytest.fixture
def written(tmp_path):
    """Writes a list, and gives its path."""

    def write(content):
        path = tmp_path / "list.txt"
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
    digest = hashlib.sha256(("\n".join(names) + "\n").encode()).hexdigest()
    assert digest == "3a83b1b3f3b9535eeb070f19ae678c29d83558ede501a863b19b82c4807450d2"


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


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "utf-8-sig", "cp037"])
def test_lists_in_other_encodings(encoding, written):
    assert read_words(written("Zoë\n\n Ångström\n".encode(encoding)), encoding) == ["Zoë", "Ångström"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_of_a_table_by_name_or_number(delimiter, written):
    rows = ["kind|name|year", 'hill|"O""Dell"|1', "", f'x|"Ober{delimiter} Unter"|2', "town| Mora |3"]
    path = written("\r\n".join(rows).replace("|", delimiter))
    words = ['O"Dell', f"Ober{delimiter} Unter", "Mora"]
    if delimiter == "\t":  # no word may have a tab
        assert refused(path, column="name").startswith(": control character '\\t' in ")
    else:
        assert read_words(path, column="name") == words
        assert read_words(path, column=2) == ["name", *words]
    assert read_words(path, column="kind") == ["hill", "x", "town"]


def test_a_column_without_a_delimiter_is_the_whole_line(written):
    assert read_words(written("name\nDoe, John\n"), column="name") == ["Doe, John"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, ": no words in this list; expected one a line"),
        (b"emma\r\nzo\xeb\n", {}, ", line 2: byte 0xeb is not utf-8; save the list as UTF-8, or name its encoding"),
        ("emma\nava\n".encode("utf-16"), {}, ", line 1: byte 0xff is not utf-8"),
        (b"emma\n\nzo\x98\n", {"encoding": "ascii"}, ", line 3: byte 0x98 is not ascii; save the list as UTF-8"),
        ("emma\n", {"encoding": "latin-3.14"}, "encoding is latin-3.14: expected a name such as utf-8, latin-1, cp1"),
        ("emma\n\nav\0a\n", {}, ": control character '\\x00' in 'av\\x00a'; delete it, or name the list's --data"),
        ("\tx\nemma\tF\t3", {}, ": control character '\\t' in 'emma\\tF\\t3'; delete it, or name the column of"),
        (b"PK\x03\x04\x14\0xl/worksheets", {}, " is compressed, or a workbook; unpack it, or save its sheet as CSV"),
        (gzip.compress(b"emma\n", mtime=0), {}, " is compressed, or a workbook; unpack it"),
        (json.dumps(["emma", "olivia"]), {}, " looks like JSON; write its words one a line, without quotes"),
        ("emma, olivia, ava, mia\n", {}, " looks like words on one line; write one a line (tr ',' '\\n')"),
        ("name,kind\nanna,a\n", {"column": "town"}, ": no column 'town' in the first row: name, kind"),
        ("name,kind\nanna,a\n", {"column": 3}, ", line 1: this row has no column 3"),
        ("name,kind\nanna,a\n\nberta\n", {"column": "kind"}, ", line 4: this row has no column 2"),
        ("name,kind\nanna,a\n", {"column": 0}, "column is 0: expected a name in the first row, or a number from 1"),
        ('name,kind\n"anna,a\nberta,b\n', {"column": 1}, ", line 3: unexpected end of data; fix the quotes of this"),
    ],
)
def test_an_unusable_list_is_refused_in_one_line(content, options, message, written):
    assert refused(written(content), **options).startswith(message)


def changes_the_lines_around_it(character):
    """A control character, an end of a line, or a mark of direction that holds beyond its word."""
    named = "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return unicodedata.category(character) == "Cc" or character in named


def test_only_characters_that_change_the_lines_around_them_are_refused(written):
    characters = [character for character in map(chr, range(0x3000)) if character not in "\r\n"]
    for character in filter(changes_the_lines_around_it, characters):
        assert "control character" in refused(written(f"emma\na{character}b"))
    words = [f"a{character}b" for character in characters if not changes_the_lines_around_it(character)]
    assert len(read_words(written("\n".join(words)))) == len(words)


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\u0301\x85 ")))
def test_any_text_gives_its_lines_or_an_error(text):
    """By the plainest code there is: split at line ends, strip, normalise."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))]
    words = [unicodedata.normalize("NFC", line) for line in lines if line]
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(text.encode())
        if not words or any(map(changes_the_lines_around_it, "".join(words))):
            refused(file.name)
        elif len(words) > 1:  # one word alone may look like a list on one line
            assert read_words(file.name) == words


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        (['{"name": "anna"}', '{"name": "berta"}'], "looks like JSON;"),
        (["anna,f,1900", "bert,m,1901"], "looks like a table with commas; name the column"),
        (["anna;f", "bert;m"], "looks like a table with semicolons; name the column"),
        (["First Name", "Anna", "Bert"], "begins with 'First Name', as the header of a column would; drop it with"),
        (["anna bert carl dora"], "looks like words on one line; write one a line (tr ' ' '\\n')"),
        (["Rome, Georgia", "Paris"], ""),
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


def test_another_seed_and_other_fractions_split_otherwise():
    words = [str(i) for i in range(100)]
    train, val, test = split_words(words, 0.7, 0.1, seed=1)
    assert [len(train), len(val), len(test)] == [70, 10, 20]
    assert sorted(train + val + test) == sorted(words)
    assert split_words(words, 0.7, 0.1, seed=2)[0] != train


@pytest.mark.parametrize("fractions", [(0, 0.5), (0.8, -0.1), (0.8, 0.3), (1.1, 0), (float("nan"), 0)])
def test_fractions_outside_their_range_are_refused(fractions):
    with pytest.raises(ValueError, match="expected shares of 1"):
        split_words(["a"] * 100, *fractions)
