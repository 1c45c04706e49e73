"""Made-up English, and tokenizers of it."""

from __future__ import annotations

import functools
import random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitgen.data.tokenizer import train_bpe

DOGS = ["a dog runs on the grass", "the dog runs", "grass on a dog"]
WORDS = "the cat sat on a mat and saw the big red dog run far away from here".split()


def prose(seed: int, sentences: int = 2) -> str:
    """Sentences of 3 to 12 random words."""
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 12))).capitalize() + "." for _ in range(sentences))


@functools.cache
def tiny_tokenizer():
    """The tokenizer of :func:`prose`, the same object for all: who changes it takes a copy."""
    return train_bpe([prose(seed, 20) for seed in range(5)], 300)


def other_tokenizer(size: int):
    """A tokenizer of ``size`` tokens, and of letters and words that no other tokenizer of the tests has seen."""
    return train_bpe([f"{a}{b}{c} {c}{a}" for a in "qwertz" for b in "uiopas" for c in "dfghjk"] * 3, size)


def sentencepiece_tokenizer():
    """A Unigram vocabulary of words with their space before them, which holds ``</s>`` as an ordinary piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*DOGS, "1 < 2 / 3 > s"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def wordpiece_tokenizer():
    """BERT's kind: lower case, words apart, pieces inside a word marked with ``##``."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(DOGS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


def wordlevel_tokenizer(step: int = 1):
    """Whole words apart by spaces; ids ``step`` apart, so that with ``step > 1`` they have gaps."""
    words = ["<s>", "</s>", "<unk>", *sorted({*WORDS, *"runs on grass < / s >".split()})]
    tokenizer = Tokenizer(models.WordLevel({word: step * i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_tokenizer():
    """The project's own kind."""
    return train_bpe(DOGS * 20, 290)


KINDS = {
    "bytes": byte_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "wordlevel": wordlevel_tokenizer,
}
