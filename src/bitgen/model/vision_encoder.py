"""A pretrained vision tower with LoRA adapters: pixels to patch features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from .configuration_bitgen import BitGenConfig
from .parameter_roles import ADAPTER_KINDS, VISION, ParameterRole, role_of
from .vision_towers import tower_kind

# DINOv2's attention names its projections differently across transformers releases (renamed between 5.16 and 5.19).
QUERY_VALUE_NAMES = (("q_proj", "v_proj"), ("query", "value"))
# Under these names, which differ between kinds of towers, a configuration says what is dropped at random in training.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate")


class VisionFeatures(NamedTuple):
    """``patches [B, P, C]`` and the global ``cls [B, C]`` (None where the tower has no such token)."""

    patches: torch.Tensor
    cls: torch.Tensor | None


def resolve_lora_targets(tower: nn.Module, layers: list[int] | None = None) -> list[str]:
    """Full names of the attention's query and value projections in the tower as it was built.

    Args:
        layers: indices of the layers to adapt; None: all.

    Raises:
        ValueError: no known pair of names occurs in the module, or none of ``layers`` does.
    """
    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    leaves = {name.rsplit(".", 1)[-1] for name in linear}
    pair = next((names for names in QUERY_VALUE_NAMES if leaves.issuperset(names)), None)
    if pair is None:
        raise ValueError(
            f"No query and value projections found in {type(tower).__name__}: expected one of {QUERY_VALUE_NAMES}, "
            f"found linear layers {sorted(leaves)}. Add this encoder's names to QUERY_VALUE_NAMES."
        )
    targets = [name for name in linear if name.rsplit(".", 1)[-1] in pair]
    if layers is None:
        return targets
    index = {name: next((int(part) for part in name.split(".") if part.isdigit()), None) for name in targets}
    chosen = [name for name in targets if index[name] in layers]
    if not chosen:
        there = sorted({number for number in index.values() if number is not None})
        raise ValueError(f"lora_layers={layers} names no layer of {type(tower).__name__}: it has {there}.")
    return chosen


class VisionEncoder(nn.Module):
    """The frozen tower and its adapters.

    The tower is built from its configuration with random weights; pretrained ones are loaded by
    ``factory.build_model`` from outside, because ``from_pretrained`` inside ``__init__`` breaks reloading. It always
    runs in eval mode (no dropout, no stochastic depth); only LoRA's own dropout follows ``train()``.
    """

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        assert config.vision_config is not None
        self.tuning = config.vision_tuning
        self._identity_check: tuple[tuple, bool] | None = None
        self._checkpointing = config.use_gradient_checkpointing
        self._compiled: tuple[Callable[..., Any], ...] = ()  # in a tuple: no submodule, no state-dict keys
        self.kind = tower_kind(config.vision_config)
        settings = dict(config.vision_config)
        tower_config = AutoConfig.for_model(settings.pop("model_type", "dinov2"), **settings)
        for name in DROPOUTS:
            if hasattr(tower_config, name):
                setattr(tower_config, name, 0.0)
        if tower_config.dtype is not None:  # what the pretrained weights were stored in, which may be half precision
            tower_config.dtype = torch.get_default_dtype()
        self.tower = AutoModel.from_config(tower_config)
        self.prefix_tokens = self.kind.cls_tokens + getattr(self.tower.config, "num_register_tokens", 0)
        self.tower.requires_grad_(False)
        if self.tuning == "lora":
            self._inject_adapters(config)
        if self._checkpointing:
            # Reentrant checkpointing gives the adapters no gradient when the block's input needs none.
            self.tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module: Any  # nn.Module declares no such attribute
        for module in self.modules():
            # The composite model's initialisation must leave the tower alone. Loading through transformers, which
            # builds without memory, is another matter: buffers that no file holds are computed then.
            module._is_hf_initialized = not any(buffer.is_meta for buffer in module.buffers(recurse=False))
        self.set_adapters_trainable(False)

    def _inject_adapters(self, config: BitGenConfig) -> None:
        # transformers asks for every package that an exported file imports outside a `try`, used or not.
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError(
                "This model has LoRA adapters, which need peft: `pip install peft`, or export the model again with "
                "--merge_lora True."
            ) from error

        inject_adapter_in_model(
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=resolve_lora_targets(self.tower, config.lora_layers),
                use_dora=config.use_dora,
                use_rslora=config.use_rslora,
                init_lora_weights=config.init_lora_weights,
            ),
            self.tower,
        )

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What phase 2 unfreezes: LoRA's weights, or with ``full`` every weight that an image reaches."""
        return ((name, p) for name, p in self.named_parameters() if self._role(name, p).kind in ADAPTER_KINDS)

    def reaches(self, name: str) -> bool:
        """Whether a weight, by its name here, gets a gradient from the patch features."""
        name = name.removeprefix("tower.")
        return not name.endswith(self.kind.gradient_free) and not name.startswith(self.kind.unused)

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The pretrained weights."""
        return ((name, p) for name, p in self.named_parameters() if self._role(name, p).part == VISION)

    def tower_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The pretrained weights under their names in the tower."""
        return ((name.removeprefix("tower."), p) for name, p in self.base_parameters())

    def _role(self, name: str, parameter: nn.Parameter) -> ParameterRole:
        return role_of(f"vision_encoder.{name}", parameter.dim(), self.tuning, self.reaches(name))

    @property
    def trainable(self) -> bool:
        """Whether gradients go through the tower: some of its parameters train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def set_adapters_trainable(self, trainable: bool) -> None:
        """Freeze (phase 1) or unfreeze (phase 2) exactly :meth:`adapter_parameters`."""
        for _, parameter in self.adapter_parameters():
            parameter.requires_grad_(trainable)
        self.train(self.training)

    @torch.no_grad()
    def reset_magnitudes(self) -> None:
        """DoRA's magnitudes anew from the tower's present weights; they start at the norm of the adapted weight."""
        for layer in self.tower.modules():
            for name, magnitude in getattr(layer, "lora_magnitude_vector", {}).items():
                update = layer.lora_B[name].weight @ layer.lora_A[name].weight * layer.scaling[name]
                magnitude.weight.copy_((layer.base_layer.weight + update).norm(dim=1))

    def adapters_are_identity(self) -> bool:
        """Whether every LoRA B is zero, so that the adapters add exactly nothing and need not be computed.

        Looked at again only when a weight was written (its version counter moved): on a GPU looking costs a wait.
        """
        lora_b = [p for name, p in self.tower.named_parameters() if "lora_B" in name]
        versions = tuple((id(p), p._version) for p in lora_b)
        if self._identity_check is None or self._identity_check[0] != versions:
            self._identity_check = (versions, not any(bool(p.detach().any()) for p in lora_b))
        return self._identity_check[1]

    def compile(self) -> None:
        """Run the tower through ``torch.compile``."""
        self._compiled = (torch.compile(self.tower),)

    def train(self, mode: bool = True) -> VisionEncoder:
        super().train(mode)
        self.tower.eval()
        drops = mode and self.trainable
        for name, module in self.tower.named_modules():
            if "lora_dropout" in name:
                module.train(drops)
            elif self._checkpointing and hasattr(module, "gradient_checkpointing"):
                module.training = mode  # the block's own flag switches checkpointing on; its children stay in eval
        return self

    def forward(self, pixel_values: torch.Tensor) -> VisionFeatures:
        """``[B, 3, H, W]``, normalised -> the last hidden state of the patches, and that of CLS. Register tokens are
        dropped: they stand for no place in the image (arXiv 2309.16588)."""
        trainable = self.trainable
        skip_adapters = self.tuning == "lora" and not trainable and self.adapters_are_identity()
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if skip_adapters:
                with _adapters_off(self.tower):
                    hidden = self._hidden(pixel_values)
            else:
                hidden = self._hidden(pixel_values)
        return VisionFeatures(hidden[:, self.prefix_tokens :], hidden[:, 0] if self.kind.cls_tokens else None)

    def _hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        run = self._compiled[0] if self._compiled else self.tower
        options = {"interpolate_pos_encoding": True} if self.kind.asks_to_interpolate else {}
        return run(pixel_values, **options).last_hidden_state


class _adapters_off:  # noqa: N801  (used as a context manager)
    """Run the base layers alone. Sets the flag that LoRA layers read, which, unlike PEFT's ``enable_adapters``,
    leaves ``requires_grad`` as it is."""

    def __init__(self, tower: nn.Module) -> None:
        self.layers: list[Any] = [module for module in tower.modules() if hasattr(module, "lora_A")]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer._disable_adapters = True

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer._disable_adapters = False
