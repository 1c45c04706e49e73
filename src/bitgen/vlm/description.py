"""What a vision-language model is made of, in words and numbers: the ``config.json`` of its checkpoints and folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bitgen.guards.json_files import BadJson, Shape, check_keys
from bitgen.guards.printable import printable

MODEL_TYPE = "bitgen_vlm"
FORMAT = 1
Layers = int | list[int] | str
_TEXT, _MAPPING = (str, type(None)), (dict, type(None))
_TOP: Shape = {"language": dict, "vision": _MAPPING, "connector": _MAPPING, "adapter": _MAPPING, "speech": dict}
_OF_LANGUAGE: Shape = {
    "name": str,
    "revision": _TEXT,
    "weights_sha256": _TEXT,
    "config": _MAPPING,
    "dtype": str,
    "quantization": _TEXT,
}
_OF_VISION: Shape = {
    "config": dict,
    "select_layer": (int, list, str),
    "tuning": str,
    "adapter_rank": int,
    "adapter_alpha": int,
}
_OF_SPEECH: Shape = {"template": str, "system_prompt": _TEXT, "max_length": int, "num_frames": int, "prompt": str}
_OWN_PARTS = ("vision", "language")
# Beyond these no model goes: a size that is wrong would be built for hours.
_MOST = 10_000_000


@dataclass(frozen=True)
class VisionSource:
    """The encoder: ``config`` is what ``vision.build_tower`` makes it of; in it stand its source, revision and the hash
    of its weights. ``tuning``: frozen, lora (with adapters of its own) or full."""

    config: dict[str, Any]
    select_layer: Layers = -2
    tuning: str = "frozen"
    adapter_rank: int = 16
    adapter_alpha: int = 32


@dataclass(frozen=True)
class LanguageSource:
    """The causal language model: ``name`` (hub id, folder, ``random``), whose weights have this SHA-256.

    ``config``: the configuration of a random one; None: it comes under its name.
    """

    name: str
    revision: str | None = None
    weights_sha256: str | None = None
    config: dict[str, Any] | None = None
    dtype: str = "float32"
    quantization: str | None = None


@dataclass(frozen=True)
class SpeechSource:
    """How a conversation becomes tokens."""

    template: str = "tokenizer"
    system_prompt: str | None = None
    max_length: int = 2048
    num_frames: int = 8
    prompt: str = "Describe the image."


@dataclass(frozen=True)
class Description:
    """The whole model. ``connector`` and ``adapter``: their own settings as plain values; None: there is none.

    ``own_parts``: of encoder and language model, those whose weights lie beside this description and not under their
    names.
    """

    language: LanguageSource
    vision: VisionSource | None = None
    connector: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    own_parts: tuple[str, ...] = ()
    speech: SpeechSource = field(default_factory=SpeechSource)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"model_type": MODEL_TYPE, "format": FORMAT, **asdict(self), "own_parts": list(self.own_parts)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Description:
        """What :meth:`to_dict` gave.

        Raises:
            ValueError: it is of another kind or a newer format, or a field is missing, unknown or beyond all sizes.
        """
        content = dict(content)
        kind, version = content.pop("model_type", None), content.pop("format", None)
        if kind != MODEL_TYPE:
            raise ValueError(f"config.json describes a {printable(kind, 40)}, not a model of encoder and connector")
        if not isinstance(version, int) or version > FORMAT:
            raise ValueError(f"config.json has format {printable(version, 20)}, newer than {FORMAT}: update BitGen")
        try:
            check_keys(content, {"language": dict, "own_parts": list})
            of_parts = ((None, _TOP), ("language", _OF_LANGUAGE), ("vision", _OF_VISION), ("speech", _OF_SPEECH))
            for name, shape in of_parts:
                found = content if name is None else content.get(name) or {}
                check_keys(found, {key: kinds for key, kinds in shape.items() if key in found})
            if unknown := [part for part in content["own_parts"] if part not in _OWN_PARTS]:
                raise BadJson(f"its own_parts name {printable(unknown[0], 40)}; there are {', '.join(_OWN_PARTS)}")
        except BadJson as error:
            raise ValueError(f"config.json: {error}") from error
        _check_sizes(content)
        vision, own = content.pop("vision", None), content.pop("own_parts")
        return _build(
            cls,
            {
                **content,
                "language": _build(LanguageSource, content["language"]),
                "vision": _build(VisionSource, vision) if vision is not None else None,
                "speech": _build(SpeechSource, content.get("speech") or {}),
                "own_parts": tuple(own),
            },
        )


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"config.json has a field {printable(unknown[0], 40)!r} that this BitGen does not know")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"config.json lacks a field ({printable(error, 100)})") from error


def _check_sizes(value: Any, name: str = "config.json") -> None:
    """Raise ``ValueError`` for a number beyond all models, wherever it stands."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_sizes(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_sizes(inner, name)
    elif isinstance(value, int) and abs(value) > _MOST:
        raise ValueError(f"config.json: {printable(name, 40)} is {value}, beyond {_MOST:,}")
