"""A tokenizer with more tokens: all that it had stays, text goes there and back, and what is new is one token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.questions.extended_tokenizer import extended_tokenizer, pieces_of_new_tokens
from bitgen.data.questions.marked_text import MARKS
from bitgen.data.tokenizer import build_tokenizer, load_tokenizer, train_bpe, vocabulary_size
from support.tokenizers import KINDS, prose, wordlevel_tokenizer

FREQUENT = [
    "triangle",
    "triangles",
    "purple",
    "cyan",
    "what",
    "whatever",
    "colour",
    "colours",
    "naïve",
    "Größe",
    "猫猫",
]
TEXTS = [f"{word}, {word}? {word};" for word in FREQUENT for _ in range(8)] + ["seldom rare"] * 19
BASES = {
    "no merges": lambda: train_bpe(["x"], 259),
    "some merges": lambda: train_bpe([prose(seed, 20) for seed in range(5)], 300),
    "many merges": lambda: train_bpe([*TEXTS, "tri angle angles ang colo our ours urple ple ow what ever"] * 3, 330),
}


@pytest.fixture(scope="module", params=BASES)
def both(request):
    base = BASES[request.param]()
    return base, extended_tokenizer(base, MARKS, TEXTS, 600)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_tokens_of_the_base_keep_their_ids_and_new_ones_follow(both) -> None:
    base, more = both
    vocabulary, kept = more.get_vocab(), base.get_vocab()
    assert {token: vocabulary[token] for token in kept} == kept
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))), "each id once, without gaps"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(more, name) == getattr(base, name)


def test_frequent_words_and_marks_become_single_tokens(both) -> None:
    base, more = both
    for word in FREQUENT:
        assert len(ids_of(more, f" {word}")) == 1, more.tokenize(f" {word}")
    assert len(ids_of(more, " rare")) == len(ids_of(base, " rare")), "nineteen times are not enough"
    text = f" purple{''.join(MARKS)}cyan"
    assert [token for token in more.tokenize(text) if token in MARKS] == list(MARKS)
    assert decoded(more, ids_of(more, text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_goes_there_and_back(both, text: str) -> None:
    base, more = both
    assert decoded(more, ids_of(more, text)) == decoded(base, ids_of(base, text)) == text
    assert len(ids_of(more, text)) <= len(ids_of(base, text))


@given(st.lists(st.sampled_from([*FREQUENT, *"aelor ,?;", "  ", "ang", "WHAT"])).map("".join))
def test_texts_of_new_words_do_too(both, text: str) -> None:
    base, more = both
    assert decoded(more, ids_of(more, text)) == text and len(ids_of(more, text)) <= len(ids_of(base, text))


def test_text_without_new_words_has_the_tokens_of_the_base() -> None:
    base = BASES["some merges"]()
    more = extended_tokenizer(base, MARKS, TEXTS, 600)
    new = {token for token in more.get_vocab() if token not in base.get_vocab()}
    for seed in range(40):
        if not new & set(more.tokenize(prose(seed))):
            assert ids_of(more, prose(seed)) == ids_of(base, prose(seed))


def test_pieces_spell_the_new_tokens(both) -> None:
    """What the base writes a new token with, joined, is that token; of marks nothing is said."""
    base, more = both
    pieces = pieces_of_new_tokens(base, more)
    assert set(pieces) == set(more.get_vocab().values()) - set(base.get_vocab().values())
    for index, ids in pieces.items():
        token = more.convert_ids_to_tokens(index)
        assert (ids == []) == (token in MARKS)
        assert ids == [] or "".join(base.convert_ids_to_tokens(ids)) == token
    assert pieces_of_new_tokens(base, base) == {}


def test_pieces_of_tokens_with_other_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token .* is \d+ in the extended tokenizer and \d+ in its base"):
        pieces_of_new_tokens(wordlevel_tokenizer(), wordlevel_tokenizer(3))


# ---- room ----


def test_too_little_room_for_the_marks_is_an_error_that_says_how_much_it_takes() -> None:
    base = BASES["some merges"]()
    needed = vocabulary_size(base) + len(MARKS)
    with pytest.raises(ValueError, match=rf"vocab_size is {needed - 1}.*Write\s+vocab_size {needed + 100}"):
        extended_tokenizer(base, MARKS, TEXTS, needed - 1)
    assert vocabulary_size(extended_tokenizer(base, MARKS, TEXTS, needed)) == needed


@pytest.mark.parametrize("room", [1, 2, 3, 7, 20, 60, 1000])
def test_words_fill_the_room_and_no_more(room: int) -> None:
    base = BASES["no merges"]()
    more = extended_tokenizer(base, MARKS, TEXTS, vocabulary_size(base) + len(MARKS) + room)
    new = vocabulary_size(more) - vocabulary_size(base) - len(MARKS)
    assert 0 <= new <= room and (new == 0) == (room < 7), "the first word, of eight tokens, takes seven"
    assert set(MARKS) <= set(more.get_vocab())


def test_marks_that_are_there_already_stay_where_they_are() -> None:
    more = extended_tokenizer(BASES["some merges"](), MARKS, TEXTS, 600)
    again = extended_tokenizer(more, [*MARKS, "<new>"], TEXTS, 600)
    assert again.get_vocab() == more.get_vocab() | {"<new>": len(more.get_vocab())}


def test_words_that_no_merge_can_join_take_no_room() -> None:
    """Letters and digits are never in one token of GPT-2's kind."""
    base = BASES["some merges"]()
    more = extended_tokenizer(base, MARKS, ["room abc123 b2b 4x4"] * 50, 600)
    for index in pieces_of_new_tokens(base, more):
        token = more.convert_ids_to_tokens(index)
        text = token if token in MARKS else more.convert_tokens_to_string([token])
        assert ids_of(more, text) == [index], token


# ---- of every kind ----


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_other_kinds_get_the_marks(kind: str) -> None:
    base = KINDS[kind]()
    more = extended_tokenizer(base, MARKS, ["the dog runs"] * 30, 600)
    vocabulary = more.get_vocab()
    assert {token: vocabulary[token] for token in base.get_vocab()} == base.get_vocab()
    assert len(set(vocabulary.values())) == len(vocabulary)
    if kind != "bytes":
        assert set(vocabulary) == {*base.get_vocab(), *MARKS}
    found = more.convert_ids_to_tokens(ids_of(more, "the dog<b3><none>"))
    assert [token for token in found if token in MARKS] == ["<b3>", "<none>"]


def test_tokens_behind_the_models_own_vocabulary_keep_their_ids() -> None:
    """As those of Qwen's and Llama 3's tokenizers stand; new words would take the ids behind the vocabulary."""
    base = BASES["some merges"]()
    base.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    more = extended_tokenizer(base, MARKS, TEXTS, 600)
    vocabulary = more.get_vocab()
    assert {token: vocabulary[token] for token in base.get_vocab()} == base.get_vocab()
    assert set(vocabulary) == {*base.get_vocab(), *MARKS} and len(set(vocabulary.values())) == len(vocabulary)
    pieces_of_new_tokens(base, more)


def test_ids_with_gaps_are_refused() -> None:
    """Two tokens of one id would have one embedding."""
    with pytest.raises(ValueError, match="gaps"):
        extended_tokenizer(wordlevel_tokenizer(2), MARKS, [], 500)


# ---- kept ----


def test_saved_and_loaded_it_is_the_same(both, tmp_path) -> None:
    _, more = both
    more.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == more.get_vocab()
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (more.bos_token, more.eos_token, more.pad_token)
    for text in (" what purple triangle?", "<q> cyan<think><b3><b8><b7><b12> 猫<answer>", prose(3), "é \n </s> <s>"):
        assert ids_of(loaded, text) == ids_of(more, text)
        assert decoded(loaded, ids_of(loaded, text)) == decoded(more, ids_of(more, text))


@pytest.mark.realdata
def test_gpt2_itself(shared_data, tmp_path) -> None:
    base = build_tokenizer(str(shared_data / "gpt2_tokenizer"), None, 50257, None)
    words = ["turquoise", "whatchamacallit", "pentagonal"]
    more = extended_tokenizer(base, MARKS, [" ".join(words)] * 20, 50400)
    vocabulary = more.get_vocab()
    assert all(vocabulary[token] == index for token, index in base.get_vocab().items())
    assert ids_of(more, "Hello world") == [15496, 995]
    assert all(len(ids_of(more, f" {word}")) == 1 < len(ids_of(base, f" {word}")) for word in words)
    assert more.bos_token_id == more.eos_token_id == more.pad_token_id == 50256
    pieces = pieces_of_new_tokens(base, more)
    assert pieces[ids_of(more, " whatchamacallit")[0]] == ids_of(base, " whatchamacallit")
    lines = (shared_data / "flickr8k" / "captions.txt").read_text(encoding="utf-8").splitlines()[1:300]
    more.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for line in (*lines, "naïve 猫 🙂  two  spaces, turquoise <b3>"):
        assert decoded(more, ids_of(more, line)) == line and ids_of(loaded, line) == ids_of(more, line)
        if "<b3>" not in line:
            assert ids_of(more, line) == ids_of(base, line) or set(words) & set(line.split())
    with pytest.raises(ValueError, match="vocab_size is 50257"):
        extended_tokenizer(base, MARKS, [], 50257)
