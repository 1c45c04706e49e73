"""The loss of answers: weights, groups of rows of like length, and advantages, against plain computations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bitgen.data.questions.dataset import QuestionCollator, QuestionDataset
from bitgen.data.questions.extended_tokenizer import extended_tokenizer
from bitgen.data.questions.marked_text import MARKS, MarkedTokens
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.reasoning import SceneReasoning
from bitgen.data.tokenizer import train_bpe
from bitgen.model.factory import random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.objectives.language import language_loss
from bitgen.objectives.policy_gradient import PolicyGradientObjective, leave_one_out
from bitgen.objectives.reasoning import ReasoningObjective
from support.models import open_gates, tiny_config

LONGEST = 112


@pytest.fixture(scope="module")
def processor() -> BitGenProcessor:
    base = train_bpe(["a small red star left of a large blue ring"] * 50, 300)
    texts = SceneReasoning(BitGenProcessor(base, 28), 1, 50).texts(50)
    return BitGenProcessor(extended_tokenizer(base, MARKS, texts, 500), 28, LONGEST)


def batch(processor: BitGenProcessor, pictures: int = 3) -> dict[str, torch.Tensor]:
    data = QuestionDataset(SceneReasoning(processor, 5, 40), MarkedTokens(processor.tokenizer), LONGEST, 2, False, 1)
    return QuestionCollator(processor.tokenizer.pad_token_id)([data[SampleKey(index)] for index in range(pictures)])


def model(processor: BitGenProcessor, **sizes: object) -> BitGenModel:
    torch.manual_seed(0)
    vision = random_vision_config(16, 1, 2, patch_size=7, image_size=28)
    options = dict(vision_config=vision, vision_tuning="full", image_size=28, vocab_size=len(processor.tokenizer),
                   max_seq_len=LONGEST, dropout=0.0, compressor_dropout=0.0)  # fmt: skip
    made = BitGenModel(tiny_config(**(options | sizes)))
    open_gates(made)
    return made


@pytest.mark.parametrize("divisor", [None, 7.0])
def test_weighted_language_loss(divisor: float | None) -> None:
    torch.manual_seed(1)
    hidden, table = torch.randn(3, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.randint(0, 11, (3, 5))
    labels[0, :2] = -100
    weights = torch.randint(1, 4, (3, 5)).float()
    loss = language_loss(hidden, table, labels, weights, divisor)
    gradients = torch.autograd.grad(loss, (hidden, table))
    each = F.cross_entropy((hidden @ table.mT).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    kept = weights.flatten() * (labels.flatten() != -100)
    plain = (each * kept).sum() / (kept.sum() if divisor is None else divisor)
    assert torch.allclose(loss, plain, atol=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, (hidden, table)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_groups_of_rows_change_no_number(processor: BitGenProcessor) -> None:
    inputs, objective = batch(processor), ReasoningObjective(model(processor)).eval()  # in training the memory draws
    loss = objective(inputs).loss
    network = objective.model
    seen = objective.image_tokens(inputs["pictures"])[inputs["picture_of"]]
    hidden = network.run_stack(inputs["input_ids"], inputs["attention_mask"], seen).hidden_states
    logits = network.lm_logits(hidden)
    each = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten(), reduction="none", ignore_index=-100)
    plain = (each * inputs["weights"].flatten()).sum() / inputs["weights"].sum()
    assert torch.allclose(loss, plain, atol=1e-5)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(plain, parameters, allow_unused=True)
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert (one is None) == (other is None), name
        assert one is None or torch.allclose(one, other, atol=1e-5), name


def test_roles_say_what_is_reached(processor: BitGenProcessor) -> None:
    objective = ReasoningObjective(model(processor)).train()
    objective.model.set_adapters_trainable(True)
    objective(batch(processor)).loss.backward()
    roles = objective.roles()
    for name, parameter in objective.named_parameters():
        if roles[name].kind == "fixed":
            continue
        got = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert got == roles[name].reached, name


def test_leave_one_out_against_a_loop() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.5], [2.0, 2.0, 2.0, 2.0]])
    found = leave_one_out(rewards)
    for row in range(2):
        for one in range(4):
            others = [float(rewards[row, other]) for other in range(4) if other != one]
            assert found[row, one] == pytest.approx(float(rewards[row, one]) - sum(others) / 3)
    assert (found[1] == 0).all()
    assert (leave_one_out(torch.ones(3, 1)) == 0).all()


def test_the_policy_gradient_is_advantage_times_log_probability(processor: BitGenProcessor) -> None:
    inputs = batch(processor)
    inputs["weights"] = torch.randn(inputs["input_ids"].shape) * (inputs["labels"] >= 0)
    inputs["sampled"] = torch.full(inputs["input_ids"].shape, float("nan"))
    objective = PolicyGradientObjective(model(processor, dropout=0.5)).train()
    first, second = objective(inputs).loss, objective(inputs).loss
    assert torch.equal(first, second)  # no dropout
    network = objective.model
    seen = objective.image_tokens(inputs["pictures"])[inputs["picture_of"]]
    logits = network.lm_logits(network.run_stack(inputs["input_ids"], inputs["attention_mask"], seen).hidden_states)
    log_probs = logits.log_softmax(-1).gather(2, inputs["labels"].clamp_min(0)[..., None])[..., 0]
    assert torch.allclose(first, -(inputs["weights"] * log_probs).sum(), atol=1e-4)


def test_finer_image_tokens(processor: BitGenProcessor) -> None:
    vision = random_vision_config(16, 1, 2, patch_size=7, image_size=84)
    pixels = torch.randn(2, 3, 84, 84)
    coarse, fine = (model(processor, vision_config=vision, image_size=84, pooled_grid=side) for side in (7, 12))
    for network, tokens in ((coarse, 49), (fine, 144)):
        seen = network.encode_image(pixels).image_tokens
        pooled = network.pool_image_tokens(seen)
        assert network.config.pooled_tokens == pooled.shape[1] == tokens
    assert torch.equal(pooled, seen.to(torch.bfloat16).float())
