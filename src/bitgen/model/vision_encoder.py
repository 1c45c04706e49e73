"""A pretrained vision tower with LoRA adapters: pixels to patch features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .configuration_bitgen import BitGenConfig
from .frozen_tower import FrozenTower, resolve_lora_targets
from .parameter_roles import ADAPTER_KINDS, VISION, ParameterRole, role_of


class VisionFeatures(NamedTuple):
    """``patches [B, P, C]`` and the global ``cls [B, C]`` (None where the tower has no such token)."""

    patches: torch.Tensor
    cls: torch.Tensor | None


class VisionEncoder(FrozenTower):
    """The frozen tower and its adapters; pretrained weights are loaded by ``factory.build_model`` from outside."""

    def __init__(self, config: BitGenConfig) -> None:
        assert config.vision_config is not None
        super().__init__(config.vision_config, config.use_gradient_checkpointing)
        self.tuning = config.vision_tuning
        self._identity_check: tuple[tuple, bool] | None = None
        self._compiled: tuple[Callable[..., Any], ...] = ()  # in a tuple: no submodule, no state-dict keys
        if self.tuning == "lora":
            self._inject_adapters(config)
        if self._checkpointing:
            self.enable_checkpointing()
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

    def _role(self, name: str, parameter: nn.Parameter) -> ParameterRole:
        return role_of(f"vision_encoder.{name}", parameter.dim(), self.tuning, self.reaches(name))

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
        return VisionFeatures(hidden[:, self.prefix_tokens :], hidden[:, 0] if self.prefix_tokens else None)

    def _hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        run = self._compiled[0] if self._compiled else self.tower
        return run(pixel_values, **self.call_options()).last_hidden_state


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
