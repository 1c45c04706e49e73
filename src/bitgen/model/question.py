"""What a question says and a fact does not hold.

The key of a question is one direction, in which names that differ by a few letters are near to each other: by keys
alone "who owns Blick?" finds what was taught about Block. So each word of the question is looked for in the fact as
well. What is not there counts against the fact by what the word is worth, which is learned: a name much, "is it" almost
nothing (late interaction, as ColBERT compares a query with a passage token by token, arXiv 2004.12832, section 3.3;
here words are the same or not, because names that training never had are to be told apart).

Shapes: B questions of T tokens, E facts of L tokens, d numbers a token's code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

IN_A_ROW = 3  # tokens that are looked for together: of names of many letters two are often in other names as well
_AT_ONCE = 256  # facts that are compared together


class Question(NamedTuple):
    """What texts ask.

    ``keys [B, k]``; ``codes [B, T, d]`` of the tokens between BOS and EOS, zeros for padding; and ``worth [B, T, 3]``,
    the nats that a fact loses which does not hold the token, the token behind the one before it, and it behind the two
    before it.
    """

    keys: torch.Tensor
    codes: torch.Tensor
    worth: torch.Tensor


def lacking(question: Question, values: torch.Tensor) -> torch.Tensor:
    """The nats that each fact loses by what it does not hold: values ``[E, L d]`` to ``[B, E]``."""
    codes, worth = question.codes, question.worth
    lost = []
    for facts in values.detach().to(codes).unflatten(-1, (-1, codes.shape[-1])).split(_AT_ONCE):
        held = same_token(codes.detach()[:, None] @ facts.mT)  # [B, E, T, L]
        run, missing = held, []
        for _ in range(IN_A_ROW):
            missing.append(1 - run.amax(dim=-1))
            run = held * F.pad(run, (1, 0, 1, 0))[..., :-1, :-1]  # and the token before stands before it there, too
        lost.append(torch.einsum("betn,btn->be", torch.stack(missing, dim=-1), worth))
    return torch.cat(lost, dim=1) if lost else codes.new_zeros(len(codes), 0)


def same_token(cosines: torch.Tensor) -> torch.Tensor:
    """Whether codes are of one token, 0 to 1, by their cosine. Those of different tokens are not quite orthogonal: two
    are the same from a half on, and surely at 1."""
    return cosines.mul(2).sub(1).clamp(0, 1)
