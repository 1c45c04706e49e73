"""What must hold of the whole network whatever its weights: causality, independence of neighbours, caching, gates.

Every test opens all gates, so that fusion and memory take part.
"""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from bitgen.model.configuration_bitgen import FUSION_KINDS
from bitgen.model.modeling_bitgen import BitGenModel, last_token
from support.models import FEATURES, tiny_config

LENGTH = 8
every_fusion = pytest.mark.parametrize("fusion", FUSION_KINDS)


def random_inputs(rows: int = 3, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids, attention_mask [B, T]`` without padding, and ``image_tokens [B, P, D]``."""
    torch.manual_seed(1)
    return torch.randint(3, 50, (rows, length)), torch.ones(rows, length, dtype=torch.long), torch.randn(rows, 9, 16)


def logits_of(model: BitGenModel, ids: torch.Tensor, image: torch.Tensor | None, seed: int = 5) -> torch.Tensor:
    """Logits with the memory's read noise drawn from one seed, so that train mode can be compared."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(ids, torch.ones_like(ids), image)


# --- causality ---------------------------------------------------------------------------------------------------


@every_fusion
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_image", [False, True])
def test_logits_do_not_depend_on_later_tokens(open_model, fusion, training, with_image):
    model = open_model(fusion=fusion, dropout=0.0, compressor_dropout=0.0).train(training)
    ids, _, image = random_inputs()
    image = image if with_image else None
    before = logits_of(model, ids, image)
    for position in range(LENGTH - 1):
        changed = ids.clone()
        changed[:, position + 1 :] = (changed[:, position + 1 :] + 7) % 50
        after = logits_of(model, changed, image)
        assert (before - after)[:, : position + 1].abs().max() < 1e-5
        assert (before - after)[:, position + 1 :].abs().amax(dim=(0, 2)).min() > 1e-3


@every_fusion
def test_gradient_of_a_logit_reaches_earlier_tokens_alone(open_model, fusion):
    """The same through autograd, which sees a leak however small the weights make it."""
    model = open_model(fusion=fusion)
    ids, mask, image = random_inputs(rows=1)
    embedded = model.embeddings(ids).detach().requires_grad_()
    model.embeddings.forward = lambda *_: embedded
    model(ids, mask, image)[0, 4].square().sum().backward()
    reached = embedded.grad[0].abs().amax(dim=-1)
    assert (reached[:5] > 0).all() and (reached[5:] == 0).all()


# --- neighbours and padding --------------------------------------------------------------------------------------


def everything_about(model: BitGenModel, ids, mask, features) -> dict[str, torch.Tensor]:
    """All that the model says about each pair, in eval mode."""
    with torch.no_grad():
        images = model.encode_image(vision_features=features)
        pooled = model.pool_image_tokens(images.image_tokens)
        return {
            "image_features": images.image_features,
            "text_features": model.encode_text(ids, mask),
            "itm_logits": model.match(pooled, ids, mask),
            "logits": model(ids, mask, images.image_tokens),
            "codes": model.run_stack(ids, mask, images.image_tokens).codes,
        }


@every_fusion
def test_a_sample_depends_neither_on_its_neighbours_nor_on_padding(open_model, fusion):
    model = open_model(fusion=fusion)
    ids, mask, _ = random_inputs(rows=4)
    features = torch.randn(4, 9, 6)
    lengths = [8, 5, 3, 1]
    for row, length in enumerate(lengths):
        mask[row, length:] = 0
        ids[row, length:] = torch.randint(3, 50, (LENGTH - length,))  # what lies under the padding must not matter
    together = everything_about(model, ids, mask, features)
    for row, length in enumerate(lengths):
        only = slice(row, row + 1)
        alone = everything_about(model, ids[only, :length], mask[only, :length], features[only])
        for name, value in alone.items():
            batched = together[name][only, :length] if name == "logits" else together[name][only]
            assert (value - batched).abs().max() < 1e-5, f"{name} of row {row}"


def test_last_token_is_the_last_real_one():
    hidden = torch.arange(3 * 4, dtype=torch.float32).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    assert last_token(hidden, mask).flatten().tolist() == [3, 5, 8]


@every_fusion
def test_captions_with_one_first_token_have_different_features(open_model, fusion):
    model = open_model(fusion=fusion)
    ids, mask, _ = random_inputs(rows=6)
    ids[:, 0] = ids[:, -1] = 2  # BOS and EOS are one token with GPT-2's tokenizer
    with torch.no_grad():
        features = model.encode_text(ids, mask)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(6))
    assert torch.pdist(features).min() > 1e-3


# --- randomness --------------------------------------------------------------------------------------------------


@every_fusion
def test_nothing_is_random_in_eval_mode(open_model, fusion):
    model = open_model(fusion=fusion)
    ids, mask, _ = random_inputs()
    features = torch.randn(3, 9, 6)
    torch.manual_seed(1)
    first = everything_about(model, ids, mask, features)
    state = torch.get_rng_state()
    second = everything_about(model, ids, mask, features)
    assert torch.equal(torch.get_rng_state(), state)  # no generator was even asked
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_and_read_noise_act_in_train_mode(open_model):
    model = open_model(dropout=0.0).train()
    ids, _, image = random_inputs()
    assert not torch.equal(logits_of(model, ids, image, seed=1), logits_of(model, ids, image, seed=2))
    model = open_model(use_memory=False).train()
    assert not torch.equal(logits_of(model, ids, image, seed=1), logits_of(model, ids, image, seed=2))


def test_eval_forward_leaves_the_memory_as_it_is(open_model):
    model = open_model()
    before = model.memory.state.clone()
    ids, mask, _ = random_inputs()
    everything_about(model, ids, mask, torch.randn(3, 9, 6))
    assert torch.equal(model.memory.state, before)


# --- caching -----------------------------------------------------------------------------------------------------


@every_fusion
@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 8, [3, 1, 4], [5, 3], [1, 7], [8], [7, 1]])
def test_cached_decoding_equals_one_pass(open_model, fusion, with_image, chunks):
    model = open_model(fusion=fusion)
    ids, mask, image = random_inputs()
    image = image if with_image else None
    with torch.no_grad():
        whole = model(ids, mask, image)
        cache, parts = DynamicCache(), []
        for chunk in ids.split(chunks, dim=1):
            parts.append(model(chunk, image_tokens=image, cache=cache))
    assert cache.get_seq_length() == LENGTH
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5


def test_sequences_beyond_the_position_table_are_refused(open_model):
    model = open_model()
    with pytest.raises(ValueError, match="max_seq_len=12"):
        model(torch.ones(1, 13, dtype=torch.long))
    cache = DynamicCache()
    model(torch.ones(1, 12, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="13 tokens"):
        model(torch.ones(1, 1, dtype=torch.long), cache=cache)


# --- gates and memory --------------------------------------------------------------------------------------------


@every_fusion
def test_closed_gates_leave_the_text_model_undisturbed(fusion):
    model = BitGenModel(tiny_config(FEATURES, fusion=fusion)).eval()
    ids, mask, image = random_inputs()
    with torch.no_grad():
        fused, text = model.run_stack(ids, mask, image), model.run_stack(ids, mask)
        assert torch.equal(fused.hidden_states, text.hidden_states)
        without = BitGenModel(tiny_config(FEATURES, use_memory=False, fusion=fusion)).eval()
        without.load_state_dict({k: v for k, v in model.state_dict().items() if "memory" not in k})
        assert torch.equal(without(ids, mask), model(ids, mask))


@every_fusion
def test_open_gates_let_image_and_memory_through(open_model, fusion):
    model = open_model(fusion=fusion)
    ids, mask, image = random_inputs()
    with torch.no_grad():
        usual = model(ids, mask, image)
        assert (usual - model(ids, mask)).abs().max() > 1e-2
        assert (usual - model(ids, mask, image.flip(0))).abs().max() > 1e-3
        other = model.memory.reader(torch.randn(4, 16))
        assert (usual - model(ids, mask, image, other)).abs().max() > 1e-3
        assert (model.encode_text(ids, mask) - model.encode_text(ids, mask, other)).abs().max() > 1e-4


@every_fusion
def test_codes_are_the_masked_mean_of_the_tokens_at_the_memory(open_model, fusion):
    """The fused embeddings before the decoder, or with ``backbone`` the last block's output."""
    model = open_model(fusion=fusion)
    ids, mask, image = random_inputs()
    mask[1, 3:] = 0
    with torch.no_grad():
        codes = model.run_stack(ids, mask, image).codes
        hidden = model.embeddings(ids)
        hidden = model.decoder(hidden, image) if fusion == "backbone" else model.fusion(hidden, image)
        for row, length in enumerate(mask.sum(dim=1)):
            torch.testing.assert_close(codes[row], model.memory.code(hidden[row, :length].mean(dim=0)))


def test_output_head_is_the_token_embedding(open_model):
    model = open_model()
    hidden = torch.randn(2, 3, 16)
    torch.testing.assert_close(model.lm_logits(hidden), hidden @ model.embeddings.token.weight.mT)


@every_fusion
@pytest.mark.parametrize("memory_dim", [16, 8])
def test_autocast_runs_and_keeps_features_and_codes_in_float32(open_model, fusion, memory_dim):
    model = open_model(fusion=fusion, memory_dim=memory_dim)
    ids, mask, _ = random_inputs()
    features = torch.randn(3, 9, 6)
    plain = everything_about(model, ids, mask, features)
    with torch.autocast("cpu", torch.bfloat16):
        cast = everything_about(model, ids, mask, features)
    for name in ("image_features", "text_features", "itm_logits", "codes"):
        assert cast[name].dtype == torch.float32
        assert (cast[name] - plain[name]).abs().max() < 0.1, name
