"""Captions in one JSON file, in the layouts in which they are passed on: COCO's, Karpathy's, LAVIS's, LLaVA's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from _common.problems import Problems
from _common.reading import shown
from bitgen.data.captions import captions_of
from bitgen.guards.json_files import BadJson, check_keys
from bitgen.guards.printable import printable

ALL = "all"

Captions = dict[str, list[str]]


def captions_in(content: object, where: str, splits: list[str] | None, problems: Problems) -> Captions:
    """Captions of every image that a file names, in its order; an image without one has an empty list.

    Args:
        content: the parsed JSON.
        where: how messages call the file.
        splits: those to take of a file that says of each image which split it belongs to; None: it may have one only.

    Raises:
        ValueError: the file is in none of these layouts, or an entry of it is not; the message names the entry.
    """
    if isinstance(content, list) and content:
        wanted, read = None, _read_list
    elif isinstance(content, dict) and "annotations" not in content and _is_karpathy(content.get("images")):
        wanted, read = splits, _read_karpathy
    elif isinstance(content, dict):
        wanted, read = None, _read_coco
    else:
        raise ValueError(
            f"{where} must hold a JSON object with `images` and `annotations` (COCO) or with `images` that have "
            "`sentences` (Karpathy), or a list of objects with `image` (LAVIS, LLaVA), and not an empty one"
        )
    if splits and wanted is None:
        raise ValueError(f"{where} does not say which split an image belongs to: leave out --split")
    return read(content, where, splits, problems)


def _entries(content: dict, key: str, where: str) -> Iterator[tuple[str, dict]]:
    """``(where, entry)`` of every entry of a list."""
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where} has no list `{key}`, or an empty one; is it a COCO captions file?")
    yield from _objects(entries, f"{where}: {key}")


def _objects(entries: list, where: str) -> Iterator[tuple[str, dict]]:
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}[{position}] is {shown(entry)}, not an object")
        yield f"{where}[{position}]", entry


def _text(entry: dict, key: str, where: str, remedy: str = "") -> str:
    try:
        check_keys(entry, {key: str})
    except BadJson as error:
        missing = f"{where} lacks `{key}`" if key not in entry else f"{where}: {error}"
        raise ValueError(f"{missing}{remedy}: {shown(entry)}") from error
    return entry[key].strip()


# ---- COCO: images and annotations, joined by ids ----


def _read_coco(content: dict, where: str, _: object, problems: Problems) -> Captions:
    names: dict[str, str] = {}
    captions: Captions = {}
    for place, image in _entries(content, "images", where):
        name, number = _text(image, "file_name", place), _id(image, "id", place)
        if number in names or name in captions:
            problems.add("duplicate name or id in images (taken once)", name)
        names.setdefault(number, name)
        captions.setdefault(name, [])
    for place, annotation in _entries(content, "annotations", where):
        number = _id(annotation, "image_id", place)
        if "caption" not in annotation:
            raise ValueError(
                f"{place} lacks `caption` (an instances file is something else; take the captions file): "
                f"{shown(annotation)}"
            )
        texts = captions_of(annotation["caption"], "caption", place)
        if number in names:
            captions[names[number]].extend(texts)
        else:
            problems.add("caption of an image that is not listed (dropped)", f"image_id {number}")
    return captions


def _id(entry: dict, key: str, where: str) -> str:
    """An id as a text: programs write one number as 7, "7" and, by way of a table with gaps, 7.0."""
    if key not in entry:
        raise ValueError(f"{where} lacks `{key}`: {shown(entry)}")
    value = entry[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise ValueError(f"{where}: its `{key}` is {shown(value)}; it must be a whole number or a text")
    return str(value).strip()


# ---- Karpathy's splits of COCO, Flickr8k and Flickr30k: images with their sentences ----


def _is_karpathy(images: object) -> bool:
    return isinstance(images, list) and len(images) > 0 and isinstance(images[0], dict) and "sentences" in images[0]


def _read_karpathy(content: dict, where: str, splits: list[str] | None, problems: Problems) -> Captions:
    captions: Captions = {}
    seen: Counter[str] = Counter()
    for place, image in _entries(content, "images", where):
        split = _text(image, "split", place) if "split" in image else ""
        seen[split] += 1
        if splits and split not in splits and ALL not in splits:
            continue
        folder = _text(image, "filepath", place) if "filepath" in image else ""
        name = "/".join(filter(None, (folder, _text(image, "filename", place))))
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise ValueError(f"{place} has no list `sentences`: {shown(image)}")
        if name in captions:
            problems.add("duplicate file name in images (captions joined)", name)
        texts = captions.setdefault(name, [])
        for inner, sentence in _objects(sentences, f"{place}.sentences"):
            if "raw" not in sentence:
                raise ValueError(f"{inner} lacks `raw`: {shown(sentence)}")
            texts += captions_of(sentence["raw"], "raw", inner)
    present = printable(", ".join(f"{split} ({count})" for split, count in seen.items()), 200)
    if splits is None and len(seen) > 1:
        raise ValueError(f"{where} has the splits {present}: name those to take with --split, or `--split {ALL}`")
    missing = [split for split in splits or () if split not in (*seen, ALL)]
    if missing:
        raise ValueError(f"{where} has no split {', '.join(missing)}: it has {present}")
    return captions


# ---- LAVIS: an entry a caption; LLaVA: a conversation about an image ----


def _read_list(content: list, where: str, _: object, problems: Problems) -> Captions:
    captions: Captions = {}
    for place, entry in _objects(content, where):
        if entry.get("image") is None and "conversations" in entry:
            problems.add("conversation without an image (left out)", place)
            continue
        name = _text(entry, "image", place, " (entries need `image` with `caption`, or with `conversations`)")
        texts = captions.setdefault(name, [])
        if "caption" in entry:
            texts += captions_of(entry["caption"], "caption", place)
        elif "conversations" in entry:
            texts += _answer(entry["conversations"], place, name, problems)
        else:
            raise ValueError(f"{place} has neither `caption` nor `conversations`: {shown(entry)}")
    return captions


def _answer(turns: object, where: str, name: str, problems: Problems) -> list[str]:
    """What is said of the image, where that is asked for once; answers to several questions are no captions."""
    if not isinstance(turns, list):
        raise ValueError(f"{where}: its `conversations` is {shown(turns)}; it must be a list")
    turn = f"{where}.conversations"
    answers = [_text(said, "value", at) for at, said in _objects(turns, turn) if _text(said, "from", at) == "gpt"]
    if len(answers) > 1:
        problems.add("conversation of several questions (left out: its answers are no captions)", name)
        return []
    return answers
