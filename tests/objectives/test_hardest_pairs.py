"""The accuracy that training logs: on the most similar wrong pairs, as an evaluation's is."""

from __future__ import annotations

import pytest
import torch

from bitgen.objectives import matching_pass
from support.models import open_gates
from support.stage1 import generator, make_batch, make_entries, make_objective, make_queue, weights


def _step(logged: bool, likelihood: bool, **model):
    objective = make_objective(weights(), itm_likelihood=likelihood, **model)
    open_gates(objective)
    batch, queue = make_batch(objective.model.config, 5, generator(0)), make_queue(objective.model.config, 10)
    queue.enqueue(make_entries(objective.model.config, 10, generator(1)))
    objective.queue = queue
    torch.nn.init.normal_(objective.model.itm_head.weight, generator=generator(2))
    objective.begin(0.5, logged)
    torch.manual_seed(3)
    return objective, batch, queue


@pytest.mark.parametrize("likelihood", [False, True])
@pytest.mark.parametrize("most", [3, 32])
def test_it_is_that_of_the_hardest_partners_of_batch_and_queue_pair_by_pair(monkeypatch, likelihood, most) -> None:
    monkeypatch.setattr(matching_pass, "MEASURED_PAIRS", most)
    objective, batch, queue = _step(True, likelihood)
    objective.eval()
    model, past = objective.model, queue.valid()
    output = objective(batch)
    with torch.no_grad():
        reader = model.memory.reader(model.memory.state)
        own = model.pool_image_tokens(model.encode_image(None, batch["vision_features"]).image_tokens)
        features, texts = output.update.entries.image_features, output.update.entries.text_features
        kept = min(most, 5)  # partners are of the part that is judged, and of the queue
        captions = [(batch["input_ids"][row], batch["attention_mask"][row]) for row in range(kept)]
        captions += [(past.input_ids[row], past.attention_mask[row]) for row in range(10)]
        images = [*own[:kept], *past.image_tokens.float()]
        every_image = torch.cat((features[:kept], past.image_features))
        every_text = torch.cat((texts[:kept], past.text_features))

        def says_match(caption: int, image: int) -> bool:
            ids = captions[caption][0][captions[caption][1].bool()][None].long()
            no, yes = model.match(images[image][None], ids, torch.ones_like(ids), reader)[0]
            return bool(yes > no)

        accepted, rejected = [], []
        for row in range(kept):
            query, others = (features, every_text) if row % 2 == 0 else (texts, every_image)
            order = sorted((j for j in range(len(others)) if j != row), key=lambda j: -float(query[row] @ others[j]))
            accepted.append(says_match(row, row))
            rejected.append(not says_match(*((order[0], row) if row % 2 == 0 else (row, order[0]))))
    expected = (sum(accepted) + sum(rejected)) / (2 * kept)
    assert output.metrics["itm_acc"].item() == pytest.approx(expected)


@pytest.mark.parametrize("likelihood", [False, True])
def test_logging_changes_nothing_of_a_step(likelihood) -> None:
    """Dropout on, images and captions alike: the same loss, gradients and random state with and without."""
    seen = []
    for logged in (False, True):
        objective, batch, _ = _step(logged, likelihood, dropout=0.3, compressor_dropout=0.3)
        output = objective(batch)
        output.loss.backward()
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        seen.append((output.loss, *gradients, torch.get_rng_state()))
        assert ("itm_acc" in output.metrics) == logged and all(module.training for module in objective.modules())
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_one_image_alone_has_no_wrong_pair() -> None:
    objective, batch, _ = _step(True, False)
    objective.queue = make_queue(objective.model.config, 10)
    accuracy = objective({name: part[:1] for name, part in batch.items()}).metrics["itm_acc"]
    assert accuracy.item() in (0.0, 0.5)  # of the true pair alone
