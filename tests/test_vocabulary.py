import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import Vocabulary

CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=map(chr, [*range(0x2028, 0x206A)]))
WORDS = st.lists(st.text(CHARACTERS))


def test_names_give_the_vocabulary_of_the_notebook(names):
    vocabulary = Vocabulary.from_words(names)
    assert vocabulary.characters == string.ascii_lowercase
    assert vocabulary.itos == {0: "."} | dict(enumerate(string.ascii_lowercase, start=1))
    assert len(vocabulary) == 27


@given(WORDS)
def test_the_stream_is_every_word_and_a_boundary(words):
    vocabulary = Vocabulary.from_words(words)
    stoi = {character: i for i, character in enumerate(sorted(set("".join(words))), start=1)}
    stream = vocabulary.encode_words(words)
    assert stream.tolist() == [i for word in words for i in [*(stoi[character] for character in word), 0]]
    for word in words:
        assert vocabulary.encode(word) == [stoi[character] for character in word]
        assert vocabulary.decode(vocabulary.encode(word)) == word


def test_a_full_stop_in_a_word_is_no_boundary():
    vocabulary = Vocabulary.from_words(["a.b"])
    assert vocabulary.encode("a.b") == [2, 1, 3]
    assert vocabulary.itos == {0: ".", 1: ".", 2: "a", 3: "b"}
    assert vocabulary.encode_words(["a.b", "..."]).tolist() == [2, 1, 3, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("unknown", ["ë", "~", "\U0001f642", "A", "\n"])
def test_an_unknown_character_is_named(unknown):
    vocabulary = Vocabulary("abc}")
    for encode in (vocabulary.encode, lambda word: vocabulary.encode_words(["a", word])):
        with pytest.raises(ValueError, match=re.escape(f"{f'ab{unknown}'!r}: character {unknown!r} is not")):
            encode(f"ab{unknown}")


@pytest.mark.parametrize("characters", ["ba", "aa", "\na"])
def test_characters_must_be_distinct_and_sorted(characters):
    with pytest.raises(ValueError) as error:
        Vocabulary(characters)
    expected = "expected distinct characters in sorted order, without line ends"
    assert str(error.value) == f"vocabulary is {characters!r}: {expected}"


def test_a_text_is_put_into_small_letters_if_the_list_has_no_capitals():
    assert Vocabulary("aë").in_its_case("AË") == "aë"
    assert Vocabulary("Aa").in_its_case("AA") == "AA"


def test_vocabularies_compare_by_their_characters():
    assert Vocabulary("ab") == Vocabulary.from_words(["ba", "a"])
    assert Vocabulary("ab") != Vocabulary("abc")
    assert eval(repr(Vocabulary("ab"))) == Vocabulary("ab")
