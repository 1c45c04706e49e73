"""What objectives have in common whose loss depends on the batch and the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bitgen.machine.ranks import Processes
from bitgen.model.modeling_bitgen import BitGenModel


class StatelessObjective(nn.Module):
    """A model, and of its contrastive loss the temperature, which is passed on as its own training left it."""

    def __init__(self, model: BitGenModel, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.log_temperature = torch.tensor(temperature).log()

    def begin(self, done: float, logged: bool) -> None:
        """Nothing depends on the step."""

    def advance(self, updates: Sequence[Any], ranks: Processes) -> None:
        """Nothing is kept from step to step."""

    def base_names(self) -> set[str]:
        """Pretrained weights that no run changes."""
        return self.model.base_names()

    def state(self) -> dict[str, Any]:
        """The temperature."""
        return {"log_temperature": self.log_temperature}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.log_temperature = state["log_temperature"].cpu()

    def flops(self, inputs: dict[str, torch.Tensor]) -> float | None:
        """No estimate."""
        return None

    def image_tokens(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, pixels or features, to the tokens that texts are written from: ``[B, P, D]``."""
        name = "vision_features" if self.model.config.takes_features else "pixel_values"
        return self.model.pool_image_tokens(self.model.encode_image(**{name: pictures}).image_tokens)
