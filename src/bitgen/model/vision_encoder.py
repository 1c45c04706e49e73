"""DINOv2 with LoRA adapters: pixels to patch features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from .configuration_bitgen import BitGenConfig
from .parameter_roles import ADAPTER_KINDS, VISION, ParameterRole, role_of

# DINOv2's attention names its projections differently across transformers releases (renamed between 5.16 and 5.19).
QUERY_VALUE_NAMES = (("q_proj", "v_proj"), ("query", "value"))


class VisionFeatures(NamedTuple):
    """``patches [B, P, C]`` and the global ``cls [B, C]`` (None for features computed earlier)."""

    patches: torch.Tensor
    cls: torch.Tensor | None


def resolve_lora_targets(tower: nn.Module) -> list[str]:
    """Names of the attention's query and value projections in the tower as it was built.

    Raises:
        ValueError: no known pair of names occurs in the module.
    """
    leaves = {name.rsplit(".", 1)[-1] for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    for pair in QUERY_VALUE_NAMES:
        if leaves.issuperset(pair):
            return list(pair)
    raise ValueError(
        f"No query and value projections found in {type(tower).__name__}: expected one of {QUERY_VALUE_NAMES}, "
        f"found linear layers {sorted(leaves)}. Add this encoder's names to QUERY_VALUE_NAMES."
    )


class VisionEncoder(nn.Module):
    """The frozen tower and its adapters.

    The tower is built from its configuration with random weights; pretrained ones are loaded by
    ``factory.build_model`` from outside, because ``from_pretrained`` inside ``__init__`` breaks reloading. It always
    runs in eval mode (no dropout, no stochastic depth); only LoRA's own dropout follows ``train()``.
    """

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        self.tuning = config.vision_tuning
        self._identity_check: tuple[tuple, bool] | None = None
        self._checkpointing = config.use_gradient_checkpointing
        self._compiled: tuple[nn.Module, ...] = ()  # in a tuple it is no submodule, and adds no state-dict keys
        tower_config = dict(config.vision_config)
        tower_config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0)
        self.tower = AutoModel.from_config(
            AutoConfig.for_model(tower_config.pop("model_type", "dinov2"), **tower_config)
        )
        self.tower.requires_grad_(False)
        if self.tuning == "lora":
            self._inject_adapters(config)
        if self._checkpointing:
            # Reentrant checkpointing gives the adapters no gradient when the block's input needs none.
            self.tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in self.modules():
            module._is_hf_initialized = True  # the composite model's initialisation must leave the tower alone
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
                target_modules=resolve_lora_targets(self.tower),
                use_dora=config.use_dora,
                use_rslora=config.use_rslora,
                init_lora_weights=config.init_lora_weights,
                layers_to_transform=config.lora_layers,
            ),
            self.tower,
        )

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What phase 2 unfreezes: LoRA's weights, or with ``full`` every weight that an image reaches."""
        return ((name, p) for name, p in self.named_parameters() if self._role(name, p).kind in ADAPTER_KINDS)

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The pretrained weights."""
        return ((name, p) for name, p in self.named_parameters() if self._role(name, p).part == VISION)

    def tower_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The pretrained weights under their names in the tower."""
        return ((name.removeprefix("tower."), p) for name, p in self.base_parameters())

    def _role(self, name: str, parameter: nn.Parameter) -> ParameterRole:
        return role_of(f"vision_encoder.{name}", parameter.dim(), self.tuning)

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
        """``[B, 3, H, W]``, normalised -> patch features: the last hidden state without, and with only, CLS."""
        trainable = self.trainable
        skip_adapters = self.tuning == "lora" and not trainable and self.adapters_are_identity()
        with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
            if skip_adapters:
                with _adapters_off(self.tower):
                    hidden = self._hidden(pixel_values)
            else:
                hidden = self._hidden(pixel_values)
        return VisionFeatures(patches=hidden[:, 1:], cls=hidden[:, 0])

    def _hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        run = self._compiled[0] if self._compiled else self.tower
        return run(pixel_values).last_hidden_state


class _adapters_off:  # noqa: N801  (used as a context manager)
    """Run the base layers alone. Sets the flag that LoRA layers read, which, unlike PEFT's ``enable_adapters``,
    leaves ``requires_grad`` as it is."""

    def __init__(self, tower: nn.Module) -> None:
        self.layers = [module for module in tower.modules() if hasattr(module, "lora_A")]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer._disable_adapters = True

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer._disable_adapters = False
