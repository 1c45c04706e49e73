"""What a caption, a document and a prompt become with tokenizers of every kind, and how many embeddings they need."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from bitgen.data.text_shards import encode_documents
from bitgen.data.tokenizer import build_tokenizer, check_vocabulary, load_tokenizer, train_bpe, vocabulary_size
from bitgen.evaluation.generation import generate_texts
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.processing_bitgen import BitGenProcessor, text_ids
from bitgen.model.question import BEHIND_SPACE, LETTERS, NO_WORD
from bitgen.model.token_ids import begins_behind_space, know_words, space_id, words_of
from support.tokenizers import KINDS, wordlevel_tokenizer

SPELLING = "a dog </s> the grass <pad> on <s> a [SEP] dog"


class Writes:
    """A model that always writes the same tokens."""

    device = "cpu"

    def __init__(self, ids, seen):
        self.ids, self.seen = torch.tensor(ids), seen

    def generate(self, input_ids, **_):
        self.seen += input_ids.tolist()
        return torch.cat([input_ids, self.ids.expand(len(input_ids), -1)], dim=1)


def with_padding(kind):
    tokenizer = KINDS[kind]()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def caption_ids(tokenizer):
    return BitGenProcessor(tokenizer).encode([SPELLING])[0]


def document_ids(tokenizer):
    return encode_documents(tokenizer, [SPELLING])[0]


def prompt_ids(tokenizer):
    seen: list = []
    generate_texts(Writes([tokenizer.eos_token_id], seen), tokenizer, [SPELLING])
    return [*seen[0], tokenizer.eos_token_id]


@pytest.mark.parametrize("entry", [caption_ids, document_ids, prompt_ids])
@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_a_special_token_is_text(kind, entry):
    tokenizer = with_padding(kind)
    ids = entry(tokenizer)
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert specials.isdisjoint(ids[1:-1])
    assert {"dog", "grass", "on"} <= set(tokenizer.decode(ids[1:-1]).split())


def test_where_the_vocabulary_has_its_characters_the_spelling_can_be_read_again():
    for kind in ("bytes", "sentencepiece"):
        tokenizer = with_padding(kind)
        [ids] = text_ids(tokenizer, ["a dog </s> on grass"])
        assert tokenizer.decode(ids) == "a dog </s> on grass"


def test_an_unknown_word_stays_the_unknown_token():
    tokenizer = with_padding("wordlevel")
    assert text_ids(tokenizer, ["a zebra", "a <unk>"]) == [[*tokenizer.convert_tokens_to_ids(["a", "<unk>"])]] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("a dog", "a dog runs on the grass"),
        ("", "a dog runs"),
        ("a dog ", "a dog runs on the grass"),
        ("a dog runs on the grass", "a dog runs on the grass"),
    ],
)
def test_a_prompt_and_what_follows_it_are_one_text(kind, prompt, whole):
    tokenizer = with_padding(kind)
    start, ids = (text_ids(tokenizer, [text])[0] for text in (prompt.strip(), whole))
    written = generate_texts(Writes(ids[len(start) :], []), tokenizer, [prompt, prompt])
    said = f"{prompt}{written[0]}"
    # Where a prompt's last space is read as one, " runs" follows it; otherwise the word brings none of its own.
    keeps_it = prompt.endswith(" ") and kind in ("bytes", "sentencepiece")
    assert said == (whole.replace("dog ", "dog  ") if keeps_it else whole) and written[0] == written[1]


@pytest.mark.parametrize("step", [1, 3])
def test_as_many_embeddings_as_the_largest_id_needs(tmp_path, step):
    wordlevel_tokenizer(step).save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    size = max(tokenizer.get_vocab().values()) + 1
    assert vocabulary_size(tokenizer) == size == step * (len(tokenizer) - 1) + 1
    with pytest.raises(ValueError, match=f"vocab_size is {size - 1}: use --vocab_size {size}"):
        build_tokenizer(str(tmp_path / "tokenizer"), None, size - 1, None)
    build_tokenizer(str(tmp_path / "tokenizer"), None, size, None)
    for config in (BitGenConfig(vocab_size=size), BitGenConfig(vocab_size=size, tokenizer_size=size)):
        check_vocabulary(tokenizer, config, tmp_path)
    check_vocabulary(tokenizer, BitGenConfig(vocab_size=size, tokenizer_size=len(tokenizer)), tmp_path)  # as before
    for config in (BitGenConfig(vocab_size=size - 1), BitGenConfig(vocab_size=99, tokenizer_size=size + 1)):
        with pytest.raises(ValueError, match="not the one that the model was trained with"):
            check_vocabulary(tokenizer, config, tmp_path)


def test_a_corpus_of_large_ids_is_stored_whole(tmp_path, monkeypatch):
    """67 tokens with ids far apart: two bytes do not hold the largest."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "data_prep"))
    monkeypatch.delitem(sys.modules, "babylm_text", raising=False)
    import babylm_text

    tokenizer = wordlevel_tokenizer(3000)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.train").write_text("the big red dog sat\n" * 3)
    babylm_text.main(
        ["--text", str(tmp_path / "text.train"), "--tokenizer", str(tmp_path / "tokenizer")]
        + ["--output", str(tmp_path / "corpus")]
    )
    assert json.loads((tmp_path / "corpus" / "bitgen_text.json").read_text())["dtype"] == "uint32"


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_before_a_name_is_a_token_of_its_own_where_names_are_read_alike_with_and_without_it(kind):
    tokenizer = KINDS[kind]()
    found = space_id(tokenizer)
    assert (found is not None) == (kind == "bytes")
    assert found is None or tokenizer.decode([found]) == " " and found not in tokenizer.all_special_ids


def test_where_a_name_alone_has_other_tokens_than_behind_a_space_there_is_no_such_space():
    """Captions with many a capital: " B" becomes a token."""
    names = train_bpe(["a Bob", "a Bud", "the Bog"] * 20, 270)
    alone, behind, space = text_ids(names, ["Blor", " Blor", " "])
    assert len(space) == 1 and behind != [*space, *alone] and space_id(names) is None


@pytest.mark.parametrize("kind", [*KINDS, "names"])
def test_a_space_goes_before_a_text_where_its_first_word_is_read_otherwise_without(kind):
    """And where it does, that word has the tokens that it has behind another one; nowhere else would it help."""
    made = KINDS | {"names": lambda: train_bpe(["a Bob", "a Bud", "the Bog"] * 20, 270)}
    tokenizer, names = made[kind](), [f"B{vowel}{end}" for vowel in "aeiou" for end in "bdgl"]
    before = len(text_ids(tokenizer, ["a"])[0])
    within = [ids[before:] for ids in text_ids(tokenizer, [f"a {name}" for name in names])]
    needed = begins_behind_space(tokenizer)
    assert needed == (kind == "names")
    if needed:
        assert text_ids(tokenizer, [f" {name}" for name in names]) == within != text_ids(tokenizer, names)
    elif space_id(tokenizer) is None:
        assert text_ids(tokenizer, names) == within


@pytest.mark.parametrize("kind", [*KINDS, "names", "gaps"])
def test_where_words_begin_and_end_is_known_of_the_tokens_of_any_tokenizer(kind):
    made = KINDS | {"names": lambda: train_bpe(["a Bob", "a Bud", "the Bog"] * 20, 270)}
    tokenizer = (made | {"gaps": lambda: wordlevel_tokenizer(3)})[kind]()
    words = words_of(tokenizer)
    assert len(words) == vocabulary_size(tokenizer) and set(words) <= set("012")
    for token in tokenizer.all_special_ids:
        unknown = token == tokenizer.unk_token_id and token not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert words[token] == str(BEHIND_SPACE if unknown else NO_WORD)
    for text in ("the dog, runs on grass.", "a dog: the grass?", "dog on the grass"):
        if kind in ("wordlevel", "gaps"):  # to which a word with a mark behind it is unknown
            text = re.sub(r"[^\w ]", "", text)
        (ids,), found = text_ids(tokenizer, [text]), []
        for at, token in enumerate(ids):
            goes_on = words[token] == str(LETTERS) and at and words[ids[at - 1]] != str(NO_WORD)
            found += [] if words[token] == str(NO_WORD) else [[token]] if not goes_on else []
            if goes_on:
                found[-1].append(token)
        known = [word for word in found if tokenizer.unk_token_id not in word]
        assert [tokenizer.decode(word).strip() for word in known] == [
            word for word in re.findall(r"\w+", text) if tokenizer.unk_token_id not in text_ids(tokenizer, [word])[0]
        ]
    assert str(BEHIND_SPACE) in words or kind == "sentencepiece", "whose vocabulary has single letters alone"


def test_letters_that_are_no_ascii_are_letters_in_whole_and_in_part():
    tokenizer = train_bpe(["\u00c5sa \u00c5sa", "Zo\u00eb"] * 3, 262)
    words = words_of(tokenizer)
    for name in ("\u00c5sa", "Zo\u00eb", "\u0141ukasz", "\u0c30\u0c3e\u0c2e"):
        assert {words[token] for token in text_ids(tokenizer, [name])[0]} == {str(LETTERS)}


def test_curly_marks_are_taught_as_those_of_a_keyboard():
    """Byte by byte they would be taken for letters of the names beside them."""
    config = BitGenConfig(feature_dim=6, feature_tokens=4, vocab_size=300)
    assert config.as_taught("Anna\u2019s \u201cRex\u201d \u2013 a dog\u2026") == 'Anna\'s "Rex" - a dog...'


def test_a_network_of_an_earlier_release_learns_its_words_and_others_keep_theirs():
    tokenizer = KINDS["bytes"]()
    for recall, words, expected in ((4, None, words_of(tokenizer)), (4, "012", "012"), (0, None, None)):
        config = BitGenConfig(feature_dim=6, feature_tokens=4, vocab_size=300, recall_tokens=recall, recall_words=words)
        know_words(config, tokenizer)
        assert config.recall_words == expected
