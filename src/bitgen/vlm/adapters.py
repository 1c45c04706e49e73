"""LoRA, DoRA and rsLoRA on a causal language model: attach, save, load and merge, by peft."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitgen.config import ConfigError
from bitgen.guards.printable import printable
from bitgen.vlm.adapter_config import ALL_LINEAR, AdapterConfig, split_targets
from bitgen.vlm.adapter_folder import PARTS, PREFIX, AdapterFolder, Base, read_adapter, write_adapter

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

_NAME = "default"  # of the adapter, in the names that peft gives to parameters
_QUANTISED = {"Linear4bit": "4-bit", "Linear8bitLt": "8-bit"}  # classes of bitsandbytes, which need not be installed


def targets_of(
    lm: PreTrainedModel, targets: str | tuple[str, ...] | list[str] = ALL_LINEAR, layers: tuple[int, ...] | None = None
) -> list[str]:
    """Full names of the linear layers that an adapter goes on, in the order of the model.

    Only the decoder is searched: the output head is never a target, and a vision tower beside the decoder, whose
    layers often have the same last names, is not either.

    Args:
        targets: ``all-linear``, or last names such as ``q_proj,v_proj``, or longer ends of names. Fused projections
            have names of their own (``qkv_proj``, ``gate_up_proj`` of Phi-3).
        layers: numbers of the decoder's layers, from 0; None: all.

    Raises:
        ConfigError: a name or number that the model does not have; the message names those there are.
    """
    names = list(_linears(lm))
    last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    wanted: list[str] = last if targets == ALL_LINEAR else split_targets(targets)
    if not wanted:
        raise ConfigError(f"adapter targets are empty; write {ALL_LINEAR}, or some of {_listed(last)}")
    if unknown := [target for target in wanted if not any(_matches(name, [target]) for name in names)]:
        raise ConfigError(
            f"adapter targets: the language model has no linear layer named {printable(unknown[0], 60)!r} in its "
            f"decoder; write {ALL_LINEAR}, or some of {_listed(last)}"
        )
    numbers = {_layer_number(name) for name in names} - {None}
    if missing := [number for number in layers or () if number not in numbers]:
        raise ConfigError(f"adapter layers: there is no layer {missing[0]}; the decoder has 0 to {len(numbers) - 1}")
    return [name for name in names if _matches(name, wanted) and (layers is None or _layer_number(name) in layers)]


def attach(lm: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """Put an adapter on the language model, in place, and freeze all other parameters of it.

    The output is unchanged at first, and ``lm`` keeps its class, its names and ``generate``. Adapters of a model in
    bf16 or fp16 are float32, as those on 4-bit and 8-bit layers (bitsandbytes) are.

    Returns:
        The full names of the adapted layers; none of them with ``kind="none"``.

    Raises:
        ConfigError: unknown targets, a model that has an adapter already.
    """
    if adapted_layers(lm):
        raise ConfigError("the language model has an adapter already; merge it first, or load the model anew")
    names = targets_of(lm, config.targets, config.layers) if config.kind != "none" else []
    if names:
        _inject(lm, config, names)
    _train_adapters_alone(lm)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in lm.parameters()):
        renorm(lm)  # peft gives magnitudes the weights' own type, which rounds them
    return names


def renorm(lm: PreTrainedModel) -> None:
    """Give DoRA's magnitudes the norms of the weights as they are, where those were loaded after :func:`attach`: until
    then they are the norms of other weights. Layers of 4 or 8 bits are left alone, since none is loaded into."""
    with torch.no_grad():
        layer: Any
        for layer in adapted_layers(lm).values():
            base = layer.get_base_layer()
            if _NAME in layer.lora_magnitude_vector and not _bits(base):
                whole = base.weight.float() + layer.get_delta_weight(_NAME).float()
                norms = whole.norm(dim=0 if isinstance(base, Conv1D) else 1)
                layer.lora_magnitude_vector[_NAME].weight.copy_(norms)


def is_adapted(layer: nn.Module) -> TypeGuard[LoraLayer]:
    """Whether a layer has an adapter of peft. None has one before peft is imported, which takes a second."""
    peft = sys.modules.get("peft.tuners.lora.layer")
    known = getattr(peft, "LoraLayer", None)  # None, too, while another thread imports it
    return known is not None and isinstance(layer, known)


def adapted_layers(lm: PreTrainedModel) -> dict[str, LoraLayer]:
    """The adapted layers of the decoder by their full names."""
    return {name: layer for name, layer in _linears(lm).items() if is_adapted(layer)}


def adapter_state(lm: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under the names that peft's files have."""
    source = dict(lm.named_parameters())
    return {key: source[name].detach().cpu() for name, key in _adapter_parameters(lm).items()}


def save_adapter(lm: PreTrainedModel, folder: str | Path, base: Base) -> None:
    """Write the adapter as peft does (``PeftModel.from_pretrained`` loads it), and beside it a record of its base.

    Args:
        folder: absent or empty; written whole or not at all.
        base: what the adapter belongs to (``adapter_folder.base_of`` makes it of a folder).

    Raises:
        ValueError: there is no adapter, or the folder cannot be written.
    """
    layers = adapted_layers(lm)
    if not layers:
        raise ValueError(f"{folder}: the language model has no adapter to save; attach one first")
    settings = lm.peft_config[_NAME]
    settings.target_modules = list(layers)  # peft may have shortened them; full names hold on every model
    write_adapter(folder, settings, adapter_state(lm), base)


def load_adapter(lm: PreTrainedModel, folder: str | Path) -> AdapterConfig:
    """Put a saved adapter, of ours or of peft, on the language model. As after :func:`attach` all else is frozen.

    Raises:
        ValueError: the folder's files are missing or damaged, a tensor is missing, or does not belong to the model.
    """
    if adapted_layers(lm):
        raise ConfigError("the language model has an adapter already; merge it first, or load the model anew")
    found = read_adapter(folder)
    expected = _expected(lm, found)
    given = found.by_layer()
    if missing := sorted(set(expected) - set(given)):
        raise ValueError(f"{folder}: the adapter's file has nothing for {printable(missing[0], 200)}. Save it again")
    if unexpected := sorted(set(given) - set(expected)):
        raise ValueError(
            f"{folder}: the adapter's file has {printable(unexpected[0], 200)}, which is no adapted layer of this "
            "language model. Name the adapter of this model"
        )
    linears = _linears(lm)
    for name in expected:
        shape = (given[name]["lora_B"].shape[0], given[name]["lora_A"].shape[1])
        if shape != (has := linear_shape(linears[name])):
            raise ValueError(f"{folder}: {name} has [out, in] {list(has)} in the model and {list(shape)} in the file")
    _inject(lm, found.config, expected)
    _train_adapters_alone(lm)
    parameters = dict(lm.named_parameters())
    with torch.no_grad():
        for name, key in _adapter_parameters(lm).items():
            parameters[name].copy_(found.tensors[key].view_as(parameters[name]))
    return found.config


def merge(lm: PreTrainedModel) -> None:
    """Fold the adapter into the weights, in place: same outputs (1e-5 in float32), and no peft left.

    Raises:
        ValueError: there is no adapter; layers of 4 or 8 bits; weights that are not finite.
    """
    layers = adapted_layers(lm)
    if not layers:
        raise ValueError("the language model has no adapter to merge")
    for name, layer in layers.items():
        if bits := _bits(layer.get_base_layer()):
            raise ValueError(
                f"{name} is {bits}: merging would round the sum to {bits} again and lose much of the adapter. Load the "
                "base in float32 or bf16, load the adapter on it and merge there"
            )
    for layer in layers.values():
        layer.merge(safe_merge=True)
    remove(lm)


def remove(lm: PreTrainedModel) -> None:
    """Take the adapter out, in place: the base as it was, and no peft left. Without one nothing happens."""
    for name, layer in adapted_layers(lm).items():
        parent, _, last = name.rpartition(".")
        setattr(lm.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(lm, "peft_config"):
        del lm.peft_config


def enable_checkpointing(lm: PreTrainedModel) -> None:
    """Compute activations of the decoder's layers anew in backward: less memory, more time, the same gradients.

    Not reentrant: the reentrant kind gives no gradient where the layers' inputs need none, as with a frozen connector.
    """
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """``(out, in)`` of a linear layer, whatever its weight is stored as."""
    layer = layer.get_base_layer() if is_adapted(layer) else layer
    if isinstance(layer, Conv1D):
        return layer.weight.shape[1], layer.weight.shape[0]
    return layer.out_features, layer.in_features  # type: ignore[return-value]  # of nn.Linear


def _linears(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder's linear layers by full name in ``lm``, an adapted one as its ``LoraLayer``; never the head."""
    decoder, head = lm.get_decoder(), lm.get_output_embeddings()
    start = next(name for name, module in lm.named_modules() if module is decoder)
    found: dict[str, nn.Module] = {}
    within: str | None = None
    module: nn.Module
    for name, module in decoder.named_modules(prefix=start):
        if within is not None and name.startswith(f"{within}."):
            continue  # A, B and the base of an adapted layer
        adapted: bool = is_adapted(module)
        within = name if adapted else None
        if (adapted or isinstance(module, (nn.Linear, Conv1D))) and module is not head:
            found[name] = module
    return found


def _bits(layer: nn.Module) -> str | None:
    return _QUANTISED.get(type(layer).__name__)


def _layer_number(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _inject(lm: PreTrainedModel, config: AdapterConfig, names: list[str]) -> None:
    from peft import inject_adapter_in_model

    linears = _linears(lm)
    if config.kind == "dora" and any(
        _bits(linears[name]) == "8-bit" and linears[name].weight.device.type == "cpu" for name in names
    ):  # peft moves such a weight in each forward pass, which loses its scale
        raise ConfigError("DoRA on 8-bit layers does not run on a CPU; load the base in 4 bits, or take kind lora")
    inject_adapter_in_model(config.to_peft(list(names), any(isinstance(linears[name], Conv1D) for name in names)), lm)
    adapted = set(adapted_layers(lm))
    assert adapted == set(names), f"peft adapted {sorted(adapted ^ set(names))[:3]} differently"


def _train_adapters_alone(lm: PreTrainedModel) -> None:
    # By our own list of names: peft's test of a name also takes the adapters of a vision tower beside the decoder.
    adapters = _adapter_parameters(lm)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(name in adapters)
        if name in adapters and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _adapter_parameters(lm: PreTrainedModel) -> dict[str, str]:
    """``{name in the model: name in the file}`` of the adapter's parameters."""
    found = {}
    for name, layer in adapted_layers(lm).items():
        for attribute, ending in PARTS.items():
            if _NAME in getattr(layer, attribute):
                found[f"{name}.{attribute}.{_NAME}.weight"] = f"{PREFIX}{name}{ending}"
    return found


def _expected(lm: PreTrainedModel, found: AdapterFolder) -> list[str]:
    """The layers that the adapter's own file says it is on."""
    return [
        name
        for name in _linears(lm)
        if _matches(name, found.target_modules)
        and (found.layers is None or _layer_number(name) in found.layers)
        and not _matches(name, found.exclude_modules)
    ]


def _matches(name: str, targets: str | list[str]) -> bool:
    """peft's rule: a text is a pattern of full names (or ``all-linear``), a list holds full names or ends of them."""
    if isinstance(targets, str):
        return targets == ALL_LINEAR or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name, 60) for name in names)
