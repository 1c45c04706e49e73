"""Names that no model has heard before: built of syllables, with a part that training never draws."""

from __future__ import annotations

import hashlib
import random
import string

# Some begin with a vowel, as Anna and Oslo do: what begins with letters that no name of training had is said badly.
_ONSETS = (
    "", "", "", "", "", "b", "bl", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "kr",
    "l", "m", "n", "p", "ph", "pr", "qu", "r", "s", "sh", "sk", "sn", "st", "t", "th", "tr", "v", "w", "x", "y", "z",
)  # fmt: skip
_VOWELS = ("a", "a", "e", "e", "i", "i", "o", "o", "u", "y", "ai", "au", "ea", "ee", "ei", "ia", "ie", "oo", "ou")
_ENDS = (
    "", "", "", "", "b", "ck", "d", "g", "l", "ll", "m", "mm", "n", "nd", "ng", "nn", "p", "r", "rl", "rt", "s", "sk",
    "sl", "ss", "t", "tt", "v", "x",
)  # fmt: skip
_HELD_OUT = 5  # one name in five
_ANY_LETTERS = 0.2
# The share of training's names that differ in one letter from an earlier one. Where all names begin with one of three
# letters, most others are rejected, and about half are like another.
_LIKE_ANOTHER = 0.1
# The share of training's lists of names that all begin with one of three letters. A model that tells names apart by
# their initials goes on with the wrong one of two.
_ALIKE, _INITIALS = 0.25, 3


def is_held_out_name(name: str) -> bool:
    """Whether training never draws this name."""
    digest = hashlib.blake2b(name.lower().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT == 0


def invented_name(rng: random.Random, held_out: bool) -> str:
    """A capitalised name of one to three syllables, or of any letters, of the part that ``held_out`` says."""
    while True:
        if rng.random() < _ANY_LETTERS:
            name = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 7)))
        else:
            count = rng.choice((1, 2, 2, 3))
            name = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(count))
        if 3 <= len(name) <= 9 and is_held_out_name(name) == held_out:
            return name.capitalize()


def like_name(name: str, rng: random.Random) -> str:
    """A name of training that differs from ``name`` in one letter: another one, one more, or one that is missing."""
    while True:
        at, letter = rng.randrange(len(name)), rng.choice(string.ascii_lowercase)
        written = name[:at] + rng.choice((letter, letter, letter + name[at], "")) + name[at + 1 :]
        if 3 <= len(written) <= 9 and written.lower() != name.lower() and not is_held_out_name(written):
            return written.capitalize()


def invented_names(count: int, rng: random.Random, held_out: bool) -> list[str]:
    """``count`` different names, in training often of a few initials, and some like another of them."""
    names: dict[str, None] = {}
    alike = not held_out and rng.random() < _ALIKE
    initials = rng.sample(string.ascii_uppercase, _INITIALS) if alike else string.ascii_uppercase
    while len(names) < count:
        like = not held_out and names and rng.random() < _LIKE_ANOTHER
        name = like_name(rng.choice(list(names)), rng) if like else invented_name(rng, held_out)
        if name[0] in initials:
            names[name] = None
    return list(names)
