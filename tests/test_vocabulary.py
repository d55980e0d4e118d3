import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore_pl import Vocabulary

CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=map(chr, [*range(0x2028, 0x206A)]))
WORDS = st.lists(st.text(CHARACTERS, min_size=1), min_size=1)


def test_names_give_the_vocabulary_of_the_notebook(names):
    vocabulary = Vocabulary.from_words(names)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert vocabulary.itos == {i + 1: letters[i] for i in range(26)} | {0: "."}
    assert vocabulary.characters == letters
    assert len(vocabulary) == 27


@given(WORDS)
def test_what_is_encoded_decodes_to_itself(words):
    vocabulary = Vocabulary.from_words(words)
    for word in words:
        assert vocabulary.decode(vocabulary.encode(word)) == word
    assert vocabulary.decode_words(vocabulary.encode_words(words)) == words


@given(WORDS)
def test_the_stream_is_every_word_and_a_boundary(words):
    vocabulary = Vocabulary.from_words(words)
    expected = [i for word in words for i in [*vocabulary.encode(word), 0]]
    assert vocabulary.encode_words(words).tolist() == expected


def test_no_words_give_an_empty_stream():
    assert Vocabulary("ab").encode_words([]).tolist() == []
    assert Vocabulary("").encode_words(["", ""]).tolist() == [0, 0]


def test_a_full_stop_in_a_word_is_no_boundary():
    vocabulary = Vocabulary.from_words(["a.b"])
    assert vocabulary.encode("a.b") == [2, 1, 3]
    assert vocabulary.itos == {0: ".", 1: ".", 2: "a", 3: "b"}
    assert vocabulary.decode_words(vocabulary.encode_words(["a.b", "..."])) == ["a.b", "..."]


@pytest.mark.parametrize("unknown", ["ë", "~", "\U0001f642", "A"])
def test_an_unknown_character_is_named(unknown):
    vocabulary = Vocabulary("abc}")
    for encode in (vocabulary.encode, lambda word: vocabulary.encode_words(["a", word])):
        with pytest.raises(ValueError, match=f"'ab{unknown}'.*character '{unknown}'"):
            encode(f"ab{unknown}")


@pytest.mark.parametrize("characters", ["ba", "aa"])
def test_characters_must_be_distinct_and_sorted(characters):
    with pytest.raises(ValueError, match="sorted"):
        Vocabulary(characters)


@pytest.mark.parametrize("character", "\n\x1b\x9b\u202e\ud800")
def test_what_is_not_to_be_printed_is_in_no_vocabulary(character):
    with pytest.raises(ValueError, match=rf"^vocabulary has U\+{ord(character):04X}.*, which no list may have$"):
        Vocabulary("".join(sorted(f"a{character}")))


def test_vocabularies_compare_by_their_characters():
    assert Vocabulary("ab") == Vocabulary.from_words(["ba", "a"])
    assert Vocabulary("ab") != Vocabulary("abc")
    assert len({Vocabulary("ab"), Vocabulary("ab")}) == 1
    assert eval(repr(Vocabulary("ab"))) == Vocabulary("ab")
