"""Rotary positions and SwiGLU: what each changes in the text stack, and what it must not."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.parameter_roles import MATRIX, WEIGHT
from bitgen.model.rotary import rotate, rotations
from bitgen.model.sequence_layout import SequenceLayout
from bitgen.model.text_decoder import CausalSelfAttention, SwiGLU
from support.models import FEATURES, tiny_config

PLAIN = {"positions": "learned", "feed_forward": "gelu"}
COMBINATIONS = [{"positions": p, "feed_forward": f} for p in ("learned", "rope") for f in ("gelu", "swiglu")]
every_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(options.values()))


def build(kind=BitGenModel, **changes):
    """``build(**changes)``: a model on features in eval mode, its attention sharp enough that positions matter."""
    torch.manual_seed(0)
    model = kind(tiny_config(FEATURES, **changes)).eval()
    with torch.no_grad():
        model.embeddings.token.weight.mul_(20)
        for block in model.decoder.blocks:
            block.attention.query_key_value.weight.mul_(3)
    return model


def documents(*lengths: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(3, 50, (1, length), generator=random) for length in lengths]


def packed_layout(lengths: list[int], shift: int = 0) -> SequenceLayout:
    """One row of documents, each starting at position ``shift`` and seeing nothing of the others."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = torch.ones(len(document), len(document)).tril().bool() & (document[:, None] == document)
    positions = torch.cat([torch.arange(shift, shift + length) for length in lengths])
    return SequenceLayout(positions[None], allowed[None, None], torch.ones(1, len(document), dtype=torch.long))


def packed_logits(model: BitGenModel, texts: list[torch.Tensor], shift: int = 0) -> torch.Tensor:
    layout = packed_layout([text.shape[1] for text in texts], shift)
    with torch.no_grad():
        return model.lm_logits(model.run_stack(torch.cat(texts, dim=1), layout=layout).hidden_states)


@every_combination
def test_packed_documents_are_read_as_if_alone(options):
    model, texts = build(**options), documents(4, 2, 5)
    with torch.no_grad():
        alone = torch.cat([model(text) for text in texts], dim=1)
    torch.testing.assert_close(packed_logits(model, texts), alone, atol=1e-4, rtol=0)


@every_combination
def test_two_continuations_share_one_prefix(options):
    """As the BabyLM evaluator packs sentence pairs: here the order in the row is not the distance."""
    model, (prefix, one, other) = build(**options), documents(4, 3, 2)
    part = torch.tensor([0] * 4 + [1] * 3 + [2] * 2)
    visible = torch.ones(9, 9).tril().bool() & ((part[:, None] == part) | (part == 0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5]])
    layout = SequenceLayout(positions, visible[None, None], torch.ones(1, 9, dtype=torch.long))
    with torch.no_grad():
        together = model.lm_logits(model.run_stack(torch.cat((prefix, one, other), 1), layout=layout).hidden_states)
        alone = [model(torch.cat((prefix, branch), dim=1)) for branch in (one, other)]
    torch.testing.assert_close(together, torch.cat((alone[0], alone[1][:, 4:]), dim=1), atol=1e-4, rtol=0)


def test_moving_a_document_changes_nothing_with_rotary_positions_alone():
    for positions, moves in (("rope", False), ("learned", True)):
        model, texts = build(positions=positions), documents(6)
        difference = (packed_logits(model, texts, shift=5) - packed_logits(model, texts)).abs().max()
        assert (difference > 1e-2) == moves and (moves or difference < 1e-4)


def test_rotary_attention_knows_the_order_of_what_it_reads():
    """One block without positions would read the tokens before the last as a bag."""
    model, (text,) = build(positions="rope", num_layers=1), documents(6)
    swapped = text[:, [3, 1, 2, 0, 4, 5]]
    with torch.no_grad():
        assert (model(swapped) - model(text))[:, -1].abs().max() > 1e-2


@every_combination
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_cached_equals_uncached(options, dtype):
    """Also under autocast: a step is then as coarse as bfloat16, a wrong position far coarser."""
    model, (text,) = build(**options), documents(10)
    cache, parts = DynamicCache(), []
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        whole = model(text)
        for chunk in text.split([3, 1, 4, 1, 1], dim=1):
            parts.append(model(chunk, cache=cache))
    tolerance = 1e-4 if dtype is None else 0.05 * whole.float().std().item()
    assert (torch.cat(parts, dim=1) - whole).float().abs().mean() < tolerance


def test_a_rotary_model_in_bfloat16_reads_with_a_cache():
    model, (text,) = build(use_memory=False, **COMBINATIONS[-1]).to(torch.bfloat16), documents(6)
    cache = DynamicCache()
    with torch.no_grad():
        parts = [model(chunk, cache=cache) for chunk in text.split([4, 2], dim=1)]
        whole = model(text)
    assert whole.dtype == torch.bfloat16
    assert (torch.cat(parts, dim=1) - whole).float().abs().mean() < 0.05 * whole.float().std()


@every_combination
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}])
def test_generation_with_a_cache_and_padding_on_the_left(options, how):
    model = build(BitGenForCausalLM, bos_token_id=0, eos_token_id=1, pad_token_id=2, **options)
    long, short = documents(6, 4)
    ids = torch.cat((long, F.pad(short, (2, 0), value=2)))
    how = {"max_new_tokens": 5, "eos_token_id": None, **how}
    results = [model.generate(ids, attention_mask=(ids != 2).long(), use_cache=use, **how) for use in (True, False)]
    assert torch.equal(*results)
    assert torch.equal(results[0][1:, 2:], model.generate(short, **how))


def test_rotary_self_attention_equals_the_formula():
    torch.manual_seed(0)
    layer, hidden = CausalSelfAttention(8, 2, 0).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    turns = rotations(torch.arange(5), 4)
    heads = [(hidden @ w.mT).view(2, 5, 2, 4).transpose(1, 2) for w in layer.query_key_value.weight.chunk(3)]
    query, key, value = rotate(heads[0], turns), rotate(heads[1], turns), heads[2]
    scores = (query @ key.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = layer.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(layer(hidden, turns=turns), expected, atol=1e-6, rtol=0)


def test_swiglu_equals_the_formula():
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 8, dtype=torch.float64)
    gate, up = hidden[..., :4], hidden[..., 4:]
    torch.testing.assert_close(SwiGLU()(hidden), gate / (1 + (-gate).exp()) * up)


def test_what_each_option_adds_and_takes_away():
    plain, rope, swiglu = (
        dict(build(**{**PLAIN, **o}).named_parameters()) for o in ({}, COMBINATIONS[2], COMBINATIONS[1])
    )
    assert set(plain) - set(rope) == {"embeddings.position.weight"} and not set(rope) - set(plain)
    assert set(plain) == set(swiglu)
    matrices = [name for name in plain if "feed_forward" in name and plain[name].ndim == 2]
    assert len(matrices) == 4
    before, after = (sum(model[name].numel() for name in matrices) for model in (plain, swiglu))
    assert 2 * after == 3 * before


def test_swiglus_matrices_train_and_decay_as_others_do():
    """No name of theirs may look like the fusion's and memory's gates, which have a rate of their own."""
    model = build(**COMBINATIONS[-1])
    found = {name: role for name, role in model.roles().items() if "feed_forward" in name}
    matrices = {found[n] for n, p in model.named_parameters() if n in found and p.ndim == 2}
    assert matrices == {("decoder", MATRIX, True)}
    assert {role.kind for role in found.values()} == {MATRIX, WEIGHT}


def test_a_configuration_from_before_the_options_is_the_plain_stack():
    written = json.loads(tiny_config().to_json_string(use_diff=False))
    for name in PLAIN:
        del written[name]
    for loaded in (BitGenConfig.from_dict(dict(written)), BitGenConfig(**written)):
        assert {name: getattr(loaded, name) for name in PLAIN} == PLAIN


def test_saved_and_loaded_again(tmp_path):
    (text,) = documents(6)
    model = build(BitGenForCausalLM, **COMBINATIONS[-1])
    model.save_pretrained(tmp_path)
    loaded, report = BitGenForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(loaded.eval()(text).logits, model(text).logits)
