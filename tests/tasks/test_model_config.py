"""Every setting of the network reaches the network: a new one cannot be forgotten on its way."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import pytest

from bitgen.config import Config
from bitgen.config.episode_settings import EpisodeSettings
from bitgen.config.fields import settings_of
from bitgen.config.stage1_settings import LoraSettings, MemorySettings, ModelSettings, VisionSettings
from bitgen.config.values import split_optional
from bitgen.model import configuration_bitgen
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.tasks.stage1_parts import model_config_of
from support.models import TOWER

GROUPS = (VisionSettings, LoraSettings, ModelSettings, MemorySettings, EpisodeSettings)
# How the run trains, what it loads and where it keeps things: no matter of the network.
NOT_THE_NETWORKS = {
    "vision_encoder", "vision_revision", "vision_hidden_size", "vision_num_layers", "vision_num_heads",
    "vision_patch_size", "image_normalisation", "compile", "feature_cache", "feature_cache_dtype",
    "lora_warmup_epochs", "lora_warmup_steps",
    "lora_lr_factor", "lora_plus_ratio", "lora_lr_warmup_steps", "memory_alpha",
    "recall_weight", "reader_lr_factor", "episode_pictures", "episode_sentences", "picture_queries",
    "sentence_queries",
}  # fmt: skip
RENAMED = {"feature_cache_pool": "feature_pool"}
# These are said by the data, and the settings only have to agree.
OF_THE_DATA = {"feature_dim", "feature_tokens"}
# These are said by the encoder, unless image_normalisation says otherwise.
OF_THE_ENCODER = {"image_mean", "image_std", "image_resample"}
OF_THE_TOKENIZER = {
    "recall_space",
    "recall_behind_space",
    "recall_words",
}  # and bos_token_id, which is no name of the network's own
SETTINGS = {name: setting for group in GROUPS for name, setting in settings_of(group).items()}
REACHING = [name for name in SETTINGS if name not in NOT_THE_NETWORKS | OF_THE_DATA]
CHOICES = {
    "fusion": "FUSION_KINDS", "image_pooling": "IMAGE_POOLINGS", "vision_tuning": "VISION_TUNINGS",
    "positions": "POSITION_KINDS", "feed_forward": "FEED_FORWARDS", "itm_pooling": "ITM_POOLINGS",
}  # fmt: skip


def another(name: str) -> Any:
    """A value that is not the network's default, and with which sizes still fit."""
    hint, default = split_optional(SETTINGS[name].hint)[0], Config().flat()[name]
    if name in ("lora_layers", "init_lora_weights", "feature_cache_pool"):
        return {"lora_layers": "0,1", "init_lora_weights": "gaussian", "feature_cache_pool": 7}[name]
    if get_origin(hint) is Literal:
        # The network's default may be what there was before there was a choice.
        return next(choice for choice in get_args(hint) if choice != getattr(BitGenConfig(), name))
    return {bool: lambda: not default, int: lambda: default * 2 or 1, float: lambda: default / 2}[hint]()


def test_every_setting_is_known_to_the_network_or_named_here() -> None:
    """One that is neither would be a flag that does nothing."""
    known = BitGenConfig.own_names()
    assert {name for name in SETTINGS if RENAMED.get(name, name) not in known} == NOT_THE_NETWORKS
    assert known - {RENAMED.get(name, name) for name in SETTINGS} == {
        "vision_config",
        *OF_THE_ENCODER,
        *OF_THE_TOKENIZER,
    }


@pytest.mark.parametrize("name", REACHING)
def test_it_reaches_the_network(name: str) -> None:
    # Some sizes only fit together: all settings change, and a forgotten one keeps the network's own default.
    config = Config().replace(**{name: another(name) for name in REACHING})
    given = {**vars(config.vision), **vars(config.lora), **vars(config.model), **vars(config.memory)}
    given |= vars(config.episodes)
    given |= {"lora_layers": [0, 1], "init_lora_weights": "gaussian"}
    default = BitGenConfig().to_dict()
    reached = getattr(model_config_of(config, TOWER), RENAMED.get(name, name))
    assert reached == given[name] and reached != default[RENAMED.get(name, name)]


def test_what_the_data_says_goes_before_the_settings() -> None:
    config = Config().replace(vision_encoder="features", feature_dim=8, feature_tokens=9, image_size=None)
    sizes = model_config_of(config, None, feature_shape=(4, 6), vocab_size=300)
    assert (sizes.feature_tokens, sizes.feature_dim, sizes.vocab_size, sizes.image_size) == (4, 6, 300, 224)
    assert sizes.vision_tuning == "frozen" and sizes.init_lora_weights is True and sizes.lora_layers is None


def test_the_choices_of_a_setting_are_the_networks() -> None:
    offered = {name for group in GROUPS for name in (field.name for field in fields(group)) if _choices(name)}
    assert offered - NOT_THE_NETWORKS == set(CHOICES)
    for name, constant in CHOICES.items():
        assert _choices(name) == getattr(configuration_bitgen, constant)


def _choices(name: str) -> tuple[str, ...]:
    hint = SETTINGS[name].hint
    return get_args(hint) if get_origin(hint) is Literal else ()


@pytest.mark.parametrize("space", [-1, 300])
def test_a_space_that_is_no_token_is_refused(space: int) -> None:
    with pytest.raises(ValueError, match=f"recall_space={space} is no token of a vocabulary of 300"):
        BitGenConfig(feature_dim=6, feature_tokens=4, vocab_size=300, recall_space=space)


@pytest.mark.parametrize("words", ["013", [0, 1, 2], "0 1"])
def test_words_that_are_no_digits_of_tokens_are_refused(words: Any) -> None:
    with pytest.raises(ValueError, match="recall_words must have a digit for each token"):
        BitGenConfig(feature_dim=6, feature_tokens=4, vocab_size=300, recall_words=words)
