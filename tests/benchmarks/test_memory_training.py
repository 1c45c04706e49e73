"""Training a model to what a memory is taught: what it starts from, where it stops, what stays as it was."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # behind src, which has a memory.py too

from memory_training import Facts, Reached, Student

from bitgen.trained import open_model
from support.runs import written_run


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def student() -> Student:
    """Two facts beside six others, none of which the model can know."""
    ids = torch.tensor([[1, 5, 9, 2], [1, 7, 3, 2]])
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    others = F.normalize(draw(6, 16, seed=2), dim=1)
    facts = Facts(3 * draw(2, 9, 6, seed=0), texts, 3 * draw(6, 9, 6, seed=1), others)
    return Student(open_model(written_run(features=True)).model, "vision_features", facts)


def test_training_stops_where_the_facts_are_found_and_the_others_kept(student) -> None:
    before = copy.deepcopy(student.model.state_dict())
    reached = student.train(1e-2, None, 1.0, {})
    found, kept = reached["found"], reached["kept"]
    assert 0 < found.steps <= kept.steps and found.value <= kept.value and kept.replayed == 6
    assert kept.others_drop <= 1 / 6 + 1e-9
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())


def test_it_stops_once_it_costs_more_than_the_cheapest(student) -> None:
    assert student.train(1e-2, None, 1.0, {"kept": Reached(0.0, 0, 0.0, 0, 0.0)}) == {}


def test_a_model_can_be_taught_all_the_others_first(student) -> None:
    taught = student.taught_others()
    assert taught.known == 1.0 > student.known and student.others_found(student.model) == student.known
