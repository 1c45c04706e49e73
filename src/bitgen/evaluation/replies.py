"""What a model answers to questions: many at once, each picture seen once, greedily or by sampling.

Where a box is begun only its other edges can follow, right of the left one and below the top one, so that every box
that is written is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from bitgen.data.questions.boxes import EDGES_OF_A_BOX
from bitgen.data.questions.marked_text import MarkedTokens, Reply, read_reply
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.sequence_layout import sequence_layout

LONGEST_REPLY = 112  # tokens


class Written(NamedTuple):
    """Replies: their ids without the EOS, whether each was ended, and the log-probability ``[N]`` of each of a reply's
    tokens, EOS included, as it was drawn."""

    ids: list[list[int]]
    ended: list[bool]
    log_probs: list[torch.Tensor]


class Decoding(NamedTuple):
    """How replies are written. ``temperature`` 0: what is likeliest; else drawn, with ``generator``."""

    max_new_tokens: int = LONGEST_REPLY
    temperature: float = 0.0
    generator: torch.Generator | None = None
    whole_boxes: bool = True


@torch.no_grad()
def write_replies(
    model: BitGenModel,
    tokens: MarkedTokens,
    image_tokens: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = Decoding(),  # noqa: B008  # it cannot change
) -> Written:
    """What follows each prompt; one batch, with a key-value cache, which rows leave when they end.

    Args:
        model: in eval mode.
        image_tokens: ``[N, P, D]``, pooled, one for each prompt.
        prompts: of :meth:`MarkedTokens.prompt`.

    A reply ends at the context, too, whatever the other prompts are.

    Raises:
        ValueError: a prompt as long as the context.
    """
    limit, device = model.config.max_seq_len, image_tokens.device
    longest = max(map(len, prompts))
    if longest >= limit:
        raise ValueError(f"a question of {longest} tokens fills the context of {limit}; shorten it")
    eos, pad = tokens.tokenizer.eos_token_id, tokens.tokenizer.pad_token_id
    ids = torch.full((len(prompts), longest), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all go on from the last column
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    boxes = _BoxSlots(tokens, len(prompts), device) if decoding.whole_boxes else None
    cache = DynamicCache()
    written: list[list[int]] = [[] for _ in prompts]
    drawn: list[list[torch.Tensor]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows = torch.arange(len(prompts), device=device)
    new = ids
    for _ in range(decoding.max_new_tokens):
        layout = sequence_layout(mask, new, cache.get_seq_length(), limit)
        hidden = model.run_stack(new, layout.real, image_tokens, cache=cache, layout=layout).hidden_states[:, -1]
        logits = model.lm_logits(hidden).float()
        if boxes is not None:
            logits = boxes.allowed(logits, rows)
        chosen, log_probs = _chosen(logits, decoding)
        for row, token, log_prob in zip(rows.tolist(), chosen.tolist(), log_probs, strict=True):
            drawn[row].append(log_prob)
            ended[row] = token == eos
            if not ended[row]:
                written[row].append(token)
        goes_on = (chosen != eos) & (mask.sum(dim=1) + 1 < limit)
        if not goes_on.any():
            break
        if boxes is not None:
            boxes.take(chosen, rows)
        if not goes_on.all():
            rows, image_tokens, mask = rows[goes_on], image_tokens[goes_on], mask[goes_on]
            cache.batch_select_indices(goes_on.nonzero()[:, 0])
        new = chosen[goes_on][:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return Written(written, ended, [torch.stack(one) for one in drawn])


def read_replies(tokens: MarkedTokens, written: Written, thinks: bool) -> list[Reply]:
    """What was written, read; a reply that did not end, or that holds padding or a beginning, has no answer."""
    no_words = {tokens.tokenizer.pad_token_id, tokens.tokenizer.bos_token_id} - {tokens.tokenizer.eos_token_id}
    found = []
    for ids, ended in zip(written.ids, written.ended, strict=True):
        reply = read_reply(tokens.decode(ids), thinks)
        found.append(reply if ended and no_words.isdisjoint(ids) else reply._replace(answer=None))
    return found


def replies_to(
    model: BitGenModel,
    tokens: MarkedTokens,
    image_tokens: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    thinks: bool,
    decoding: Decoding = Decoding(),  # noqa: B008  # it cannot change
) -> list[Reply]:
    """What follows each prompt, as a reply; to a prompt as long as the context there is none."""
    fits = [at for at, prompt in enumerate(prompts) if len(prompt) < model.config.max_seq_len]
    found = [Reply("" if thinks else None, None)] * len(prompts)
    if fits:
        written = write_replies(model, tokens, image_tokens[fits], [prompts[at] for at in fits], decoding)
        for at, reply in zip(fits, read_replies(tokens, written, thinks), strict=True):
            found[at] = reply
    return found


def _chosen(logits: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row ``[N]``, and its log-probability under the model."""
    log_probs = logits.log_softmax(dim=-1)
    if decoding.temperature == 0:
        chosen = logits.argmax(dim=-1)
    else:
        weights = (logits / decoding.temperature).softmax(dim=-1)
        chosen = torch.multinomial(weights, 1, generator=decoding.generator)[:, 0]
    return chosen, log_probs.gather(1, chosen[:, None])[:, 0]


class _BoxSlots:
    """Which edge of a box comes next in each row, and which ones it can be."""

    def __init__(self, tokens: MarkedTokens, count: int, device: torch.device) -> None:
        self.edges = torch.tensor(tokens.edges, device=device)
        self.edge_of = torch.full((max(tokens.ids.values()) + 1,), -1, device=device)
        self.edge_of[self.edges] = torch.arange(len(self.edges), device=device)
        self.slot = torch.zeros(count, dtype=torch.long, device=device)
        self.begun = torch.zeros(count, 2, dtype=torch.long, device=device)  # left and top

    def allowed(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, V]`` without what cannot follow."""
        slot, begun = self.slot[rows], self.begun[rows]
        count = torch.arange(len(self.edges), device=logits.device)
        least = torch.where(slot >= 2, begun.gather(1, (slot % 2)[:, None])[:, 0] + 1, 0)
        most = torch.where(slot < 2, len(self.edges) - 2, len(self.edges) - 1)
        fits = (count >= least[:, None]) & (count <= most[:, None])
        barred = torch.zeros_like(logits, dtype=torch.bool)
        barred[:, self.edges] = ~fits
        inside = slot > 0
        others = torch.ones_like(barred)
        others[:, self.edges] = False
        return logits.masked_fill(barred | (others & inside[:, None]), float("-inf"))

    def take(self, chosen: torch.Tensor, rows: torch.Tensor) -> None:
        """Go on by the tokens ``[N]`` that were chosen."""
        known = chosen < len(self.edge_of)
        edge = torch.where(known, self.edge_of[chosen.clamp_max(len(self.edge_of) - 1)], -1)
        slot = self.slot[rows]
        first = (edge >= 0) & (slot < 2)
        begun = self.begun[rows]
        begun[torch.arange(len(rows), device=rows.device)[first], slot[first]] = edge[first]
        self.begun[rows] = begun
        self.slot[rows] = torch.where(edge >= 0, (slot + 1) % EDGES_OF_A_BOX, 0)
