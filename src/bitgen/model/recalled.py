"""What was recalled, and what looks at it.

Behind each block of the decoder a :class:`Reader` looks at the recalled tokens, as Larimar (arXiv 2403.11901, section
3) conditions its decoder on what was read; and a :class:`Pointer` may say them, token by token, as a pointer network
does (See et al., arXiv 1704.04368): the output head of a trained model cannot tell tokens apart that it has never said.

Shapes: B rows, T text tokens, S recalled tokens, D the decoder's width, d numbers of a token's code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .attention import attend, attending_dtype, split_heads
from .dropout import Dropout
from .full_precision import full_precision
from .question import same_token

BEFORE = 3  # tokens before a recalled one that it is known by: of a name of many letters two are often there twice
_HELD = 3  # ways in which a text can hold a recalled token: alone, behind the one before it, and before the next
_BEFORE_NEXT = 2  # the last of these
# What a token loses that would break a word, and what a pointer is surer where a word goes on (docs/lab_log.md).
# Training does without.
_BROKEN, _SURER = 3.0, 3.0


class Recalled(NamedTuple):
    """What was recalled: ``tokens [B, S, D + 5 d + 1]``, to look at, with the code of each, of the three before it and
    of the next, and how many of those before it are of its word; which of them are there, ``present [B, S]``; and the
    tokens that were written before and are in a cache, ``after [B, T']``, -1 for padding (None: nothing was)."""

    tokens: torch.Tensor
    present: torch.Tensor
    after: torch.Tensor | None = None


class Beside(NamedTuple):
    """Recalled tokens beside the text that looks at them, T tokens of it.

    ``looked_at [B, S, D]`` and ``codes [B, S, d]`` of the tokens, and which are there, ``present [B, S]``.
    ``follows [B, T, S, 3]``: the cosine of the text's last token with the one before a recalled token; that times the
    cosine of the tokens before these two; and that times the one of those before these. ``held [B, T, S, 3]``: how
    surely the text has said the recalled token so far, 0 to 1, how surely right behind the one before it, and how
    surely right before the next. A letter alone may be there by chance; a name's first right before its second is not.
    ``breaks [B, T, S]``: how surely it would break a word to say the recalled token now: begin one in its middle, or
    again one that the text holds. ``goes_on [B, T, S]``: how surely it would go on with a word that was begun.
    """

    looked_at: torch.Tensor
    codes: torch.Tensor
    present: torch.Tensor
    follows: torch.Tensor
    held: torch.Tensor
    breaks: torch.Tensor
    goes_on: torch.Tensor


def compare(recalled: Recalled, text: torch.Tensor, count: int, space: torch.Tensor | None = None) -> Beside:
    """Compare recalled tokens with a text.

    Tokens are compared by codes, since a decoder that never read such tokens hardly knows which it has read.

    Args:
        text: codes of all tokens so far, ``[B, T' + T, d]``; zeros are no tokens.
        count: T, how many of them look.
        space: the code ``[d]`` of a space, where it is a token of its own that stands between all words.
    """
    size, here = text.shape[-1], slice(-count, None)
    sizes = [*[size] * (2 + BEFORE), 1]
    looked_at, codes, *before, behind, depth = recalled.tokens.split(
        [recalled.tokens.shape[-1] - sum(sizes), *sizes], dim=-1
    )
    earlier = [F.pad(text, (0, 0, steps, 0))[:, : text.shape[1]] for steps in range(BEFORE)]
    with full_precision(text.device.type):  # cosines are float32
        is_it = text @ codes.float().mT
        after = [words @ code.float().mT for words, code in zip(earlier, before, strict=True)]
        in_a_row = is_it * (earlier[1] @ before[0].float().mT)
        before_next = (earlier[1] @ codes.float().mT) * (text @ behind.float().mT)
    follows = torch.stack(after, dim=-1).cumprod(dim=-1)
    held = same_token(torch.stack([is_it, in_a_row, before_next], dim=-1)).cummax(dim=1).values
    # Of the tokens before that are of its word, all of them.
    inside = F.one_hot(depth[..., 0].long().clamp(0, BEFORE), 1 + BEFORE)[:, None, :, 1:].to(follows)
    goes_on = (inside * same_token(follows)).sum(dim=-1)
    so_far = (F.pad(goes_on, (0, 0, 1, 0))[:, :-1] * same_token(is_it)).cummax(dim=1).values  # its word, as far as it
    follows, held, goes_on, so_far = follows[:, here], held[:, here], goes_on[:, here], so_far[:, here]
    # With it the fact goes on where the text stands in it: behind the token before, if that is more than a space.
    again = held[..., _BEFORE_NEXT] * (1 - same_token(follows[..., 0 if space is None else 1]))
    if space is not None:
        with full_precision(text.device.type):
            again = again * same_token(before[0].float() @ space)[:, None]
    breaks = (again + inside.sum(dim=-1) - goes_on * (1 - so_far)).clamp_max(1)
    return Beside(looked_at, codes, recalled.present, follows, held, breaks, goes_on)


class Reader(nn.Module):
    """Cross-attention from text tokens to recalled tokens; rows that recalled nothing stay as they are.

    What the text holds already is looked at more, or less, so that of two named things it reads the place of the one
    that the sentence has just named. ``hidden [B, T, D] -> [B, T, D]``.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.held = nn.Linear(width, _HELD * num_heads)  # what a token is worth that the text holds, in each way
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, hidden: torch.Tensor, beside: Beside) -> torch.Tensor:
        key, value = self.key_value(beside.looked_at).chunk(2, dim=-1)
        normed = self.norm(hidden)
        query, key, value = (split_heads(part, self.num_heads) for part in (self.query(normed), key, value))
        worth = torch.einsum("bthn,btsn->bhts", self.held(normed).unflatten(-1, (-1, _HELD)).float(), beside.held)
        some = beside.present.any(dim=1)
        # A row without any looks everywhere, which keeps the softmax finite, and takes nothing from it.
        visible = (beside.present | ~some[:, None])[:, None, None]
        read = attend(query, key, value, worth.masked_fill(~visible, -torch.inf).to(attending_dtype(query)))
        read = self.dropout(self.output(read))
        read = read + self.dropout(self.mlp(hidden + read))
        return torch.where(some[:, None, None], hidden + read.to(hidden.dtype), hidden)


class Pointer(nn.Module):
    """Points at the recalled token that is to be said next, or at none.

    Who has just said the token before a recalled one, and before that the one before, goes on with it. What the text
    holds already is seldom what is to be said: of "Blick belongs to Rex", asked about Blick, Rex; of two names the one
    that is missing (coverage, in the words of See et al.). The rest is learned: where to begin, and when to stop.
    Outside of training words are rather said whole: begun at their first token and said to their last one, and not
    begun again.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 1)
        self.follow = nn.Parameter(torch.full((BEFORE,), 5.0))  # the worth of a token that goes before, of two, three
        self.covered = nn.Linear(width, _HELD)  # the worth of a token that the text holds, in each way
        self.sure = nn.Linear(width, 1, bias=False)  # whether a recalled token is worth pointing at

    def forward(self, hidden: torch.Tensor, beside: Beside) -> torch.Tensor:
        """Codes of tokens ``[B, T, d]``, as long as the pointer is sure, of ``hidden [B, T, D]`` after the last block;
        zeros in rows that recalled nothing."""
        width, hidden = hidden.shape[-1], self.norm(hidden)
        scores = self.query(hidden).float() @ self.key(beside.looked_at).float().mT / width**0.5
        scores = scores + beside.follows @ self.follow.float()
        scores = scores + (beside.held @ self.covered(hidden).float()[..., None]).squeeze(-1)
        if not self.training:
            scores = scores - _BROKEN * beside.breaks
        some = beside.present.any(dim=1)[:, None, None]
        weights = scores.masked_fill(~(beside.present[:, None] | ~some), -torch.inf).softmax(dim=-1)
        sure = (self.gate(hidden) + weights.to(hidden.dtype) @ self.sure(beside.looked_at)).float()
        if not self.training:
            sure = sure + _SURER * (weights * beside.goes_on).sum(dim=-1, keepdim=True)
        return torch.where(some, sure.sigmoid() * (weights @ beside.codes.float()), 0.0)
