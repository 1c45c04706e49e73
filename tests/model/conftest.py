"""Tiny models for the tests of the network: every part switched on, random weights, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel

TINY_TOWER = random_vision_config(hidden_size=32, layers=2, heads=2, patch_size=14, image_size=28)


@pytest.fixture
def tiny_config() -> Callable[..., BitGenConfig]:
    """``tiny_config(**changes)``: a configuration whose model builds in milliseconds."""

    def build(**changes) -> BitGenConfig:
        sizes = dict(
            vision_config=TINY_TOWER,
            image_size=28,
            lora_rank=4,
            lora_alpha=8,
            embed_dim=16,
            vision_embed_dim=16,
            num_layers=2,
            num_heads=2,
            ffn_dim=32,
            compressor_dim=24,
            vocab_size=50,
            max_seq_len=12,
            memory_size=4,
            memory_dim=16,
        )
        return BitGenConfig(**(sizes | changes))

    return build


STACKS = {
    "plain": {"positions": "learned", "feed_forward": "gelu"},
    "rotary": {"positions": "rope", "feed_forward": "swiglu"},
}


@pytest.fixture(params=STACKS)
def open_model(request, tiny_config) -> Callable[..., BitGenModel]:
    """``open_model(**changes)``: a model on features, in eval mode, whose every gate is open.

    A closed gate would hide fusion and memory from a test that looks for leaks. Every test that builds one runs twice:
    the options of the text stack must hold whatever the network promises.
    """

    def build(**changes) -> BitGenModel:
        torch.manual_seed(0)
        features = dict(vision_config=None, feature_dim=6, feature_tokens=9)
        model = BitGenModel(tiny_config(**(features | STACKS[request.param] | changes))).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gate"):
                    parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
        return model

    return build


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory) -> Path:
    """A saved DINOv2 with random weights, as a user would have it on disk."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("tower")
    tower = AutoModel.from_config(AutoConfig.for_model(**TINY_TOWER))
    with torch.no_grad():
        for parameter in tower.parameters():  # nothing at its initial zero or one, or a wrong copy could go unseen
            parameter.add_(0.05 * torch.randn_like(parameter))
    tower.save_pretrained(folder)
    return folder
