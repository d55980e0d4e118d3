import io
import os
import re
import socket
import threading
import unicodedata
from collections import Counter
from itertools import zip_longest
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from makemore_pl import Vocabulary, wordlist
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
        (b"emma\nzo\xeb\n", ", line 2, byte 7", "0xeb is not UTF-8; save the list as UTF-8 and try again"),
        (b"emma\nzo\xc3", ", line 2, byte 7", "0xc3 is not UTF-8"),
        (b"emma\n\xed\xa0\x80", ", line 2, byte 5", "0xed is not UTF-8"),  # half a surrogate pair
        ("emma\n".encode("utf-16"), ", line 1, byte 0", "this looks like UTF-16; save the list as UTF-8"),
        ("emma\n".encode("utf-16-be"), ", line 1, byte 0", "this looks like UTF-16"),
        ("emma\n".encode("utf-16-le"), ", line 1, byte 0", "this looks like UTF-16"),
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
    monkeypatch.setattr(wordlist, "PIECE", 100)
    monkeypatch.setattr(wordlist, "LONGEST_LINE", 100)
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
            patch.setattr(wordlist, "PIECE", size)
            patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
            try:
                return read_words("-", max_word_length=length)
            except ValueError as error:
                return str(error)

    whole = read(10**6)
    if isinstance(whole, list) or len(raw) <= piece:
        assert read(piece) == whole
    else:  # of several mistakes, the first piece with one decides
        assert re.fullmatch(r"-(, line \d+, byte \d+)?: [^\n]+", read(piece))


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
    with pytest.raises(ValueError, match=r"list.txt, line 101, byte 502: 0xeb is not UTF-8"):
        read_words(tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"list.txt, byte 502: 0xeb is not UTF-8"):
        for rank in range(2):
            list(read_pieces(tmp_path / "list.txt", rank, 2))
