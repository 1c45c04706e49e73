"""What adapters cost: parameters and bytes at each rank, counted on the shapes of a model without its weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from bitgen.config import ConfigError
from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.vlm.adapter_config import ALL_LINEAR
from bitgen.vlm.adapters import linear_shape, targets_of

_BF16, _FLOAT32 = 2, 4  # bytes
_BLOCK = 64  # values of a 4-bit weight that share a scale


class Layers(NamedTuple):
    """``layers`` adapted linear layers of one last name and shape ``[out, in]``."""

    name: str
    out: int
    into: int
    layers: int

    def parameters(self, rank: int, kind: str) -> int:
        """Of A ``[r, in]``, B ``[out, r]`` and, for DoRA, the magnitude ``[out]``."""
        return self.layers * (rank * (self.out + self.into) + (self.out if kind == "dora" else 0))


class Cost(NamedTuple):
    """An adapter at one rank. Bytes are those of training with AdamW in float32: a weight, its gradient, and two
    moments."""

    rank: int
    parameters: int
    share: float  # of the base's parameters
    weights: int
    gradients: int
    optimizer: int


def empty_model(source: str | Path) -> PreTrainedModel:
    """A causal language model on the meta device: names and shapes, no values.

    Args:
        source: a folder with a ``config.json``, such a file, or a name on the Hub, of which the configuration alone is
            fetched. Of a model with several parts the language model is taken.

    Raises:
        ConfigError: there is no such configuration, or it is none of a causal language model.
    """
    config = _configuration(source)
    try:
        with torch.device("meta"):
            if isinstance(config, BitGenConfig):
                return BitGenForCausalLM(config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # it would ask, else
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"--model {source}: no causal language model can be built of it ({printable(error, 200)})"
        ) from error


def adapted(
    lm: PreTrainedModel, targets: str | tuple[str, ...] = ALL_LINEAR, layers: tuple[int, ...] | None = None
) -> list[Layers]:
    """The layers that an adapter goes on, those of a name and shape together. ConfigError as ``targets_of``."""
    counts = Counter(
        (name.rsplit(".", 1)[-1], *linear_shape(lm.get_submodule(name))) for name in targets_of(lm, targets, layers)
    )
    return [Layers(*key, count) for key, count in counts.items()]


def cost(lm: PreTrainedModel, layers: list[Layers], rank: int, kind: str = "lora") -> Cost:
    """Parameters and bytes of an adapter of this rank."""
    parameters = sum(each.parameters(rank, kind) for each in layers)
    bytes_of_one = parameters * _FLOAT32
    return Cost(rank, parameters, parameters / base_parameters(lm), bytes_of_one, bytes_of_one, 2 * bytes_of_one)


def base_parameters(lm: PreTrainedModel) -> int:
    """Of the model itself, a tied table once."""
    return sum(parameter.numel() for parameter in lm.parameters())


def base_bytes(lm: PreTrainedModel) -> dict[str, int]:
    """Bytes of the frozen base: ``bf16``, and ``4-bit`` as bitsandbytes holds it by default: half a byte a value of the
    decoder's linear layers and a float32 scale for each 64 of them; the rest in bf16."""
    total, few_bits = base_parameters(lm), 0
    linear = 0
    for name in targets_of(lm):
        out, into = linear_shape(lm.get_submodule(name))
        linear += out * into
        few_bits += -(-out * into // 2) + -(-out * into // _BLOCK) * _FLOAT32
    return {"bf16": total * _BF16, "4-bit": (total - linear) * _BF16 + few_bits}


def _configuration(source: str | Path) -> PretrainedConfig:
    path = Path(source)
    try:
        if path.exists():
            return _from_settings(read_json(path / "config.json" if path.is_dir() else path, dict))
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, BadJson) as error:
        raise ConfigError(
            f"--model {source}: no configuration of a language model there ({printable(error, 200)}). Name a folder "
            "with a config.json, such a file, or a model on the Hub"
        ) from error
    return _of_text(config)


def _from_settings(settings: dict[str, Any]) -> PretrainedConfig:
    settings = {name: value for name, value in settings.items() if name != "quantization_config"}
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str):
        raise BadJson("it has no model_type")
    if kind == BitGenConfig.model_type:
        return BitGenConfig(**settings)
    return _of_text(AutoConfig.for_model(kind, **settings))


def _of_text(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)
