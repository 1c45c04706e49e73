"""Reads a caption of the built-in scenes back into what it says: the inverse of ``wording``.

The grammar is made of that module's own templates and words, so that it reads every caption that can be written, and
nothing else. A caption that contradicts itself ("on the left a red star, on the left a blue ring") says nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from functools import cache

from bitgen.data.scenes import wording
from bitgen.data.scenes.descriptions import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing

_FIELDS = string.Formatter()


def read_caption(caption: str) -> Scene | None:
    """The scene that a caption describes, or None if it is no caption of a scene.

    The relation is turned so that it is one of ``RELATIONS``. The background is ``light`` where the caption leaves it
    out; :attr:`Scene.meaning` does not contain it.
    """
    text = " ".join(caption.split())
    for kind, pattern in _patterns():
        found = pattern.fullmatch(text)
        if found is not None:
            scene = _READERS[kind]({name: value or "" for name, value in found.groupdict().items()})
            if scene is not None:
                return scene
    return None


# ---- from words to what they mean ----


def _meanings(words: Mapping[str, Iterable[str]], names: Iterable[str]) -> dict[str, str]:
    return {word: name for name in names for word in words.get(name, (name,))}


_COLOUR = _meanings(wording.COLOUR_WORDS, COLOURS)
_SHAPE = _meanings(wording.SHAPE_WORDS, SHAPES)
_SHAPES = {wording.plural(word): shape for word, shape in _SHAPE.items()}
_SIZE = {word: size for size, words in wording.SIZE_WORDS.items() for word in words if word}
_NUMBER = {word: number for number, word in wording.NUMBER_WORDS.items()}
_PLACE = _meanings(wording.PLACE_WORDS, wording.PLACE_WORDS)
# Of the three forms of a relation's words: the relation that each word states of what stands before it.
_STATED, _STATED_WITH, _STATED_BY_SIDE = (
    {
        word.format(its=its, it=it): relation
        for relation, forms in wording.RELATION_WORDS.items()
        for word in forms[form]
        for it, its in (("it", "its"), ("them", "their"))
    }
    for form in range(3)
)
_ARRANGEMENT = {
    (word, two): arrangement for (arrangement, two), words in wording.ARRANGEMENT_WORDS.items() for word in words
}


# ---- the grammar ----


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each template as a regular expression, with the kind of scene that it describes."""
    templates = {
        "position": wording.POSITION_TEMPLATES,
        "relation": wording.RELATION_TEMPLATES,
        "count": wording.COUNT_TEMPLATES + wording.LINE_TEMPLATES,
    }
    return tuple((kind, _pattern(template)) for kind, those in templates.items() for template in those)


def _pattern(template: str) -> re.Pattern[str]:
    parts = []
    for literal, field, _, _ in _FIELDS.parse(template):
        parts.append(re.escape(literal))
        if field is not None:
            parts.append(_pattern_of(field))
    return re.compile("".join(parts))


def _one_of(words: Iterable[object]) -> str:
    return "|".join(sorted({re.escape(str(word)) for word in words}, key=len, reverse=True))


def _pattern_of(field: str) -> str:
    """A field of a template. A noun phrase ``x`` becomes the groups ``x_number``, ``x_size``, ``x_colour``,
    ``x_shape``."""
    if field in ("a", "b", "things"):
        return rf"(?:(?P<{field}_article>an|a single|a pair of|a|one) )?{_noun(field)}"
    if field in ("the_a", "the_b"):
        return f"the {_noun(field[-1])}"
    words: dict[str, Iterable[object]] = {
        "place": _PLACE,
        "size": _SIZE,
        "colour": _COLOUR,
        "shape": _SHAPE,
        "shapes": _SHAPES,
        "number": _NUMBER,
        "relation": _STATED,
        "relation_of_b": _STATED_WITH,
        "side_of_a": _STATED_BY_SIDE,
        "side_of_b": _STATED_BY_SIDE,
        "arrangement": (word for word, _ in _ARRANGEMENT),
        "be": ("is", "are"),
        "all": ("both", "all"),
        "line": ("row", "column"),
    }
    if field == "background":
        return rf"(?: (?:on|against) a (?P<background>{_one_of(BACKGROUNDS)}) background)?"
    return f"(?P<{field}>{_one_of(words[field])})"


def _noun(name: str) -> str:
    return (
        rf"(?:(?P<{name}_number>{_one_of(_NUMBER)}) )?(?:(?P<{name}_size>{_one_of(_SIZE)}) )?"
        rf"(?P<{name}_colour>{_one_of(_COLOUR)}) (?P<{name}_shape>{_one_of((*_SHAPE, *_SHAPES))})"
    )


# ---- from a match to a scene ----


def _thing(found: Mapping[str, str], name: str) -> Thing | None:
    """The objects that a noun phrase names; None where number, article and ending do not agree."""
    article, shape = found.get(f"{name}_article", ""), found[f"{name}_shape"]
    count = 2 if article == "a pair of" else _NUMBER.get(found[f"{name}_number"], 1)
    if (count > 1) != (shape in _SHAPES) or (article not in ("", "a pair of") and count > 1):
        return None
    return Thing(
        _COLOUR[found[f"{name}_colour"]],
        (_SHAPES if count > 1 else _SHAPE)[shape],
        _SIZE.get(found[f"{name}_size"], "medium"),
        count,
    )


def _read_position(found: Mapping[str, str]) -> Scene | None:
    if "shape" in found:
        thing = Thing(_COLOUR[found["colour"]], _SHAPE[found["shape"]], _SIZE[found["size"]])
    else:
        named = _thing(found, "a")
        if named is None or named.count > 1:
            return None
        thing = named
    return Scene("position", (thing,), _PLACE[found["place"]], found.get("background") or BACKGROUNDS[0])


def _read_relation(found: Mapping[str, str]) -> Scene | None:
    a, b = _thing(found, "a"), _thing(found, "b")
    if a is None or b is None or ("be" in found and found["be"] != ("is" if a.count == 1 else "are")):
        return None
    if "relation" in found:
        relation = _STATED[found["relation"]]
    elif "relation_of_b" in found:
        a, b, relation = b, a, _STATED_WITH[found["relation_of_b"]]
    else:
        relation = _STATED_BY_SIDE[found["side_of_a"]]
        if _STATED_BY_SIDE[found["side_of_b"]] != wording.opposite(relation):
            return None
    if relation not in wording.CONVERSE:
        a, b, relation = b, a, wording.opposite(relation)
    return Scene("relation", (a, b), relation, found.get("background") or BACKGROUNDS[0])


def _read_count(found: Mapping[str, str]) -> Scene | None:
    thing: Thing | None
    if "shapes" in found:
        thing = Thing(_COLOUR[found["colour"]], _SHAPES[found["shapes"]], count=_NUMBER[found["number"]])
        if (found["all"] == "both") != (thing.count == 2):
            return None
    else:
        thing = _thing(found, "things")
    if thing is None or thing.count == 1:
        return None
    where = found["line"] if "line" in found else _ARRANGEMENT.get((found["arrangement"], thing.count == 2))
    return None if where is None else Scene("count", (thing,), where, found.get("background") or BACKGROUNDS[0])


_READERS = {"position": _read_position, "relation": _read_relation, "count": _read_count}
