"""Names that no model has heard before: built of syllables, with a part that training never draws."""

from __future__ import annotations

import hashlib
import random

_ONSETS = (
    "b", "bl", "br", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "kr", "l", "m", "n", "p", "pr", "qu",
    "r", "s", "sh", "sk", "sn", "st", "t", "th", "tr", "v", "w", "y", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ee", "oo", "ou", "ie")
_ENDS = ("", "", "", "b", "ck", "d", "g", "l", "m", "n", "nd", "p", "r", "rt", "s", "sk", "t", "x")
_HELD_OUT = 5  # one name in five


def is_held_out_name(name: str) -> bool:
    """Whether training never draws this name."""
    digest = hashlib.blake2b(name.lower().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT == 0


def invented_name(rng: random.Random, held_out: bool) -> str:
    """A capitalised name of one or two syllables, of the part that ``held_out`` says."""
    while True:
        syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(rng.randint(1, 2)))
        name = "".join(syllables).capitalize()
        if 3 <= len(name) <= 8 and is_held_out_name(name) == held_out:
            return name


def invented_names(count: int, rng: random.Random, held_out: bool) -> list[str]:
    """``count`` different names."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[invented_name(rng, held_out)] = None
    return list(names)
