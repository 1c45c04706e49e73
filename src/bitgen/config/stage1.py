"""Stage 1, vision and language together: its configuration, and which of its settings contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from bitgen.config.common import OutputSettings, RunSchema
from bitgen.config.episode_settings import EpisodeSettings
from bitgen.config.reasoning_rules import check_reasoning
from bitgen.config.reasoning_settings import ReasoningSettings
from bitgen.config.sources import parse_sources, same_source
from bitgen.config.stage1_settings import (
    DataSettings,
    LoraSettings,
    MemorySettings,
    ModelSettings,
    ObjectiveSettings,
    Stage1TrainingSettings,
    VisionSettings,
)
from bitgen.config.values import ConfigError

ENTRY = "src/train_stage1_vision_language.py"
BPE_BYTES = 259  # a byte-level BPE holds the 256 bytes and <s>, </s>, <pad> before it learns anything
GPT2_VOCABULARY = 50257
FEATURE_GRIDS = (16, 8, 7)
_INIT_METHODS = ("true", "false", "gaussian")

_DESCRIPTION = """\
Train BitGen's stage 1, vision and language together, in two phases: first with the LoRA adapters
frozen, then with them. Every setting below is a flag, and a line in a YAML file under its group.
A flag beats the file, and the file beats the default."""

_EXAMPLES = f"""\
examples:
  python {ENTRY} --config configs/quickstart.yaml
      train on built-in scenes in minutes: no data, no GPU, no download
  python {ENTRY} --config configs/quickstart.yaml --num_epochs 8 --queue_size 2048
      the same with two settings changed
  python {ENTRY} --train_data data/my/train --val_data data/my/val
      DINOv2-base on your own images, with the defaults of configs/stage1.yaml
  python {ENTRY} --train_data data/my/train --val_data data/my/val --resume auto
      the same command with --resume auto goes on where the run in output_dir stopped
  torchrun --nproc_per_node=8 {ENTRY} --use_ddp True --num_gpus 8 --batch_size 64 \\
      --train_data data/my/train --val_data data/my/val
      the same on eight GPUs

Settings that turn something on or off take True or False. 'none' empties a setting whose default is None.

exit status: 0 the run is finished; 1 it failed; 2 what was asked for cannot be; 128 + N signal N stopped it, after
a checkpoint (130 Ctrl-C, 143 SIGTERM, 129 a closed terminal)."""


@dataclass
class Config(RunSchema):
    """All settings of a run, one attribute a concern; the groups' own docstrings and help texts say the rest."""

    vision: VisionSettings = field(default_factory=VisionSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    reasoning: ReasoningSettings = field(default_factory=ReasoningSettings)
    training: Stage1TrainingSettings = field(default_factory=Stage1TrainingSettings)
    data: DataSettings = field(default_factory=DataSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    entry = ENTRY
    description = _DESCRIPTION
    examples = _EXAMPLES
    default_file = Path(__file__).resolve().parents[3] / "configs" / "stage1.yaml"
    # Settings that are gone, and the value at which they did nothing: checkpoints of earlier runs still hold them.
    retired = {"text_first": 0.0}
    # Their weights have the same shapes whatever these are.
    fixed = (
        "lora_alpha",
        "use_rslora",
        "num_heads",
        "vision_num_heads",
        "image_size",
        "itm_likelihood",
        "memory_sigma",
        "recall_dim",
        "recall_code",
    )
    scored_by: ClassVar[tuple[str, ...]] = ("val_data", "text_val_data", "val_max_images", "scenes_val")

    def rescored(self, changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
        """See :meth:`RunSchema.rescored`. With contrast the score is of recalls alone, else of a loss that is on."""
        weights = ("contrastive_weight", "text_loss_weight")
        switched = [name for name in weights if name in changed and any(changed[name]) != all(changed[name])]
        found = super().rescored(changed)
        if self.objective.contrastive_weight and "contrastive_weight" not in switched:
            return [name for name in found if name != "text_val_data"]
        return found + switched

    def check(self) -> None:
        """Raise :class:`ConfigError` for the first settings that contradict each other."""
        check_settings(self)

    def check_batch(self, global_batch: int, how: str) -> None:
        """Raise :class:`ConfigError` where the queue or the built-in data is smaller than the global batch, or where a
        single pair is contrasted with nothing."""
        objective = self.objective
        contrasts = self.data.train_data is not None and objective.contrastive_weight
        if global_batch == 1 and contrasts and not objective.queue_weight:
            raise ConfigError(
                f"The global batch is 1 ({how}) and queue_weight 0, so that the contrastive loss compares a pair with "
                "nothing and learns nothing. Write batch_size 2 or more, or contrastive_weight 0."
            )
        if self.objective.queue_size < global_batch:
            raise ConfigError(
                f"queue_size is {self.objective.queue_size}, smaller than the global batch of {global_batch} ({how}) "
                f"that enters it at once. Write queue_size {global_batch} or more, or a smaller batch_size."
            )
        if self.data.train_data == "scenes" and self.data.scenes_train < global_batch:
            raise ConfigError(
                f"scenes_train is {self.data.scenes_train}, smaller than the global batch of {global_batch} ({how}). "
                f"Write scenes_train {global_batch} or more, or a smaller batch_size."
            )


def load_config(path: str | Path) -> Config:
    """Read a YAML file of stage 1: :meth:`Schema.load <bitgen.config.schema.Schema.load>`."""
    return Config.load(path)


def parse_config(argv: list[str] | None = None) -> Config:
    """Read the command line of stage 1: :meth:`Schema.parse <bitgen.config.schema.Schema.parse>`."""
    return Config.parse(argv)


def check_settings(config: Config) -> None:
    """Check settings against each other: everything that depends on no machine.

    Raises:
        ConfigError: the first setting that contradicts another.
    """
    _check_vision(config)
    _check_lora(config)
    _check_model(config)
    _check_text(config)
    _check_data(config)
    _check_parallel(config)
    _check_episodes(config)
    check_reasoning(config)


@contextmanager
def _network_rules() -> Iterator[ModuleType]:
    """Which sizes fit together is written once, with the network; what breaks a rule is here a setting to change."""
    from bitgen.model import configuration_bitgen  # here, because it takes seconds that reading a file need not

    try:
        yield configuration_bitgen
    except ValueError as error:
        raise ConfigError(str(error)) from None


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
        with _network_rules() as rules:
            rules.check_heads(
                vision.vision_num_heads, vision.vision_hidden_size, ("vision_num_heads", "vision_hidden_size")
            )
            rules.check_patches(vision.image_size, vision.vision_patch_size, "vision_patch_size")
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
    assert indices is not None
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
    with _network_rules() as rules:
        rules.check_sizes(model.embed_dim, model.num_heads, model.vision_embed_dim, model.positions)
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
    if data.text_val_data is not None and same_source(data.text_val_data, data.text_data):
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
    if (
        data.val_data is not None
        and data.val_data != "scenes"
        and any(same_source(data.val_data, source) for source in sources)
    ):
        raise ConfigError(
            f"val_data is {data.val_data}, the training data itself, so its figures would say nothing. "
            "Write the folder of a held-out split, or leave val_data out."
        )
    if "scenes" in sources and (data.streaming or len(sources) > 1):
        how = "streamed" if data.streaming else "mixed with other data"
        raise ConfigError(f"train_data is {data.train_data}, but the built-in scenes cannot be {how}. Leave that out.")


def _check_parallel(config: Config) -> None:
    if config.training.parallel == "sharded":
        raise ConfigError(
            "parallel is sharded, but stage 1 keeps its queue and its memory whole on every process, and checks that "
            "all processes hold equal weights; a network that fits one GPU gains nothing from being split. Write "
            "parallel replicated."
        )


NO_CAPTIONER = (
    "recall_weight is on, but init_from is none: a model learns to speak from a memory when it can describe pictures "
    "already. Train configs/scenes_captions.yaml, and write init_from checkpoints/scenes_captions."
)


def _check_episodes(config: Config) -> None:
    episodes = config.episodes
    if not episodes.recall_weight:
        return
    if not episodes.recall_tokens:
        raise ConfigError("recall_weight is on, but recall_tokens is 0: nothing could be said. Write recall_tokens 32.")
    if config.training.init_from is None and config.training.resume is None:
        raise ConfigError(NO_CAPTIONER)
    if not config.objective.text_loss_weight:
        raise ConfigError(
            "recall_weight is on, but text_loss_weight is 0, as of a model that never learned to write. Write the "
            "weights that the model of init_from was trained with."
        )
    if config.data.text_data is not None or config.data.streaming:
        raise ConfigError("recall_weight is on, but episodes take neither text_data nor streaming. Leave them out.")
