"""Losses of 20 steps on a fixed problem: a change that should not change numbers must not.

After a change that should, write the file anew:
``BITGEN_WRITE_GOLDEN=1 python -m pytest tests/objectives/test_golden.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from support.stage1 import advance, forward, generator, make_batch, make_objective, make_queue

GOLDEN = Path(__file__).with_name("golden_stage1.txt")
COLUMNS = ("loss", "contrastive_loss", "itm_loss", "memory_kl_loss", "caption_loss", "memory_quality", "temperature")


def _fill(objective: torch.nn.Module) -> None:
    """Weights from one generator in the order of names: an initialiser of some library must not matter."""
    random = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in sorted(objective.named_parameters()):
            if name.endswith(("logvar", "log_temperature")):
                continue
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(noise if "prior_mean" in name else 0.2 * noise + (1.0 if _is_norm(name) else 0.0))
        memory = objective.model.memory
        memory.state.copy_(memory.gpm.prior_mean)


def _is_norm(name: str) -> bool:
    norms = ("norm.weight", "feed_forward.0.weight", "compressor.4.weight")
    return name.endswith(norms)


def _train() -> list[list[float]]:
    objective = make_objective(fusion="backbone")
    _fill(objective)
    config = objective.model.config
    queue, random = make_queue(config, 20), generator(21)
    batches = [
        make_batch(config, 6, random, image_ids=torch.tensor([3, 1, 3, 5, 7, 1]) + 2 * step) for step in range(20)
    ]
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.02)
    torch.manual_seed(22)  # the drawn negatives and the noise of reading
    rows = []
    for batch in batches:
        output = forward(objective, batch, queue)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        advance(objective, output)
        rows.append([output.metrics[name].item() for name in COLUMNS])
    return rows


def test_twenty_steps() -> None:
    found = _train()
    if os.environ.get("BITGEN_WRITE_GOLDEN"):
        lines = [" ".join(COLUMNS), *(" ".join(f"{value:.7g}" for value in row) for row in found)]
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
        pytest.skip(f"wrote {GOLDEN.name}")
    header, *lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert tuple(header.split()) == COLUMNS and len(lines) == len(found) == 20
    for step, (line, row) in enumerate(zip(lines, found, strict=True)):
        assert row == pytest.approx([float(value) for value in line.split()], rel=1e-4, abs=1e-5), f"step {step}"
    assert found[-1][COLUMNS.index("caption_loss")] < found[0][COLUMNS.index("caption_loss")]
