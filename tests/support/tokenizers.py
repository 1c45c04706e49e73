"""Made-up English, and tokenizers of it."""

from __future__ import annotations

import functools
import random

from bitgen.data.tokenizer import train_bpe

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
