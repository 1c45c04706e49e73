"""Tiny models for the tests of the network: every part switched on, random weights, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from bitgen.model.modeling_bitgen import BitGenModel
from support.models import TOWER, tiny_model

STACKS = {
    "plain": {"positions": "learned", "feed_forward": "gelu"},
    "rotary": {"positions": "rope", "feed_forward": "swiglu"},
}


@pytest.fixture(params=STACKS)
def open_model(request) -> Callable[..., BitGenModel]:
    """``open_model(**changes)``: a model on features, in eval mode, whose every gate is open.

    A closed gate would hide fusion and memory from a test that looks for leaks. Every test that builds one runs twice:
    the options of the text stack must hold whatever the network promises.
    """

    def build(**changes) -> BitGenModel:
        return tiny_model(**(STACKS[request.param] | changes)).eval()

    return build


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory) -> Path:
    """A saved DINOv2 with random weights, as a user would have it on disk."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("tower")
    tower = AutoModel.from_config(AutoConfig.for_model(**TOWER))
    with torch.no_grad():
        for parameter in tower.parameters():  # nothing at its initial zero or one, or a wrong copy could go unseen
            parameter.add_(0.05 * torch.randn_like(parameter))
    tower.save_pretrained(folder)
    return folder
