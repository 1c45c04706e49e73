"""What an adapter is: its kind, rank, scale and targets, and how peft names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from bitgen.config import ConfigError
from bitgen.guards.printable import printable

if TYPE_CHECKING:  # importing peft takes a second, which a model without adapters does not wait for
    from peft import LoraConfig

ALL_LINEAR = "all-linear"
Kind = Literal["none", "lora", "dora"]
Init = Literal["kaiming", "gaussian"]
# peft's name of each start. Its others (pissa, olora, eva ...) also change the base's weights or need data: an adapter
# that starts so no longer belongs to the base as it was published.
_INITS: dict[str, bool | str] = {"kaiming": True, "gaussian": "gaussian"}
# Of adapter_config.json: what is read, or does not change what an adapter computes. Everything else must have peft's
# default value.
_READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "init_lora_weights"}
_FREE = {"base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"}
_FREE |= {"fan_in_fan_out", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "loftq_config"}
_FREE |= {"runtime_config", "ensure_weight_tying", "peft_type"}


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter of a language model's linear layers: LoRA (arXiv 2106.09685), or DoRA (arXiv 2402.09353).

    Args:
        kind: ``none`` freezes the language model and adds nothing.
        rank: inner width r of ``B A``.
        alpha: the adapter adds ``alpha / r * B A x``.
        dropout: on the adapter's input, in training.
        rslora: scale by ``alpha / sqrt(r)`` instead (arXiv 2312.03732).
        targets: ``all-linear``, or last names of linear layers: ``q_proj,v_proj``, or a sequence of them.
        layers: numbers of the decoder's layers, from 0; None: all.
        init: of A: ``kaiming`` is uniform in +-1/sqrt(in), ``gaussian`` normal with deviation 1/r. B is 0 at the start.

    Raises:
        ConfigError: a value out of range.
    """

    kind: Kind = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    rslora: bool = False
    targets: str | tuple[str, ...] = ALL_LINEAR
    layers: tuple[int, ...] | None = None
    init: Init = "kaiming"

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, get_args(Kind)), ("init", self.init, get_args(Init))):
            if value not in known:
                raise ConfigError(f"adapter {name} is {printable(value, 40)}; write one of {', '.join(known)}")
        if self.rank < 1:
            raise ConfigError(f"adapter rank is {self.rank}; it must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"adapter alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def scale(self) -> float:
        """What ``B A x`` is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def to_peft(self, target_modules: list[str], fan_in_fan_out: bool = False) -> LoraConfig:
        """peft's configuration for layers of these full names."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.kind == "dora",
            init_lora_weights=_INITS[self.init],
            target_modules=target_modules,
            fan_in_fan_out=fan_in_fan_out,
            task_type="CAUSAL_LM",
        )


def split_targets(targets: str | tuple[str, ...] | list[str]) -> list[str]:
    """``q_proj,v_proj``, or a sequence of names, as a list of names."""
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    return [name.strip() for name in names if name.strip()]


def from_peft(settings: Mapping[str, Any]) -> AdapterConfig:
    """The adapter that an ``adapter_config.json`` describes.

    Raises:
        ValueError: it is no LoRA or DoRA, or one with parts beyond A, B and the magnitude. The message does not name
            the file; the caller does.
    """
    from peft import LoraConfig

    if settings.get("peft_type") != "LORA":
        raise ValueError(f"it is a {printable(settings.get('peft_type'), 40)} adapter; LoRA and DoRA are known")
    defaults = LoraConfig().to_dict()
    for name in sorted(set(settings) - _READ - _FREE):
        if settings[name] and settings[name] != defaults.get(name):
            raise ValueError(
                f"it sets {printable(name, 60)}, which is not supported: A, B and DoRA's magnitude alone are"
            )
    starts = {peft: ours for ours, peft in _INITS.items()} | {False: "kaiming"}
    init = settings.get("init_lora_weights", True)
    if not isinstance(init, (bool, str)) or init not in starts:
        raise ValueError(
            f"it started from {printable(init, 40)}, which changes the base's weights or needs its data; convert it to "
            "a plain LoRA first (save_pretrained of peft with path_initial_model_for_weight_conversion)"
        )
    try:
        return AdapterConfig(
            kind="dora" if settings.get("use_dora") else "lora",
            rank=int(settings.get("r", 8)),
            alpha=float(settings.get("lora_alpha", 8)),
            dropout=float(settings.get("lora_dropout", 0.0)),
            rslora=bool(settings.get("use_rslora", False)),
            init=starts[init],  # type: ignore[arg-type]  # its values are those of Init
        )
    except TypeError as error:
        raise ValueError(f"its r, lora_alpha or lora_dropout is no number ({printable(error, 100)})") from error
