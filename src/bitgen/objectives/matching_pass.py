"""What a step shows the matching head: true pairs, and wrong ones made of them and of the partners drawn for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from bitgen.model.episodic_memory import MemoryReader
from bitgen.model.modeling_bitgen import BitGenModel, StackOutput
from bitgen.objectives.feature_queue import QueueEntries, pad_to
from bitgen.objectives.matching import (
    HardNegatives,
    MatchingOutput,
    hardest_negatives,
    interleave,
    matching_loss,
    select,
)

# Of a batch, for the accuracy on the hardest pairs: enough for a curve, and little time beside a step.
MEASURED_PAIRS = 32


class Pairs(NamedTuple):
    """Captions ``input_ids, attention_mask [B, T]`` and the pooled ``image_tokens [B, P', D]`` of an image each."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_tokens: torch.Tensor


Pick = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], HardNegatives]
"""``(queries, candidates, query_ids, candidate_ids)`` -> a candidate for each query."""


def pick_partners(pick: Pick, local: QueueEntries, past: QueueEntries) -> HardNegatives:
    """For each of the B ``local`` pairs one of batch and queue: in even rows a text that is hard for the image, in odd
    rows an image that is hard for the text."""
    ids = torch.cat((local.image_ids, past.image_ids))
    texts = torch.cat((local.text_features, past.text_features))
    images = torch.cat((local.image_features, past.image_features))
    by_image = pick(local.image_features[::2], texts, local.image_ids[::2], ids)
    by_text = pick(local.text_features[1::2], images, local.image_ids[1::2], ids)
    return HardNegatives(*(interleave(even, odd) for even, odd in zip(by_image, by_text, strict=True)))


def with_partners(own: Pairs, local: QueueEntries, past: QueueEntries, picked: HardNegatives) -> tuple[Pairs, Pairs]:
    """The pairs and their partners, padded to the longest caption among them (which is seldom ``max_seq_len``)."""
    ids = select(local.input_ids, past.input_ids, picked)
    mask = select(local.attention_mask, past.attention_mask, picked)
    width = max(own.attention_mask.shape[1], int(mask.sum(dim=1).max()))
    tokens = select(own.image_tokens, past.image_tokens, picked)
    partner = Pairs(ids[:, :width].to(own.input_ids), mask[:, :width].to(own.attention_mask), tokens)
    return Pairs(pad_to(own.input_ids, width), pad_to(own.attention_mask, width), own.image_tokens), partner


def wrong_pairs(own: Pairs, partner: Pairs) -> Pairs:
    """The B wrong pairs that partners were picked for: (image, partner's text) in even rows, (partner's image, text) in
    odd rows."""
    even = torch.arange(len(own.input_ids), device=own.input_ids.device) % 2 == 0
    return Pairs(
        torch.where(even[:, None], partner.input_ids, own.input_ids),
        torch.where(even[:, None], partner.attention_mask, own.attention_mask),
        torch.where(even[:, None, None], own.image_tokens, partner.image_tokens),
    )


@torch.no_grad()
def accuracy_on_hardest(
    model: BitGenModel, own: Pairs, local: QueueEntries, past: QueueEntries, reader: MemoryReader | None
) -> torch.Tensor:
    """The head's balanced accuracy on the first true pairs of a batch and as many wrong ones, whose partners are the
    most similar among those first pairs and in the queue: pairs about as hard as those of an evaluation, judged in eval
    mode as there.

    The pairs that the loss is over are drawn, and can be far easier.
    """
    local = QueueEntries(*(part[:MEASURED_PAIRS] for part in local))
    picked = pick_partners(hardest_negatives, local, past)
    own, partner = with_partners(Pairs(*(part[:MEASURED_PAIRS].detach() for part in own)), local, past, picked)
    pairs = Pairs(*(torch.cat(parts) for parts in zip(own, wrong_pairs(own, partner), strict=True)))
    training = model.training
    model.eval()
    try:
        logits = model.match(pairs.image_tokens, pairs.input_ids, pairs.attention_mask, reader)
    finally:
        model.train(training)
    labels = torch.tensor([1, 0], device=logits.device).repeat_interleave(len(picked.weight))
    return matching_loss(logits, labels, torch.cat((torch.ones_like(picked.weight), picked.weight))).accuracy


def match_by_token(
    model: BitGenModel, own: Pairs, partner: Pairs, weight: torch.Tensor, reader: MemoryReader | None
) -> tuple[StackOutput, MatchingOutput]:
    """One fused pass of B true pairs, B (image, partner's text), B (partner's image, text) and B (partner's image and
    text); the output of the first B, and the loss over all, with ``weight [B]`` for what a partner is in.

    The partner comes as a true pair as well, so that each picture and each caption is in as many true pairs as wrong
    ones. Otherwise one side alone tells the label: drawn partners are often close to everything
    (hubs), and image tokens from the queue are of earlier weights.
    """
    ids = torch.cat((own.input_ids, partner.input_ids, own.input_ids, partner.input_ids))
    mask = torch.cat((own.attention_mask, partner.attention_mask, own.attention_mask, partner.attention_mask))
    tokens = torch.cat((own.image_tokens, own.image_tokens, partner.image_tokens, partner.image_tokens))
    fused = model.run_stack(ids, mask, tokens, reader)
    rows = len(weight)
    labels = torch.tensor([1, 0, 0, 1], device=ids.device).repeat_interleave(rows)
    weights = torch.cat((torch.ones_like(weight), weight.repeat(3)))
    others = (None if part is None else part[:rows] for part in fused[1:])
    first = StackOutput(fused.hidden_states[:rows], *others)
    return first, matching_loss(model.itm_logits(fused.hidden_states, mask), labels, weights)


def match_by_likelihood(
    model: BitGenModel,
    own: Pairs,
    partner: Pairs,
    weight: torch.Tensor,
    alone: torch.Tensor,
    reader: MemoryReader | None,
) -> tuple[StackOutput, MatchingOutput]:
    """The same for a head with ``itm_likelihood``: B true pairs, and the B wrong ones that were drawn as hard.

    Likelihoods and cosines are taken as they are. The language and the contrastive loss teach them, matching what they
    are worth, so only the true pairs need a gradient (of the language loss). That wrong pairs were picked for their
    cosine, the head is to learn: those it will judge are too.

    Args:
        partner: as :func:`pick_partners` picks them.
        weight: ``[B]``, 0 where no partner was found.
        alone: ``[B, t, D]``, the stack's output on ``own``'s captions without an image.
    """
    fused = model.run_stack(*own, reader)
    with torch.no_grad():
        wrong = wrong_pairs(own, partner)
        width = alone.shape[1]
        true = own._replace(input_ids=own.input_ids[:, :width], attention_mask=own.attention_mask[:, :width])
        wrong_fused = model.run_stack(*wrong, reader).hidden_states
        wrong_alone = model.run_stack(wrong.input_ids, wrong.attention_mask, reader=reader).hidden_states
        evidence = (
            model.pair_evidence(fused.hidden_states[:, :width], alone, *true),
            model.pair_evidence(wrong_fused, wrong_alone, *wrong),
        )
    logits = torch.cat([model.evidence_logits(*pairs) for pairs in evidence])
    labels = torch.tensor([1, 0], device=logits.device).repeat_interleave(len(weight))
    return fused, matching_loss(logits, labels, torch.cat((torch.ones_like(weight), weight)))
