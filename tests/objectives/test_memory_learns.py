"""The memory takes part in learning: its KL and its prior move."""

from __future__ import annotations

import torch

from support.stage1 import advance, forward, generator, make_batch, make_objective, make_queue, weights


def test_the_memory_does_something_after_500_steps() -> None:
    """On a tiny problem: the posterior is away from its prior and the prior's variances are off their clamp."""
    objective = make_objective(weights(text_loss_weight=0.0))
    model, memory = objective.model, objective.model.memory
    pool = make_batch(model.config, 64, generator(0))
    queue, random = make_queue(model.config, 32), generator(1)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(500):
        rows = torch.randperm(64, generator=random)[:8]
        output = forward(objective, {name: value[rows] for name, value in pool.items()}, queue)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        advance(objective, output)
    with torch.no_grad():
        pooled = model.pool_image_tokens(model.encode_image(None, pool["vision_features"]).image_tokens)
        codes = model.run_stack(pool["input_ids"], pool["attention_mask"], pooled).codes
        posterior, _ = memory.gpm.write(codes[:8])
        kl = memory.gpm.kl(posterior)
    logvar = memory.gpm.prior_logvar
    assert kl > 1e-3 and output.metrics["memory_kl_loss"] > 1e-3
    assert logvar.min() > -6 and logvar.max() < 2 and (logvar.abs() > 1e-2).any()
    assert torch.isfinite(memory.state).all()
