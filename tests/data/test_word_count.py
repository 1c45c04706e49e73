"""Words are counted from tokens as a person would count them in the text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from bitgen.data.scripts import count_words
from bitgen.data.tokenizer import train_bpe
from bitgen.data.word_count import WordCounter, words_of
from bitgen.model.processing_bitgen import BitGenProcessor

CAPTIONS = ["a dog runs.", "the brown dog , wet , jumps over two fences", "dog"]
# Of characters it has not seen it makes their bytes, one by one.
TOKENIZER = train_bpe(CAPTIONS * 3 + ["一只棕色的狗在草地上奔跑"] * 3, vocab_size=300)
COUNTER = WordCounter(TOKENIZER)


def tokens(captions: list[str], max_length: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    batch = BitGenProcessor(TOKENIZER, image_size=14, max_length=max_length).texts(captions)
    return batch["input_ids"], batch["attention_mask"]


def spaced_only(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """The count of text with spaces: tokens that begin with a space, and each caption's first."""
    return int((COUNTER.starts[ids[:, 2:]] & mask[:, 2:].bool()).sum()) + len(ids)


def test_words_of_a_batch() -> None:
    assert COUNTER(*tokens(CAPTIONS)) == sum(len(caption.split()) for caption in CAPTIONS)


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("一只棕色的狗在草地上奔跑。", 12),
        ("两个孩子在海边玩沙子", 10),
        ("子供がパンを食べる", 9),
        ("สุนัขวิ่ง", 5),
        ("갈색 개가 풀밭 위를 달린다", 5),
        ("一只 dog 在 the grass 上", 7),
        ("ein Mädchen läuft – schnell “hier”", 6),
        ("собака 🐕 бежит", 3),
    ],
)
def test_words_of_any_script(caption: str, count: int) -> None:
    assert COUNTER(*tokens([caption])) == count == count_words(caption)
    # Among other captions, padded; and as batches are estimated before any is read.
    assert COUNTER(*tokens([*CAPTIONS, caption])) == count + sum(len(text.split()) for text in CAPTIONS)
    several = [ids[mask.bool()].tolist() for ids, mask in zip(*tokens([caption, *CAPTIONS]), strict=True)]
    assert words_of(several, TOKENIZER).tolist() == [count, *(len(text.split()) for text in CAPTIONS)]


@given(st.lists(st.text(st.characters(codec="utf-8", max_codepoint=0xDFF)), min_size=1, max_size=3))
def test_text_with_spaces_counts_as_it_always_did(captions: list[str]) -> None:
    ids, mask = tokens([caption or "a" for caption in captions])
    assert COUNTER(ids, mask) == spaced_only(ids, mask)


def test_a_caption_cut_short_counts_as_far_as_it_is_seen() -> None:
    caption = "一只棕色的狗在草地上奔跑" * 4
    ids, mask = tokens([caption], max_length=10)
    seen = TOKENIZER.decode(ids[0], skip_special_tokens=True).rstrip("\ufffd")
    assert caption.startswith(seen) and 0 < len(seen) < len(caption)
    assert COUNTER(ids, mask) == len(seen)


def test_bytes_of_sentencepiece_are_characters() -> None:
    """Byte-level BPE is above; here a space is ▁, and a character that is no token is its bytes."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", *"猫犬", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    count = WordCounter(tokenizer)
    for text, words in (("a a a", 3), ("猫犬", 2), ("鳥猫", 2), ("a 鳥鳥 é a", 5), ("é 개 a", 3)):
        ids = torch.tensor([[1, *tokenizer.encode(text, add_special_tokens=False), 2]])
        assert count(ids, torch.ones_like(ids)) == words == count_words(text)
