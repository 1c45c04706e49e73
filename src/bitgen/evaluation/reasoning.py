"""How well questions about scenes are answered, with rationales and without, and whether the rationales hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bitgen.data.questions.boxes import Box, box_text, intersection_over_union, read_boxes
from bitgen.data.questions.marked_text import NONE, MarkedTokens, Reply
from bitgen.data.questions.shown import NOTHING, OTHER, OWN, PictureShown, shown
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.questions import FAMILIES, MOST_HOPS, TRAINED_HOPS, SceneQuestion, draw_question
from bitgen.data.scenes.rationales import clauses_that_hold, things_named
from bitgen.data.scenes.reasoning import DESCRIBE_PICTURE, WHAT_IS_AT, pixels_of, where, where_absent
from bitgen.data.scenes.tables import FEWEST, MOST, TableScene, table_scene
from bitgen.evaluation.replies import Decoding, replies_to
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor

BATCH = 256


@dataclass(frozen=True)
class Split:
    """Questions that training never asked about scenes that it never drew. ``pair``: with a held-out colour and shape;
    ``composition``: of a held-out combination; None: either."""

    name: str
    pair: bool = False
    composition: bool | None = False
    objects: tuple[int, int] = (FEWEST, MOST)
    hops: tuple[int, int] = (0, TRAINED_HOPS)
    families: tuple[str, ...] = FAMILIES


SPLITS = (
    Split("in distribution"),
    Split("held-out pairs", pair=True),
    Split("held-out compositions", composition=True),
    Split("7 to 8 objects", objects=(7, 8)),
    Split("4 hops", hops=(MOST_HOPS, MOST_HOPS), families=("chain",), composition=None),
)


class Problem(NamedTuple):
    """A question about a scene, the key that its picture is drawn by, and what scenes are of its kind."""

    scene: TableScene
    question: SceneQuestion
    key: tuple[object, ...]
    split: Split = SPLITS[0]


class Judged(NamedTuple):
    """A reply to a problem: whether its answer is right, and how many of its clauses hold, of how many."""

    problem: Problem
    reply: Reply
    right: bool
    clauses: tuple[int, int] = (0, 0)


def problems(split: Split, count: int, seed: int) -> list[Problem]:
    """The first ``count`` problems of a split, each about a picture of its own: answers about one picture are right or
    wrong together, so that fewer pictures would tell less than their questions promise."""
    found: list[Problem] = []
    index = 0
    while len(found) < count:
        key = (seed, "evaluation", split.name, index)
        scene, rng = table_scene(key, *split.objects, split.pair), scene_rng("questions", *key)
        index += 1
        question = draw_question(scene, rng, split.families, split.composition, split.hops)
        if question is not None and (not split.pair or _about_held_out(scene, question)):
            found.append(Problem(scene, question, key, split))
    return found


def _about_held_out(scene: TableScene, question: SceneQuestion) -> bool:
    """Whether it takes an object of a held-out colour and shape to answer."""
    return any(TableScene((scene.objects[index],)).has_held_out_pair for index in question.objects)


class Answerer:
    """A model that answers, in eval mode, on its device.

    Args:
        sees: the own picture, an empty one (``nothing``), or (``other``) that of another scene like it.
    """

    def __init__(self, model: BitGenModel, processor: BitGenProcessor, sees: PictureShown = OWN) -> None:
        assert processor.tokenizer is not None
        self.model, self.processor, self.sees = model, processor, sees
        self.tokens = MarkedTokens(processor.tokenizer)

    def answer(
        self,
        given: Sequence[Problem],
        thinks: bool,
        decoding: Decoding = Decoding(),  # noqa: B008
    ) -> list[Judged]:
        """A reply to each problem."""
        prompts = [self.tokens.prompt(problem.question.text, thinks) for problem in given]
        replies = self.replies(given, prompts, thinks, decoding)
        return [judged(problem, reply) for problem, reply in zip(given, replies, strict=True)]

    def replies(
        self, given: Sequence[Problem], prompts: Sequence[list[int]], thinks: bool, decoding: Decoding
    ) -> list[Reply]:
        """What follows prompts about the pictures of problems, in their order."""
        found: list[Reply] = []
        for start in range(0, len(given), BATCH):
            part = slice(start, start + BATCH)
            seen = self.image_tokens(given[part])
            found += replies_to(self.model, self.tokens, seen, prompts[part], thinks, decoding)
        return found

    @torch.no_grad()
    def image_tokens(self, given: Sequence[Problem]) -> torch.Tensor:
        """Of the pictures of problems, ``[N, P, D]``; each is seen once."""
        keys = list(dict.fromkeys(problem.key for problem in given))
        scenes = {problem.key: problem.scene for problem in given}
        if self.sees == OTHER:
            kinds = {problem.key: problem.split for problem in given}
            scenes = {key: table_scene(("another", *key), *kinds[key].objects, kinds[key].pair) for key in keys}
        pixels = torch.stack([pixels_of(self.processor, scenes[key], key) for key in keys])
        if self.sees == NOTHING:
            pixels = shown(pixels, NOTHING)
        pixels = pixels.to(next(self.model.parameters()).device)
        tokens = self.model.pool_image_tokens(self.model.encode_image(pixels).image_tokens)
        at = {key: row for row, key in enumerate(keys)}
        return tokens[[at[problem.key] for problem in given]]

    def where(self, count: int, seed: int, pair: bool = False, split: Split = SPLITS[0]) -> dict[str, float]:
        """How well things are found in scenes with others: see :func:`box_measures`.

        Args:
            pair: things of held-out pairs of colour and shape, in scenes that have some.
            split: else, the scenes.
        """
        found: list[tuple[Box | None, Box, list[Box]]] = []
        asked = list(_where_problems(count, seed, pair, split))
        prompts = [self.tokens.prompt(text, False) for _, _, text in asked]
        said = self.replies([problem for problem, _, _ in asked], prompts, False, Decoding(8))
        for (problem, index, _), reply in zip(asked, said, strict=True):
            boxes = read_boxes(reply.answer or "")
            scene = problem.scene
            others = [scene.box(other) for other in range(len(scene.objects)) if other != index]
            found.append((boxes[0] if boxes else None, scene.box(index), others))
        measures = box_measures(found)
        if not pair:
            measures["absent"] = self._absent(things_asked("absent", count), seed, split)
            measures["named"] = self._named(things_asked("named", count), seed, split)
            measures |= self._described(things_asked("described", count), seed, split)
        return measures

    def _described(self, count: int, seed: int, split: Split) -> dict[str, float]:
        """Of whole pictures that are described: percent of their things that are named with a right box, and percent of
        the named things that are there (recall and precision, at an intersection over union of 0.5)."""
        given = problems(split, count, seed)
        prompts = [self.tokens.prompt(DESCRIBE_PICTURE, False)] * len(given)
        found = named = there = 0
        for problem, reply in zip(given, self.replies(given, prompts, False, Decoding()), strict=True):
            right, said = things_named(problem.scene, reply.answer or "")
            found, named, there = found + right, named + said, there + len(problem.scene.objects)
        return {"described": 100 * found / there, "described rightly": 100 * found / named if named else float("nan")}

    def _named(self, count: int, seed: int, split: Split) -> float:
        """Percent of places of which what is there is named, size, colour and shape."""
        given = problems(split, count, seed)
        rng = scene_rng(seed, "named")
        asked = [(one, rng.randrange(len(one.scene.objects))) for one in given]
        prompts = [
            self.tokens.prompt(WHAT_IS_AT.format(box=box_text(one.scene.box(at))), False, trusted=True)
            for one, at in asked
        ]
        said = self.replies(given, prompts, False, Decoding(8))
        right = sum(reply.answer == one.scene.name(at) for reply, (one, at) in zip(said, asked, strict=True))
        return 100 * right / len(said)

    def _absent(self, count: int, seed: int, split: Split) -> float:
        """Percent of things that are not there of which that is said."""
        given = problems(split, count, seed)
        rng = scene_rng(seed, "absent")
        prompts = [self.tokens.prompt(where_absent(problem.scene, rng).question, False) for problem in given]
        said = self.replies(given, prompts, False, Decoding(8))
        return 100 * sum(reply.answer == NONE for reply in said) / len(said)


def _where_problems(count: int, seed: int, pair: bool, split: Split) -> Iterator[tuple[Problem, int, str]]:
    split = SPLITS[1] if pair else split
    rng = scene_rng(seed, "where", pair)
    for problem in problems(split, count, seed):
        scene = problem.scene
        indices = [
            index for index in range(len(scene.objects))
            if not pair or TableScene((scene.objects[index],)).has_held_out_pair
        ]  # fmt: skip
        index = rng.choice(indices)
        yield problem, index, where(scene, index, rng).question


def things_asked(measure: str, count: int) -> int:
    """How many things a measure of :meth:`Answerer.where` is of, which was asked for ``count``."""
    return max(count // 4, 1) if measure in ("absent", "named", "described", "described rightly") else count


def box_measures(found: Sequence[tuple[Box | None, Box, Sequence[Box]]]) -> dict[str, float]:
    """Of boxes that were said (None: none), the true one and those of other objects: percent with an intersection over
    union of at least 0.5 and 0.75, its mean, and percent whose middle lies in the own, and in another object's box."""
    overlaps = [intersection_over_union(box, true) if box is not None else 0.0 for box, true, _ in found]
    own = [box is not None and true.holds(*box.centre) for box, true, _ in found]
    other = [box is not None and any(one.holds(*box.centre) for one in others) for box, _, others in found]
    count = len(found)
    return {
        "acc@.5": 100 * sum(one >= 0.5 for one in overlaps) / count,
        "acc@.75": 100 * sum(one >= 0.75 for one in overlaps) / count,
        "mean IoU": sum(overlaps) / count,
        "own box": 100 * sum(own) / count,
        "other box": 100 * sum(one and not mine for one, mine in zip(other, own, strict=True)) / count,
        "no box": 100 * sum(box is None for box, _, _ in found) / count,
    }


def judged(problem: Problem, reply: Reply) -> Judged:
    """What a reply is worth."""
    clauses = (0, 0)
    if reply.rationale is not None:
        clauses = clauses_that_hold(problem.scene, problem.question.steps, reply.rationale)
    return Judged(problem, reply, reply.answer == problem.question.answer, clauses)


def accuracy(replies: Sequence[Judged]) -> float:
    """Percent of right answers; NaN of none."""
    return 100 * sum(one.right for one in replies) / len(replies) if replies else float("nan")


def clause_measures(replies: Sequence[Judged]) -> dict[str, float]:
    """Percent of the clauses of right answers that hold, and of right answers of which all hold."""
    right = [one for one in replies if one.right and one.clauses[1]]
    if not right:
        return {"clauses": float("nan"), "whole chains": float("nan")}
    held, said = (sum(one.clauses[at] for one in right) for at in (0, 1))
    whole = sum(one.clauses[0] == one.clauses[1] for one in right)
    return {"clauses": 100 * held / said, "whole chains": 100 * whole / len(right)}


def by_hops(replies: Sequence[Judged]) -> dict[int, float]:
    """Accuracy by the number of hops."""
    hops = sorted({one.problem.question.hops for one in replies})
    return {hop: accuracy([one for one in replies if one.problem.question.hops == hop]) for hop in hops}


def by_family(replies: Sequence[Judged]) -> dict[str, float]:
    """Accuracy by family."""
    families = [name for name in FAMILIES if any(one.problem.question.family == name for one in replies)]
    return {name: accuracy([one for one in replies if one.problem.question.family == name]) for name in families}
