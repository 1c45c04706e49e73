import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.data.collate import build_loader
from bitgen.data.sampler import SampleKey
from bitgen.data.text_blocks import PADDING_DOCUMENT, TextBlocks, causal_document_mask, collate_blocks
from bitgen.data.text_shards import (
    TEXT_SIDECAR,
    TextShardWriter,
    encode_documents,
    read_text_info,
    tokenizer_sha256,
)
from bitgen.data.tokenizer import load_tokenizer, train_bpe
from bitgen.model.likelihood import next_token_labels
from bitgen.model.processing_bitgen import BitGenProcessor
from support.data import write_text_corpus

BOS, EOS = 0, 1


def made_up(number: int, tokens: int) -> list[int]:
    """``BOS ... EOS``; the inner ids tell the document and the place in it."""
    return [BOS, *(1000 + 100 * number + place for place in range(tokens)), EOS]


corpora = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=1, max_size=25)


@given(corpora, st.integers(2, 33), st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 25))
def test_an_epoch_shows_every_token_and_word_once(tmp_path_factory, tokenizer, shapes, seq_len, seed, epoch, split):
    documents = [(made_up(number, tokens), words) for number, (tokens, words) in enumerate(shapes)]
    sources = {name: part for name, part in (("a", documents[:split]), ("b", documents[split:])) if part}
    blocks = TextBlocks(
        write_text_corpus(tmp_path_factory.mktemp("corpus"), tokenizer, sources), tokenizer, seq_len, seed=seed
    )
    samples = [blocks[SampleKey(index, epoch)] for index in range(len(blocks))]

    seen = Counter(token for sample in samples for token in sample["input_ids"][sample["attention_mask"] == 1].tolist())
    assert seen == Counter(token for ids, _ in documents for token in ids)
    assert sum(sample["words"] for sample in samples) == sum(words for _, words in documents) == blocks.num_words
    assert all(sample["attention_mask"].all() for sample in samples[:-1])

    for sample in samples:
        assert {value.dtype for value in sample.values() if isinstance(value, torch.Tensor)} == {torch.int64}
        ids, labels, document = (sample[name].tolist() for name in ("input_ids", "labels", "document_ids"))
        for at in range(seq_len):
            follows = at + 1 < seq_len and document[at + 1] == document[at] != PADDING_DOCUMENT
            assert labels[at] == (ids[at + 1] if follows else -100)
            if document[at] == PADDING_DOCUMENT or at == 0 or document[at] != document[at - 1]:
                assert sample["position_ids"][at] == 0
            else:
                assert sample["position_ids"][at] == sample["position_ids"][at - 1] + 1
        inner = [(document[at], (ids[at] - 1000) // 100) for at in range(seq_len) if ids[at] >= 1000]
        assert len(dict(inner)) == len(set(inner)), "one document_id, one document"
        assert BOS not in labels, "a document's first token is nobody's label"
        for at in range(seq_len):
            if document[at] != PADDING_DOCUMENT and ids[at] == EOS:
                assert labels[at] == -100


def test_a_single_document_has_the_labels_of_the_objective(tmp_path, tokenizer):
    blocks = TextBlocks(write_text_corpus(tmp_path, tokenizer, {"a": [(made_up(0, 5), 4)]}), tokenizer, 10)
    sample = blocks[0]
    expected = next_token_labels(sample["input_ids"][None], sample["attention_mask"][None])[0]
    assert sample["labels"].tolist() == expected.tolist()
    assert sample["labels"].tolist()[5] == EOS
    assert sample["document_ids"].tolist() == [0] * 7 + [-1] * 3


def test_order_is_a_function_of_seed_and_epoch(tmp_path, tokenizer):
    folder = write_text_corpus(tmp_path, tokenizer, {"a": [(made_up(n, 3 + n % 5), 2) for n in range(40)]})

    def epoch_of(blocks, epoch):
        return [blocks[SampleKey(index, epoch)]["input_ids"].tolist() for index in range(len(blocks))]

    one, other = (TextBlocks(folder, tokenizer, 16, seed=seed) for seed in (1, 2))
    first = epoch_of(one, 0)
    assert epoch_of(one, 1) != first != epoch_of(other, 0)
    assert epoch_of(one, 0) == first == epoch_of(pickle.loads(pickle.dumps(one)), 0)
    assert one[3]["input_ids"].tolist() == first[3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_through_a_loader_count_words_exactly_over_epochs(tmp_path, tokenizer, num_workers):
    documents = [(made_up(n, 3 + n % 7), 1 + n % 4) for n in range(48)]
    blocks = TextBlocks(write_text_corpus(tmp_path, tokenizer, {"a": documents}), tokenizer, 12)
    sampler = blocks.batch_sampler(1)
    words = 0
    for epoch in range(3):
        loader = build_loader(blocks, list(sampler.epoch(epoch)), num_workers, collate_blocks)
        for batch in loader:
            assert batch["input_ids"].shape == batch["labels"].shape == (1, 12)
            words += int(batch["words"].sum())
    assert words == 3 * blocks.num_words


def test_mask_blocks_other_documents_and_the_future():
    mask = causal_document_mask(torch.tensor([[0, 0, 1, 1, -1]]))
    assert mask.shape == (1, 1, 5, 5)
    expected = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    assert np.array_equal(mask[0, 0].numpy(), expected)


def test_some_sources_only(tmp_path, tokenizer):
    folder = write_text_corpus(tmp_path, tokenizer, {"a": [(made_up(0, 5), 4)], "b": [(made_up(1, 6), 9)]})
    blocks = TextBlocks(folder, tokenizer, 4, sources=["b"])
    assert (blocks.num_words, blocks.num_tokens, len(blocks)) == (9, 8, 2)
    assert "9 words, 8 tokens in 2 sequences of 4" in blocks.describe()
    with pytest.raises(ValueError, match="has no source c; it has a, b"):
        TextBlocks(folder, tokenizer, 4, sources=["c"])


def test_tokenizer_identity_survives_saving_and_tells_tokenizers_apart(tmp_path, tokenizer):
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert tokenizer_sha256(load_tokenizer(tmp_path / "saved")) == tokenizer_sha256(tokenizer)
    other = train_bpe(["quite other words"], 290)
    folder = write_text_corpus(tmp_path / "corpus", tokenizer, {"a": [(made_up(0, 5), 4)]})
    with pytest.raises(ValueError, match="made with another tokenizer .*--tokenizer DIR"):
        TextBlocks(folder, other, 4)


def test_text_is_encoded_as_captions_are(tokenizer):
    texts = ["image 3 seen from afar", "it said </s> and <s>", "Größe"]
    processor = BitGenProcessor(tokenizer, image_size=8, max_length=99)
    assert encode_documents(tokenizer, texts) == processor.encode(texts)


def test_damaged_folders(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="does not exist: make it with `python data_prep/babylm_text.py"):
        read_text_info(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a BitGen text corpus"):
        read_text_info(tmp_path / "empty")
    folder = write_text_corpus(tmp_path / "corpus", tokenizer, {"a": [(made_up(0, 5), 4), (made_up(1, 5), 4)]})
    tokens = folder / "a.tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="source a of .* cannot be read .*remove"):
        TextBlocks(folder, tokenizer, 4)
    np.save(tokens, np.zeros(3, np.uint16))
    with pytest.raises(ValueError, match="holds 3 tokens, 8 words; bitgen_text.json declares 14 and 8"):
        TextBlocks(folder, tokenizer, 4)
    tokens.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        TextBlocks(folder, tokenizer, 4)
    for text, message in (("{", "cannot be used"), ('{"format_version": 9}', "format_version 9"), ("[]", "cannot be")):
        (folder / TEXT_SIDECAR).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_text_info(folder)


def test_large_vocabularies_take_four_bytes(tmp_path):
    writer = TextShardWriter(tmp_path, "a", 2**16 + 1)
    writer.add([0, 2**16, 1], 1)
    assert writer.close() == ("a", 1, 1, 3)
    tokens = np.load(tmp_path / "a.tokens.npy")
    assert tokens.dtype == np.uint32 and tokens.tolist() == [0, 2**16, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.documents.npy", "a.tokens.npy"]


def test_the_fingerprint_is_of_content_and_order(tmp_path, tokenizer) -> None:
    documents = [(made_up(number, 5 + number), 3) for number in range(6)]
    other = [(ids, words) for ids, words in documents]
    other[2] = ([BOS, *reversed(documents[2][0][1:-1]), EOS], 3)  # as many tokens and words

    def fingerprint(name: str, sources: dict, seq_len: int = 8) -> str:
        return TextBlocks(write_text_corpus(tmp_path / name, tokenizer, sources), tokenizer, seq_len).fingerprint()

    first = fingerprint("first", {"a": documents[:3], "b": documents[3:]})
    assert fingerprint("again", {"a": documents[:3], "b": documents[3:]}, 16) == first
    found = [
        fingerprint("turned", {"b": documents[3:], "a": documents[:3]}),
        fingerprint("joined", {"a": documents}),
        fingerprint("moved", {"a": documents[2::-1], "b": documents[3:]}),
        fingerprint("said otherwise", {"a": other[:3], "b": other[3:]}),
    ]
    assert len({first, *found}) == 5
