"""What no run could do, said before it starts: ranges, sizes that do not fit, and a launcher that does not match."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from bitgen.config.sources import parse_sources
from bitgen.config.values import ConfigError

if TYPE_CHECKING:
    from bitgen.config import Config

ENTRY = "src/train_stage1_vision_language.py"
BPE_BYTES = 259  # a byte-level BPE holds the 256 bytes and <s>, </s>, <pad> before it learns anything
GPT2_VOCABULARY = 50257
FEATURE_GRIDS = (16, 8, 7)

_AT_LEAST_ONE = """vision_hidden_size vision_num_layers vision_num_heads vision_patch_size image_size feature_dim
    feature_tokens lora_rank lora_alpha embed_dim num_layers num_heads ffn_dim vision_embed_dim compressor_dim
    vocab_size memory_size memory_dim pseudoinverse_steps queue_size batch_size grad_accum_steps num_epochs max_steps
    num_gpus max_nonfinite_steps scenes_train scenes_val val_max_images save_steps eval_steps log_steps
    max_checkpoints_to_keep shuffle_buffer max_image_pixels text_batch_size max_words_seen max_epochs""".split()
_NOT_NEGATIVE = """lora_warmup_epochs lora_warmup_steps lora_lr_factor lora_lr_warmup_steps contrastive_weight
    itm_weight memory_kl_weight text_loss_weight temperature_lr_factor gate_lr_factor weight_decay warmup_steps seed
    num_workers""".split()
_ABOVE_ZERO = """lora_plus_ratio memory_sigma pseudoinverse_tolerance itm_temperature itm_temperature_start
    learning_rate muon_learning_rate max_grad_norm""".split()
# A rate of 1 would drop everything (or never move the average), so these stay below it.
_RATES = "lora_dropout compressor_dropout dropout token_dropout ema_decay".split()
_RANGES: dict[str, tuple[Any, str]] = {
    **{name: (lambda value: value >= 1, "at least 1") for name in _AT_LEAST_ONE},
    **{name: (lambda value: value >= 0, "0 or more") for name in _NOT_NEGATIVE},
    **{name: (lambda value: value > 0, "more than 0") for name in _ABOVE_ZERO},
    **{name: (lambda value: 0 <= value < 1, "from 0 to below 1") for name in _RATES},
    "max_bad_fraction": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "memory_alpha": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "queue_weight": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "temperature": (lambda value: 0.01 <= value <= 1, "from 0.01 to 1"),
    "text_ratio": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "text_seq_len": (lambda value: value >= 3, "at least 3 (BOS, a token, EOS)"),
    "max_seq_len": (lambda value: value >= 3, "at least 3 (BOS, a token, EOS)"),
}
_INIT_METHODS = ("true", "false", "gaussian")


def check_settings(config: Config, defaults: Config) -> None:
    """Check everything that does not depend on the machine.

    Raises:
        ConfigError: the first setting that is out of range or contradicts another.
    """
    shipped = defaults.flat()
    for name, value in config.flat().items():
        if name in _RANGES and value is not None and not _RANGES[name][0](value):
            raise ConfigError(f"{name} is {value}, but it must be {_RANGES[name][1]}. The default is {shipped[name]}.")
    _check_vision(config)
    _check_lora(config)
    _check_model(config)
    _check_text(config)
    _check_data(config)


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        near = [n for n in range(1, large + 1) if large % n == 0]
        best = min(near, key=lambda n: abs(n - small))
        raise ConfigError(f"{small_name} is {small}, which does not divide {large_name} {large}. Write {best}.")


def _check_vision(config: Config) -> None:
    vision, data = config.vision, config.data
    if vision.feature_cache_pool not in (None, *FEATURE_GRIDS):
        raise ConfigError(
            f"feature_cache_pool is {vision.feature_cache_pool}. Write 16, 8 or 7 (the side of the grid that patch "
            "features are averaged to), or none."
        )
    if vision.feature_cache_pool is not None and vision.vision_encoder == "features":
        raise ConfigError(
            f"feature_cache_pool is {vision.feature_cache_pool}, but features computed earlier come as they are. Leave "
            "it out."
        )
    if vision.vision_encoder == "random":
        if vision.image_size is None:
            raise ConfigError("image_size is none, but a random vision_encoder declares no size. Write 224.")
        _divides("vision_num_heads", vision.vision_num_heads, "vision_hidden_size", vision.vision_hidden_size)
        if vision.image_size % vision.vision_patch_size:
            fitting = max(1, round(vision.image_size / vision.vision_patch_size)) * vision.vision_patch_size
            raise ConfigError(
                f"image_size is {vision.image_size}, which is no multiple of vision_patch_size "
                f"{vision.vision_patch_size}. Write {fitting}."
            )
    if vision.vision_encoder != "features":
        for name in ("feature_dim", "feature_tokens"):
            if getattr(vision, name) is not None:
                raise ConfigError(
                    f"{name} is {getattr(vision, name)}, but it only has a meaning for features computed earlier. "
                    "Leave it out, or write vision_encoder features."
                )
        return
    if data.train_data is None and data.text_data is not None:
        return
    if data.train_data is None or data.train_data == "scenes" or data.val_data == "scenes":
        raise ConfigError(
            "vision_encoder is 'features', but there is no folder of features to read: write train_data (and val_data) "
            "with the folders that data_prep/flickr8k.py --features or data_prep/babylm_multimodal.py wrote."
        )
    if vision.vision_tuning == "full":
        raise ConfigError("vision_tuning is full, but features bring no tower to tune. Write vision_tuning frozen.")
    if data.image_augmentation:
        raise ConfigError("image_augmentation is on, but features bring no images. Write image_augmentation False.")


def _check_lora(config: Config) -> None:
    lora, layers = config.lora, config.vision.vision_num_layers
    if lora.init_lora_weights not in _INIT_METHODS:
        raise ConfigError(
            f"init_lora_weights is {lora.init_lora_weights!r}. Write one of {', '.join(_INIT_METHODS)}; "
            "methods that rewrite the pretrained weights (pissa, olora, orthogonal) are not offered."
        )
    if lora.lora_layers is None:
        return
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", lora.lora_layers):
        raise ConfigError(f"lora_layers is {lora.lora_layers!r}. Write numbers separated by commas, as 8,9,10,11.")
    indices = lora.layer_indices
    if len(set(indices)) < len(indices):
        raise ConfigError(f"lora_layers is {lora.lora_layers!r}, which names a layer twice. Name each one once.")
    # Other towers declare their number of layers only when they are loaded.
    if config.vision.vision_encoder == "random" and max(indices) >= layers:
        raise ConfigError(
            f"lora_layers names layer {max(indices)}, but vision_num_layers is {layers}. "
            f"Write numbers from 0 to {layers - 1}."
        )


def _check_model(config: Config) -> None:
    model, objective = config.model, config.objective
    _divides("num_heads", model.num_heads, "embed_dim", model.embed_dim)
    if model.positions == "rope" and model.embed_dim // model.num_heads % 2:
        raise ConfigError(
            f"positions is rope, which turns pairs of channels, but embed_dim {model.embed_dim} and num_heads "
            f"{model.num_heads} make heads of {model.embed_dim // model.num_heads}. Choose sizes that make it even, or "
            "write positions learned."
        )
    if model.vision_embed_dim != model.embed_dim:
        raise ConfigError(
            f"vision_embed_dim is {model.vision_embed_dim} and embed_dim {model.embed_dim}, but image and text tokens "
            f"meet in one attention. Write vision_embed_dim {model.embed_dim}."
        )
    tokenizer = config.data.tokenizer
    if tokenizer == "gpt2" and model.vocab_size < GPT2_VOCABULARY:
        raise ConfigError(
            f"vocab_size is {model.vocab_size}, but tokenizer gpt2 has {GPT2_VOCABULARY} tokens. "
            f"Write vocab_size {GPT2_VOCABULARY}, or tokenizer train."
        )
    if tokenizer == "train" and model.vocab_size < BPE_BYTES:
        raise ConfigError(
            f"vocab_size is {model.vocab_size}, but a byte-level BPE starts with {BPE_BYTES} tokens. Write 1000."
        )
    if model.itm_likelihood and not objective.text_loss_weight:
        raise ConfigError(
            "itm_likelihood is on, but text_loss_weight is 0: a model that never learned to write finds no caption "
            "likely. Write text_loss_weight 1, or itm_likelihood False."
        )
    weights = ("contrastive_weight", "itm_weight", "memory_kl_weight", "text_loss_weight")
    if not any(getattr(objective, name) for name in weights):
        raise ConfigError(f"{', '.join(weights)} are all 0: nothing is left to minimise. Write contrastive_weight 1.")


def _check_text(config: Config) -> None:
    data, vision, model = config.data, config.vision, config.model
    if data.text_data is None:
        for name in ("text_val_data", "text_seq_len"):
            if getattr(data, name) is not None:
                raise ConfigError(f"{name} is {getattr(data, name)}, but there is no text_data. Write it too.")
        return
    if not config.objective.text_loss_weight:
        raise ConfigError(
            f"text_data is {data.text_data}, but text_loss_weight is 0, so nothing would learn from it. Write "
            "text_loss_weight 1."
        )
    if data.tokenizer == "train":
        raise ConfigError(
            f"tokenizer is train, but text_data {data.text_data} holds ids of a tokenizer that exists. Write its "
            "folder, the --tokenizer that data_prep/babylm_text.py was given."
        )
    if data.streaming:
        raise ConfigError("streaming is on, but text_data is mixed with mapped pairs alone. Write streaming False.")
    if data.text_val_data == data.text_data:
        raise ConfigError(
            f"text_val_data is {data.text_val_data}, the training text itself. Write the --val_output of "
            "data_prep/babylm_text.py, or leave it out."
        )
    if data.text_seq_len is not None and data.text_seq_len > model.max_seq_len:
        raise ConfigError(
            f"text_seq_len is {data.text_seq_len}, longer than max_seq_len {model.max_seq_len}. Write that or less."
        )
    if data.train_data is not None:
        return
    if vision.vision_encoder != "features" or not (vision.feature_dim and vision.feature_tokens):
        raise ConfigError(
            "text_data is trained alone (there is no train_data), so no images say what the model will see. Write "
            "vision_encoder features with feature_dim and feature_tokens, or name pairs as train_data."
        )
    if data.val_data is not None:
        raise ConfigError(f"val_data is {data.val_data}, but the run sees no images. Leave it out, or add train_data.")


def _check_data(config: Config) -> None:
    data = config.data
    if data.train_data is None:
        return
    try:
        sources = [source.path for source in parse_sources(data.train_data)]
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if data.val_data is not None and data.val_data != "scenes" and data.val_data in sources:
        raise ConfigError(
            f"val_data is {data.val_data}, the training data itself, so its figures would say nothing. "
            "Write the folder of a held-out split, or leave val_data out."
        )
    if "scenes" in sources and (data.streaming or len(sources) > 1):
        how = "streamed" if data.streaming else "mixed with other data"
        raise ConfigError(f"train_data is {data.train_data}, but the built-in scenes cannot be {how}. Leave that out.")


def check_launch(config: Config, world_size: int, launched: bool) -> None:
    """Check the settings against the launcher and the devices of this machine.

    Args:
        world_size: processes over all machines.
        launched: whether a launcher such as torchrun started this process.

    Raises:
        ConfigError: with the command or the flag to write.
    """
    training = config.training
    if training.num_gpus != world_size:
        if not launched:
            raise ConfigError(
                f"num_gpus is {training.num_gpus}, but no launcher started this process, so it is alone. Write "
                f"{_torchrun(training.num_gpus)}, or --num_gpus 1."
            )
        raise ConfigError(
            f"num_gpus is {training.num_gpus}, but the launcher started {world_size} processes. Write "
            f"--num_gpus {world_size}, or {_torchrun(training.num_gpus)}."
        )
    if training.use_ddp and not launched:
        raise ConfigError(f"use_ddp needs a launcher. Write {_torchrun(training.num_gpus)}, or --use_ddp False.")
    if world_size > 1 and not training.use_ddp:
        raise ConfigError(
            f"The launcher started {world_size} processes, but use_ddp is off: each would train alone and overwrite "
            f"the others' files. Write --use_ddp True --num_gpus {world_size}."
        )
    _check_batch(config, world_size)
    _check_device(config)


def _torchrun(processes: int) -> str:
    return f"torchrun --nproc_per_node={processes} {ENTRY} --use_ddp True --num_gpus {processes}"


def _check_batch(config: Config, world_size: int) -> None:
    global_batch = config.training.batch_size * world_size
    how = f"batch_size {config.training.batch_size} x {world_size} processes"
    if config.objective.queue_size < global_batch:
        raise ConfigError(
            f"queue_size is {config.objective.queue_size}, smaller than the global batch of {global_batch} ({how}) "
            f"that enters it at once. Write queue_size {global_batch} or more, or a smaller batch_size."
        )
    if config.data.train_data == "scenes" and config.data.scenes_train < global_batch:
        raise ConfigError(
            f"scenes_train is {config.data.scenes_train}, smaller than the global batch of {global_batch} ({how}). "
            f"Write scenes_train {global_batch} or more, or a smaller batch_size."
        )


def _check_device(config: Config) -> None:
    import torch  # here, so that --help and reading a file answer at once

    training = config.training
    if training.device == "cpu":
        has_gpu = False
    else:
        has_gpu = torch.cuda.is_available()
    if training.device == "cuda" and not has_gpu:
        raise ConfigError(
            "device is cuda, but PyTorch finds no CUDA device here. Write device auto or cpu; on a machine with a GPU, "
            "look whether nvidia-smi lists it and whether the installed torch is a CUDA build."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if has_gpu and here > torch.cuda.device_count():
        raise ConfigError(
            f"The launcher started {here} processes on this machine, which has {torch.cuda.device_count()} GPUs. "
            f"Write --nproc_per_node={torch.cuda.device_count()} (and num_gpus to match), or --device cpu."
        )
    if training.precision == "fp16" and not has_gpu:
        raise ConfigError("precision is fp16, which needs a GPU. Write precision auto.")
