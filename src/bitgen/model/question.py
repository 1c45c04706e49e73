"""What a question says and a fact does not hold.

The key of a question is one direction, in which names that differ by a few letters are near to each other: by keys
alone "who owns Blick?" finds what was taught about Block. So each word of the question is looked for in the fact as
well. What a word is worth is learned, and most of it lies on names (late interaction, as ColBERT compares a query with
a passage token by token, arXiv 2004.12832, section 3.3; here words are the same or not, because names that training
never had are to be told apart). In training the worth of what a fact lacks is subtracted from its odds
(:func:`lacking`). When a question is asked, words that are worth much are its names, and a fact is only meant if it has
each of them, letter for letter (:func:`names_held`).

Shapes: B questions of T tokens, E facts of L tokens, d numbers a token's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .full_precision import full_precision

# What a token is of a word (``token_ids.words_of``): no part of one, letters, or letters behind a space.
NO_WORD, LETTERS, BEHIND_SPACE = 0, 1, 2
IN_A_ROW = 3  # tokens that are looked for together: of names of many letters two are often in other names as well
_AT_ONCE = 8_000_000  # pairs of a question's and a fact's token that are compared together

Words = Callable[[torch.Tensor], torch.Tensor]


class Question(NamedTuple):
    """What texts ask.

    ``keys [B, k]``; ``codes [B, T, d]`` of the tokens between BOS and EOS, zeros for padding; and ``worth [B, T, 3]``,
    the nats that a fact lacks which does not hold the token, the token behind the one before it, and it behind the two
    before it. The first token has none before it and the second one: what is not in the question no fact can lack.
    ``words [B, T]``: what each token is of a word (:data:`NO_WORD`, :data:`LETTERS`, :data:`BEHIND_SPACE`).
    """

    keys: torch.Tensor
    codes: torch.Tensor
    worth: torch.Tensor
    words: torch.Tensor


def lacking(question: Question, values: torch.Tensor) -> torch.Tensor:
    """The nats that each fact loses by what it does not hold: values ``[E, L d]`` to ``[B, E]``, in float32.

    Values hold the first L tokens of a text: what a longer one says behind them is not there.
    """
    codes, worth = question.codes.detach().float(), question.worth.float()
    (count, length, width), size = codes.shape, values.shape[1] // codes.shape[-1]
    lost = []
    with full_precision(codes.device.type):
        for part in values.detach().split(max(1, _AT_ONCE // max(1, count * length * size))):
            cosines = codes.flatten(0, 1) @ part.to(codes).reshape(-1, width).mT
            held = same_token(cosines).view(count, length, len(part), size)  # [B, T, E, L]
            run, nats = held, codes.new_zeros(count, len(part))
            for more in range(IN_A_ROW):
                nats = nats + torch.einsum("bte,bt->be", 1 - run[:, more:].amax(dim=-1), worth[:, more:, more])
                # And the token before stands before it there, too.
                run = held * F.pad(run, (1, 0, 0, 0, 1, 0))[:, :-1, :, :-1]
            lost.append(nats)
    return torch.cat(lost, dim=1) if lost else codes.new_zeros(count, 0)


def names_held(question: Question, values: torch.Tensor, words: Words, least: float) -> torch.Tensor:
    """Whether each fact has all names of each question: ``[B, E]``.

    A name is a word whose tokens together are worth more nats than ``least``. A fact has it where the same tokens, in
    their order, are a whole word: "Pell" is not in a fact about Pelligrew.

    Args:
        values: ``[E, L d]``.
        words: values ``[N, L d]`` to what each of their tokens is of a word, ``[N, L]``.
    """
    codes, (begins, _) = question.codes.float(), _edges(question.words)
    (count, length, width), size = codes.shape, values.shape[1] // codes.shape[-1]
    other = ~_end_names(question, least)
    names = ~other.all(dim=1)[:, None]
    found = [torch.zeros(count, 0, dtype=torch.bool, device=codes.device)]
    for part in values.split(max(1, _AT_ONCE // max(1, count * length * size))):
        with full_precision(codes.device.type):
            cosines = codes.flatten(0, 1) @ part.to(codes).reshape(-1, width).mT
        held = (same_token(cosines) > 0.5).view(count, length, len(part), size)
        # Few facts have a name's tokens at all: where their own words begin and end is looked up for these alone.
        anywhere = torch.ones(len(part), size, dtype=torch.bool, device=held.device)
        whole = (_whole(held, begins, anywhere, anywhere) | other[..., None]).all(dim=1)
        some = (whole & names).any(dim=0).nonzero().flatten()
        told = words(part[some.to(part.device)]).to(held.device)
        starts, stops = _edges(told)
        stops[:, -1] &= told[:, -1] == NO_WORD  # a word may be cut there
        whole[:, some] = (_whole(held[:, :, some], begins, starts, stops) | other[..., None]).all(dim=1)
        found.append(whole)
    return torch.cat(found, dim=1)


def has_names(question: Question, least: float) -> torch.Tensor:
    """Which questions ``[B]`` have a name, a word whose tokens together are worth more nats than ``least``."""
    return _end_names(question, least).any(dim=1)


def _end_names(question: Question, least: float) -> torch.Tensor:
    """Which tokens ``[B, T]`` end a name."""
    begins, ends = _edges(question.words)
    number = begins.cumsum(dim=1)
    in_one = number[:, :, None] == number[:, None]  # [B, T, T]
    together = (in_one * question.worth.float().sum(dim=-1)[:, None]).sum(dim=-1)
    return ends & (question.words != NO_WORD) & ~(together <= least)  # NaN is a name that no fact has


def _edges(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens ``[N, T]`` begin a word, and which end one; what is no part of a word does both."""
    goes_on = depth_in_words(words) > 0
    return ~goes_on, ~F.pad(goes_on, (0, 1))[:, 1:]


def depth_in_words(words: torch.Tensor) -> torch.Tensor:
    """How many tokens of its word stand before each token ``[N, T]``, by what they are of words."""
    begins = (words != LETTERS) | (F.pad(words, (1, 0))[:, :-1] == NO_WORD)
    number = torch.arange(words.shape[1], device=words.device).expand_as(words)
    return number - (number * begins).cummax(dim=1).values if words.shape[1] else number


def _whole(held: torch.Tensor, begins: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    """Whether a fact has the word that ends with a question's token, whole: ``[B, T, E]``. ``held [B, T, E, L]`` says
    which tokens are the same, ``begins [B, T]`` where the question's words begin, ``starts`` and ``stops [E, L]`` where
    the facts' do and where they end."""
    run, whole = held.any(dim=1) & False, torch.zeros_like(held[..., 0])
    for at in range(held.shape[1]):
        run = held[:, at] & torch.where(begins[:, at, None, None], starts, F.pad(run, (1, 0))[..., :-1])
        whole[:, at] = (run & stops).any(dim=-1)
    return whole


def same_token(cosines: torch.Tensor) -> torch.Tensor:
    """Whether codes are of one token, 0 to 1, by their cosine. Those of different tokens are not quite orthogonal: two
    are the same from a half on, and surely at 1."""
    return cosines.mul(2).sub(1).clamp(0, 1)
