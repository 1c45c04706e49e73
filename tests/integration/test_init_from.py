"""A second stage starts from the weights of a first one, and refuses what would not be the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitgen.build import load_model
from bitgen.config import ConfigError


@pytest.fixture
def first_stage(build) -> str:
    trainer = build("first", max_steps=3, ema_decay=0.5)
    trainer.fit()
    return trainer.config.output.output_dir


def test_weights_are_the_trained_ones_and_counters_start_anew(build, first_stage: str) -> None:
    second = build("second", init_from=first_stage)
    trained = load_model(first_stage).model.state_dict()  # averaged, as the first run keeps them
    started = second.objective.model.state_dict()
    assert all(torch.equal(started[name], trained[name]) for name in trained)
    assert second.progress.step == 0 and second.progress.words_seen == 0
    assert second.fit()
    assert not torch.equal(second.objective.model.state_dict()["final_norm.weight"], trained["final_norm.weight"])


def test_a_resumed_second_stage_goes_on_from_its_own_checkpoint(build, first_stage: str, fit_until) -> None:
    whole = build("whole", init_from=first_stage)
    whole.fit()
    fit_until(build("cut", init_from=first_stage), 3)
    resumed = build("cut", init_from=first_stage, resume="auto")
    assert resumed.progress.step == 3
    resumed.fit()
    expected, found = whole.objective.model.state_dict(), resumed.objective.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 261}, r"another tokenizer.*first.checkpoints.tokenizer"),
        ({"ffn_dim": 24}, r"another network: \d+ of its weights .* first decoder\.blocks"),
        ({"use_memory": False}, "another network"),
    ],
)
def test_another_network_is_refused(build, first_stage: str, changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("second", init_from=first_stage, **changed)


def test_a_missing_folder_is_named(build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.*no such folder"):
        build("second", init_from=str(tmp_path / "nowhere"))
