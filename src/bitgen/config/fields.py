"""What stands beside a setting in its dataclass: its default, its help text, and the range of its values.

    lora_rank: AtLeastOne = setting(16, "Rank r of the adapters.")
    max_steps: AtLeastOne | None = setting(None, "Stop after this many steps.")

Ranges belong to the type (``typing.Annotated``), because transformers' ``HfArgumentParser`` hands the metadata of a
field to ``add_argument`` as it is, so only ``help`` may stand there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

Number = TypeVar("Number", int, float)


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default and the text of ``--help``."""
    return dataclasses.field(default=default, metadata={"help": help.replace("%", "%%")})


@dataclass(frozen=True)
class Range:
    """The values that make sense; ``words`` end the sentence "it must be ...".

    ``most``: no machine is given more of it. What is far beyond is a slip of the keyboard, which would end in hours of
    waiting, or in a library that crashes. None: there is no such limit.
    """

    words: str
    holds: Callable[[Any], bool]
    most: int | None = None


@dataclass(frozen=True)
class WrittenAs:
    """Makes the text of a setting from what is natural for it in YAML, as a list; passes anything else on."""

    text: Callable[[Any], Any]


def at_least_one(most: int) -> Range:
    """Whole numbers from 1 to ``most``."""
    return Range("at least 1", lambda value: value >= 1, most)


AtLeastOne = Annotated[int, at_least_one(10**15)]  # counts of steps, words, samples
Batch = Annotated[int, at_least_one(10**6)]
Size = Annotated[int, at_least_one(2**16)]  # widths, heads, slots, sides in pixels
Depth = Annotated[int, at_least_one(1000)]
NotNegative = Annotated[Number, Range("0 or more", lambda value: value >= 0, 10**15)]
Few = Annotated[int, Range("0 or more", lambda value: value >= 0, 1000)]
Positive = Annotated[float, Range("more than 0", lambda value: value > 0)]
Share = Annotated[float, Range("from 0 to 1", lambda value: 0 <= value <= 1)]
Part = Annotated[float, Range("above 0 and below 1", lambda value: 0 < value < 1)]
# A rate of 1 would drop everything (or never move the average), so it stays below.
Rate = Annotated[float, Range("from 0 to below 1", lambda value: 0 <= value < 1)]


class Setting(NamedTuple):
    """What the type of a field says: the plain ``hint`` (``int | None``), and what is annotated to it."""

    hint: Any
    range: Range | None
    written_as: WrittenAs | None


@cache
def settings_of(group: type) -> dict[str, Setting]:
    """The settings of a dataclass by name."""
    # Not Field.type: HfArgumentParser rewrites it, as `int | None` to `int`.
    plain, annotated = get_type_hints(group), get_type_hints(group, include_extras=True)
    found = {}
    for field in dataclasses.fields(group):
        notes = list(_notes(annotated[field.name]))
        found[field.name] = Setting(plain[field.name], _first(notes, Range), _first(notes, WrittenAs))
    return found


def _notes(hint: Any) -> Iterator[Any]:
    """Everything that is annotated to a hint, also inside of ``Annotated[...] | None``."""
    if get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for part in get_args(hint):
        yield from _notes(part)


def _first(notes: list[Any], kind: type) -> Any:
    return next((note for note in notes if isinstance(note, kind)), None)
