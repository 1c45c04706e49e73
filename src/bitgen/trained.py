"""Opening what was trained: one verified way to a model, from a run's folder or one of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from bitgen.checkpoint.format import load_weights, resolve_checkpoint
from bitgen.config import Config, load_config
from bitgen.data.tokenizer import load_tokenizer
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel

TOKENIZER_FOLDER = "tokenizer"


class LoadedModel(NamedTuple):
    """A trained model in eval mode, the configuration it was trained with, and its tokenizer."""

    model: BitGenModel
    config: Config
    tokenizer: PreTrainedTokenizerBase


def load_model(path: str | Path) -> LoadedModel:
    """The model of a run's folder (its ``best``) or of one checkpoint, averaged weights where it has them.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    folder = resolve_checkpoint(path)
    model_config = BitGenConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = BitGenModel(model_config)
    load_weights(model, folder, averaged=True)
    model.set_adapters_trainable(False)
    return LoadedModel(
        model.eval(), load_config(folder / "config.yaml"), load_tokenizer(folder.parent / TOKENIZER_FOLDER)
    )
