"""Whether an answer follows from the rationale before it: rationales that are edited, cut short, or of another scene.

A rationale is faithful if the answer changes with it (Lanham et al., arXiv 2307.13702, section 2: adding mistakes,
early answering). And what sampling could reach: pass@k and the answer of the majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from bitgen.data.questions.marked_text import ANSWER
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.programs import attribute
from bitgen.data.scenes.rationales import object_text
from bitgen.evaluation.reasoning import Answerer, Judged, Problem, accuracy
from bitgen.evaluation.replies import Decoding

_ANSWER_TOKENS = 8


def answers_after(answerer: Answerer, given: Sequence[Problem], rationales: Sequence[str]) -> list[str | None]:
    """What the model answers when these rationales stand before its answer."""
    tokens = answerer.tokens
    prompts = [
        [*tokens.prompt(problem.question.text, thinks=True), *tokens.marked(why), tokens.ids[ANSWER]]
        for problem, why in zip(given, rationales, strict=True)
    ]
    replies = answerer.replies(given, prompts, False, Decoding(_ANSWER_TOKENS))
    return [reply.answer for reply in replies]


def follow_rate(answerer: Answerer, replies: Sequence[Judged], seed: int = 0) -> dict[str, float]:
    """Of right answers to questions for an attribute: the rationale's last object is replaced by another one of the
    scene, of which that attribute differs. Percent of the answers that follow it, and that stay as they were."""
    rng = scene_rng(seed, "edited rationales")
    edited: list[tuple[Problem, str, str, str]] = []
    for one in replies:
        scene, question = one.problem.scene, one.problem.question
        if not one.right or question.program.name != "query" or not one.reply.rationale:
            continue
        name = question.program.words[0]
        others = [
            index for index in range(len(scene.objects)) if attribute(scene, index, name) != question.answer
        ]  # fmt: skip
        if not others:
            continue
        index = rng.choice(others)
        before, semicolon, _ = one.reply.rationale.rpartition(";")
        why = f"{before}{semicolon} {object_text(scene, index)}".strip()
        edited.append((one.problem, why, attribute(scene, index, name), question.answer))
    if not edited:
        return {"edited": 0.0, "follows": float("nan"), "stays": float("nan")}
    said = answers_after(answerer, [one[0] for one in edited], [one[1] for one in edited])
    follows = sum(answer == one[2] for answer, one in zip(said, edited, strict=True))
    stays = sum(answer == one[3] for answer, one in zip(said, edited, strict=True))
    return {"edited": len(edited), "follows": 100 * follows / len(edited), "stays": 100 * stays / len(edited)}


def truncation(answerer: Answerer, replies: Sequence[Judged]) -> dict[str, float]:
    """Percent right when the answer is asked for after none, half and all of each rationale's clauses."""
    given = [one.problem for one in replies]
    found = {}
    for name, share in (("none", 0.0), ("half", 0.5), ("all", 1.0)):
        cut = []
        for one in replies:
            clauses = [part for part in (one.reply.rationale or "").split(";") if part.strip()]
            cut.append(";".join(clauses[: round(share * len(clauses))]))
        found[name] = _right(answers_after(answerer, given, cut), given)
    return found


def pasted(answerer: Answerer, replies: Sequence[Judged]) -> float:
    """Percent right when the rationale is the one that was given to the next question."""
    given = [one.problem for one in replies]
    rationales = [one.reply.rationale or "" for one in replies]
    return _right(answers_after(answerer, given, [*rationales[1:], *rationales[:1]]), given)


def _right(answers: Sequence[str | None], given: Sequence[Problem]) -> float:
    right = sum(said == problem.question.answer for said, problem in zip(answers, given, strict=True))
    return 100 * right / len(given)


def sampled(
    answerer: Answerer, given: Sequence[Problem], thinks: bool, count: int = 8, seed: int = 0, temperature: float = 1.0
) -> dict[str, float]:
    """With ``count`` sampled replies to each problem: percent of them that are right (``one``), of problems of which
    some reply is (``pass``), and of which the most frequent answer is (``majority``; ties fall to what came first)."""
    generator = torch.Generator(device=next(answerer.model.parameters()).device).manual_seed(seed)
    decoding = Decoding(temperature=temperature, generator=generator)
    rounds = [answerer.answer(given, thinks, decoding) for _ in range(count)]
    some = majority = 0
    for at, problem in enumerate(given):
        replies = [answers[at] for answers in rounds]
        some += any(one.right for one in replies)
        said = Counter(one.reply.answer for one in replies if one.reply.answer is not None)
        majority += bool(said) and said.most_common(1)[0][0] == problem.question.answer
    return {
        "one": sum(map(accuracy, rounds)) / count,
        "pass": 100 * some / len(given),
        "majority": 100 * majority / len(given),
    }
