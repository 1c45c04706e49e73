"""The model as transformers knows it: cache, generation, masks, labels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache

from bitgen.data.tokenizer import train_bpe
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM, BitGenTextModel
from support.models import tiny_config

FUSIONS = ("backbone", "cross_attention", "concat_mlp")


@pytest.fixture
def model_of(open_model):
    """``model_of(kind, **changes)``: a model with open gates whose weights are those of a plain one."""

    def build(kind=BitGenForCausalLM, **changes):
        plain = open_model(bos_token_id=0, eos_token_id=1, pad_token_id=2, **changes)
        model = kind(plain.config).eval()
        model.load_state_dict(plain.state_dict())
        if model.memory is not None:
            model.memory.state.normal_(generator=torch.Generator().manual_seed(3))
        return model

    return build


def sequence(length=8, rows=2):
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def features(rows=2):
    return torch.randn(rows, 9, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("with_image", [False, True])
def test_cached_and_uncached_logits_agree(model_of, fusion, with_image):
    model, ids = model_of(fusion=fusion), sequence()
    image = {"vision_features": features()} if with_image else {}
    with torch.no_grad():
        whole = model(ids, **image).logits
        cache, parts = DynamicCache(), []
        for start, end in ((0, 3), (3, 4), (4, 7), (7, 8)):
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True, **image)
            parts.append(output.logits)
    assert output.past_key_values is cache
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_logits_are_those_of_the_trainers_model(model_of, open_model):
    model = model_of()
    plain = open_model(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    plain.load_state_dict(model.state_dict())
    ids, image = sequence(), features()
    mask = torch.ones_like(ids)
    with torch.no_grad():
        pooled = plain.pool_image_tokens(plain.encode_image(None, image).image_tokens)
        assert torch.equal(model(ids).logits, plain(ids, mask))
        assert torch.equal(model(ids, mask, vision_features=image).logits, plain(ids, mask, pooled))
    assert (model(ids).logits - model(ids, vision_features=image).logits).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model_of, side):
    model, ids = model_of(), sequence(5, 1)
    padding = torch.full((1, 3), 2)
    parts, flags = [padding, ids], [torch.zeros(1, 3), torch.ones(1, 5)]
    if side == "right":
        parts, flags = parts[::-1], flags[::-1]
    mask = torch.cat(flags, dim=1).long()
    with torch.no_grad():
        padded = model(torch.cat(parts, dim=1), mask).logits[mask.bool()]
        torch.testing.assert_close(padded, model(ids).logits[0], atol=1e-5, rtol=0)


def test_a_three_dimensional_mask_is_obeyed(model_of):
    """Two documents side by side, neither seeing the other, are each as if alone, but for their positions."""
    model, ids = model_of(BitGenTextModel), sequence(8, 1)
    mask = torch.ones(1, 8, 8).tril()
    mask[:, 4:, :4] = 0
    with torch.no_grad():
        before = model(ids, mask).last_hidden_state
        changed = ids.clone()
        changed[:, :4] = 7
        after = model(changed, mask).last_hidden_state
    assert torch.equal(before[:, 4:], after[:, 4:]) and not torch.equal(before[:, :4], after[:, :4])


def test_gradients_through_every_kind_of_mask_are_finite(model_of):
    model, ids = model_of().train(), sequence()
    left = torch.ones_like(ids)
    left[0, :3] = 0
    for mask in (None, left, left[:, None].expand(-1, 8, -1).tril()):
        model.zero_grad()
        model(ids, mask, labels=ids).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_labels_are_shifted_and_may_be_ignored(model_of):
    model, ids = model_of(), sequence()
    labels = ids.clone()
    labels[0, 4:] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
    kept = labels[:, 1:] != -100
    expected = F.cross_entropy(output.logits[:, :-1][kept], ids[:, 1:][kept])
    torch.testing.assert_close(output.loss, expected)


def test_hidden_states_go_from_the_embeddings_to_the_last(model_of):
    ids = sequence()
    with torch.no_grad():
        text = model_of(BitGenTextModel)(ids, output_hidden_states=True)
        causal = model_of()(ids, output_hidden_states=True, token_type_ids=torch.zeros_like(ids))
    assert not hasattr(text, "logits") and len(text.hidden_states) == 3
    assert torch.equal(text.hidden_states[-1], text.last_hidden_state)
    for one, other in zip(text.hidden_states, causal.hidden_states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("how", [{}, {"do_sample": True, "top_k": 20}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_is_the_same_with_and_without_a_cache(model_of, with_image, how):
    model, ids = model_of(), sequence(4)
    image = {"vision_features": features()} if with_image else {}
    results = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        results.append(model.generate(ids, use_cache=use_cache, max_new_tokens=6, eos_token_id=None, **image, **how))
    assert results[0].shape == (2 * how.get("num_return_sequences", 1), 10)
    assert torch.equal(*results)


def test_greedy_generation_is_the_likeliest_token_each_time(model_of):
    model, ids, image = model_of(), sequence(4), features()
    generated = model.generate(ids, vision_features=image, max_new_tokens=5, eos_token_id=None)
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat((ids, model(ids, vision_features=image).logits[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(generated, ids)


def test_an_image_is_encoded_once_a_generation(model_of, monkeypatch):
    model, calls = model_of(), []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda *images: calls.append(1) or encode(*images))
    model.generate(vision_features=features(), max_new_tokens=5, eos_token_id=None, num_beams=2)
    assert len(calls) == 1


def test_left_padded_prompts_generate_as_alone(model_of):
    model, ids = model_of(), sequence(4, 1)
    padded = torch.cat((torch.full((1, 2), 2), ids), dim=1)
    mask = (padded != 2).long()
    alone = model.generate(ids, max_new_tokens=5, eos_token_id=None)
    other = torch.cat((sequence(6, 1), padded))
    both = model.generate(
        other, attention_mask=torch.cat((torch.ones(1, 6).long(), mask)), max_new_tokens=5, eos_token_id=None
    )
    assert torch.equal(both[1, 2:], alone[0])


def test_generation_ends_at_the_context(model_of):
    model = model_of()
    assert model.generate(sequence(4), max_new_tokens=99, eos_token_id=None).shape[1] == model.config.max_seq_len
    with pytest.raises(ValueError, match="prompt has 12 tokens and the context max_seq_len=12"):
        model.generate(sequence(12), max_new_tokens=1)


def test_a_length_that_is_asked_for_comes_before_the_models_own(model_of):
    """Exports bring `max_new_tokens`, which transformers prefers to `max_length`."""
    model = model_of().eval()
    model.generation_config.eos_token_id, model.generation_config.max_new_tokens = None, 4
    ids = torch.tensor([[1, 5, 6]])
    assert model.generate(ids, do_sample=False).shape[1] == 7
    for asked in (5, 10):
        assert model.generate(ids, max_length=asked, do_sample=False).shape[1] == asked
        embeds = model.get_input_embeddings()(ids)
        assert model.generate(inputs_embeds=embeds, max_length=asked, do_sample=False).shape[1] == asked - 3
    assert model.generate(ids, max_length=12, max_new_tokens=2, do_sample=False).shape[1] == 5
    with pytest.raises(ValueError, match="has 3 tokens and max_length is 3"):
        model.generate(ids, max_length=3)


def test_of_a_long_text_the_end_is_read(model_of):
    model, ids = model_of(), sequence(17)
    with torch.no_grad():
        logits = model(ids).logits
        torch.testing.assert_close(logits[:, 5:], model(ids[:, 5:]).logits, atol=1e-5, rtol=0)
    assert logits.shape[1] == 17 and logits.isfinite().all()


@pytest.mark.parametrize("with_image", [False, True])
def test_a_long_text_reads_as_with_the_whole_square_of_who_sees_what(model_of, with_image):
    """In rows of different lengths, padded on either side; the square mask takes the plain way."""
    model, ids = model_of(), sequence(30, 4)
    mask = torch.ones_like(ids)
    mask[1, 20:], mask[2, :15], mask[3, :25] = 0, 0, 0
    image = {"vision_features": features(4)} if with_image else {}
    with torch.no_grad():
        cut = model(ids, mask, output_hidden_states=True, labels=ids, **image)
        whole = model(ids, mask[:, None].expand(-1, 30, -1).tril(), output_hidden_states=True, labels=ids, **image)
    real = mask.bool()
    for found, expected in zip((cut.logits, *cut.hidden_states), (whole.logits, *whole.hidden_states), strict=True):
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        sizes = [
            part.numel() for part in (made if isinstance(made, (tuple, list)) else (made,)) if torch.is_tensor(part)
        ]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_of_the_size_of_length_times_length_is_made_of_a_long_text(model_of, padded):
    model, length = model_of(), 600
    ids = sequence(length, 1)
    mask = torch.ones_like(ids)
    if padded:
        mask[:, :-4] = 0
    with torch.no_grad(), Largest() as largest:
        assert model(ids, mask).logits.isfinite().all()
    assert largest.elements <= length * max(model.config.vocab_size, 64)


@pytest.mark.parametrize("memory_dim", [16, 12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_another_precision_it_reads_and_writes_nearly_the_same(model_of, dtype, memory_dim):
    model, ids, image = model_of(memory_dim=memory_dim), sequence(), features()
    with torch.no_grad():
        for inputs in ({}, {"vision_features": image}):
            exact = model.float()(ids, **inputs).logits
            rounded = model.to(dtype)(ids, **inputs).logits
            assert rounded.dtype == torch.float32
            torch.testing.assert_close(rounded, exact, atol=0.01 if dtype != torch.float64 else 1e-5, rtol=0)
    written = model.generate(ids, vision_features=image.to(dtype), max_new_tokens=3, num_beams=2, eos_token_id=None)
    assert written.shape == (2, 11)


def test_the_table_of_tokens_is_where_transformers_looks_for_it(model_of):
    model, ids = model_of(), sequence()
    with torch.no_grad():
        before = model(ids).logits
        size = before.shape[-1]
        model.resize_token_embeddings(size + 3)
        after = model(ids).logits
    assert model.config.vocab_size == after.shape[-1] == size + 3
    assert torch.equal(after[..., :size], before) and model.get_input_embeddings() is model.embeddings.token


def test_generation_from_embeddings_ends_at_the_context_as_from_ids(model_of):
    model, ids = model_of(), sequence()[:1]
    limit, embeddings = model.config.max_seq_len, model.get_input_embeddings()
    from_ids = model.generate(ids, max_new_tokens=100, eos_token_id=None)
    written = model.generate(inputs_embeds=embeddings(ids), max_new_tokens=100, eos_token_id=None)
    assert from_ids.shape[1] == limit and torch.equal(written, from_ids[:, ids.shape[1] :])
    assert model.generate(inputs_embeds=embeddings(ids), max_new_tokens=2, eos_token_id=None).shape == (1, 2)
    with pytest.raises(ValueError, match=f"The prompt has {limit} tokens .* nothing can follow"):
        model.generate(inputs_embeds=torch.zeros(1, limit, model.config.embed_dim))


@pytest.mark.parametrize("beams", [1, 2])
def test_one_picture_stands_for_all_prompts_and_other_numbers_are_named(model_of, beams):
    model, ids, image = model_of(), sequence(), features()
    asked = {"max_new_tokens": 3, "num_beams": beams, "eos_token_id": None}
    repeated = model.generate(ids, vision_features=image[:1].expand(len(ids), *image.shape[1:]), **asked)
    assert torch.equal(model.generate(ids, vision_features=image[:1], **asked), repeated)
    with pytest.raises(ValueError, match="2 pictures and 1 prompts: give one prompt for each picture"):
        model.generate(ids[:1], vision_features=image[:2], **asked)


def test_generation_stops_at_a_string(model_of):
    tokenizer = train_bpe(["the cat sat on the mat"] * 3, 268)
    model = model_of(vocab_size=len(tokenizer))
    ids = torch.tensor([tokenizer("the cat")["input_ids"]])
    longer = model.generate(ids, max_new_tokens=4, eos_token_id=None)
    first = tokenizer.decode(longer[0, ids.shape[1]])
    stopped = model.generate(ids, max_new_tokens=4, eos_token_id=None, stop_strings=[first], tokenizer=tokenizer)
    assert torch.equal(stopped, longer[:, : ids.shape[1] + 1])


def test_every_buffer_travels_with_the_weights(model_of):
    """A buffer outside the state dict would come back as uninitialised memory when an export is loaded."""
    for model in (model_of(), BitGenForCausalLM(tiny_config())):
        assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


def test_mistakes_are_named(model_of):
    model = model_of()
    with pytest.raises(ValueError, match="takes vision_features"):
        model(sequence(), pixel_values=torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match="one of them"):
        model(sequence(), vision_features=features(), image_tokens=torch.zeros(2, 9, 16))
    seeing = BitGenForCausalLM(tiny_config())
    assert seeing.git.image_encoder is seeing.vision_encoder
