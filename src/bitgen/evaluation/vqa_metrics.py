"""Accuracy of short answers to questions about pictures, by the rules of VQA v2.

Source: https://visualqa.org/evaluation.html and the evaluation code it links to (GT-Vision-Lab/VQA, vqaEval.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from bitgen.guards.printable import printable

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    name: str(number) for number, name in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ASCII_MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')  # neither apostrophe nor colon, and no sign that is a word: % $ &
_CONTRACTIONS = """
    ain't aren't can't couldn't could've couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've shouldn't should've shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've weren't we've what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't wouldn't
    would've wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've he'd
""".split()


@cache
def _lacking_an_apostrophe() -> dict[str, str]:
    """Every way of writing a contraction with one apostrophe too few, and the contraction."""
    return {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS
        for place in range(len(word))
        if word[place] == "'"
    }


def _is_mark(character: str) -> bool:
    return character in _ASCII_MARKS or (not character.isascii() and unicodedata.category(character)[0] == "P")


def normalize_answer(text: str) -> str:
    """An answer as VQA v2 compares it: one space between words, in lower case.

    - A full stop goes, but not before a digit. Another mark goes where it has a space beside it, or the answer has
      a comma between digits (10,000); elsewhere it becomes a space. Of other scripts all punctuation counts as marks.
    - Zero to ten, and none, become digits; a, an and the go.
    - A contraction without its apostrophe gets it (dont, couldnt've).

    Full-width letters and digits are ordinary ones first (NFKC). These are the rules of the published code, which
    leaves them out where all people gave the same answer; here they always hold.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    written = text = re.sub(r"[\n\t]", " ", text).strip()
    thousands = re.search(r"\d,\d", text) is not None
    for mark in sorted(filter(_is_mark, set(text))):
        goes = thousands or f"{mark} " in text or f" {mark}" in text
        written = written.replace(mark, "" if goes else " ")
    written = re.sub(r"\.(?!\d)", "", written)
    kept = (_NUMBERS.get(word, word) for word in written.lower().split())
    lacking = _lacking_an_apostrophe()
    return " ".join(lacking.get(word, word) for word in kept if word not in _ARTICLES)


def same_answer(answer: str, other: str) -> bool:
    """Whether two answers are one after normalisation, or as they are where nothing is left of them: choice "A" is an
    article. No answer is none."""
    one, two = normalize_answer(answer), normalize_answer(other)
    if not one and not two:
        one, two = answer.strip().lower(), other.strip().lower()
    return one == two and one != ""


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, in [0, 1], after normalisation: ``min(n / 3, 1)`` where n people gave it, and of this the
    mean over the sets that lack one person's answer, as the published code counts: of ten people 1, 2, 3, 4 who agree
    give 0.3, 0.6, 0.9 and 1.

    Up to three people's answers make one set, and all are needed: a single one makes this exact match.

    Raises:
        ValueError: no people's answers.
    """
    count = len(people)
    if not count:
        raise ValueError("no answer to compare it with; give at least one")
    agreed = sum(same_answer(answer, one) for one in people)
    if count <= 3:
        return agreed / count
    without, full = min(max(agreed - 1, 0) / 3, 1.0), min(agreed / 3, 1.0)
    return (agreed * without + (count - agreed) * full) / count


def vqa_scores(answers: Sequence[str], people: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """``vqa_accuracy`` and ``exact_match`` (with any of the people's answers) in percent; ``questions``, ``no_answer``.

    Raises:
        ValueError: no answers, not as many as questions, or a question without people's answers.
    """
    if not answers:
        raise ValueError("no answers to score; write some first")
    if len(answers) != len(people):
        raise ValueError(f"{len(answers)} answers for {len(people)} questions")
    accuracy = exact = 0.0
    for row, (answer, found) in enumerate(zip(answers, people, strict=True)):
        given = [found] if isinstance(found, str) else list(found)
        try:
            accuracy += vqa_accuracy(answer, given)
        except ValueError as error:
            raise ValueError(f"question {row} (answered {printable(answer, 80)}): {error}") from None
        exact += any(same_answer(answer, one) for one in given)
    return {
        "vqa_accuracy": 100 * accuracy / len(answers),
        "exact_match": 100 * exact / len(answers),
        "questions": len(answers),
        "no_answer": sum(not answer.strip() for answer in answers),
    }
