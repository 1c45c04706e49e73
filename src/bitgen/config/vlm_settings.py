"""The settings of a vision-language model made of parts: encoder, connector, language model, adapters, data.

One dataclass a concern, as in ``stage1_settings``; a stage of a recipe overrides any of them (``config/vlm.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from bitgen.config.common import TrainingSettings
from bitgen.config.fields import (
    AtLeastOne,
    Batch,
    Depth,
    Few,
    NotNegative,
    Part,
    Positive,
    Range,
    Rate,
    Share,
    Size,
    WrittenAs,
    setting,
)


def _listed(value: Any) -> Any:
    """A YAML list, or a number, as text separated by commas."""
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_json(value: Any) -> Any:
    """A YAML list as JSON; one that JSON cannot hold, as of dates, as it is, which is then refused."""
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    except (TypeError, ValueError, RecursionError):
        return value


ListText = Annotated[str, WrittenAs(_listed)]
JsonList = Annotated[str, WrittenAs(_as_json)]


@dataclass
class EncoderSettings:
    """What sees."""

    _argument_group_name = "vision"

    vision_encoder: str = setting(
        "facebook/dinov2-base",
        "A hub id or a local folder of DINOv2, DINOv3 ViT, ViT, CLIP, SigLIP, a vision transformer of timm or "
        "BiomedCLIP (both need timm), 'random' (a DINOv2 of the five sizes below with random weights; needs no "
        "download) or 'features' (train_data holds features computed earlier).",
    )
    vision_revision: str | None = setting(None, "Commit or tag of the hub id; none: the newest.")
    vision_hidden_size: Size = setting(64, "Width of a 'random' encoder.")
    vision_num_layers: Depth = setting(2, "Layers of a 'random' encoder.")
    vision_num_heads: Size = setting(2, "Attention heads of a 'random' encoder.")
    vision_patch_size: Size = setting(14, "Patch side in pixels of a 'random' encoder.")
    image_size: Size | None = setting(
        None, "Side in pixels that pictures get; none: the encoder's own. A 'random' encoder needs a number."
    )
    select_layer: ListText = setting(
        "-2",
        "Whose output the connector reads: -1 (the last layer), -2 (the one before), a list as -2,-1 (side by "
        "side), or 'all' (every layer, for the connector tac).",
    )
    vision_tuning: Literal["frozen", "lora", "full"] = setting(
        "frozen", "What the part 'vision' of trains is: nothing, LoRA adapters in the encoder, or all of its weights."
    )
    feature_cache: str = setting(
        "off",
        "Compute the encoder's features of each picture once, keep them on disk, and train without the encoder: a "
        "folder for them, or 'off'. Needs a frozen encoder, and pictures that do not change.",
    )
    feature_cache_dtype: Literal["float32", "bf16", "int8"] = setting("bf16", "Numbers of the feature cache.")


@dataclass
class ConnectorSettings:
    """What turns the encoder's features into tokens of the language model."""

    _argument_group_name = "connector"

    connector: Literal["linear", "mlp", "resampler", "c_abstractor", "perceiver", "pixel_shuffle", "tac", "none"] = (
        setting(
            "mlp",
            "linear, mlp (LLaVA), resampler (one cross-attention), c_abstractor (Honeybee), perceiver (Flamingo), "
            "pixel_shuffle, tac (Libra: all layers, current and prior image), or none: a language model alone.",
        )
    )
    connector_queries: Size = setting(
        64,
        "Tokens of a visual after resampler or perceiver; of a picture after c_abstractor, where it must be a square.",
    )
    connector_depth: Few | None = setting(
        None, "Layers of mlp (2), blocks of perceiver (6) and of each half of c_abstractor (3); none: these."
    )
    connector_heads: Size | None = setting(
        None,
        "Attention heads of resampler, perceiver (8) and tac (the largest divisor of the encoder's width that is not "
        "above the language model's heads).",
    )
    connector_width: Size = setting(1024, "Width of the convolutions of c_abstractor.")
    connector_prenorm: bool = setting(
        False,
        "c_abstractor: LayerNorm on the patches first. Needed where an encoder's features are small, as those of the "
        "random one are.",
    )
    connector_factor: Size = setting(2, "pixel_shuffle: side of the square of patches that become one token.")
    connector_dropout: Rate = setting(0.1, "Dropout in the blocks of tac.")


@dataclass
class LanguageSettings:
    """What reads and writes."""

    _argument_group_name = "language"

    language_model: str = setting(
        "models/smollm2-135m-instruct",
        "A hub id, a local folder of a causal language model, an export of BitGen, or 'random': a small LLaMA of the "
        "sizes below, whose tokenizer is trained on the captions.",
    )
    language_revision: str | None = setting(None, "Commit or tag of the hub id; none: the newest.")
    language_hidden_size: Size = setting(128, "Width of a 'random' language model.")
    language_num_layers: Depth = setting(3, "Layers of a 'random' language model.")
    language_num_heads: Size = setting(4, "Attention heads of a 'random' language model.")
    language_vocab_size: Size = setting(1000, "Tokens of the tokenizer of a 'random' language model.")
    language_positions: Size = setting(512, "Longest sequence of a 'random' language model.")
    template: str = setting(
        "tokenizer",
        "How a conversation is written: 'tokenizer' (the language model's own chat template), 'libra_v1', or 'plain' "
        "(no prompts: the picture, then what is said of it).",
    )
    system_prompt: str | None = setting(
        None, "The system's text in front of a conversation; none: what the template brings."
    )
    max_length: Annotated[int, Range("at least 8", lambda value: value >= 8, 2**20)] = setting(
        2048, "Longest sequence in tokens, tokens of pictures included; longer ones are cut, counted and named."
    )
    quantization: Literal["none", "4bit", "8bit"] = setting(
        "none", "Keep the language model in 4 or 8 bits (bitsandbytes), with adapters beside."
    )
    language_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Numbers that the frozen weights are kept in; a 'random' language model is in float32."
    )
    language_checkpointing: bool = setting(
        False, "Recompute the language model's activations in the backward pass: a third slower, far less memory."
    )


@dataclass
class AdapterSettings:
    """Low-rank adapters in the language model (arXiv 2106.09685)."""

    _argument_group_name = "adapter"

    adapter: Literal["none", "lora", "dora"] = setting(
        "none", "lora, or dora (arXiv 2402.09353: direction and magnitude apart)."
    )
    adapter_rank: Size = setting(16, "Rank r.")
    adapter_alpha: Positive = setting(32.0, "Adapters are scaled by alpha / r.")
    adapter_dropout: Rate = setting(0.05, "Dropout before each adapter, in training only.")
    adapter_rslora: bool = setting(False, "Scale by alpha / sqrt(r) (arXiv 2312.03732).")
    adapter_targets: ListText = setting(
        "all-linear", "'all-linear' (of the language model, without its head), or last names as q_proj,v_proj."
    )
    adapter_lora_plus: Positive = setting(1.0, "LoRA+ (arXiv 2402.12354): learning rate of B over that of A.")
    vision_adapter_rank: Size = setting(16, "Rank of the adapters in the encoder, where vision_tuning is lora.")
    vision_adapter_alpha: Size = setting(32, "Their alpha.")


@dataclass
class VlmTrainingSettings(TrainingSettings):
    """How it is minimised: what trains, batches, steps, rates, numbers and devices."""

    trains: ListText = setting(
        "connector",
        "Parts that train: any of connector, adapter, vision (by vision_tuning) and language (all weights of the "
        "language model), separated by commas. The rest is frozen.",
    )
    connector_learning_rate: Positive | None = setting(None, "Peak rate of the connector; none: learning_rate.")
    vision_learning_rate: Positive | None = setting(None, "Peak rate of the encoder's part; none: learning_rate.")
    warmup_ratio: Rate | None = setting(0.03, "Share of the steps that warm up; none: warmup_steps says how many.")
    batch_size: Batch = setting(16, "Conversations of a micro-batch on each process.")
    optimizer: Literal["adamw", "muon", "normuon"] = setting(
        "adamw",
        "muon: Muon updates the matrices of connector, vision and language that train, AdamW the rest, such as tables "
        "and the language model's adapters. normuon: the same with NorMuon (arXiv 2510.05491).",
    )
    grad_accum_steps: Batch = setting(1, "Micro-batches of an optimizer step.")
    num_epochs: Batch = setting(1, "Passes over the training data; the schedule spans them.")
    weight_decay: NotNegative[float] = setting(0.0, "Decay of matrices; vectors have none.")
    group_by_length: bool = setting(False, "Batches of conversations of like length: less padding.")
    packing: bool = setting(False, "Several conversations in one row, without attention between them.")
    estimate: Size | None = setting(
        None, "Only say how much memory each stage takes, whole and sharded over so many processes; none: train."
    )
    stages: JsonList | None = setting(
        None,
        "A recipe: a list of stages, each with a name and the settings that it has of its own, as "
        "[{name: align, trains: connector}, {name: tune, trains: connector,adapter, learning_rate: 5e-5}].",
    )
    stage: str | None = setting(
        None,
        "Train this stage of the recipe alone, from what --init_from names, else from the stage before it as it stands "
        "in output_dir; none: all.",
    )

    def warmup_of(self, steps: int) -> int:
        """Steps of the warm-up: a share of the run's where one is set."""
        return self.warmup_steps if self.warmup_ratio is None else round(self.warmup_ratio * steps)


@dataclass
class ConversationSettings:
    """Where conversations come from."""

    _argument_group_name = "data"

    train_data: str | None = setting(
        None, "A folder written by data_prep/ (conversations, or images or features with captions), or 'scenes'."
    )
    val_data: str | None = setting(None, "Such a folder of held-out data, or 'scenes'.")
    prompts: JsonList = setting(
        "Describe the image.",
        "What the user says of an image with captions: a text, or in YAML a list of which one is drawn each time.",
    )
    num_frames: Size = setting(
        8, "The most pictures that a visual of a conversation has: frames of a video, or a current and a prior image."
    )
    caption_sampling: Literal["all", "one"] = setting(
        "all", "An epoch shows each caption once (all), or each image once with a caption drawn at random (one)."
    )
    num_workers: Few = setting(0, "Worker processes that load data; 0: load in the process itself.")
    max_bad_fraction: Share = setting(0.01, "Training stops when more of the samples had to be replaced than this.")
    max_image_pixels: AtLeastOne = setting(50_000_000, "Images of more pixels are refused before they are decoded.")
    scenes_train: AtLeastOne = setting(20000, "Training scenes of the built-in data.")
    scenes_val: AtLeastOne = setting(600, "Held-out scenes of the built-in data.")


@dataclass
class ValidationSettings:
    """What is measured on held-out data during training."""

    _argument_group_name = "validation"

    val_samples: AtLeastOne | None = setting(None, "Held-out conversations for the loss; none: all of them.")
    val_generated: NotNegative[int] = setting(100, "Held-out answers that are generated and scored; 0: none.")
    best_metric: str = setting(
        "loss",
        "What the best checkpoint has best: loss, bleu1 to bleu4, rouge_l, meteor, cider, temporal_f1, or right (the "
        "share of answers that are one of the references, or that describe a built-in scene rightly).",
    )
    val_batch_size: Batch | None = setting(
        None, "Held-out conversations of a batch on each process, whose rows are padded; none: batch_size."
    )
    val_beams: Size = setting(1, "Beams of the search that writes the answers; 1: greedy.")
    val_max_new_tokens: AtLeastOne = setting(64, "Longest answer in tokens.")
    val_ratio: Part | None = setting(
        None, "Validate every such share of the steps, as 0.01; none: eval_steps says how often."
    )
