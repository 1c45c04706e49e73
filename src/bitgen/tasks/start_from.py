"""A new model begins with the weights of a trained one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from bitgen.config import ConfigError
from bitgen.data.questions.boxes import EDGES
from bitgen.data.questions.extended_tokenizer import pieces_of_new_tokens
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import vocabulary_size
from bitgen.model.feature_compressor import line_positions
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.trained import TOKENIZER_FOLDER, Trained, open_model

logger = logging.getLogger(__name__)

TOKEN_TABLE = "embeddings.token.weight"


def start_from(model: BitGenModel, tokenizer: PreTrainedTokenizerBase, path: str, extended: bool = False) -> Trained:
    """Give a new model the weights of a trained one, which is returned.

    Args:
        extended: the tokenizer is that of the trained model with more tokens, whose embeddings begin as the mean of
            what they were written with before.

    Raises:
        ConfigError: there is no such model, it is damaged, or its tokenizer or sizes are not this run's.
    """
    source = _open(path)
    if not extended and tokenizer_sha256(source.tokenizer) != tokenizer_sha256(tokenizer):
        raise ConfigError(
            f"init_from {path} was trained with another tokenizer: its embeddings would stand for other tokens. Write "
            f"tokenizer {_folder_of(source)}."
        )
    theirs, ours = source.model.state_dict(), model.state_dict()
    if extended and theirs[TOKEN_TABLE].shape[1] == ours[TOKEN_TABLE].shape[1]:
        theirs[TOKEN_TABLE] = _extended_table(theirs[TOKEN_TABLE], ours[TOKEN_TABLE], source.tokenizer, tokenizer)
    # What speaks from a memory may be new in this run.
    theirs |= {name: tensor for name, tensor in ours.items() if name.startswith("recall.") and name not in theirs}
    if not source.config.objective.itm_weight:  # its matching head was never trained, and this run's may be another
        theirs |= {name: tensor for name, tensor in ours.items() if name.startswith("itm_head.")}
    differing = [name for name in {**ours, **theirs} if not _same_shape(ours.get(name), theirs.get(name))]
    if differing:
        speaks = " and episodes" if any(name.startswith("recall.") for name in differing) else ""
        raise ConfigError(
            f"init_from {path} holds another network: {len(differing)} of its weights differ in shape or are missing, "
            f"first {differing[0]}. Give this run the vision, lora, model, memory{speaks} settings of "
            f"{_settings_of(source)}."
        )
    then, now = _meaning(source.model), _meaning(model)
    encoder = source.model.vision_encoder
    if encoder is not None and encoder.tuning == "lora" and not encoder.adapters_are_identity():
        then, now = then | _meaning_of_adapters(source.model), now | _meaning_of_adapters(model)
    if meant := [f"{name} was {was} and is {now[name]}" for name, was in then.items() if was != now[name]]:
        raise ConfigError(
            f"init_from {path}: {'; '.join(meant)}, so that its weights would mean something else. Give this run the "
            f"settings of {_settings_of(source)}."
        )
    model.load_state_dict(theirs)
    logger.info("starting from the weights of %s", source.folder)
    return source


def _settings_of(source: Trained) -> str:
    """Where the settings stand that it was trained with."""
    return "the run that it was exported from" if source.kind == "export" else str(source.folder / "config.yaml")


def _meaning(model: BitGenModel) -> dict[str, Any]:
    """What changes no weight's shape, but what the weights mean."""
    encoder = model.vision_encoder
    heads = getattr(encoder.tower.config, "num_attention_heads", None) if encoder is not None else None
    return {"num_heads": model.config.num_heads, "vision_num_heads": heads}


def _meaning_of_adapters(model: BitGenModel) -> dict[str, Any]:
    """The same of adapters that have learned something."""
    return {name: getattr(model.config, name) for name in ("lora_alpha", "use_rslora", "use_dora")}


def trained_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a trained model.

    Raises:
        ConfigError: there is no such model, or it is damaged.
    """
    return _open(path).tokenizer


def tokenizer_to_take_over(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a trained model, for a run whose vocabulary is to be as large as that.

    Raises:
        ConfigError: there is no such model, it is damaged, or its own vocabulary is larger.
    """
    source = _open(path)
    has, needs = vocabulary_size(source.tokenizer), source.model.config.vocab_size
    if has < needs:
        raise ConfigError(
            f"tokenizer is train, but the model of init_from {path} has a vocabulary of {needs:,} and a tokenizer of "
            f"{has:,} tokens, which was not trained by its run. Write tokenizer {_folder_of(source)}."
        )
    return source.tokenizer


def _folder_of(source: Trained) -> Path:
    return source.folder if source.kind == "export" else source.folder.parent / TOKENIZER_FOLDER


def _open(path: str) -> Trained:
    try:
        return open_model(path)
    except ValueError as error:
        raise ConfigError(f"init_from: {error}") from error


def _extended_table(
    theirs: Tensor, ours: Tensor, base: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Embeddings ``[V, D]`` of an extended tokenizer: known ones, means of them, and of marks new ones. Those of the
    edges of boxes are sines and cosines of the edge, of the known ones' length, so that neighbours are alike."""
    table = ours.clone()
    known = min(len(theirs), vocabulary_size(base))
    table[:known] = theirs[:known]
    new = pieces_of_new_tokens(base, tokenizer)
    for token, pieces in new.items():
        if pieces:
            table[token] = theirs[pieces].mean(dim=0)
    edges = tokenizer.convert_tokens_to_ids(list(EDGES))
    if new.keys() >= set(edges):
        length = theirs[:known].norm(dim=1).mean()
        table[edges] = length * F.normalize(line_positions(len(edges), table.shape[1]), dim=1).to(table)
    return table


def _same_shape(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
