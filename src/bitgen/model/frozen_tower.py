"""A vision tower as transformers builds it, frozen and at rest; with room for adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from .vision_towers import TIMM, prefix_tokens, tower_kind

# Names of the attention's query and value projections: DINOv2's were renamed between transformers 5.16 and 5.19, and
# timm has one projection for query, key and value.
QUERY_VALUE_NAMES = (("q_proj", "v_proj"), ("query", "value"), ("qkv",))
# Under these names, which differ between kinds of towers, a configuration says what is dropped at random in training.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate")


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
    there = sorted({number for number in index.values() if number is not None})
    if missing := sorted(set(layers) - set(there)) or not layers:
        which = f"{missing} of lora_layers={layers} are" if layers else "lora_layers is empty, which is"
        raise ValueError(f"{which} no layers of {type(tower).__name__}: it has {there}.")
    return [name for name in targets if index[name] in layers]


def _built(vision_config: dict[str, Any]) -> Any:
    settings = dict(vision_config)
    model_type = settings.pop("model_type", "dinov2")
    config = AutoConfig.for_model(model_type, **settings)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    # What the pretrained weights were stored in, which may be half precision; transformers 4 has no such name.
    if getattr(config, "dtype", None) is not None:
        config.dtype = torch.get_default_dtype()
    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except ImportError as error:
        if model_type != TIMM:
            raise
        raise ImportError("timm builds this vision tower: `pip install timm`.") from error


class FrozenTower(nn.Module):
    """The tower, built from its configuration with random weights; pretrained ones are loaded from outside.

    ``from_pretrained`` inside ``__init__`` would break reloading. It always runs in eval mode (no dropout, no
    stochastic depth); only the dropout of LoRA layers, where some were put in, follows ``train()``.

    Raises:
        ImportError: the tower needs a package that is not installed.
    """

    def __init__(self, vision_config: dict[str, Any], use_gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.kind = tower_kind(vision_config)
        self.prefix_tokens = prefix_tokens(vision_config)
        self._checkpointing = use_gradient_checkpointing
        self.tower = _built(vision_config)
        self.tower.requires_grad_(False)
        self.tower.eval()

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        # Reentrant checkpointing gives the adapters no gradient when the block's input needs none.
        self.tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def trainable(self) -> bool:
        """Whether gradients go through the tower: some of its parameters train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def tower_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The pretrained weights under their names in the tower."""
        return ((name, p) for name, p in self.tower.named_parameters() if "lora_" not in name)

    def call_options(self) -> dict[str, bool]:
        """What this kind's ``forward`` must be told so that the image may have any size."""
        return {"interpolate_pos_encoding": True} if self.kind.asks_to_interpolate else {}

    def train(self, mode: bool = True) -> FrozenTower:
        super().train(mode)
        self.tower.eval()
        drops = mode and self.trainable
        for name, module in self.tower.named_modules():
            if "lora_dropout" in name:
                module.train(drops)
            elif self._checkpointing and hasattr(module, "gradient_checkpointing"):
                module.training = mode  # the block's own flag switches checkpointing on; its children stay in eval
        return self
