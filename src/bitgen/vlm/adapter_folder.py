"""An adapter on disk, as peft writes and reads it, and the base that it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.names import BadName, inside
from bitgen.guards.printable import printable
from bitgen.machine.files import apply_umask, digest, replacing_folder
from bitgen.machine.hub import revision_of
from bitgen.vlm.adapter_config import AdapterConfig, from_peft

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "bitgen_adapter.json"
PREFIX = "base_model.model."  # peft's, before the name of a module of the base
# Parts of an adapted layer: the attribute that peft keeps each in, and the end of its name in a file.
PARTS = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight", "lora_magnitude_vector": ".lora_magnitude_vector"}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class Base(NamedTuple):
    """The language model that an adapter belongs to.

    ``name``: folder or name on the Hub. ``revision``: on the Hub, where known. ``sha256``: of its weights
    (:func:`weights_hash`), where known.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None


class AdapterFolder(NamedTuple):
    """An adapter that was read: ``target_modules``, ``layers`` and ``exclude_modules`` as its file has them,
    ``tensors`` by their names in the file."""

    config: AdapterConfig
    target_modules: str | list[str]
    layers: list[int] | None
    base: Base
    tensors: dict[str, torch.Tensor]
    fan_in_fan_out: bool
    exclude_modules: str | list[str] = ""

    def by_layer(self) -> dict[str, dict[str, torch.Tensor]]:
        """``{full name of the adapted layer: {part: tensor}}``, where a part is a key of ``PARTS``."""
        layers: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in self.tensors.items():
            part = next(part for part, ending in PARTS.items() if key.endswith(ending))
            layers.setdefault(key.removeprefix(PREFIX).removesuffix(PARTS[part]), {})[part] = tensor
        return layers


def read_adapter(folder: str | Path) -> AdapterFolder:
    """An adapter's folder, of ours or of peft.

    Raises:
        ValueError: a file is missing or damaged, or the adapter has parts beyond A, B and DoRA's magnitude.
    """
    folder = Path(folder)
    try:
        settings = read_json(folder / CONFIG, dict)
        config = from_peft(settings)
        targets, left_out = (_names(settings.get(name)) for name in ("target_modules", "exclude_modules"))
        layers = _layers(settings.get("layers_to_transform"))
        record = read_json(folder / RECORD, dict) if (folder / RECORD).exists() else {}
        tensors = load_file(inside(folder, WEIGHTS))
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot read the adapter there ({error.strerror or printable(error)}). Name the folder that "
            f"holds {CONFIG} and {WEIGHTS}."
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({printable(error, 200)}). Restore it from a copy.") from error
    except (BadJson, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {printable(error)}") from error
    known = tuple(PARTS.values())
    if strange := sorted(name for name in tensors if not (name.startswith(PREFIX) and name.endswith(known))):
        raise ValueError(f"{folder / WEIGHTS} holds {printable(strange[0], 200)}, which is no part of a LoRA or DoRA")
    revision = record.get("revision", settings.get("revision"))
    adapter = AdapterFolder(
        config,
        targets,
        layers,
        Base(
            str(settings.get("base_model_name_or_path") or ""),
            revision if isinstance(revision, str) else None,
            record.get("base_sha256"),
        ),
        tensors,
        bool(settings.get("fan_in_fan_out")),
        left_out,
    )
    _check_shapes(adapter, folder)
    return adapter


def _names(said: Any) -> str | list[str]:
    """A pattern, or a list of names. Raises ValueError."""
    if isinstance(said, str):
        try:
            re.compile(said)
        except re.error as error:
            raise ValueError(f"{printable(repr(said), 60)} is no pattern of names ({error})") from error
        return said
    if not isinstance(said or [], list):
        raise ValueError(f"{printable(said, 40)} is no list of names")
    return [str(name) for name in said or []]


def write_adapter(folder: str | Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor], base: Base) -> None:
    """Write an adapter's folder, whole or not at all; it is absent or empty before.

    Raises:
        ValueError: the folder holds something, or the disk says no.
    """
    config.base_model_name_or_path, config.revision, config.inference_mode = base.name, base.revision, True
    record = {"base": base.name, "revision": base.revision, "base_sha256": base.sha256}
    try:
        with replacing_folder(folder, replace=False) as new:
            config.save_pretrained(new)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / WEIGHTS, {"format": "pt"})
            apply_umask(new / WEIGHTS)
            (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{folder}: cannot write the adapter there ({error.strerror}); name a new folder") from error


def base_of(folder: str | Path, name: str | None = None) -> Base:
    """The base in a local folder: its commit, where the folder is of the Hub's cache, and the hash of its weights.

    Args:
        name: what to call it, such as its name on the Hub; None: the folder.

    Raises:
        ValueError: there are no weights in safetensors files, or they are damaged.
    """
    return Base(name or str(folder), revision_of(folder), weights_hash(folder))


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over names, types, shapes and values of a model's weights, however they are spread over files.

    Raises:
        ValueError: as :func:`weight_files`, or a file is damaged.
    """
    return digest(stored_weights(folder))


def stored_weights(folder: str | Path, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in a model's folder by their names, in the order of these, one at a time.

    Args:
        names: of them alone; None: all.

    Raises:
        ValueError: as :func:`weights_hash`; one of ``names`` is not there.
    """
    with_file = stored_names(folder)
    if names is not None and (missing := sorted(set(names) - set(with_file))):
        raise ValueError(f"{folder}: there is no weight {printable(missing[0], 200)} in its files")
    try:
        for name in sorted(with_file if names is None else names):
            with safe_open(with_file[name], "pt") as file:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(_damaged(folder, error)) from error


def stored_names(folder: str | Path) -> dict[str, Path]:
    """Names of the weights in a model's folder, each with the file that holds it.

    Raises:
        ValueError: as :func:`weight_files`; a file is damaged.
    """
    with_file: dict[str, Path] = {}
    try:
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                with_file |= dict.fromkeys(file.keys(), path)
    except SafetensorError as error:
        raise ValueError(_damaged(folder, error)) from error
    return with_file


def _damaged(folder: str | Path, error: SafetensorError) -> str:
    return f"{folder}: its weights are damaged ({printable(error, 200)}). Restore a copy."


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model's folder.

    Raises:
        ValueError: there are none, or one that the index names is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. Name the local folder of a model")
    if not (folder / _INDEX).exists():
        if not (folder / _SINGLE).is_file():
            raise ValueError(
                f"{folder}: there is no {_SINGLE}. Name a model's folder with weights in safetensors files"
            )
        return [folder / _SINGLE]
    try:
        names = read_json(folder / _INDEX, dict, {"weight_map": dict})["weight_map"].values()
        files = [inside(folder, str(name)) for name in sorted(set(map(str, names)))]
    except (BadJson, BadName, OSError) as error:
        raise ValueError(f"{folder / _INDEX}: {printable(error)}") from error
    if missing := [path for path in files if not path.is_file()]:
        raise ValueError(f"{folder}: {missing[0].name} is missing, which {_INDEX} names. Fetch the model again")
    return files


def _layers(value: Any) -> list[int] | None:
    """Raises ValueError."""
    if value is None:
        return None
    found = value if isinstance(value, list) else [value]
    if wrong := [each for each in found if type(each) is not int]:
        raise ValueError(f"layers_to_transform holds {printable(repr(wrong[0]), 60)}, which is no number of a layer")
    return found


def _check_shapes(adapter: AdapterFolder, folder: Path) -> None:
    """Every layer has the parts of its kind, and they fit one another and the rank."""
    wanted = set(PARTS) if adapter.config.kind == "dora" else {"lora_A", "lora_B"}
    for name, parts in adapter.by_layer().items():
        where = f"{folder / WEIGHTS}: {printable(name, 200)}"
        if lacks := sorted(wanted - set(parts)):
            raise ValueError(f"{where} has no {lacks[0]}. Save the adapter again")
        if extra := sorted(set(parts) - wanted):
            raise ValueError(f"{where} has a {extra[0]}, which the adapter's kind does not. Save it again")
        down, up = parts["lora_A"], parts["lora_B"]
        rank = adapter.config.rank
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != rank or up.shape[1] != rank:
            raise ValueError(
                f"{where} has A {list(down.shape)} and B {list(up.shape)}; with r {rank} they are [{rank}, in] and "
                f"[out, {rank}]"
            )
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None and magnitude.shape != up.shape[:1]:
            raise ValueError(
                f"{where} has a magnitude {list(magnitude.shape)}; with B {list(up.shape)} it is [{up.shape[0]}]"
            )
