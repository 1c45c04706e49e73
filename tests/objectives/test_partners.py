"""The partners that matching draws, and the pairs that it makes of them."""

from __future__ import annotations

import pytest
import torch

from bitgen.objectives import stage1
from bitgen.objectives.matching import interleave
from support.stage1 import (
    run_once,
    spy_on_stack,
    step,
    weights,
)


def test_matching_sees_true_hard_text_hard_image_and_partner_pairs(monkeypatch) -> None:
    objective, batch, queue = step(weights(itm_temperature=100.0), batch_options={"longest": 6})
    queue.entries.attention_mask[:, :10] = 1  # longer than any of the batch
    calls = spy_on_stack(monkeypatch)
    run_once(objective, batch, queue)
    text, fused = calls
    assert text["tokens"] is None and text["ids"].shape == batch["input_ids"].shape
    ids, mask, tokens = fused["ids"], fused["mask"], fused["tokens"]
    n, own = 5, batch["input_ids"]
    assert len(ids) == len(mask) == len(tokens) == 4 * n
    real = batch["attention_mask"].bool()
    for part in (0, 2):  # the batch's own captions
        rows = slice(part * n, part * n + n)
        assert torch.equal(mask[rows, :6], batch["attention_mask"]) and mask[rows, 6:].sum() == 0
        assert torch.equal(ids[rows, :6][real], own[real])
    pooled = objective.model.pool_image_tokens(
        objective.model.encode_image(None, batch["vision_features"]).image_tokens
    )
    assert torch.equal(tokens[:n], pooled) and torch.equal(tokens[n : 2 * n], pooled)
    held = queue.valid()
    captions = [*own.tolist(), *held.input_ids.tolist()]
    masks = [*batch["attention_mask"].tolist(), *held.attention_mask.tolist()]
    words = [tuple(t for t, m in zip(c, k, strict=True) if m) for c, k in zip(captions, masks, strict=True)]
    images = [*pooled, *held.image_tokens.float()]
    assert mask[n : 2 * n].sum(dim=1).max() == 10  # one was drawn, and whole
    for row in range(n):
        drawn = tuple(t for t, m in zip(ids[n + row].tolist(), mask[n + row].tolist(), strict=True) if m)
        assert drawn in words and words.index(drawn) != row
        matches = [j for j, image in enumerate(images) if torch.equal(image, tokens[2 * n + row])]
        assert matches == [words.index(drawn)]  # the picture that this caption belongs to
    # The partner whole: its caption as in part 1, its picture as in part 2.
    assert torch.equal(ids[3 * n :], ids[n : 2 * n]) and torch.equal(mask[3 * n :], mask[n : 2 * n])
    assert torch.equal(tokens[3 * n :], tokens[2 * n : 3 * n])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_half_of_the_partners_are_drawn_by_the_image_and_half_by_the_text(monkeypatch, rows: int) -> None:
    objective, batch, queue = step(batch_options={"image_ids": torch.arange(100, 105)})
    batch = {name: tensor[:rows] for name, tensor in batch.items()}
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = stage1.draw_hard_negatives

    def spy(queries, candidates, *rest, **options):
        asked.append((queries, candidates))
        return plain(queries, candidates, *rest, **options)

    monkeypatch.setattr(stage1, "draw_hard_negatives", spy)
    entries, past = run_once(objective, batch, queue).entries, queue.valid()
    (by_image, texts), (by_text, images) = asked
    assert torch.equal(by_image, entries.image_features[::2]) and torch.equal(by_text, entries.text_features[1::2])
    assert torch.equal(texts, torch.cat((entries.text_features, past.text_features)))
    assert torch.equal(images, torch.cat((entries.image_features, past.image_features)))


def test_negatives_are_drawn_from_easy_to_hard_in_equal_ratios(monkeypatch) -> None:
    objective, batch, queue = step(weights(itm_temperature=0.05, itm_temperature_start=0.2))
    asked: list[float] = []
    plain = stage1.draw_hard_negatives

    def spy(queries, candidates, query_ids, candidate_ids, temperature):
        asked.append(temperature)
        return plain(queries, candidates, query_ids, candidate_ids, temperature)

    monkeypatch.setattr(stage1, "draw_hard_negatives", spy)
    for objective.done in (0.0, 0.5, 1.0):
        run_once(objective, batch, queue)
    assert asked[::2] == asked[1::2] == pytest.approx([0.2, 0.1, 0.05])
    assert step()[0].itm_temperature() == 0.07  # without a start there is no schedule


def test_interleave_by_hand() -> None:
    joined = interleave(torch.tensor([0, 2, 4]), torch.tensor([1, 3]))
    assert joined.tolist() == [0, 1, 2, 3, 4]
