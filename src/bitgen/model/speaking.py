"""What a memory of taught facts gives a model to say: from a cue to recalled tokens.

A cue is compared with the keys of all facts: a picture by its tokens and as a whole (``picture.py``), a question also
by its words (``question.py``). What is near enough to one of them to mean it (Larimar's scope detector, arXiv
2403.11901, section 3.2, here with a learned threshold) reads that fact's value from the closed-form memory, and the
decoder looks at the tokens that it becomes. A cue that means nothing reads nothing.

Shapes: E facts with keys ``[E, k]``, B cues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor

from .picture import Picture, nearness
from .question import Question
from .recall import Recall
from .recalled import Recalled

MOST_RECALLED = 2  # facts that one cue may recall, as training has it


class Meaning(NamedTuple):
    """When a kind of cue means a fact.

    ``sure``: a fact is meant above this probability. ``facts``: the number of facts for which the model's odds hold.
    With N facts a picture's odds are multiplied by ``facts / N``, since among more facts one is more often near by
    chance. None: the odds do not depend on N, as those of questions never do.
    ``same``: above this cosine two keys are of the same thing, and only the later counts. ``alike``: above this cosine
    two facts answer the same and do not compete to be what is meant. None: facts never compete, as a cue may mean
    several.
    ``names``: words of a question that are worth more nats than this are names, and a fact is only meant if it has all
    of them, letter for letter (``question.py``); other words are a matter of wording and cost nothing. None: words do
    not count.
    """

    sure: float
    facts: int | None
    same: float
    alike: float | None
    names: float | None = None


# Of 399 pairs of pictures of one thing 98% have keys above 0.85, of 8,379 pairs of two things one at most. Sentences
# that differ in one name come nearer to each other than those, so that these are the same above 0.98 alone. Of 300
# pairs of sentences that contradict each other 94% are above 0.7. ``sure``, ``facts`` and ``names`` were chosen on
# held-out episodes (docs/lab_log.md), because levels that fit the things of training do not fit new ones. What
# questions are taken for by mistake is a fact about something else of the same name, however few facts there are.
BY_PICTURE, BY_TEXT = Meaning(0.8, 8, 0.85, None), Meaning(0.6, None, 0.98, 0.7, 5.0)
_AT_ONCE = 256  # keys that are compared with all others together
_NEAREST = 64  # facts of which it is looked whether they are the same, or alike


class Found(NamedTuple):
    """What B cues mean: ``confidence [B, E]``, the probability that this is what was taught (0 where a later fact about
    the same thing counts), and of each fact the picture token that is nearest to it, ``[B, E]`` (zeros where a text is
    the cue). A fact is recalled above the probability ``sure``."""

    confidence: torch.Tensor
    at: torch.Tensor
    sure: float = BY_PICTURE.sure


def find(
    recall: Recall, keys: torch.Tensor, values: torch.Tensor, picture: Picture, meaning: Meaning = BY_PICTURE
) -> Found:
    """Compare pictures with facts, of keys ``[E, k]`` and values ``[E, L d]``. A cue that is NaN means nothing."""
    keys = keys.to(picture.keys)  # facts may be held on another device, and in another precision

    def looked_for(rows: torch.Tensor) -> torch.Tensor:
        return recall.looked_for_by(values[rows.to(values.device)].to(keys))

    counts = told_last(keys)
    cosines, at = nearness(picture, keys, counts, looked_for)
    logits = recall.logits(cosines)
    if meaning.facts is not None:
        logits = logits - math.log(max(1, int(counts.sum())) / meaning.facts)
    return _meant(logits, keys, at, meaning)


def find_asked(
    recall: Recall, keys: torch.Tensor, values: torch.Tensor, question: Question, meaning: Meaning = BY_TEXT
) -> Found:
    """Compare questions with facts: by keys ``[E, k]``, and by the names that the values ``[E, L d]`` hold. Of two that
    differ in one word and are both meant, the later is."""
    keys = keys.to(question.keys)
    logits = recall.asked_odds(question, keys)
    at = torch.zeros_like(logits, dtype=torch.long)
    if meaning.names is None:
        return _meant(logits, keys, at, meaning)
    logits = logits.masked_fill(~recall.asked_names(question, values, meaning.names), -torch.inf)
    found = _meant(logits, keys, at, meaning)
    for row in ((found.confidence > meaning.sure).sum(dim=1) > 1).nonzero().flatten().tolist():
        _the_later_counts(recall, values, found.confidence[row], meaning.sure)
    return found


def _the_later_counts(recall: Recall, values: torch.Tensor, confidence: torch.Tensor, sure: float) -> None:
    """Of facts above ``sure`` that differ in one word give the last one the probability ``[E]`` of the surest, and the
    others none."""
    facts = (confidence > sure).nonzero().flatten()
    words = recall.words_in(values[facts.to(values.device)])
    for at, (fact, text) in enumerate(zip(facts.tolist(), words, strict=True)):
        for later, other in zip(facts[at + 1 :].tolist(), words[at + 1 :], strict=True):
            if one_word_apart(text, other):
                confidence[later] = torch.maximum(confidence[later], confidence[fact])
                confidence[fact] = 0


def one_word_apart(text: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two texts, as their words, are the same but for one word: of "Blick belongs to Anna" and "Blick belongs
    to Otto" the later counts."""
    return len(text) == len(other) and sum(one != two for one, two in zip(text, other, strict=True)) == 1


def _meant(logits: torch.Tensor, keys: torch.Tensor, at: torch.Tensor, meaning: Meaning) -> Found:
    by_kind = _each_alone if meaning.alike is None else _together
    return Found(by_kind(logits.nan_to_num(-torch.inf), keys, meaning), at, meaning.sure)


def _each_alone(logits: torch.Tensor, keys: torch.Tensor, meaning: Meaning) -> torch.Tensor:
    """Each fact's own probability, against nothing; where a later fact about the same thing is recalled as well, the
    earlier one has none."""
    confidence = logits.sigmoid()
    some = (confidence > meaning.sure).any(dim=0).nonzero()[:, 0]
    recalled = (confidence[:, some] > meaning.sure).to(keys)
    later = (keys[some] @ keys[some].mT > meaning.same).triu(1).to(keys)  # [earlier, later]
    confidence[:, some] *= (recalled @ later.mT == 0) | (recalled == 0)
    return confidence


def _together(logits: torch.Tensor, keys: torch.Tensor, meaning: Meaning) -> torch.Tensor:
    """Probabilities of all facts and of none that add up to 1. Facts that answer the same do not take them from each
    other."""
    assert meaning.alike is not None
    near = logits.topk(min(_NEAREST, logits.shape[1]), dim=1).indices.sort(dim=1).values  # [B, N], in their order
    cosines = keys[near] @ keys[near].mT
    number = torch.arange(len(keys), device=keys.device)
    # A later one says it, be it near to the question or not.
    again = ((keys[near] @ keys.mT > meaning.same) & (number > near[..., None])).any(dim=2)
    odds = logits.gather(1, near).masked_fill(again, -torch.inf)
    far = F.pad(logits.scatter(1, near, -torch.inf), (0, 1)).logsumexp(dim=1, keepdim=True)  # and nothing, which is 0
    others = (cosines <= meaning.alike) | torch.eye(near.shape[1], dtype=torch.bool, device=keys.device)
    against = odds[:, None].masked_fill(~others, -torch.inf).logsumexp(dim=2)
    confidence = (logits - torch.logaddexp(far, odds.logsumexp(dim=1, keepdim=True))).exp()
    return confidence.scatter(1, near, (odds - torch.logaddexp(far, against)).exp())


def told_last(keys: torch.Tensor) -> torch.Tensor:
    """Which facts count, of keys ``[E, k]``: those that no later one has the same key as, ``[E]``. Of equal keys only
    the last can be read, since all of them would be read mixed; a key of zeros is of what cannot be said."""
    number = torch.arange(len(keys), device=keys.device)
    parts = [
        ~((keys[part] @ keys.mT > BY_TEXT.same) & (number > part[:, None])).any(dim=1)
        for part in number.split(_AT_ONCE)
    ]
    return torch.cat(parts) & keys.any(dim=1)


def chosen(found: Found, most: int = MOST_RECALLED) -> list[list[int]]:
    """The facts that each cue recalls, surest first; of several that one picture token is nearest to, the surest."""
    rows = []
    for confidence, at in zip(found.confidence.tolist(), found.at.tolist(), strict=True):
        taken: list[int] = []
        places: set[int] = set()
        for fact in sorted(range(len(confidence)), key=lambda fact: -confidence[fact]):
            if confidence[fact] <= found.sure or len(taken) == most:
                break
            if at[fact] not in places:
                taken.append(fact)
                places.add(at[fact])
        rows.append(taken)
    return rows


@torch.no_grad()
def recalled_for(
    recall: Recall,
    facts: Sequence[Sequence[int]],
    found: Found,
    read: Callable[[torch.Tensor], torch.Tensor],
    image_tokens: torch.Tensor | None,
) -> Recalled | None:
    """What the decoder looks at for each of B cues; None where none of them recalls anything.

    Args:
        facts: that each cue recalls, rows of the memory.
        read: rows of facts ``[N]`` to the values that the memory gives for their keys, ``[N, L d]``.
        image_tokens: ``[B, P, D]`` of the pictures that are the cues; None: texts are.
    """
    most = max(map(len, facts), default=0)
    if not most:
        return None
    place = recall.place
    rows = torch.tensor([[*row, *[-1] * (most - len(row))] for row in facts], device=place.device)
    index = rows.clamp_min(0)
    values = read(index.flatten()).view(*index.shape, -1).to(place)
    seen = place.new_zeros(*index.shape, place.shape[1])
    if image_tokens is not None:
        seen = recall.seen(image_tokens, found.at.gather(1, index))
    return recall.tokens(values, seen, rows >= 0)


class _NotEmpty(LogitsProcessor):
    """Keeps rows in which something was recalled from ending before they begin, also with a space behind a space.

    Args:
        recalled: which rows of the batch these are, ``[B]``; beams, and several answers of one row, follow each other.
        ends: the tokens that end an answer.
        space: a token that is no beginning; None: the tokenizer has none.
    """

    def __init__(self, recalled: torch.Tensor, ends: list[int], space: int | None) -> None:
        self.recalled, self.ends, self.space = recalled, ends, space
        self.prompt: int | None = None  # the width of the prompts, which the first step is called with

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        said = input_ids[:, self.prompt :]
        begun = (said != (-1 if self.space is None else self.space)).any(dim=1)
        rows = self.recalled.to(scores.device).repeat_interleave(len(scores) // len(self.recalled)) & ~begun
        if not rows.any():
            return scores
        refused = torch.zeros_like(scores, dtype=torch.bool)
        refused[:, self.ends] = rows[:, None]
        if self.space is not None and said.shape[1]:
            refused[:, self.space] = rows
        return scores.masked_fill(refused, -torch.inf)


def not_empty(
    arguments: dict[str, Any], configs: Sequence[GenerationConfig | None], space: int | None
) -> dict[str, Any]:
    """Arguments of ``generate``, such that an answer from a memory has a first word: where something was recalled,
    ending at once is no answer. Without ``recalled``, or where nothing ends an answer, they are as they were.

    Args:
        configs: the first that says what ends an answer does, unless the arguments do.
        space: the token that a space alone is, which is no word.
    """
    recalled, mask = arguments.get("recalled"), arguments.get("recalled_mask")
    said = [arguments["eos_token_id"]] if "eos_token_id" in arguments else [one.eos_token_id for one in configs if one]
    ends = next((one for one in said if one is not None), None)
    if recalled is None or ends is None:
        return arguments
    rows = recalled.new_ones(len(recalled), dtype=torch.bool) if mask is None else mask.any(dim=1)
    own = arguments.get("logits_processor") or []
    ends = torch.as_tensor(ends).reshape(-1).tolist()
    return arguments | {"logits_processor": [*own, _NotEmpty(rows, ends, space)]}
