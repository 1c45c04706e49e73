"""What a question says and a fact does not hold.

The key of a question is one direction, in which names that differ by a few letters are near to each other: by keys
alone "who owns Blick?" finds what was taught about Block. So each word of the question is looked for in the fact as
well. What a word is worth is learned, and most of it lies on names (late interaction, as ColBERT compares a query with
a passage token by token, arXiv 2004.12832, section 3.3; here words are the same or not, because names that training
never had are to be told apart). In training the worth of what a fact lacks is subtracted from its odds. When a question
is asked, a fact that lacks more than a little is not meant (``speaking.py``).

Shapes: B questions of T tokens, E facts of L tokens, d numbers a token's code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .full_precision import full_precision

IN_A_ROW = 3  # tokens that are looked for together: of names of many letters two are often in other names as well
_AT_ONCE = 8_000_000  # pairs of a question's and a fact's token that are compared together


class Question(NamedTuple):
    """What texts ask.

    ``keys [B, k]``; ``codes [B, T, d]`` of the tokens between BOS and EOS, zeros for padding; and ``worth [B, T, 3]``,
    the nats that a fact lacks which does not hold the token, the token behind the one before it, and it behind the two
    before it. The first token has none before it and the second one: what is not in the question no fact can lack.
    """

    keys: torch.Tensor
    codes: torch.Tensor
    worth: torch.Tensor


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


def same_token(cosines: torch.Tensor) -> torch.Tensor:
    """Whether codes are of one token, 0 to 1, by their cosine. Those of different tokens are not quite orthogonal: two
    are the same from a half on, and surely at 1."""
    return cosines.mul(2).sub(1).clamp(0, 1)
