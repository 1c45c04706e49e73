"""Settings that cannot go together, and launchers and devices that do not fit them, are answered with a remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitgen.config import Config, ConfigError, parse_config
from bitgen.config.stage2 import Stage2Config


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def error_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(list(argv))
    return str(caught.value)


# --------------------------------------------------------------------------------------------- impossible combinations

RANDOM = {"vision_encoder": "random"}
FEATURES = {"vision_encoder": "features", "train_data": "data/train", "vision_tuning": "frozen"}
TEXT = {"text_data": "data/text", "text_loss_weight": 1.0}
BOTH = {**FEATURES, **TEXT}
TEXT_ALONE = {**BOTH, "train_data": None, "feature_dim": 320, "feature_tokens": 49}
SPEAKING = {"recall_weight": 1.0, "recall_tokens": 32, "init_from": "runs/a", "text_loss_weight": 1.0}
SPEAKING |= {"train_data": "scenes"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_heads": 5}, ["num_heads", "embed_dim 128", "Write 4"]),
        ({"positions": "rope", "num_heads": 128}, ["positions", "heads of 1", "write positions learned"]),
        ({**RANDOM, "vision_num_heads": 7}, ["vision_num_heads", "vision_hidden_size 768"]),
        ({**RANDOM, "image_size": 60}, ["image_size", "vision_patch_size 14", "Write 56"]),
        ({**RANDOM, "image_size": None}, ["image_size", "Write 224"]),
        ({"vision_embed_dim": 64}, ["vision_embed_dim", "Write vision_embed_dim 128"]),
        ({"queue_size": 127}, ["queue_size", "global batch of 128"]),
        ({"memory_size": 0}, ["memory_size", "at least 1"]),
        ({"memory_alpha": 1.5}, ["memory_alpha", "from 0 to 1"]),
        ({"memory_sigma": 0}, ["memory_sigma", "more than 0"]),
        ({"dropout": 1.0}, ["dropout", "below 1"]),
        ({"lora_dropout": -0.1}, ["lora_dropout", "from 0"]),
        ({"token_dropout": 2}, ["token_dropout"]),
        ({"ema_decay": 1.0}, ["ema_decay"]),
        ({"ema_decay": 0.9, "average_last": 0.2}, ["ema_decay is 0.9", "average_last is 0.2", "Write 0 for one"]),
        ({"average_last": -0.1}, ["average_last", "from 0"]),
        ({"final_rate_ratio": 1.0}, ["final_rate_ratio", "below 1"]),
        ({"batch_size": 0}, ["batch_size", "at least 1", "default is 128"]),
        ({"grad_accum_steps": -1}, ["grad_accum_steps"]),
        ({"max_steps": 0}, ["max_steps", "at least 1"]),
        ({"learning_rate": -1e-4}, ["learning_rate", "more than 0"]),
        ({"lora_lr_factor": -1}, ["lora_lr_factor"]),
        ({"warmup_steps": -1}, ["warmup_steps"]),
        ({"temperature": 2}, ["temperature", "0.01 to 1"]),
        ({"itm_temperature": 0}, ["itm_temperature"]),
        ({"itm_temperature_start": 0}, ["itm_temperature_start"]),
        ({"gate_lr_factor": -1}, ["gate_lr_factor"]),
        ({"max_seq_len": 2}, ["max_seq_len", "BOS"]),
        ({"num_workers": -1}, ["num_workers"]),
        ({"save_steps": 0}, ["save_steps"]),
        ({"lora_rank": 0}, ["lora_rank"]),
        ({**RANDOM, "lora_layers": "8,12"}, ["lora_layers", "layer 12", "0 to 11"]),
        ({"lora_layers": "8-11"}, ["lora_layers", "8,9,10,11"]),
        ({"lora_layers": "8,8"}, ["lora_layers", "twice"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "gaussian"]),
        ({**FEATURES, "train_data": None}, ["train_data", "data_prep/flickr8k.py"]),
        ({**FEATURES, "train_data": "scenes"}, ["features", "train_data"]),
        ({**FEATURES, "vision_tuning": "full"}, ["vision_tuning", "frozen"]),
        ({**FEATURES, "image_augmentation": True}, ["image_augmentation"]),
        ({"feature_dim": 320}, ["feature_dim", "features"]),
        ({"tokenizer": "gpt2", "vocab_size": 1000}, ["vocab_size", "50257"]),
        ({"tokenizer": "train", "vocab_size": 100}, ["vocab_size", "byte-level"]),
        (
            {"contrastive_weight": 0, "itm_weight": 0, "memory_kl_weight": 0},
            ["contrastive_weight", "nothing is left to minimise"],
        ),
        ({"train_data": "data/a", "val_data": "data/a"}, ["val_data", "held-out"]),
        ({"train_data": "scenes", "scenes_train": 100}, ["scenes_train", "global batch"]),
        ({**FEATURES, "text_val_data": "data/val"}, ["text_val_data is data/val", "no text_data"]),
        ({**FEATURES, "text_seq_len": 64}, ["text_seq_len is 64", "no text_data"]),
        ({"itm_likelihood": True}, ["itm_likelihood is on", "Write text_loss_weight 1"]),
        ({**BOTH, "text_loss_weight": 0.0}, ["text_data is data/text", "Write text_loss_weight 1"]),
        ({**BOTH, "tokenizer": "train"}, ["tokenizer is train", "ids of a tokenizer", "babylm_text.py"]),
        ({**BOTH, "streaming": True}, ["streaming", "mapped pairs", "Write streaming False"]),
        ({**BOTH, "text_val_data": "data/text"}, ["text_val_data is data/text", "--val_output"]),
        ({**BOTH, "text_seq_len": 257}, ["text_seq_len is 257", "max_seq_len 256"]),
        ({**BOTH, "text_seq_len": 2}, ["text_seq_len", "at least 3"]),
        ({**BOTH, "text_ratio": 0.0}, ["text_ratio", "above 0 and below 1"]),
        ({**BOTH, "text_ratio": 1.0}, ["text_ratio", "above 0 and below 1"]),
        ({**BOTH, "text_batch_size": 0}, ["text_batch_size", "at least 1"]),
        ({**BOTH, "max_words_seen": 0}, ["max_words_seen", "at least 1"]),
        ({**BOTH, "max_epochs": 0}, ["max_epochs", "at least 1"]),
        ({**TEXT_ALONE, "feature_dim": None}, ["text_data is trained alone", "feature_dim and feature_tokens"]),
        ({**TEXT_ALONE, "feature_tokens": None}, ["text_data is trained alone", "feature_dim and feature_tokens"]),
        ({**TEXT, **RANDOM}, ["text_data is trained alone", "vision_encoder features"]),
        ({**TEXT_ALONE, "val_data": "data/val"}, ["val_data is data/val", "sees no images"]),
        ({"parallel": "sharded"}, ["parallel is sharded", "queue", "memory", "Write parallel replicated"]),
        ({"recall_weight": -1}, ["recall_weight", "0 or more"]),
        ({"recall_tokens": -1}, ["recall_tokens", "0 or more"]),
        ({"recall_dim": 0}, ["recall_dim", "at least 1"]),
        ({"recall_code": 0}, ["recall_code", "at least 1"]),
        ({"episode_pictures": 0}, ["episode_pictures", "at least 1"]),
        ({"episode_sentences": 0}, ["episode_sentences", "at least 1"]),
        ({"picture_queries": 0}, ["picture_queries", "at least 1"]),
        ({"sentence_queries": 0}, ["sentence_queries", "at least 1"]),
        ({**SPEAKING, "recall_tokens": 0}, ["recall_weight is on", "recall_tokens is 0", "Write recall_tokens 32"]),
        ({**SPEAKING, "init_from": None}, ["recall_weight is on", "init_from is none", "scenes_captions.yaml"]),
        ({**SPEAKING, "text_loss_weight": 0.0}, ["recall_weight is on", "text_loss_weight is 0", "init_from"]),
        ({**SPEAKING, **TEXT, **RANDOM}, ["recall_weight is on", "text_data", "Leave them out"]),
        ({**SPEAKING, "train_data": "data/a", "streaming": True}, ["recall_weight is on", "streaming", "Leave"]),
    ],
)
def test_what_could_not_run_is_named(values: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config().replace(**values).validate()
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"max_steps": 10, "warmup_steps": 1000},  # a warm-up longer than the training is a choice
        {"lora_warmup_epochs": 100},
        {"lora_warmup_steps": 0, "lora_warmup_epochs": 0},
        {"queue_size": 128},
        {"memory_alpha": 0},
        {"itm_weight": 0, "memory_kl_weight": 0},
        {"train_data": "scenes", "val_data": "scenes"},
        {"lora_layers": "0, 23"},  # only the hub's tower knows its number of layers
        {"image_size": None},
        FEATURES,
        {**FEATURES, "feature_dim": 320, "feature_tokens": 49},
        {**RANDOM, "lora_layers": "0,11"},
        {**BOTH, "text_val_data": "data/text_val", "text_seq_len": 256},
        {**TEXT, **RANDOM, "train_data": "scenes"},
        TEXT_ALONE,
        {**TEXT_ALONE, "text_val_data": "data/text_val", "max_epochs": 10, "max_words_seen": 100_000_000},
        {"init_lora_weights": "gaussian"},
        {"recall_tokens": 32},  # a network that can speak from a memory, and does not learn to
        SPEAKING,
        {**SPEAKING, "init_from": None, "resume": "runs/b/step-00000002"},
    ],
)
def test_unusual_but_possible_settings_pass(values: dict[str, Any]) -> None:
    Config().replace(**values).validate()


def test_from_flat_names_an_unknown_setting() -> None:
    with pytest.raises(ConfigError, match="Did you mean queue_size"):
        Config.from_flat({"queue_sise": 1})


# --------------------------------------------------------------------------------------------------- launcher, devices


def test_the_command_for_several_processes_is_given_without_a_launcher() -> None:
    message = error_of("--num_gpus", "4", "--use_ddp", "True")
    assert "torchrun --nproc_per_node=4 src/train_stage1_vision_language.py --use_ddp True --num_gpus 4" in message
    assert "use_ddp needs a launcher" in error_of("--use_ddp", "True")


def test_the_launcher_must_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "started 2 processes" in error_of("--num_gpus", "4", "--use_ddp", "True")
    assert "--use_ddp True --num_gpus 2" in error_of("--num_gpus", "2")
    assert "--num_gpus 2" in error_of()
    parse_config(["--num_gpus", "2", "--use_ddp", "True"])
    assert "global batch of 256" in error_of("--num_gpus", "2", "--use_ddp", "True", "--queue_size", "255")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE" in error_of()


def test_validate_takes_the_world_size_it_is_given() -> None:
    Config().replace(num_gpus=2, use_ddp=True).validate(world_size=2)
    with pytest.raises(ConfigError, match="num_gpus is 1"):
        Config().validate(world_size=2)


def test_a_launcher_may_start_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    parse_config(["--use_ddp", "True"])


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device is cuda" in error_of("--device", "cuda")
    assert "fp16" in error_of("--precision", "fp16")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "which has 1 GPUs" in error_of("--use_ddp", "True", "--num_gpus", "2")
    parse_config(["--use_ddp", "True", "--num_gpus", "2", "--device", "cpu"])


@pytest.mark.parametrize(
    ("settings", "changed", "found"),
    [
        ({}, {"val_max_images": (None, 4), "learning_rate": (1.0, 2.0)}, ["val_max_images"]),
        ({}, {"text_val_data": ("a", "b"), "text_loss_weight": (0.0, 1.0)}, []),  # recalls alone
        ({"contrastive_weight": 0.0}, {"text_val_data": ("a", "b"), "text_loss_weight": (0.5, 1.0)}, ["text_val_data"]),
        ({"contrastive_weight": 0.0}, {"text_loss_weight": (0.0, 1.0)}, ["text_loss_weight"]),
        ({}, {"contrastive_weight": (0.0, 1.0)}, ["contrastive_weight"]),
        ({}, {"contrastive_weight": (0.5, 1.0)}, []),
    ],
)
def test_what_makes_scores_of_something_else(settings: dict, changed: dict, found: list[str]) -> None:
    assert Config().replace(**settings).rescored(changed) == found
    asked = Stage2Config().rescored({**changed, "question_val_data": ("a", "b")})
    assert set(asked) == {"question_val_data"} | (set(changed) & set(Stage2Config.scored_by))
