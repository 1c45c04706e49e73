"""Several samples in one row: each family's logits and loss are those of the samples alone."""

from __future__ import annotations

import pytest
import torch

from bitgen.vlm.language import check_packing, same_document, supervised_logits
from bitgen.vlm.splice import Sample, pack
from support.language_models import BITGEN_KINDS, KINDS, ragged, supervised_loss, tiny_language_model

LENGTHS = (9, 5, 12, 3, 1, 7)


def samples():
    return [Sample(ids, ids.clone()) for ids in ragged(LENGTHS)]


def attentions_of(kind):
    """BitGen has one of its own, and Gemma 2's soft cap needs eager attention."""
    if kind in BITGEN_KINDS:
        return (None,)
    return ("eager",) if kind == "gemma2" else ("sdpa", "eager")


@pytest.mark.parametrize(("kind", "attention"), [(kind, way) for kind in KINDS for way in attentions_of(kind)])
def test_packed_logits_and_loss_are_those_of_the_samples_alone(kind, attention):
    lm = tiny_language_model(kind)
    if attention is not None:
        lm.model.set_attn_implementation(attention)
    check_packing(lm)
    embedding, packed = lm.model.get_input_embeddings(), pack(samples(), 20, 0)
    assert len(packed.input_ids) < len(LENGTHS)
    embeds = embedding(packed.input_ids)
    everywhere = packed.document_ids >= 0
    with torch.no_grad():
        logits = supervised_logits(lm, embeds, None, everywhere, packed.position_ids)
        alone = [lm.model(input_ids=samples()[index].ids[None]).logits[0] for index in packed.order]
        torch.testing.assert_close(logits, torch.cat(alone).float(), atol=1e-5, rtol=1e-5)
        total, count = supervised_loss(lm, embeds, None, packed.labels, packed.position_ids)
        parts = [supervised_loss(lm, embedding(s.ids[None]), None, s.labels[None]) for s in samples()]
    assert count == sum(LENGTHS) - len(LENGTHS) == sum(part[1] for part in parts)
    torch.testing.assert_close(total, sum(part[0] for part in parts), atol=1e-4, rtol=1e-6)


def test_a_sample_starts_where_counting_does():
    same = same_document(torch.tensor([[0, 1, 0, 0, 1]]))
    documents = torch.tensor([0, 0, 1, 2, 2])
    assert torch.equal(same[0], documents[:, None] == documents)


def test_attention_that_may_mix_samples_is_refused():
    lm = tiny_language_model("llama")
    lm.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention; open the model with sdpa or eager, or write packing False"):
        check_packing(lm)
