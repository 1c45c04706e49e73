"""What a memory says of itself when it was changed or loaded: warnings, each with what to do."""

from __future__ import annotations

import logging
import re
from itertools import compress

import torch

from bitgen.guards.printable import printable
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.episodes import Episode, Held
from bitgen.model.speaking import BY_PICTURE, BY_TEXT, one_word_apart

logger = logging.getLogger(__name__)

# Relative to its largest entry: a text in another batch has another code by rounding, about a tenth of this.
_SAME_TEXT = 1e-6
_NO_NAMES = {"A", "An", "Her", "His", "It", "My", "Our", "That", "The", "Their", "This", "Your"}
# Cosine of what two texts look for in a picture: below it are 89% of 150 edits to another thing, and 1% of those to
# another name (a model of drawn scenes; that of photographs, which mean the whole picture, is never below).
_ONE_THING = 0.45


def warn_of_like_texts(held: Held, newest: int, id: str | None = None) -> None:
    """Name texts of the newest episodes, or of one, that differ from another's and have the same code."""
    like = _like_texts(held, newest, id)
    if like:
        logger.warning(
            "the text of episode %s%s has the same code as the other text of episode %s: the model reads no "
            "difference, and neither text recalls its own episode alone. Make them differ in what the model reads.",
            printable(like[0][0].id, 60),
            f" (and of {len(like) - 1:,} more)" if len(like) > 1 else "",
            printable(like[0][1].id, 60),
        )


def _like_texts(held: Held, newest: int, id: str | None) -> list[tuple[Episode, Episode]]:
    """For each of the newest episodes, or that of ``id``, another one with a different text of the same code."""
    texts = held.memory.halves(TEXT)
    newly = range(len(texts) - newest, len(texts)) if id is None else (held.row(id),)
    # Texts of one code are neighbours on any line: all pairs need not be compared.
    places = texts @ torch.linspace(0, 50, texts.shape[1]).sin().to(texts)
    along, order = places.sort()
    tolerance = _SAME_TEXT * texts.abs().amax(dim=1)
    reach = tolerance * texts.shape[1]
    found = []
    for row in newly:
        ends = torch.stack([places[row] - reach[row], places[row] + reach[row]])
        first, last = torch.searchsorted(along, ends).tolist()
        near = order[first:last]
        same = near[(texts[near] - texts[row]).abs().amax(dim=1) <= tolerance[row]].tolist()
        new = held.episodes[row]
        found += [(new, held.episodes[other]) for other in same if held.episodes[other].text != new.text][:1]
    return found


def warn_of_contradictions(held: Held, newest: int, id: str | None = None) -> None:
    """Name an earlier sentence that one of the newest may contradict, or any that the one of ``id`` may: it shares a
    name, and is asked for alike."""
    if held.spoken is None:
        return
    keys, pictured = held.spoken.halves(IMAGE), held.memory.halves(IMAGE).any(dim=1)
    assert BY_TEXT.alike is not None
    found, names = [], [_names(episode.text) for episode in held.episodes]
    newly = range(len(keys) - newest, len(keys)) if id is None else (held.row(id),)
    for new in newly:
        cosines = keys @ keys[new]
        near = (cosines > BY_TEXT.alike) & (cosines <= BY_TEXT.same)  # of those with the same key the later counts
        near &= ~pictured & ~pictured[new]
        if id is None:
            near[new:] = False
        for old in near.nonzero()[:, 0].tolist():
            if names[new] & names[old] and held.episodes[old].text != held.episodes[new].text:
                found.append((held.episodes[old], held.episodes[new]))
    if found:
        old, newer = found[-1]
        says = "with either. If that one is no longer true, edit it or forget it"
        if one_word_apart(*(re.findall(r"\w+", one.text) for one in (old, newer))):
            last = max(old, newer, key=lambda one: held.row(one.id))
            says = f"with episode {printable(last.id, 60)}, the last that was taught. Forget the one that is not true"
        logger.warning(
            "'%s' is told beside '%s' (episode %s)%s, and a question may be answered %s.",
            printable(newer.text, 60),
            printable(old.text, 60),
            printable(old.id, 60),
            f" and {len(found) - 1:,} more such pairs" if len(found) > 1 else "",
            says,
        )


def warn_of_later_ones(held: Held, id: str) -> None:
    """Say that an edited episode is not what is said, as a later one is about the same thing."""
    if held.spoken is None:
        return
    keys, pictured, row = held.spoken.halves(IMAGE), held.memory.halves(IMAGE).any(dim=1), held.row(id)
    same = (keys @ keys[row] > (BY_PICTURE if pictured[row] else BY_TEXT).same) & (pictured == pictured[row])
    later = list(compress(held.episodes[row + 1 :], same[row + 1 :].tolist()))
    if later and later[-1].text != held.episodes[row].text:
        logger.warning(
            "episode %s ('%s') was taught after episode %s, of the same thing, and is what the model says. Edit that "
            "one instead, or forget it.",
            printable(later[-1].id, 60),
            printable(later[-1].text, 60),
            printable(id, 60),
        )


def warn_of_earlier_ones(held: Held, newest: int) -> None:
    """Say which earlier episodes are no longer what is said, as one of the newest is about the same thing."""
    if held.spoken is None:
        return
    keys, pictured = held.spoken.halves(IMAGE), held.memory.halves(IMAGE).any(dim=1)
    found = []
    for new in range(len(keys) - newest, len(keys)):
        level = (BY_PICTURE if pictured[new] else BY_TEXT).same
        same = (keys[:new] @ keys[new] > level) & (pictured[:new] == pictured[new]) & keys[:new].any(dim=1)
        found += [(held.episodes[old], held.episodes[new]) for old in same.nonzero()[-1:, 0].tolist()]
    if found:
        old, newer = found[-1]
        logger.warning(
            "episode %s ('%s') is about the same thing as episode %s ('%s') and is what the model says from now on%s. "
            "Forget the earlier one if it is no longer true.",
            *(printable(text, 60) for text in (newer.id, newer.text, old.id, old.text)),
            f" (and {len(found) - 1:,} more such pairs)" if len(found) > 1 else "",
        )


def warn_after_write(held: Held, newest: int) -> None:
    """Name what newly written episodes are like, contradict or stand for from now on, and what to expect when full."""
    warn_of_like_texts(held, newest)
    warn_of_contradictions(held, newest)
    warn_of_earlier_ones(held, newest)
    warn_when_full(held)


def warn_after_edit(held: Held, id: str) -> None:
    """Name what an edited episode is like, contradicts or stays behind."""
    warn_of_like_texts(held, 1, id)
    warn_of_contradictions(held, 1, id)
    warn_of_later_ones(held, id)


def _names(text: str) -> set[str]:
    """Words with a capital, without those that merely begin a sentence."""
    return {word for word in re.findall(r"\w+", text) if word[0].isupper()} - _NO_NAMES


def warn_of_another_thing(id: str, text: str, alike: float) -> None:
    """Say that an edited text of a picture seems to be about another thing in it, as the picture is not kept."""
    if alike < _ONE_THING:
        logger.warning(
            "'%s' seems to be about something else in the picture than before. The picture is not kept, so the text "
            "stays with what the old one named. To name another thing, forget episode %s and teach the picture anew.",
            printable(text, 60),
            printable(id, 60),
        )


def warn_when_full(held: Held) -> None:
    """Say what to expect of a memory that holds more episodes than it can tell apart."""
    if len(held.episodes) <= held.capacity:
        return
    image, text = held.expected_recall()
    speech = held.expected_speech()
    logger.warning(
        "the memory holds %d episodes and can tell %d apart: of all of them, %.0f%% are now recalled first from "
        "their own image and %.0f%% from their own text%s. Forget some, or resize it to more slots%s.",
        len(held.episodes),
        held.capacity,
        100 * image,
        100 * text,
        "" if speech is None else f", and {100 * speech:.0f}% are read as they are to be said",
        "" if held.memory.space.widen else ", widened",
    )


def warn_of_unsaid(held: Held) -> None:
    """Say how many episodes a model that speaks cannot say, which were taught to one that did not."""
    if held.unsaid:
        logger.warning(
            "the model cannot say %d of %d episodes, which were taught to one that did not speak: they are recalled as "
            "before. Teach them again (python src/memory.py --model DIR --memory FILE teach IMAGE TEXT), and it says "
            "them; then forget the old ones.",
            held.unsaid,
            len(held.episodes),
        )
