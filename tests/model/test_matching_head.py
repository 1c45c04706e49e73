"""What the matching head reads of a fused caption, and where the gates begin."""

import pytest
import torch

from bitgen.model.configuration_bitgen import FUSION_KINDS, ITM_POOLINGS
from bitgen.model.modeling_bitgen import BitGenModel
from support.models import FEATURES, tiny_config, tiny_model

LENGTHS = (7, 2, 5)


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(1)) * mask
    return ids, mask


def image_tokens(model: BitGenModel) -> torch.Tensor:
    return model.pool_image_tokens(model.encode_image(vision_features=torch.randn(3, *FEATURES)).image_tokens)


@pytest.mark.parametrize("pooling", ITM_POOLINGS)
def test_the_head_reads_what_its_name_says_row_by_row(pooling: str) -> None:
    model = tiny_model(itm_pooling=pooling).eval()
    ids, mask = captions()
    tokens = image_tokens(model)
    logits = model.match(tokens, ids, mask)
    for row, length in enumerate(LENGTHS):
        words, seen = ids[row : row + 1, :length], mask[row : row + 1, :length]
        states = model.run_stack(words, seen, tokens[row : row + 1]).hidden_states[0]
        read = states[-1] if pooling == "last" else sum(states) / length
        torch.testing.assert_close(logits[row], model.itm_head(read), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ITM_POOLINGS)
def test_the_loss_teaches_the_words_that_the_head_reads(pooling: str) -> None:
    model = tiny_model(itm_pooling=pooling)
    _, mask = captions()
    states = torch.randn(3, 7, model.config.embed_dim, requires_grad=True)
    model.itm_logits(states, mask)[:, 1].sum().backward()
    assert states.grad is not None
    reached = states.grad.abs().sum(dim=2) > 0
    last = torch.arange(7) == torch.tensor(LENGTHS)[:, None] - 1
    assert torch.equal(reached, mask.bool() if pooling == "mean" else last)


@pytest.mark.parametrize("fusion", FUSION_KINDS)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_gates_of_the_fusion_start_where_they_are_told_and_the_memorys_at_zero(fusion: str, start: float) -> None:
    model = BitGenModel(tiny_config(FEATURES, fusion=fusion, gate_start=start))
    gates = {name: gate for name, gate in model.named_parameters() if name.endswith("gate")}
    of_memory = {name for name in gates if name.startswith("memory.")}
    assert of_memory and len(gates) > len(of_memory)
    for name, gate in gates.items():
        assert torch.all(gate == (0.0 if name in of_memory else start)), name


@pytest.mark.parametrize("by_likelihood", [False, True])
def test_log_odds_are_the_heads_or_the_likelihood_ratio(by_likelihood: bool) -> None:
    model = tiny_model(itm_likelihood=by_likelihood).eval()
    ids, mask = captions()
    tokens = image_tokens(model)
    odds = model.log_odds(tokens, ids, mask)
    for row, length in enumerate(LENGTHS):
        words = ids[row : row + 1, :length]
        if by_likelihood:
            with_image, without = (
                model(words, image_tokens=image)[0, :-1].log_softmax(-1).gather(1, words[0, 1:, None]).sum()
                for image in (tokens[row : row + 1], None)
            )
            expected = with_image - without
        else:
            probability = model.match(tokens[row : row + 1], words, torch.ones_like(words)).softmax(-1)[0, 1]
            expected = probability.logit()
        torch.testing.assert_close(odds[row], expected, atol=1e-4, rtol=1e-4)
