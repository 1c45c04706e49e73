"""What a connector is built from: its kind, the sizes on both of its sides, and the options of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bitgen.config.fields import AtLeastOne, Depth, Size, settings_of
from bitgen.config.values import ConfigError, coerce, shown, suggest

SETTINGS = {
    "frames": "num_frames",
    "queries": "connector_queries",
    "depth": "connector_depth",
    "heads": "connector_heads",
    "width": "connector_width",
    "prenorm": "connector_prenorm",
    "factor": "connector_factor",
    "dropout": "connector_dropout",
}
"""What a training run calls the frames and options of a connector; other options have no setting."""


@dataclass(frozen=True)
class ConnectorConfig:
    """The kind of a connector, the sizes that vision encoder and language model give it, and the options of its kind.

    Attributes:
        kind: a name in ``bitgen.vlm.connectors.KINDS``.
        vision_width: C, the encoder's hidden width.
        language_width: H, the width of the language model's token rows.
        tokens: N, patch tokens of a picture, without prefix tokens.
        layers: L, selected layers of the encoder.
        frames: the most pictures that a visual has.
        language_heads: attention heads of the language model.
        options: of the kind, by name; what is left out keeps its default.

    Raises:
        ConfigError: a size is no whole number, or below 1. Kind and options are checked when it is built.
    """

    kind: str
    vision_width: Size
    language_width: Size
    tokens: AtLeastOne
    layers: Depth
    frames: AtLeastOne
    language_heads: Size
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"The connector's options are {shown(self.options)}; write a mapping, as depth: 2.")
        for name in _REQUIRED:
            object.__setattr__(self, name, _value(type(self), name, getattr(self, name), "The connector's"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {name: getattr(self, name) for name in _REQUIRED} | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ConnectorConfig:
        """Build from what :meth:`to_dict` gave.

        Raises:
            ConfigError: an entry is missing or unknown, or has no value that fits.
        """
        if not isinstance(content, Mapping):
            raise ConfigError(f"The connector's configuration is {shown(content)}; write a mapping.")
        missing = [name for name in _REQUIRED if name not in content]
        if missing:
            raise ConfigError(f"The connector's configuration has no {', '.join(missing)}; add it.")
        _refuse_unknown(content, (*_REQUIRED, "options"), "The connector's configuration has no entry")
        return cls(**content)


_REQUIRED = ("kind", "vision_width", "language_width", "tokens", "layers", "frames", "language_heads")


def read_options(group: type, values: Mapping[str, Any], kind: str) -> Any:
    """The options of a kind as its dataclass ``group``.

    Raises:
        ConfigError: an option that the kind does not take, or a value of the wrong type or out of range.
    """
    _refuse_unknown(values, settings_of(group), f"The connector {kind} takes no option")
    return group(**{name: _value(group, name, value, f"The connector {kind}: its") for name, value in values.items()})


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], words: str) -> None:
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{words} {shown(name)}.{suggest(str(name), known)} It takes {', '.join(known) or 'none'}."
            )


def _value(group: type, name: str, value: Any, where: str) -> Any:
    """A value as the type of its field, and in the range of that type."""
    setting = settings_of(group)[name]
    read, allowed = coerce(setting.hint, value, f"{where} {name}"), setting.range
    if allowed is not None and read is not None:
        says = f"{where} {name} is {shown(read)}; it must be"
        if not allowed.holds(read):
            raise ConfigError(f"{says} {allowed.words}{its_setting(name)}.")
        if allowed.most is not None and read > allowed.most:
            raise ConfigError(f"{says} at most {allowed.most:,}{its_setting(name)}.")
    return read


def its_setting(name: str) -> str:
    """The end of a message about a value of a connector: its setting in a training run; empty: it has none."""
    return f" (setting {SETTINGS[name]})" if name in SETTINGS else ""


def with_options(config: ConnectorConfig, options: Any) -> ConnectorConfig:
    """The configuration with every option of its kind written out, so that a later default does not change it."""
    return dataclasses.replace(config, options=dataclasses.asdict(options))
