"""Expressions with the box of what they name: MDETR's JSON, Flickr30k Entities, Localized Narratives, and plain lines.

Every reader gives phrases of one record; ``Unusable`` says why a phrase, or all of a record, cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from _common.problems import Unusable
from _common.question_json import name_of, objects_of, pixel_box, text_of
from _common.reading import shown
from bitgen.data.questions.boxes import Box

_DETERMINERS = frozenset(
    """
    a an the this that these those his her its their our my your one two three four five six seven eight nine ten
    some several many both all each every another other no any what which
    """.split()
)
_PRONOUNS = frozenset("he she it him her they them we us i you who whom himself herself itself themselves".split())

Size = tuple[float, float]


class Phrase(NamedTuple):
    """What an expression names. ``edges``: left, top, right, bottom; in pixels of a picture of ``size``, which is None
    where only the picture knows it, or as fractions, of the size (1, 1). ``rounded``: pixels that may lie outside."""

    id: str
    file: str
    expression: str
    edges: Sequence[float]
    size: Size | None
    rounded: float = 2

    def box(self, size: Size) -> Box:
        """Its box as fractions; ``Unusable`` for what is none."""
        return pixel_box(self.edges, self.size or size, self.rounded)


def question_about(expression: str) -> str:
    """Where what an expression names is; with a determiner where it has none, and without its last mark.

    ``Unusable``: nothing is named, or by a pronoun alone.
    """
    words = expression.split()
    if words:
        words[-1] = words[-1].rstrip(".,;:!?")
    words = [word for word in words if word and not (len(word) == 1 and not word.isalnum())]
    if not words:
        raise Unusable("empty expression")
    if len(words) == 1 and words[0].lower() in _PRONOUNS:
        raise Unusable("expression that is a pronoun", words[0])
    if words[0].lower() in _DETERMINERS:
        words[0] = words[0].lower()
    elif not words[0].endswith(("'s", "s'")):
        words = ["the", *words]
    return f"where is {' '.join(words)}?"


def united(boxes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The smallest box around several."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _numbers(found: object, what: str, count: int = 4) -> list[float]:
    if not isinstance(found, list) or len(found) != count or not all(type(each) in (int, float) for each in found):
        raise Unusable(f"{what} that is not {count} numbers", shown(found))
    return found


# ---- MDETR ----


def mdetr_records(content: object, where: str) -> list[tuple[str, dict]]:
    """Every entry of `images` with its own `annotations`. ``ValueError``: the file is of another kind."""
    images, annotations = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f"{where} has no lists `images` and `annotations`: is it MDETR's JSON?")
    own: dict[object, list[dict]] = {}
    for position, each in enumerate(annotations):
        number = each.get("image_id") if isinstance(each, dict) else None
        if not isinstance(number, (int, str)):
            raise ValueError(f"{where}: annotations[{position}] is {shown(each)}, not an object with `image_id`")
        own.setdefault(number, []).append(each)
    records = []
    for position, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise ValueError(f"{where}: images[{position}] is {shown(image)}, not an object with `id`")
        records.append((f"{where}: images[{position}]", {**image, "annotations": own.pop(image["id"], [])}))
    if own:
        raise ValueError(f"{where}: annotations name images that are not listed, such as {shown(next(iter(own)))}")
    return records


def mdetr(entry: dict, where: str) -> Iterator[Phrase]:
    """Phrases of a caption. Of RefCOCO the whole caption names the box; elsewhere the words at `tokens_positive` do,
    and boxes of words at the same places are united."""
    caption, file = text_of(entry, "caption"), text_of(entry, "file_name")
    size = (_length(entry, "width"), _length(entry, "height"))
    notes = entry["annotations"]
    if not notes:
        raise Unusable("caption without a box", file)
    whole = str(entry.get("dataset_name", "refcoco")).startswith("refcoco")
    boxes: dict[tuple[str, str], list[list[float]]] = {}
    for note in notes:
        left, top, width, height = _numbers(note.get("bbox"), "`bbox`")
        words = caption if whole else _words_at(caption, spans := note.get("tokens_positive"))
        places = "" if whole else str(sorted(map(tuple, spans)))  # the same words may name two things
        boxes.setdefault((words, places), []).append([left, top, left + width, top + height])
    for number, ((words, _), own) in enumerate(boxes.items()):
        name = name_of(entry, "id", where)
        yield Phrase(f"{name}/{number}" if len(boxes) > 1 else name, file, words, united(own), size)


def _length(entry: dict, key: str) -> float:
    """A picture's width or height, which some files write as a text."""
    found = entry.get(key)
    found = int(found) if isinstance(found, str) and found.isdecimal() and len(found) < 10 else found
    if type(found) not in (int, float) or found <= 0:
        raise Unusable(f"`{key}` that is no size of a picture", shown(found))
    return found


def _words_at(caption: str, spans: object) -> str:
    if not isinstance(spans, list) or not spans:
        raise Unusable("box without `tokens_positive`", shown(spans))
    places = [_numbers(span, "span of `tokens_positive`", 2) for span in spans]
    if not all(type(at) is int for span in places for at in span) or not all(
        0 <= first < last <= len(caption) for first, last in places
    ):
        raise Unusable("`tokens_positive` outside its caption", shown(spans))
    return " ".join(caption[int(first) : int(last)].strip() for first, last in places)


# ---- Flickr30k Entities ----

_ENTITY = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+)\s+([^\]]*)\]")


def entity_boxes(xml: bytes) -> tuple[Size, dict[str, list[list[float]]]]:
    """The picture's size and the boxes of every id, in pixels from 0 on.

    ``Unusable``: it is no such XML, or declares entities or a document type, by which a small file grows without end.
    """
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", xml.replace(b"\0", b""), re.IGNORECASE):  # in UTF-16 too
        raise Unusable("XML with a document type or entities (not read)")
    try:
        root = ElementTree.fromstring(xml)
        width, height = (float(root.findtext(f"size/{key}") or "") for key in ("width", "height"))
        boxes: dict[str, list[list[float]]] = {}
        for each in root.iter("object"):
            box = each.find("bndbox")
            if box is None:
                continue
            left, top, right, bottom = (float(box.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax"))
            for name in each.findall("name"):  # pixels are counted from 1, and both of a box belong to it
                boxes.setdefault((name.text or "").strip(), []).append([left - 1, top - 1, right, bottom])
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unusable("damaged XML", f"{type(error).__name__}: {error}") from error
    if not (width > 0 and height > 0):
        raise Unusable("XML without the size of its picture", f"{width:g} x {height:g}")
    return (width, height), boxes


def entities(sentences: list[str], xml: bytes, stem: str) -> Iterator[Phrase]:
    """Phrases of a picture's sentences that have boxes; several boxes are united, `notvisual` ones left out."""
    size, boxes = entity_boxes(xml)
    for line, sentence in enumerate(sentences):
        seen: set[tuple[str, str]] = set()
        for place, (number, kinds, words) in enumerate(_ENTITY.findall(sentence)):
            if "notvisual" in kinds or number not in boxes or (number, words) in seen:
                continue
            if len(words.split()) == 1 and words.strip().lower() in _PRONOUNS:
                continue
            seen.add((number, words))
            yield Phrase(f"{stem}/{line}/{place}", f"{stem}.jpg", words, united(boxes[number]), size)


# ---- Localized Narratives ----

_ARTICLES = frozenset(("a", "an", "the"))
_ENDS = frozenset(  # words after which what was named is over
    """
    a an the and or but is are was were be been being has have had there here this that these those it its he she they
    his her their we i you can see in on at of to with by from for into onto over under near above below behind beside
    between around through across along against which who where while as also so some few one two three
    """.split()
)
_NO_THINGS = frozenset(
    """
    image picture photo photograph background foreground front back side left right top bottom middle center centre
    corner
    """.split()
)
_MOST_WORDS = 5


class _Word(NamedTuple):
    text: str
    start: float
    end: float
    last: bool


def narrative(entry: dict, file: str, where: str) -> Iterator[Phrase]:
    """What a narrator named with an article, at the box of the pointer's path while these words were spoken.

    A path shows where a thing is and not how large: such boxes are rough. Those without extent are left out.
    """
    words = list(_spoken(objects_of(entry.get("timed_caption"), "`timed_caption`")))
    points = list(_points(entry.get("traces")))
    for number, group in enumerate(_named(words)):
        inside = [(x, y) for x, y, time in points if group[0].start <= time <= group[-1].end]
        if not inside:
            continue
        columns, rows = zip(*inside, strict=True)
        edges = [min(max(edge, 0.0), 1.0) for edge in (min(columns), min(rows), max(columns), max(rows))]
        if edges[0] < edges[2] and edges[1] < edges[3]:
            expression = " ".join(word.text for word in group)
            yield Phrase(f"{where}/{number}", file, expression, edges, (1, 1))


def _spoken(groups: list[dict]) -> Iterator[_Word]:
    """The words one by one; those that were timed together share their times."""
    for group in groups:
        start, end = _numbers([group.get("start_time"), group.get("end_time")], "times of an utterance", 2)
        for word in text_of(group, "utterance").split():
            bare = word.strip(".,;:!?\"'()").lower()
            yield _Word(bare, start, end, word[-1] in ".,;:!?")


def _points(traces: object) -> Iterator[tuple[float, float, float]]:
    if not isinstance(traces, list):
        raise Unusable("record without `traces` (the files with captions alone have none)", shown(traces))
    for trace in traces:
        for point in objects_of(trace, "trace"):
            x, y, time = _numbers([point.get(key) for key in ("x", "y", "t")], "point of a trace", 3)
            yield x, y, time


def _named(words: list[_Word]) -> Iterator[list[_Word]]:
    """An article and the words after it, up to one with which no name goes on, a mark, or the fifth."""
    at = 0
    while at < len(words):
        first, at = words[at], at + 1
        if first.text not in _ARTICLES or first.last:
            continue
        group = [first]
        while at < len(words) and words[at].text and words[at].text not in _ENDS and not group[-1].last:
            group.append(words[at])
            at += 1
        if 1 < len(group) <= _MOST_WORDS and group[-1].text not in _NO_THINGS:
            yield group


# ---- one object a line ----


def plain(entry: dict, where: str, normalised: bool) -> Iterator[Phrase]:
    """An object with `image`, `expression` and `box`, in pixels, or as fractions if ``normalised``."""
    edges, file = _numbers(entry.get("box"), "`box`"), text_of(entry, "image")
    if not normalised and min(edges) >= 0 and max(edges) <= 1:
        raise Unusable("box within one pixel (fractions? then give --normalised True)", shown(edges))
    name = name_of(entry, "id", where)
    rounded = 1e-4 if normalised else 2
    yield Phrase(name, file, text_of(entry, "expression"), edges, (1, 1) if normalised else None, rounded)
