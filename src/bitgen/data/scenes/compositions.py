"""What a question about a scene combines, and which combinations training never asks."""

from __future__ import annotations

import hashlib
from itertools import chain

from bitgen.data.scenes.programs import Program

_HELD_OUT = 5  # one composition in five


def composition(family: str, program: Program) -> str:
    """What a question combines: its operators with their words, of questions that go nowhere the values too."""
    return f"{family}: {'; '.join(_combined(program, program.hops > 0))}"


def _combined(program: Program, goes: bool) -> list[str]:
    """Operators in their order, each after those that it takes. Two that may change places stand in one order, and
    fewer of one is more of the other: "red or a star" combines what "a star or red" does."""
    inputs, words = [_combined(one, goes) for one in program.inputs], program.words
    if program.name == "compare" and words == ("fewer",):
        inputs, words = inputs[::-1], ("more",)
    elif program.name in ("and", "or") or (program.name == "compare" and words != ("more",)):
        inputs.sort()
    if goes and program.name == "filter":
        words = words[:1]
    return [*chain.from_iterable(inputs), " ".join((program.name, *words))]


def is_held_out_question(family: str, program: Program) -> bool:
    """Whether training never asks this combination."""
    digest = hashlib.blake2b(composition(family, program).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT == 0
