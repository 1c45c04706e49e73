"""Conversations as ids and labels, both from one rendering of a chat template."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from bitgen.data.conversations.chat_templates import PLAIN, SYSTEM_PROMPTS, TEMPLATES, TOKENIZER
from bitgen.data.conversations.spelled import cuts_in, tokens_of_parts
from bitgen.guards.printable import printable
from bitgen.model.likelihood import IGNORED
from bitgen.vlm.splice import IMAGE_ID

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
VISUAL_MARKS = ("<image>", "<video>")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARKS = re.compile("|".join(VISUAL_MARKS))
_PROBE = "x"


class EncodedChat(NamedTuple):
    """``ids [T]``, with :data:`IMAGE_ID` once a visual, and ``labels [T]``: answers with their ends, -100 elsewhere."""

    ids: torch.Tensor
    labels: torch.Tensor


class _Turn(NamedTuple):
    """A message, and where in its text visuals stand."""

    role: str
    text: str
    marks: tuple[int, ...] = ()


class _Specials(NamedTuple):
    """Of a tokenizer: a special token that stands for a visual while text is tokenised, so that the text on its two
    sides never joins; the ids that may end an answer; and what it puts in front of a text."""

    mark: str
    ends: frozenset[int]
    start: str


class _Rendered(NamedTuple):
    """The text of a conversation, the starts of its visuals' marks, and from where to where its answers go.

    ``cuts``: where messages spell what would else be a token of the template.
    ``blocks``: whether the template itself says so, and then may count an answer's end in.
    """

    text: str
    marks: tuple[int, ...]
    cuts: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    blocks: bool


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template: str = TOKENIZER,
    system: str | None = None,
    visuals: int | None = None,
) -> EncodedChat:
    """A conversation that ends with an answer, for training.

    The conversation is rendered once and tokenised once. Supervised are the template's ``{% generation %}`` blocks
    where it has some, else the answers' texts by their offsets, and in both cases the token that ends an answer.

    Args:
        messages: ``role`` (system, user, assistant) and ``content``; user and assistant take turns. ``<image>`` and
            ``<video>`` in a user's text stand for one visual each.
        template: a name of :data:`TEMPLATES`.
        system: a name of :data:`SYSTEM_PROMPTS`, or the system prompt itself, for conversations that bring none; None
            leaves it to the template.
        visuals: how many visuals the conversation comes with; None does not ask.

    Raises:
        ValueError: a conversation that cannot be learned from, with its text; a template that does not fit the
            tokenizer; a tokenizer that tells no offsets.
    """
    if not messages or messages[-1].get("role") != ASSISTANT:
        raise _wrong(messages, "it does not end with an answer of the assistant, so that there is nothing to learn")
    rendered = _rendered(tokenizer, messages, template, system, visuals)
    ids, offsets = _tokens(tokenizer, rendered, messages)
    learned = torch.zeros(len(ids), dtype=torch.bool)
    for start, end in rendered.answers:
        learned[_answer(ids, offsets, rendered, start, end, _specials(tokenizer).ends)] = True
    return EncodedChat(ids, torch.where(learned, ids, IGNORED))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template: str = TOKENIZER,
    system: str | None = None,
    visuals: int | None = None,
) -> torch.Tensor:
    """``ids [T]`` of a conversation that waits for an answer: it ends exactly where training's supervised part starts.

    It is what training would see in front of an answer, not what ``add_generation_prompt`` gives, which in some
    templates is another header. Arguments and errors are those of :func:`encode_chat`.
    """
    return _tokens(tokenizer, _prompt(tokenizer, messages, template, system, visuals), messages)[0]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], template: str, system: str | None
) -> str:
    """The text of :func:`encode_prompt`, for a conversation without visuals."""
    return _prompt(tokenizer, messages, template, system, 0).text


def _prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template: str,
    system: str | None,
    visuals: int | None,
) -> _Rendered:
    if not messages or messages[-1].get("role") != USER:
        raise _wrong(messages, "it does not end with a message of the user, so that there is nothing to answer")
    asked = [*messages, {"role": ASSISTANT, "content": _PROBE}]
    rendered = _rendered(tokenizer, asked, template, system, visuals)
    return rendered._replace(text=rendered.text[: rendered.answers[-1][0]])


# ---- messages ----


def _turns(messages: Sequence[Mapping[str, str]], mark: str, template: str, visuals: int | None) -> list[_Turn]:
    turns: list[_Turn] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in (SYSTEM, USER, ASSISTANT) or not isinstance(content, str):
            raise _wrong(messages, f"a message must have a text and a role of {SYSTEM}, {USER} or {ASSISTANT}")
        if template == PLAIN and role == SYSTEM:
            continue
        parts = _MARKS.split(content) if role == USER else [content]
        if template == PLAIN and role == USER:
            parts = [""] * len(parts)
        elif len(parts) == 1 and not content.strip():
            raise _wrong(messages, f"a message of the {role} is empty")
        turns.append(_marked(role, parts, mark))
    spoken = [turn.role for turn in turns if turn.role != SYSTEM]
    if SYSTEM in [turn.role for turn in turns[1:]] or spoken != [USER, ASSISTANT] * (len(spoken) // 2) or not spoken:
        raise _wrong(messages, "user and assistant must take turns, the user first, after one system message at most")
    found = sum(len(turn.marks) for turn in turns)
    if visuals is not None and found != visuals:
        names = " or ".join(VISUAL_MARKS)
        raise _wrong(messages, f"the user's messages hold {names} {found} times and {visuals} visuals are given")
    if template == PLAIN and len(spoken) > 2:
        raise _wrong(messages, "the template plain is for one caption, and this has several turns")
    return turns


def _marked(role: str, parts: list[str], mark: str) -> _Turn:
    """A turn whose parts have visuals between them; spaces at its ends go, as most templates take them off anyway."""
    parts[0] = parts[0].lstrip()
    parts[-1] = parts[-1].rstrip()
    text, marks = parts[0], []
    for part in parts[1:]:
        marks.append(len(text))
        text += mark + part
    return _Turn(role, text, tuple(marks))


def _wrong(messages: Sequence[Mapping[str, str]], problem: str) -> ValueError:
    shown = " | ".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return ValueError(f"a conversation cannot be used: {problem}. Its text: {printable(shown, 400)!r}")


# ---- rendering ----


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template: str,
    system: str | None,
    visuals: int | None,
) -> _Rendered:
    if template not in TEMPLATES:
        raise ValueError(f"template {printable(template, 60)!r} is unknown; choose one of {', '.join(TEMPLATES)}")
    turns = _turns(messages, _specials(tokenizer).mark, template, visuals)
    if system is not None and turns[0].role != SYSTEM and template != PLAIN:
        turns.insert(0, _Turn(SYSTEM, SYSTEM_PROMPTS.get(system, system).strip()))
    source = TEMPLATES[template] or own_template(tokenizer)
    ways = [(turns, False), (turns, True)]  # some templates want texts, some lists of parts
    if turns[0].role == SYSTEM:  # and some know no system message: it then opens the user's first one
        ways += [(_without_system(turns), False), (_without_system(turns), True)]
    problems = []
    for way, as_lists in ways:
        try:
            literals = _literals(tokenizer, source, way, as_lists)
        except Exception as error:  # what a template of somebody else may raise
            problems.append(printable(next(iter(str(error).splitlines()), type(error).__name__), 200))
        else:
            return _joined(tokenizer, source, way, as_lists, literals, messages)
    raise _wrong(messages, f"the chat template {template} does not render it ({problems[0]})")


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template; ``ValueError`` where it has none."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        others = ", ".join(name for name in TEMPLATES if name != TOKENIZER)
        raise ValueError(
            f"the tokenizer has no chat template; choose another template ({others}), or put a chat_template.jinja "
            "beside the tokenizer"
        ) from error


def _without_system(turns: list[_Turn]) -> list[_Turn]:
    opening, first = turns[0].text + "\n\n", turns[1]
    marks = tuple(mark + len(opening) for mark in first.marks)
    return [_Turn(USER, opening + first.text, marks), *turns[2:]]


def _literals(tokenizer: PreTrainedTokenizerBase, source: str, turns: list[_Turn], as_lists: bool) -> list[str]:
    """What the template writes before, between and after the messages' texts."""
    sentinels = [f"\ue000{number}\ue001" for number in range(len(turns))]
    hollow = [turn._replace(text=sentinel) for turn, sentinel in zip(turns, sentinels, strict=True)]
    text, _ = _render(tokenizer, source, hollow, as_lists)
    literals = []
    for turn, sentinel in zip(turns, sentinels, strict=True):
        if text.count(sentinel) != 1:
            raise ValueError(f"it does not show the {turn.role}'s message once, in its place")
        before, text = text.split(sentinel)
        literals.append(before)
    return [*literals, text]


def _joined(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    turns: list[_Turn],
    as_lists: bool,
    literals: list[str],
    messages: Sequence[Mapping[str, str]],
) -> _Rendered:
    text, marks, cuts, answers = literals[0], [], [], []
    for turn, after in zip(turns, literals[1:], strict=True):
        start = len(text)
        marks += [start + mark for mark in turn.marks]
        cuts += [start + cut for cut in cuts_in(tokenizer, [source, *literals], turn.text, turn.marks)]
        if turn.role == ASSISTANT:
            answers.append((start, start + len(turn.text)))
        text += turn.text + after
    shown, blocks = _render(tokenizer, source, turns, as_lists)
    if shown != text:
        raise _wrong(messages, "the chat template changes its messages' texts, so that answers cannot be found in it")
    if blocks is not None:
        if len(blocks) != len(answers):
            raise _wrong(messages, f"the template has {len(blocks)} generation blocks for {len(answers)} answers")
        answers = blocks
    # A space in front of an answer belongs to its first token.
    answers = [(len(text[:start].rstrip(" ")), end) for start, end in answers]
    return _Rendered(text, tuple(marks), tuple(cuts), tuple(answers), blocks is not None)


def _render(
    tokenizer: PreTrainedTokenizerBase, source: str, turns: list[_Turn], as_lists: bool
) -> tuple[str, list[tuple[int, int]] | None]:
    """The text, and where its generation blocks are; None where the template has no such blocks."""
    blocks = _GENERATION.search(source) is not None
    chat: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_lists else text} for role, text, _ in turns
    ]
    texts, indices = render_jinja_template(
        conversations=[chat],
        chat_template=source,
        return_assistant_tokens_mask=blocks,
        **({"start": _specials(tokenizer).start} | tokenizer.special_tokens_map),
    )
    return texts[0], [tuple(block) for block in indices[0]] if blocks else None


# ---- tokens ----


@functools.lru_cache(maxsize=8)
def _specials(tokenizer: PreTrainedTokenizerBase) -> _Specials:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "the tokenizer is a slow one, which does not tell where its tokens stand in a text; save it as a fast one "
            "(tokenizer.json) and name that folder"
        )
    added = list(tokenizer.added_tokens_decoder.values())
    apart = (token.content for token in added if token.special and not (token.lstrip or token.rstrip))
    if (mark := next(apart, None)) is None:
        raise ValueError(
            "the tokenizer has no special token that could keep a visual apart from text; name another one"
        )
    ends = frozenset((*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()))
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return _Specials(mark, ends, tokenizer.bos_token if begins else "")


def _tokens(
    tokenizer: PreTrainedTokenizerBase, rendered: _Rendered, messages: Sequence[Mapping[str, str]]
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    mark = _specials(tokenizer).mark
    ids, offsets = tokens_of_parts(tokenizer, rendered.text, rendered.cuts, mark)
    places = {(start, start + len(mark)) for start in rendered.marks}
    visual = torch.tensor([offset in places for offset in offsets], dtype=torch.bool)
    if int(visual.sum()) != len(rendered.marks):
        raise _wrong(messages, "the tokenizer does not keep the places of its visuals apart from the text")
    return torch.tensor(ids, dtype=torch.long).masked_fill(visual, IMAGE_ID), offsets


def _answer(
    ids: torch.Tensor, offsets: list[tuple[int, int]], rendered: _Rendered, start: int, end: int, ends: frozenset[int]
) -> slice:
    """Which tokens are of the answer at ``text[start:end]``, or are the one that ends it."""
    inside = [i for i, (s, e) in enumerate(offsets) if s < end and e > start or s == e and start <= s < end]
    last = max(inside)
    closed = rendered.blocks and next((i for i in reversed(inside) if int(ids[i]) in ends), None)
    if closed and not rendered.text[offsets[closed][1] : end].strip():  # a block may hold its end
        return slice(inside[0], closed + 1)  # a line break after it is no answer, nor what ends one
    last = next((i for i in range(last + 1, len(ids)) if int(ids[i]) in ends), last)
    if int(ids[last]) not in ends or rendered.text[end : offsets[last][0]].strip():
        raise ValueError(
            "the chat template puts no end token of the tokenizer after an answer but "
            f"{printable(rendered.text[end : end + 20])!r}, so that no answer would ever end; choose another template"
        )
    return slice(inside[0], last + 1)
