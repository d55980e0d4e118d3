import io
import os
import re
import socket
import threading
import unicodedata
from collections import Counter
from contextlib import suppress
from itertools import zip_longest
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from makemore_pl import Vocabulary, pieces, wordlist
from makemore_pl.wordlist import read_pieces, read_words, shipped


def test_the_default_list_is_names_txt(names):
    assert read_words(shipped("names.txt")) == names


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"emma\nolivia\n", ["emma", "olivia"]),
        (b"emma\r\nolivia", ["emma", "olivia"]),
        (b"\xef\xbb\xbfemma\n", ["emma"]),
        (b"  emma \n\n \t\nava", ["emma", "ava"]),
        ("\u3000ab\xa0\n\xa0\nc".encode(), ["ab", "c"]),
        (b"\tab\t\nc d", ["ab", "c d"]),
        (b"ab\r\n\r\nc\r\n", ["ab", "c"]),
        (b"x", ["x"]),
        (b"St. Gallen\nemma\nemma", ["St. Gallen", "emma", "emma"]),
        # Joiners, marks of direction, variation selectors: Hindi, Persian, emoji, Hebrew.
        (
            "क्\u200dष\nمی\u200cشود\n👩\u200d💻\n❤\ufe0f\nא\u200e1\u200fב\n".encode(),
            ["क्\u200dष", "می\u200cشود", "👩\u200d💻", "❤\ufe0f", "א\u200e1\u200fב"],
        ),
    ],
)
def test_lists_are_read_line_by_line(raw, words, tmp_path):
    (tmp_path / "list.txt").write_bytes(raw)
    assert read_words(tmp_path / "list.txt") == words


@pytest.mark.parametrize(
    ("raw", "where", "what"),
    [
        (b"", "", "no words in this list; expected one a line"),
        (b" \n\r\n\xe3\x80\x80", "", "no words in this list"),
        (b"\xef\xbb\xbf", "", "no words in this list"),
        (
            b"emma\nzo\xeb\n",
            ", line 2, byte 7",
            "0xeb is not UTF-8; save the list as UTF-8, or name its --data.encoding",
        ),
        (b"emma\nzo\xc3", ", line 2, byte 7", "0xc3 is not UTF-8"),
        (b"emma\n\xed\xa0\x80", ", line 2, byte 5", "0xed is not UTF-8"),  # half a surrogate pair
        ("emma\n".encode("utf-16"), "", "this looks like UTF-16; save the list as UTF-8"),
        ("emma\n".encode("utf-16-be"), "", "this looks like UTF-16"),
        ("emma\n".encode("utf-16-le"), "", "this looks like UTF-16"),
        (b"emma\nav\0a\n", ", line 2, byte 7", "control character U+0000 (NUL); expected one word a line"),
        (b"emma\n\r\nav\x1ba\n", ", line 3, byte 9", "control character U+001B"),
        (b"\xef\xbb\xbfa\n\x7f", ", line 2, byte 5", "control character U+007F"),
        ("é\nb\x9b".encode(), ", line 2, byte 4", "control character U+009B"),
        ("é\nb\x85c".encode(), ", line 2, byte 4", "control character U+0085; expected one word a line"),
        ("\u2028ab".encode(), ", line 1, byte 0", "control character U+2028 (line separator)"),  # space to Python
        ("a\u2029b".encode(), ", line 1, byte 1", "control character U+2029 (paragraph separator)"),
        ("a\nb\u202ec".encode(), ", line 2, byte 3", "control character U+202E (right-to-left override)"),
        ("a\nb\u2066c".encode(), ", line 2, byte 3", "control character U+2066 (left-to-right isolate)"),
        (b"\x1cab", ", line 1, byte 0", "control character U+001C"),  # space to Python
        (b"emma\rava\r", ", line 1, byte 4", "control character U+000D (a carriage return that ends no line)"),
        (b"emma\r\r\n", ", line 1, byte 4", "control character U+000D"),
        (b"\tx\nemma\tF\t3", ", line 2, byte 3", "a tab inside a word; expected one word a line"),
        ("é\n".encode() + b"a" * 1001, ", line 2, byte 3", "a word of 1,001 characters; expected at most 1,000"),
        (b"\xef\xbb\xbf\r\n" + b"a" * 2000, ", line 2, byte 5", "a word of 2,000 characters"),
    ],
)
def test_unusable_lists_are_refused(raw, where, what, tmp_path):
    (tmp_path / "list.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(f"list.txt{where}: {what}")) as refused:
        read_words(tmp_path / "list.txt")
    assert "\n" not in str(refused.value)


def test_long_words_and_much_space_are_no_mistake(tmp_path):
    (tmp_path / "list.txt").write_bytes(b" " * 5000 + b"a" * 1000 + b" " * 5000 + b"\n" + "é".encode() * 1000)
    assert read_words(tmp_path / "list.txt") == ["a" * 1000, "é" * 1000]
    assert read_words(tmp_path / "list.txt", max_word_length=1000) == ["a" * 1000, "é" * 1000]
    with pytest.raises(ValueError, match=r"line 1, byte 5,000: a word of 1,000 characters; expected at most 999"):
        read_words(tmp_path / "list.txt", max_word_length=999)


def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 100)
    monkeypatch.setattr(pieces, "LONGEST_LINE", 100)
    file = io.BytesIO(b"emma\n" + b" " * 1000 + b"ava")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
    with pytest.raises(ValueError, match="a line over 100 bytes"):
        read_words("-")
    assert file.tell() <= 200


def test_words_are_put_into_one_form(tmp_path):
    one, two = "Zoë", "Zoe\u0308"
    (tmp_path / "list.txt").write_text(f"{one}\n{two}\nab\n", encoding="utf-8")
    assert read_words(tmp_path / "list.txt") == [one, one, "ab"]
    assert read_words(tmp_path / "list.txt", "none") == [one, two, "ab"]


def test_what_is_not_taken_as_it_stands_is_counted(tmp_path):
    (tmp_path / "list.txt").write_text("\n  \nab\n cd\nZoe\u0308 \n\n", encoding="utf-8", newline="\r\n")
    changed = Counter()
    assert read_words(tmp_path / "list.txt", changed=changed) == ["ab", "cd", "Zoë"]
    assert changed == {"blank": 3, "space": 2, "NFC": 1}
    changed.clear()
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfab\r\ncd\r\n")
    read_words(tmp_path / "list.txt", changed=changed)
    assert not +changed


DIRECTIONS = "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.characters(exclude_categories=["Cs"]) | st.sampled_from(DIRECTIONS))
def test_a_list_may_have_what_a_vocabulary_may_have(character):
    """By the Unicode category of control characters, and the list of those for directions and line ends."""
    refused = unicodedata.category(character) == "Cc" or character in DIRECTIONS
    for use in (Vocabulary, lambda word: wordlist.split_piece(f"a{word}b".encode(), False, "none", 9, Counter())):
        try:
            use(character)
            assert not refused or (use is not Vocabulary and character == "\n")
        except (ValueError, wordlist.Mistake):
            assert refused


@given(
    st.lists(
        st.sampled_from(["a", "é", "e\u0301", "\u0344", "\u1fef", "名", "\u2027", "\u2065", " ", "\u3000", ".", "🙂"])
        | st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=DIRECTIONS)
        | st.sampled_from(["\n", "\r\n"])
    ).map("".join),
    st.booleans(),
    st.sampled_from(["NFC", "none"]),
)
@example("a\n\u0301b", False, "NFC")
def test_any_text_gives_its_lines(text, bom, form):
    """By the plainest code there is: split at line feeds, strip, normalise."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line]
    words = [line if form == "none" else unicodedata.normalize(form, line) for line in lines]
    raw = text.removeprefix("\ufeff").encode("utf-8-sig" if bom else "utf-8")
    changed = Counter()
    assert wordlist.split_piece(raw or b"\n", True, form, 10**6, changed) == words
    assert changed[form] == sum(word != line for word, line in zip(words, lines, strict=True))


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.integers(1, 20), st.integers(1, 5))
def test_any_bytes_are_words_or_a_mistake_whatever_the_pieces(raw, piece, length):
    """Read as one piece and as several: the same words, or the same mistake at the same place."""

    def read(size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pieces, "PIECE", size)
            patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
            try:
                return read_words("-", max_word_length=length)
            except ValueError as error:
                return str(error)

    whole = read(10**6)
    assert read(piece) == whole
    assert isinstance(whole, list) or re.fullmatch(r"-(, line \d+, byte \d+)?: [^\n]+", whole)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
def test_files_that_cannot_be_read_are_refused(tmp_path):
    loop, locked = tmp_path / "loop.txt", tmp_path / "locked.txt"
    loop.symlink_to(loop)
    locked.write_text("emma\n")
    locked.chmod(0)
    for path, reason in [
        (tmp_path / "nowhere.txt", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (loop, "Too many levels of symbolic links"),
        (locked, "Permission denied"),
    ]:
        user = os.geteuid()
        try:
            if path == locked and os.access(locked, os.R_OK):
                os.seteuid(65534)  # nothing is locked for root
            with pytest.raises(ValueError, match=re.escape(f"{path}: cannot read this word list ({reason})")):
                read_words(path)
        finally:
            os.seteuid(user)


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_a_named_pipe_that_nobody_writes_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(wordlist, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: nothing came through this pipe in 0.1 seconds; start what wr"):
        read_words(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # one that says nothing is no better
    with pytest.raises(ValueError, match=r"pipe: nothing came through this pipe"):
        read_words(tmp_path / "pipe")
    os.close(writer)
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(ValueError, match=r"link: nothing came through this pipe"):
        read_words(tmp_path / "link")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
def test_devices_and_sockets_are_refused(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in ("/dev/null", "/dev/zero", tmp_path / "link", tmp_path / "socket"):
            with pytest.raises(ValueError, match=f"^{path}: is a device or a socket; name a file, or read from stdin"):
                read_words(path)


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_a_named_pipe_is_read_to_its_end_however_slowly_it_is_written(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")

    def write():
        with (tmp_path / "pipe").open("wb", buffering=0) as file:
            file.write(b"em")
            assert waiting.wait(60)
            file.write(b"ma\nolivia\n")

    waiting, opened = threading.Event(), wordlist._open

    def watched(path):
        file = opened(path)  # the first bytes are there, the others not yet
        waiting.set()
        return file

    monkeypatch.setattr(wordlist, "_open", watched)
    threading.Thread(target=write, daemon=True).start()
    assert read_words(tmp_path / "pipe") == ["emma", "olivia"]


# In other encodings, in tables, with bad lines.


TEXT = "Zoë\n\n Łódź \nÅngström\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Zoë\n Åre\r\n\nØ"),
        ("cp1252", "Zoë\nŽofie\n"),
        ("cp037", "Zoë\nAnna\n"),  # EBCDIC
        ("utf-16", TEXT),
        ("utf-16-be", TEXT),
        ("utf-32-le", TEXT),
        ("utf-8-sig", TEXT),
        ("UTF8", "\ufeffZoë\n"),
        ("shift_jis", "名前\n花子\n"),
        ("gb18030", "名前\n🙂\n"),
        ("iso2022_jp", "名前\n花子\n"),
    ],
)
@pytest.mark.parametrize("size", [3, 10**6])
def test_lists_in_other_encodings(encoding, text, size, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", size)
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    words = [line.strip() for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    assert read_words(tmp_path / "list.txt", encoding=encoding) == words
    for readers in (2, 3):
        parts = [list(read_pieces(tmp_path / "list.txt", rank, readers, encoding=encoding)) for rank in range(readers)]
        in_turn = [piece for each in zip_longest(*parts, fillvalue=()) for piece in each]
        assert [word for piece in in_turn for word in piece] == words


def test_an_encoding_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"Anna\nZo\x98\n\xe9t\xe9\n")
    with pytest.raises(
        ValueError, match=r"list.txt, line 2: 0x98 is not ascii; .*; line 3: 0xe9 .*; 2 bad lines in all"
    ):
        read_words(tmp_path / "list.txt", encoding="ascii")
    assert read_words(tmp_path / "list.txt", encoding="ascii", skip_bad_lines=True) == ["Anna"]
    with pytest.raises(ValueError, match=r"list.txt, line 2: control character U\+0098"):
        read_words(tmp_path / "list.txt", encoding="latin-1")
    with pytest.raises(ValueError, match=r"list.txt: is not utf-16 \(.*\); name its encoding"):
        read_words(tmp_path / "list.txt", encoding="utf-16")


TABLE = 'name,kind\n"Ober, Unter",hill\n"O""Dell",\n\n Mora ,town\n"Zoë",\n"two\nlines",x\nAva,"x\ny"\n=1,"'
WORDS = ["Ober, Unter", 'O"Dell', "Mora", "Zoë", "Ava"]


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("ending", "encoding"), [("csv", "utf-8"), ("csv", "utf-16"), ("tsv", "latin-1"), ("x", "utf-8")]
)
def test_a_column_of_a_table(ending, encoding, end, rows, tmp_path, monkeypatch):
    """Quotes, commas and line breaks in cells, blank rows, a row with an open quote."""
    monkeypatch.setattr(pieces, "ROWS", rows)
    text = TABLE if ending == "csv" else TABLE.replace(",", "\t").replace("Ober\t", "Ober,")
    path = tmp_path / f"list.{ending}"
    path.write_text(text, encoding=encoding, newline=end)
    changed = Counter()
    skipped = {"encoding": encoding, "skip_bad_lines": True}
    assert read_words(path, column="name", changed=changed, **skipped) == WORDS
    assert changed == {"blank": 1, "space": 1, "bad": 2}
    assert read_words(path, column=1, **skipped) == ["name", *WORDS]
    assert read_words(path, column="kind", **skipped) == ["kind", "hill", "town", "x"][1:]
    parts = [list(read_pieces(path, rank, 3, column="name", **skipped)) for rank in range(3)]
    in_turn = [piece for each in zip_longest(*parts, fillvalue=()) for piece in each]
    assert [word for piece in in_turn for word in piece] == WORDS
    with pytest.raises(ValueError, match=r"line 8: a word of several lines; line 11: unexpected end of data; .*2 bad"):
        read_words(path, column="name", encoding=encoding)
    with pytest.raises(ValueError, match=rf"list.{ending}: no column 'town' in the header: name, kind$"):
        read_words(path, column="town", encoding=encoding)


def test_a_table_with_semicolons(tmp_path):
    (tmp_path / "list.csv").write_text("id;name\n1;Doe, John\n2;x\n")
    assert read_words(tmp_path / "list.csv", column="name") == ["Doe, John", "x"]
    (tmp_path / "one.csv").write_text("name\nDoe\n")
    assert read_words(tmp_path / "one.csv", column="name") == ["Doe"]
    (tmp_path / "one.tsv").write_text("name\nDoe, John\n")
    assert read_words(tmp_path / "one.tsv", column="name") == ["Doe, John"]


BAD = b"anno\nzo\xeb\nberta\nx\ty\n \n\x1bcilli\ndora\n" + b"a" * 30 + b"\nemil\xff"


def test_all_bad_lines_are_counted_and_three_are_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(BAD)
    with pytest.raises(ValueError) as refused:
        read_words(tmp_path / "list.txt", max_word_length=20, skip_bad_lines=False)
    assert str(refused.value) == (
        f"{tmp_path / 'list.txt'}, line 2, byte 7: 0xeb is not UTF-8; save the list as UTF-8, or name its "
        "--data.encoding; line 4, byte 15: a tab inside a word; expected one word a line (--data.column takes one "
        "column of a table); line 6, byte 21: control character U+001B; expected one word a line; 5 bad lines in all "
        "(--data.skip_bad_lines omits them)"
    )
    changed = Counter()
    assert read_words(tmp_path / "list.txt", "NFC", 20, changed, skip_bad_lines=True) == ["anno", "berta", "dora"]
    assert changed == {"bad": 5, "blank": 1, "space": 0}


def test_a_file_of_bad_lines_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 5000)
    file = io.BytesIO(b"\0\0\n" * 10_000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
    with pytest.raises(ValueError, match=r"; over 1,000 bad lines in all$"):
        read_words("-")
    assert file.tell() < 6000
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\0\0\n" * 10_000 + b"anno")))
    assert read_words("-", skip_bad_lines=True) == ["anno"]


@given(
    st.lists(st.binary(max_size=5) | st.sampled_from([b"", b"ab", b"\xc3\xa9", b"\xe9", b" a\tb ", b"\r", b"abc\r"])),
    st.integers(1, 30),
)
def test_omitting_bad_lines_leaves_those_that_are_good_by_themselves(lines, size):
    lines = [line.replace(b"\n", b"") for line in lines]
    start = b"".join(line + b"\n" for line in lines)[:2]
    if start.count(0) == 1 or start in (b"\xff\xfe", b"\xfe\xff"):
        return  # looks like UTF-16
    good = []
    for number, line in enumerate(lines):
        with suppress(wordlist.Mistake):
            good += wordlist.split_piece(line + b"\n", number == 0, "NFC", 3, Counter())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", size)
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"".join(line + b"\n" for line in lines))))
        found = [word for piece in read_pieces("-", max_word_length=3, skip_bad_lines=True) for word in piece]
    assert found == good


# Piece by piece.


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 50)


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
    with pytest.raises(ValueError, match=r"list.txt, line 101, byte 502: 0xeb is not UTF-8"):
        read_words(tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"list.txt, byte 502: 0xeb is not UTF-8"):
        for rank in range(2):
            list(read_pieces(tmp_path / "list.txt", rank, 2))
