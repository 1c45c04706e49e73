"""The language loss against full logits, its labels, and token dropout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bitgen.model.likelihood import IGNORED, next_token_labels
from bitgen.objectives import language
from bitgen.objectives.language import language_loss
from bitgen.objectives.stage1 import drop_tokens


def _problem(seed: int = 0, rows: int = 3, length: int = 7, width: int = 6, vocab: int = 29) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator)
    labels = torch.randint(0, vocab, (rows, length), generator=generator)
    labels[0, 3:], labels[2, 0] = IGNORED, IGNORED
    return hidden, weight, labels


def _with_gradients(loss_of, hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    hidden, weight = hidden.clone().requires_grad_(True), weight.clone().requires_grad_(True)
    loss = loss_of(hidden, weight)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize(("chunk", "together"), [(4, 1), (4, 3), (4, 100), (7, 3), (1024, 4)])
def test_value_and_gradients_equal_cross_entropy_on_full_logits(
    chunk: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, labels = _problem()
    monkeypatch.setattr(language, "CPU_CHUNK", chunk)  # 21 rows: several chunks and a rest, exactly three, or one
    monkeypatch.setattr(language, "CPU_CHUNKS_A_PRODUCT", together)

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy((h @ w.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    expected = _with_gradients(plain, hidden, weight)
    found = _with_gradients(lambda h, w: language_loss(h, w, labels), hidden, weight)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, labels = (tensor.double() if tensor.is_floating_point() else tensor for tensor in _problem())
    hidden.requires_grad_(True), weight.requires_grad_(True)
    # The backward pass is not differentiable twice, and scales with what comes from above.
    assert torch.autograd.gradcheck(lambda h, w: 3.5 * language_loss(h, w, labels), (hidden, weight))


def test_under_autocast_only_the_products_are_rounded() -> None:
    hidden, weight, labels = _problem()
    hidden = hidden * 8
    with torch.autocast("cpu", torch.bfloat16):
        found = _with_gradients(lambda h, w: language_loss(h, w, labels), hidden, weight)
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float().flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
    exact = _with_gradients(lambda h, w: language_loss(h, w, labels), hidden, weight)
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=2e-2)


def test_in_half_precision_a_target_without_any_probability_has_its_exact_loss() -> None:
    hidden, weight = torch.tensor([[[200.0]]]), torch.tensor([[1.0], [-1.0], [0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        found = _with_gradients(lambda h, w: language_loss(h, w, torch.tensor([[1]])), hidden, weight)
    assert found[0].item() == 400  # its probability, exp(-400), is 0 in float32
    assert found[1].tolist() == [[[2.0]]] and found[2].tolist() == [[200.0], [-200.0], [0.0]]


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, labels = _problem()
    with torch.autocast("cpu", torch.bfloat16):
        expected = _with_gradients(lambda h, w: language_loss(h, w, labels), hidden, weight)[0]
        with torch.no_grad():
            torch.testing.assert_close(language_loss(hidden, weight, labels), expected, rtol=1e-6, atol=1e-6)


def test_nothing_to_predict_is_0_and_not_nan() -> None:
    hidden, weight, labels = _problem()
    assert language_loss(hidden, weight, torch.full_like(labels, IGNORED)).item() == 0


def test_labels_are_the_next_real_tokens() -> None:
    # BOS, EOS and padding share one id: only the mask tells them apart.
    ids = torch.tensor([[9, 4, 5, 9, 9], [9, 6, 7, 8, 9], [9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    x = IGNORED
    assert next_token_labels(ids, mask).tolist() == [[4, 5, 9, x, x], [6, 7, 8, 9, x], [9, x, x, x, x]]


captions = st.lists(st.integers(2, 10), min_size=1, max_size=6)


@given(captions, st.floats(0, 1), st.integers(0, 9))
def test_dropping_tokens_keeps_ends_and_order(lengths: list[int], rate: float, seed: int) -> None:
    width = max(lengths) + 1
    mask = torch.stack([(torch.arange(width) < length).long() for length in lengths])
    ids = torch.arange(1, width + 1).repeat(len(lengths), 1) * mask  # 1, 2, 3, ..., length, 0, 0
    torch.manual_seed(seed)
    new_ids, new_mask = drop_tokens(ids, mask, rate)
    assert (new_ids.dtype, new_mask.dtype, new_ids.shape) == (ids.dtype, mask.dtype, ids.shape)
    for row, length in enumerate(lengths):
        count = int(new_mask[row].sum())
        assert new_mask[row].tolist() == [1] * count + [0] * (width - count)
        kept = new_ids[row, :count].tolist()
        assert kept == sorted(set(kept)) and kept[0] == 1 and kept[-1] == length
        if rate == 0:
            assert count == length
        if rate == 1:
            assert count == 2


def test_drops_the_share_that_was_asked_for() -> None:
    torch.manual_seed(0)
    mask = torch.ones(500, 42, dtype=torch.long)
    _, kept = drop_tokens(torch.zeros_like(mask), mask, 0.3)
    assert kept.sum(dim=1).float().mean().item() == pytest.approx(2 + 40 * 0.7, abs=0.5)
