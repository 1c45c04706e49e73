"""A vision-language model of parts: the configuration of one stage, and a recipe of several."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bitgen.config.common import OutputSettings, RunSchema
from bitgen.config.schema import flat_settings_of
from bitgen.config.values import ConfigError, coerce, suggest
from bitgen.config.vlm_settings import (
    AdapterSettings,
    ConnectorSettings,
    ConversationSettings,
    EncoderSettings,
    LanguageSettings,
    ValidationSettings,
    VlmTrainingSettings,
)
from bitgen.guards.json_files import BadJson, parse_json
from bitgen.guards.printable import printable

ENTRY = "src/train_vlm.py"
CONNECTOR, ADAPTER, VISION, LANGUAGE = PARTS = ("connector", "adapter", "vision", "language")
METRICS = ("loss", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor", "cider", "temporal_f1", "right")

_DESCRIPTION = """\
Train a vision-language model of parts: a vision encoder, a connector and a causal language model
with adapters. A recipe's stages are trained one after the other; each is a run of its own in
OUTPUT_DIR/STAGE, resumes exactly, and starts from the one before."""

_EXAMPLES = f"""\
examples:
  python {ENTRY} --config configs/vlm_quick.yaml
      everything on built-in scenes in minutes: no data, no GPU, no download
  python {ENTRY} --config configs/vlm_llava.yaml --train_data data/my/train --val_data data/my/val
      LLaVA's two stages on your own conversations
  python {ENTRY} --config configs/vlm_quick.yaml --stage tune --adapter dora \\
      --init_from checkpoints/vlm_quick/see --output_dir checkpoints/dora --log_dir logs/dora
      one stage of a recipe again, with another setting, from the stage that came before it
  python {ENTRY} --config configs/vlm_quick.yaml --resume auto
      go on where the recipe stopped
  torchrun --nproc_per_node=8 {ENTRY} --config configs/vlm_libra.yaml --use_ddp True --num_gpus 8 \\
      --train_data data/my/train --val_data data/my/val
      on eight GPUs

exit status: as of src/train_stage1_vision_language.py."""


@dataclass
class VlmConfig(RunSchema):
    """All settings of one stage."""

    vision: EncoderSettings = field(default_factory=EncoderSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    training: VlmTrainingSettings = field(default_factory=VlmTrainingSettings)
    data: ConversationSettings = field(default_factory=ConversationSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    entry = ENTRY
    description = _DESCRIPTION
    examples = _EXAMPLES
    # What changes neither the number nor the shapes of the weights, but what they mean.
    fixed = (
        *("select_layer", "image_size", "vision_num_heads", "vision_adapter_alpha"),
        *("connector_heads", "connector_factor", "num_frames"),
        *("language_num_heads", "quantization", "template", "system_prompt"),
        *("adapter_alpha", "adapter_rslora"),
    )
    scored_by = ("val_data", "scenes_val", "best_metric", "val_samples", "val_generated")

    # How a stage is carried out and shown, which what it learned does not depend on, or only in its last digits.
    incidental = (
        *(setting.name for setting in fields(OutputSettings)),
        *("resume", "init_from", "device", "precision", "use_ddp", "num_gpus", "parallel", "max_nonfinite_steps"),
        *("num_workers", "max_bad_fraction", "max_image_pixels", "feature_cache", "feature_cache_dtype"),
        *("language_checkpointing", "estimate", "val_batch_size"),
    )

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """What ``trains`` names, in the order of ``PARTS``."""
        named = [part.strip() for part in self.training.trains.split(",")]
        if unknown := [part for part in named if part not in PARTS]:
            raise ConfigError(f"trains names {printable(unknown[0], 40)!r}. Write any of {', '.join(PARTS)}.")
        return tuple(part for part in PARTS if part in named)

    @property
    def layers(self) -> int | list[int] | Literal["all"]:
        """``select_layer`` as the encoder takes it."""
        text = self.vision.select_layer.strip()
        if text == "all":
            return "all"
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            raise ConfigError(
                f"select_layer is {printable(text, 40)!r}. Write -1, -2, a list as -2,-1, or all."
            ) from None
        return numbers if len(numbers) > 1 else numbers[0]

    @property
    def prompt_list(self) -> list[str]:
        """``prompts`` as texts."""
        text = self.data.prompts
        if not text.lstrip().startswith("["):
            return [text]
        listed = _json_list(text, "prompts")
        if not listed or not all(isinstance(prompt, str) and prompt.strip() for prompt in listed):
            raise ConfigError("prompts is no list of texts. Write one text, or a list of them.")
        return listed

    def check(self) -> None:
        """Raise :class:`ConfigError` for the first settings that contradict each other; of a recipe, each stage is
        checked by :func:`stages_of`."""
        if self.training.stages is None:
            for check in (_check_parts, _check_random, _check_encoder, _check_validation, _check_sharing):
                check(self)


class StageRun(NamedTuple):
    """A stage of a recipe: its name (empty: there is no recipe) and its whole configuration."""

    name: str
    config: VlmConfig


def stages_of(config: VlmConfig, flags: Collection[str] = ()) -> list[StageRun]:
    """The runs of a recipe in their order, each starting from the one before.

    Args:
        flags: settings of the command line, which beat those of the stages.

    Raises:
        ConfigError: ``stages`` is no list of stages, names one twice or a setting that there is not; or a stage's
            settings contradict each other, and the message begins with its name.
    """
    if config.training.stages is None:
        if config.training.stage is not None:
            raise ConfigError(
                f"stage is {printable(config.training.stage, 40)!r}, but there are no stages. Leave it out."
            )
        return [StageRun("", config)]
    known, before = flat_settings_of(VlmConfig), config.training.init_from
    found: list[StageRun] = []
    for number, entry in enumerate(_json_list(config.training.stages, "stages"), 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"stages: the {number}. has no name. Write name: align (letters, digits, _ and -), and its settings."
            )
        if name in [stage.name for stage in found]:
            raise ConfigError(f"stages: two are named {name}. Give each one a name of its own.")
        values: dict[str, Any] = {}
        for key, value in entry.items():
            if key == "name":
                continue
            if key not in known or key in _NOT_OF_A_STAGE:
                raise ConfigError(f"stages: {name} has a setting {printable(key, 40)!r}.{suggest(key, known)}")
            written_as = known[key].written_as
            text = written_as.text(value) if written_as is not None else value
            if key not in flags:
                values[key] = coerce(known[key].hint, text, f"stages: {name}: {key}")
        output = {key: str(Path(getattr(config.output, key)) / name) for key in ("output_dir", "log_dir")}
        of_all: dict[str, Any] = {"stages": None, "stage": None, "init_from": before, **output}
        found.append(StageRun(name, config.replace(**values, **of_all)))
        before = output["output_dir"]
    if config.training.stage is not None and "init_from" in flags:  # else it starts from the stage before it
        start = config.training.init_from
        found = [stage._replace(config=stage.config.replace(init_from=start)) for stage in found]
    return _chosen(found, config.training.stage)


def _chosen(stages: list[StageRun], name: str | None) -> list[StageRun]:
    if not stages:
        raise ConfigError("stages is an empty list. Write at least one stage, or leave it out.")
    if name is not None and name not in [stage.name for stage in stages]:
        raise ConfigError(f"stage is {printable(name, 40)!r}. The stages are {', '.join(one.name for one in stages)}.")
    chosen = [stage for stage in stages if name in (None, stage.name)]
    for stage in chosen:
        try:
            stage.config.validate()
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from error
    return chosen


_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_OF_A_STAGE = ("stages", "stage", "output_dir", "log_dir", "init_from", "resume", "use_ddp", "num_gpus", "device")


def _json_list(text: str, name: str) -> list[Any]:
    try:
        return parse_json(text, list)
    except BadJson as error:
        raise ConfigError(
            f"{name} is no list: {printable(error, 200)}. Write it in a YAML file, or as JSON."
        ) from error


# ---- which settings contradict each other ----


def _check_parts(config: VlmConfig) -> None:
    parts, adapter = config.trained_parts, config.adapter.adapter
    if CONNECTOR in parts and config.connector.connector == "none":
        raise ConfigError("trains names the connector, but connector is none. Write another connector, or other parts.")
    if ADAPTER in parts and adapter == "none":
        raise ConfigError("trains names the adapter, but adapter is none. Write adapter lora or dora.")
    if LANGUAGE in parts and (adapter != "none" or config.language.quantization != "none"):
        raise ConfigError(
            "trains names language, all weights of the language model, but it has adapters or is quantized. Write "
            "adapter none and quantization none, or trains adapter."
        )
    if LANGUAGE in parts and config.language.language_dtype != "float32" and config.language.language_model != "random":
        raise ConfigError(
            f"trains names language, all weights of the language model, and {config.language.language_dtype} would "
            "round most of their updates away. Write language_dtype float32 (precision bf16 computes in bfloat16 all "
            "the same), or trains adapter."
        )
    if VISION in parts and (config.vision.vision_tuning == "frozen" or config.vision.vision_encoder == "features"):
        raise ConfigError(
            "trains names vision, but nothing of the encoder can train. Write vision_tuning lora or full with an "
            "encoder that sees pictures, or leave vision out."
        )
    if config.language.quantization != "none" and config.language.language_model == "random":
        raise ConfigError(
            "quantization is on, but a 'random' language model is trained whole. Write quantization none."
        )


def _check_random(config: VlmConfig) -> None:
    """What is built from numbers has numbers that fit one another."""
    language, vision = config.language, config.vision
    if language.language_model == "random":
        width, heads = language.language_hidden_size, language.language_num_heads
        if width % (2 * heads):  # rotary positions turn pairs of a head's numbers
            raise ConfigError(
                f"language_hidden_size is {width} and language_num_heads {heads}, so that heads are no even number "
                f"wide. Write a language_hidden_size of {2 * heads}, {4 * heads}, {6 * heads} or so on."
            )
        if language.max_length > language.language_positions:
            raise ConfigError(
                f"max_length is {language.max_length}, and language_positions {language.language_positions}: no longer "
                "sequence fits. Lower max_length, or raise language_positions."
            )
    if vision.vision_encoder == "random":
        width, heads = vision.vision_hidden_size, vision.vision_num_heads
        if width % heads:
            raise ConfigError(
                f"vision_hidden_size is {width}, which vision_num_heads {heads} do not divide. Write a multiple of it."
            )


def _check_encoder(config: VlmConfig) -> None:
    vision = config.vision
    layers = config.layers
    if vision.vision_encoder == "random" and vision.image_size is None:
        raise ConfigError("image_size is none, but a random vision_encoder declares no size. Write 224.")
    if vision.feature_cache != "off" and (VISION in config.trained_parts or vision.vision_encoder == "features"):
        raise ConfigError(
            "feature_cache is on, but the encoder trains or features are there already. Write feature_cache off."
        )
    if config.connector.connector == "tac" and isinstance(layers, int):
        raise ConfigError(f"connector is tac, which reads several layers, and select_layer is {layers}. Write all.")


def _check_validation(config: VlmConfig) -> None:
    best = config.validation.best_metric
    if best not in METRICS:
        raise ConfigError(f"best_metric is {printable(best, 40)!r}. Write one of {', '.join(METRICS)}.")
    if best != "loss" and not config.validation.val_generated:
        raise ConfigError(
            f"best_metric is {best}, but val_generated is 0. Write val_generated 100, or best_metric loss."
        )
    config.prompt_list  # noqa: B018  (raises where it is no list)


def _check_sharing(config: VlmConfig) -> None:
    if config.training.parallel == "sharded" and config.language.quantization != "none":
        raise ConfigError("quantized weights are not sharded. Write parallel replicated, or quantization none.")
    if config.training.parallel == "sharded" and config.vision.feature_cache != "off":
        raise ConfigError("a sharded run has no feature cache. Write feature_cache off, or parallel replicated.")
