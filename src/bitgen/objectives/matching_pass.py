"""What a step shows the matching head: true pairs, and wrong ones made of them and of the partners drawn for them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bitgen.model.episodic_memory import MemoryReader
from bitgen.model.modeling_bitgen import BitGenModel, StackOutput
from bitgen.objectives.matching import MatchingOutput, matching_loss


class Pairs(NamedTuple):
    """Captions ``input_ids, attention_mask [B, T]`` and the pooled ``image_tokens [B, P', D]`` of an image each."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_tokens: torch.Tensor


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
        partner: in even rows the text is hard for ``own``'s image, in odd rows the image for its text.
        weight: ``[B]``, 0 where no partner was found.
        alone: ``[B, t, D]``, the stack's output on ``own``'s captions without an image.
    """
    fused = model.run_stack(*own, reader)
    with torch.no_grad():
        even = torch.arange(len(weight), device=weight.device) % 2 == 0
        wrong = Pairs(
            torch.where(even[:, None], partner.input_ids, own.input_ids),
            torch.where(even[:, None], partner.attention_mask, own.attention_mask),
            torch.where(even[:, None, None], own.image_tokens, partner.image_tokens),
        )
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
