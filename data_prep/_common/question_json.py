"""Questions with answers in JSON, in the layouts of CLEVR, VQA v2, GQA, A-OKVQA, LLaVA-CoT, and one object a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from _common.problems import Unusable
from _common.reading import shown
from bitgen.data.questions.boxes import Box, box_text, checked_box
from bitgen.evaluation.vqa_metrics import normalize_answer
from bitgen.guards.printable import printable

BETWEEN = "; "  # of the clauses of a rationale
_ROUNDED = 2  # pixels that public data reach out of a picture by rounding
_COCO_NAMES = ("COCO_train2014_{:012d}.jpg", "COCO_val2014_{:012d}.jpg", "COCO_test2015_{:012d}.jpg", "{:012d}.jpg")
_CLEVR_SIZE = (480, 320)
_CLEVR_FOCAL = 480 * 35 / 32  # pixels: Blender's lens of 35 mm before a sensor of 32 mm
_CLEVR_RADIUS = {"large": 0.7, "small": 0.35}


class Parsed(NamedTuple):
    """A question whose picture is not read yet. ``files``: names that it may have, the first that is there counts;
    none: a question without a picture. The other fields are those of ``Question``."""

    id: str
    files: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    rationale: str = ""
    boxes: tuple[Box, ...] = ()
    family: str = ""
    hops: int = -1
    choices: tuple[str, ...] = ()


def pixel_box(edges: Sequence[float], size: tuple[float, float], most: float = _ROUNDED) -> Box:
    """Edges in pixels as fractions. What is up to ``most`` pixels outside is moved to the border; ``Unusable``: more,
    or no box."""
    if len(edges) != 4 or not all(type(edge) in (int, float) for edge in edges):
        raise Unusable("box that is not four numbers", shown(edges))
    moved = [
        min(max(edge, 0.0), limit) if -most <= edge <= limit + most else edge
        for edge, limit in zip(edges, (*size, *size), strict=True)
    ]
    try:
        return checked_box([edge / limit for edge, limit in zip(moved, (*size, *size), strict=True)])
    except (ValueError, OverflowError) as error:  # the latter of whole numbers beyond all floats
        raise Unusable("box that cannot be used", str(error)) from error


def text_of(entry: dict, key: str) -> str:
    """A text that a record must have."""
    if key not in entry:
        raise Unusable(f"record of another format: it has no `{key}`", printable(", ".join(map(str, entry)), 100))
    if not isinstance(entry[key], str):
        raise Unusable(f"`{key}` that is not a text", shown(entry[key]))
    return entry[key]


def _texts(entry: dict, key: str) -> tuple[str, ...]:
    """Texts that a record may have: one, or a list of them; a whole number is written out."""
    found = entry.get(key)
    values = found if isinstance(found, list) else [] if found is None else [found]
    values = [str(value) if type(value) is int else value for value in values]
    if not all(isinstance(value, str) for value in values):
        raise Unusable(f"`{key}` that is neither a text nor a list of texts", shown(found))
    return tuple(values)


def name_of(entry: dict, key: str, where: str = "") -> str:
    """A name or number that a record must have; where it may lack, ``where`` takes its place."""
    found = entry.get(key)
    if found is None and where:
        return where
    if isinstance(found, bool) or not isinstance(found, (str, int)) or not str(found):
        raise Unusable(f"record of another format: it has no `{key}`", shown(found))
    return str(found)


def objects_of(found: object, what: str) -> list[dict]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Unusable(f"{what} that is not a list of objects", shown(found))
    return found


def _coco_files(entry: dict) -> tuple[str, ...]:
    number = entry.get("image_id")
    if type(number) is not int or not 0 <= number < 10**12:
        raise Unusable("`image_id` that is no number of COCO's", shown(number))
    return tuple(name.format(number) for name in _COCO_NAMES)


# ---- CLEVR ----

_CLAUSES = {
    "scene": "everything", "unique": "that one", "relate left": "left of it", "relate right": "right of it",
    "relate front": "in front of it", "relate behind": "behind it", "union": "either", "intersect": "both",
    "count": "how many", "exist": "any", "equal_integer": "equally many", "less_than": "fewer", "greater_than": "more",
}  # fmt: skip
_CLEVR_FAMILIES = {
    "count": "count", "exist": "exist", "query": "query", "equal": "compare_attribute",
    "equal_integer": "compare_number", "less_than": "compare_number", "greater_than": "compare_number",
}  # fmt: skip


class _Step(NamedTuple):
    function: str
    values: tuple[str, ...]
    inputs: tuple[int, ...]


def clevr(entry: dict, where: str, scenes: dict[str, Any]) -> Parsed:
    """A question of CLEVR: its rationale says the program; with its scene, boxes of the objects that it asks for."""
    file, split = text_of(entry, "image_filename"), entry.get("split")
    index = name_of(entry, "question_index", where)
    name = f"{split}_{index}" if isinstance(split, str) and index != where else index
    parsed = Parsed(name, (file,), text_of(entry, "question"), _texts(entry, "answer"))
    if not entry.get("program"):  # questions of tests, and those that people wrote, have none
        return parsed
    steps = _clevr_steps(entry["program"])
    last = steps[-1].function
    family = _CLEVR_FAMILIES.get(last, _CLEVR_FAMILIES.get(last.partition("_")[0], ""))
    boxes: tuple[Box, ...] = ()
    if scenes:
        if file not in scenes:
            raise Unusable("question about a picture that is not in --scenes", file)
        boxes = _clevr_boxes(steps, scenes[file])
    hops = sum(step.function == "relate" for step in steps)
    return parsed._replace(rationale=BETWEEN.join(map(_clause, steps)), boxes=boxes, family=family, hops=hops)


def _clevr_steps(program: object) -> list[_Step]:
    steps: list[_Step] = []
    for number, node in enumerate(objects_of(program, "program")):
        function = node.get("function", node.get("type"))
        values, inputs = node.get("value_inputs", node.get("side_inputs", [])), node.get("inputs", [])
        if (
            not isinstance(function, str)
            or not isinstance(values, list)
            or not all(isinstance(value, str) for value in values)
            or not isinstance(inputs, list)
            or not all(type(place) is int and 0 <= place < number for place in inputs)
        ):
            raise Unusable("damaged step of a program", shown(node))
        steps.append(_Step(function, tuple(values), tuple(inputs)))
    return steps


def _clause(step: _Step) -> str:
    """A step of a program in few words."""
    known = _CLAUSES.get(" ".join((step.function, *step.values)))
    if known is not None:
        return known
    kind, _, attribute = step.function.partition("_")
    if kind == "filter" and attribute and len(step.values) == 1:
        return step.values[0]
    words = {"same": "same {} as it", "query": "its {}", "equal": "equal {}"}
    if kind not in words or not attribute or step.values:
        raise Unusable("unknown step of a program", shown(step.function))
    return words[kind].format(attribute)


def _clevr_boxes(steps: list[_Step], scene: Any) -> tuple[Box, ...]:
    """Boxes of the objects that the last step is about.

    CLEVR gives an object's centre and distance and not its box: this is that of a ball of its size. Of cubes and
    cylinders it is a few pixels off.
    """
    try:
        objects, found = scene["objects"], []
        for step in steps:
            found.append(_clevr_objects(step, [found[place] for place in step.inputs], scene))
        boxes = []
        for each in sorted(found[-1]):
            x, y, distance = objects[each]["pixel_coords"]
            half = _CLEVR_FOCAL * _CLEVR_RADIUS[objects[each]["size"]] / distance
            boxes.append(pixel_box((x - half, y - half, x + half, y + half), _CLEVR_SIZE, most=half))
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise Unusable("program and scene that do not fit", f"{type(error).__name__}: {error}") from error
    return tuple(boxes)


def _clevr_objects(step: _Step, inputs: list[set[int]], scene: Any) -> set[int]:
    """The objects that a step gives, or asks about."""
    objects, every = scene["objects"], set(range(len(scene["objects"])))
    kind, _, attribute = step.function.partition("_")
    if kind == "scene":
        return every
    if kind == "filter":
        return {each for each in inputs[0] if objects[each][attribute] == step.values[0]}
    if kind in ("unique", "relate", "same"):
        (one,) = inputs[0]
        if kind == "unique":
            return {one}
        if kind == "relate":
            return set(scene["relationships"][step.values[0]][one]) & every
        return {each for each in every - {one} if objects[each][attribute] == objects[one][attribute]}
    return set.intersection(*inputs) if kind == "intersect" else set.union(*inputs)


# ---- VQA v2 and A-OKVQA: pictures of COCO, answers of ten people ----


def vqav2(entry: dict, where: str, annotations: dict[str, Any]) -> Parsed:
    """A question of VQA v2, joined with its annotation; the answer that most people gave stands first."""
    name = name_of(entry, "question_id")
    parsed = Parsed(name, _coco_files(entry), text_of(entry, "question"), ())
    annotation = annotations.get(name)
    if annotation is None:
        raise Unusable("question without an annotation", name)
    answers = [text_of(answer, "answer") for answer in objects_of(annotation.get("answers"), "`answers`")]
    kind = annotation.get("answer_type")
    first = _majority(answers, annotation.get("multiple_choice_answer"))
    return parsed._replace(answers=_with_first(answers, first), family=kind if isinstance(kind, str) else "")


def _majority(answers: list[str], preferred: object) -> str:
    """The answer that most people gave, compared as VQA v2 does; of several the ``preferred``, else the first."""
    counts = Counter(map(normalize_answer, answers))
    return max(answers, key=lambda answer: (counts[normalize_answer(answer)], answer == preferred), default="")


def _with_first(answers: list[str], first: str) -> tuple[str, ...]:
    """All answers, the ``first`` in front; it is added where nobody gave it."""
    same = next(
        (place for place, each in enumerate(answers) if normalize_answer(each) == normalize_answer(first)), None
    )
    others = answers if same is None else answers[:same] + answers[same + 1 :]
    return tuple([first, *others] if first else others)


def aokvqa(entry: dict, where: str, _: dict[str, Any]) -> Parsed:
    """A question of A-OKVQA: its right choice stands first, then what people answered; the shortest rationale."""
    choices, right = _texts(entry, "choices"), entry.get("correct_choice_idx")
    if right is not None and not (type(right) is int and 0 <= right < len(choices)):
        raise Unusable("`correct_choice_idx` that is none of the choices", shown(right))
    given = list(_texts(entry, "direct_answers"))
    first = _majority(given, None) if right is None else choices[right]
    rationale = min((text for text in _texts(entry, "rationales") if text.strip()), key=len, default="")
    name, question = name_of(entry, "question_id", where), text_of(entry, "question")
    return Parsed(name, _coco_files(entry), question, _with_first(given, first), rationale, choices=choices)


# ---- GQA ----

_GQA_CLAUSES = {
    "filter": "{}", "query": "its {}", "verify": "is it {}", "exist": "any", "and": "both", "or": "either",
    "same": "same {1}", "different": "different {1}", "common": "what they share",
}  # fmt: skip
_WITH_IDS = re.compile(r"(.*?)\s*\(([-\d, ]*)\)")


def gqa(entry: dict, where: str, graphs: dict[str, Any]) -> Parsed:
    """A question of GQA: its rationale says the steps, with boxes where the picture's scene graph is given."""
    image, types = name_of(entry, "imageId"), entry.get("types")
    boxes = _graph_boxes(graphs[image]) if image in graphs else {}
    steps = objects_of(entry.get("semantic", []), "`semantic`")
    clauses = [_gqa_clause(text_of(step, "operation"), text_of(step, "argument"), boxes) for step in steps]
    noted = entry.get("annotations")
    noted = noted.get("answer") if isinstance(noted, dict) else None
    asked = [str(each) for each in noted.values()] if isinstance(noted, dict) else []
    named = [found for step in steps if (found := _ids(step["argument"])[1])]
    asked = asked or (named[-1] if named else [])
    family = types.get("structural") if isinstance(types, dict) else ""
    return Parsed(
        name_of(entry, "id", where),
        (f"{image}.jpg",),
        text_of(entry, "question"),
        _texts(entry, "answer"),
        BETWEEN.join(clauses),
        tuple(boxes[each] for each in asked if each in boxes),
        family if isinstance(family, str) else "",
        sum(step["operation"] == "relate" for step in steps) if steps else -1,
    )


def _graph_boxes(graph: Any) -> dict[str, Box]:
    """Boxes of a scene graph's objects, cut at the picture's border; those that are none are left out."""
    boxes = {}
    try:
        size = (graph["width"], graph["height"])
        for name, each in graph["objects"].items():
            x, y, width, height = (each[key] for key in ("x", "y", "w", "h"))
            try:
                boxes[name] = pixel_box((x, y, x + width, y + height), size, most=max(size))
            except Unusable:
                continue
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise Unusable("damaged scene graph", f"{type(error).__name__}: {error}") from error
    return boxes


def _ids(argument: str) -> tuple[str, list[str]]:
    """The words of a step and the objects that they name; ``(-)``: there is none."""
    match = _WITH_IDS.fullmatch(argument.strip())  # the published files have a space behind some
    ids = re.findall(r"\d+", match[2]) if match else []
    return (match[1] if match else argument).strip(), ids


def _gqa_clause(operation: str, argument: str, boxes: dict[str, Box]) -> str:
    words, ids = _ids(argument)
    kind, _, attribute = operation.partition(" ")
    parts = [part.strip() for part in words.split(",")]
    if len(parts) == 3 and parts[2] in ("s", "o"):  # the thing is the relation's subject, or its object
        thing = parts[0].replace("_", "thing")
        words = f"{thing} {parts[1]} it" if parts[2] == "s" else f"it {parts[1]} {thing}"
    words = words.replace("|", " or ")
    marks = "".join(f" {box_text(boxes[each])}" for each in ids if each in boxes)
    return _GQA_CLAUSES.get(kind, "{}").format(words, attribute or words).strip() + marks


# ---- one object a line ----

_TAGGED = "<{0}>(.*?)</{0}>"


def llava_cot(entry: dict, where: str, _: dict[str, Any]) -> Parsed:
    """A conversation of LLaVA-CoT: its first question, the reasoning as rationale and the conclusion as answer."""
    turns = objects_of(entry.get("conversations"), "`conversations`")
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise Unusable("conversation that is no question with an answer")
    asked, said = (text_of(turn, "value") for turn in turns[:2])
    parts = {tag: re.search(_TAGGED.format(tag), said, re.DOTALL) for tag in ("REASONING", "CONCLUSION")}
    reasoning, conclusion = (match[1] if match else "" for match in parts.values())
    files = () if entry.get("image") is None else (text_of(entry, "image"),)
    answers = (conclusion,) if conclusion.strip() else ()
    return Parsed(name_of(entry, "id", where), files, asked.replace("<image>", " "), answers, reasoning)


def plain(entry: dict, where: str, _: dict[str, Any]) -> Parsed:
    """An object with `image`, `question` (or `instruction`) and `answer` (or `answers`); boxes are fractions."""
    files = () if entry.get("image") is None else (text_of(entry, "image"),)
    name = name_of(entry, "id", name_of(entry, "question_id", where))
    question = text_of(entry, "question" if "question" in entry or "instruction" not in entry else "instruction")
    answers = _texts(entry, "answers") or _texts(entry, "answer")
    rationale = BETWEEN.join(_texts(entry, "rationale") or _texts(entry, "reasoning"))
    family = "" if entry.get("family") is None else text_of(entry, "family")
    hops = -1 if entry.get("hops") is None else entry["hops"]
    if type(hops) is not int or not -1 <= hops < 1000:
        raise Unusable("`hops` that is not a small whole number", shown(hops))
    boxes = [] if entry.get("boxes") is None else entry["boxes"]
    if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
        raise Unusable("`boxes` that is not a list of boxes", shown(boxes))
    fractions = tuple(pixel_box(box, (1, 1), most=0) for box in boxes)
    return Parsed(name, files, question, answers, rationale, fractions, family, hops, _texts(entry, "choices"))
