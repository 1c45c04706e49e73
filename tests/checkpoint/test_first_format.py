"""Checkpoints of the first format are read as today's."""

from pathlib import Path

import torch

from bitgen.checkpoint.format import read_checkpoint, step_folder, upgrade
from bitgen.checkpoint.manifest import STATE_FILE

FORMAT_1 = Path(__file__).resolve().parents[1] / "golden" / "format1"


def test_a_state_of_the_first_format_becomes_one_of_today() -> None:
    """What a run of that time resumes to is compared bit for bit in tests/golden."""
    state = read_checkpoint(FORMAT_1 / step_folder(2)).state
    assert set(state["objective"]) == {"log_temperature", "queue"} and state["total_steps"] == 8
    assert state["run"]["optimizer"] == "adamw" and state["run"]["steps per epoch"] == 9
    assert state["run"]["first step of phase 2 (lora_warmup_epochs, _steps)"] == 4
    assert upgrade(state) is state


def test_before_there_was_a_choice_of_optimizers_it_was_adamw() -> None:
    state = torch.load(FORMAT_1 / step_folder(2) / STATE_FILE, weights_only=True)
    del state["run"]["optimizer"]
    assert upgrade(state)["run"]["optimizer"] == "adamw"
    state["run"]["optimizer"] = "muon"
    assert upgrade(state)["run"]["optimizer"] == "muon"
