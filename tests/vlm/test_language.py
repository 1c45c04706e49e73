"""Every family of language models: embeddings for ids, the head where something is learned, answers in a batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bitgen.vlm import language
from bitgen.vlm.language import generate, left_padded, supervised_logits
from support.language_models import KINDS, padded, ragged, supervised_loss, tiny_language_model


@pytest.fixture(params=KINDS)
def lm(request):
    return tiny_language_model(request.param)


def embedded(lm, ids):
    return lm.model.get_input_embeddings()(ids)


def labels_of(ids, mask):
    """A few tokens to learn in each row, among them neighbours, one before padding, and one that opens a row."""
    labels = torch.full_like(ids, -100)
    labels[0, 3:6], labels[1, 4], labels[2, -1], labels[2, 0] = ids[0, 3:6], ids[1, 4], ids[2, -1], ids[2, 0]
    return labels.masked_fill(mask == 0, -100)


def test_embeddings_give_the_logits_of_their_ids(lm):
    ids, mask = padded(ragged())
    with torch.no_grad():
        by_ids = lm.model(input_ids=ids, attention_mask=mask).logits
        by_embeddings = lm.model(inputs_embeds=embedded(lm, ids), attention_mask=mask).logits
    torch.testing.assert_close(by_embeddings, by_ids, atol=0, rtol=0)


def test_gemmas_embedding_module_scales_and_the_model_does_not_scale_again():
    lm = tiny_language_model("gemma2")
    module, ids = lm.model.get_input_embeddings(), torch.tensor([[5, 6]])
    torch.testing.assert_close(module(ids), module.weight[ids] * 32**0.5)


@pytest.mark.parametrize("by_mask", [True, False])
def test_the_supervised_loss_is_the_full_one(lm, by_mask, monkeypatch):
    if not by_mask:
        monkeypatch.setattr(language, "_takes_masks", lambda model: False)
    ids, mask = padded(ragged())
    labels, embeds = labels_of(ids, mask), embedded(lm, ids).detach().requires_grad_()
    total, count = supervised_loss(lm, embeds, mask, labels)
    (gradient,) = torch.autograd.grad(total / count, embeds)
    whole = lm.model(inputs_embeds=embeds, attention_mask=mask, labels=labels)
    (expected,) = torch.autograd.grad(whole.loss, embeds)
    assert count == 5  # the label that opens a row is predicted by nothing
    torch.testing.assert_close(total / count, whole.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_the_head_runs_on_supervised_positions_alone(lm):
    ids, mask = padded(ragged())
    shapes, head = [], lm.model.get_output_embeddings()
    if head is not None:  # BitGen's is no module
        head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[0, 2], keep[2, 7:9] = True, True
    with torch.no_grad():
        logits = supervised_logits(lm, embedded(lm, ids), mask, keep)
        expected = lm.model(input_ids=ids, attention_mask=mask).logits[keep]
    alone = (3, 32) if language._takes_masks(lm.model) else (3, 3, 32)  # else the columns of any row
    assert shapes[:1] == ([] if head is None else [alone])
    torch.testing.assert_close(logits, expected.float(), atol=1e-6, rtol=1e-5)


def test_a_batch_without_labels_has_a_loss_of_zero_and_no_nan(lm):
    ids, mask = padded(ragged())
    embeds = embedded(lm, ids).detach().requires_grad_()
    total, count = supervised_loss(lm, embeds, mask, torch.full_like(ids, -100))
    total.backward()
    assert (total, count) == (0, 0)
    assert not embeds.grad.any()


def test_padding_on_the_right_changes_nothing_in_training(lm):
    rows = ragged()
    ids, mask = padded(rows)
    other, _ = padded(rows)
    other[mask == 0] = 7  # whatever stands there
    with torch.no_grad():
        batch = lm.model(inputs_embeds=embedded(lm, other), attention_mask=mask).logits
        for row, logits in zip(rows, batch, strict=True):
            alone = lm.model(inputs_embeds=embedded(lm, row[None])).logits[0]
            torch.testing.assert_close(logits[: len(row)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_of_a_batch_are_those_of_its_rows(lm, side):
    rows = ragged()
    ids, mask = padded(rows, side)
    batch = generate(lm, embedded(lm, ids), mask, max_new_tokens=8)
    for row, answer in zip(rows, batch, strict=True):
        ones = torch.ones(1, len(row), dtype=torch.long)
        alone = generate(lm, embedded(lm, row[None]), ones, max_new_tokens=8)[0]
        assert answer[: len(alone)].tolist() == alone.tolist()
        assert not answer[len(alone) :].any()  # padding


def test_the_cache_changes_no_answer_and_a_loop_gives_the_same(lm):
    ids, mask = padded(ragged())
    embeds = embedded(lm, ids)
    cached = generate(lm, embeds, mask, max_new_tokens=6)
    assert cached.tolist() == generate(lm, embeds, mask, max_new_tokens=6, use_cache=False).tolist()
    row, written = ragged()[1], []
    for _ in range(cached.shape[1]):
        with torch.no_grad():
            token = lm.model(input_ids=torch.cat([row, torch.tensor(written, dtype=torch.long)])[None]).logits[0, -1]
        written.append(int(token.argmax()))
        if written[-1] == lm.model.config.eos_token_id:
            break
    assert cached[1, : len(written)].tolist() == written


def test_generating_leaves_a_model_in_its_mode():
    lm = tiny_language_model("llama")
    lm.model.train()
    ids, mask = padded(ragged())
    generate(lm, embedded(lm, ids), mask, max_new_tokens=2)
    assert lm.model.training


def test_left_padding_keeps_every_row_in_order():
    embeds = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    moved, mask = left_padded(embeds, torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]))
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert moved[mask.bool()].flatten().tolist() == [1, 2, 6, 7, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(beams=3), "beams: no setting of generation has this name"),
        (dict(temperature=0.5), "do not fit together.*temperature"),
        (dict(max_new_tokens=60), "12 tokens and 60 new ones are more than the 64 positions"),
        (dict(max_new_tokens=0), "greater than 0"),
    ],
)
def test_wrong_settings_of_generation_are_said_before_it_starts(settings, message):
    lm = tiny_language_model("llama")
    ids, mask = padded(ragged())
    with pytest.raises(ValueError, match=message):
        generate(lm, embedded(lm, ids), mask, **(dict(max_new_tokens=8) | settings))


def test_a_prompt_without_a_token_is_an_error():
    lm = tiny_language_model("llama")
    ids, mask = padded(ragged())
    mask[1] = 0
    with pytest.raises(ValueError, match="a prompt has no token"):
        generate(lm, embedded(lm, ids), mask)


def test_what_a_published_file_says_of_decoding_is_not_taken():
    lm = tiny_language_model("llama")
    ids, mask = padded(ragged())
    plain = generate(lm, embedded(lm, ids), mask, max_new_tokens=6)
    lm.model.generation_config.repetition_penalty = 9.0
    lm.model.generation_config.do_sample = True
    lm.model.generation_config.temperature = 9.0
    assert generate(lm, embedded(lm, ids), mask, max_new_tokens=6).tolist() == plain.tolist()


def test_the_loss_of_several_rows_is_their_sum(lm):
    ids, mask = padded(ragged())
    labels = labels_of(ids, mask)
    with torch.no_grad():
        total, _ = supervised_loss(lm.model, embedded(lm, ids), mask, labels)
        logits = lm.model(input_ids=ids, attention_mask=mask).logits.float()
    alone = [F.cross_entropy(logits[i, t - 1], labels[i, t]) for i, t in (labels != -100).nonzero().tolist() if t]
    torch.testing.assert_close(total, sum(alone), atol=1e-5, rtol=1e-6)
