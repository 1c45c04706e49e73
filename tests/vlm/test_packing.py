"""Several samples in one row: each family's logits and loss are those of the samples alone."""

from __future__ import annotations

import pytest
import torch

from bitgen.vlm import library_attention
from bitgen.vlm.language import check_packing, same_document, supervised_logits
from bitgen.vlm.library_attention import ATTENTION
from bitgen.vlm.splice import Sample, pack
from support.language_models import BITGEN_KINDS, KINDS, ragged, supervised_loss, tiny_language_model

LENGTHS = (9, 5, 12, 3, 1, 7)


def samples():
    return [Sample(ids, ids.clone()) for ids in ragged(LENGTHS)]


def attentions_of(kind):
    """BitGen has one of its own, and Gemma 2's soft cap needs eager attention."""
    if kind in BITGEN_KINDS:
        return (None,)
    return ("eager",) if kind == "gemma2" else ("sdpa", "eager", ATTENTION)


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


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_packed_gradients_are_those_of_the_samples_alone(recompute):
    lm = tiny_language_model("llama")
    lm.model.set_attn_implementation(ATTENTION)
    embedding = lm.model.get_input_embeddings()

    def gradients(batches):
        lm.model.zero_grad()
        for ids, labels, positions in batches:
            supervised_loss(lm, embedding(ids), None, labels, positions)[0].backward()
        return [parameter.grad.clone() for parameter in lm.model.parameters()]

    expected = gradients((s.ids[None], s.labels[None], None) for s in samples())
    if recompute:
        lm.model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = pack(samples(), 20, 0)
    found = gradients([(packed.input_ids, packed.labels, packed.position_ids)])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_sample_starts_where_counting_does():
    same = same_document(torch.tensor([[0, 1, 0, 0, 1]]))
    documents = torch.tensor([0, 0, 1, 2, 2])
    assert torch.equal(same[0], documents[:, None] == documents)


def test_attention_that_may_mix_samples_is_refused():
    lm = tiny_language_model("llama")
    lm.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention; open the model with sdpa or eager, or write packing False"):
        check_packing(lm)


# Gemma 2 attends eagerly, BitGen by itself.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*BITGEN_KINDS, "gemma2")])
def test_on_a_cpu_each_sample_attends_alone(kind, monkeypatch):
    """transformers passes the lengths on to every layer's attention; where it did not, a mask would do the same."""
    lm = tiny_language_model(kind)
    lm.model.set_attn_implementation(ATTENTION)
    seen, layers = [], lm.model.config.num_hidden_layers
    whole = library_attention._attend_apart

    def attend_apart(module, heads, lengths, options):
        seen.append(lengths)
        return whole(module, heads, lengths, options)

    monkeypatch.setattr(library_attention, "_attend_apart", attend_apart)
    packed = pack([sample for sample in samples() if len(sample.ids) < 5], 8, 0)  # none longer than any window
    embeds = lm.model.get_input_embeddings()(packed.input_ids)
    keep = packed.document_ids >= 0
    supervised_logits(lm, embeds, None, keep, packed.position_ids)
    assert seen == [[3, 1, 4]] * layers  # the last is padding
