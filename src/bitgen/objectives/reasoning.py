"""Answering questions about pictures, with a rationale or at once: the language loss on what follows each question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bitgen.machine.ranks import Processes
from bitgen.model.modeling_bitgen import BitGenModel, ImageEncoding
from bitgen.objectives.language import language_loss
from bitgen.protocols import Output
from bitgen.stages import Role

# What answering reaches nothing of: retrieval's and matching's parts, and the memory's write.
_UNREACHED = ("image_pooling.", "image_projection.", "text_projection.", "itm_head.", "memory.gpm", "recall.")


class ReasoningObjective(nn.Module):
    """The model and the loss of its answers. A picture is seen once for all of its sequences.

    Args:
        temperature: of the contrastive loss that the model was trained with, which is passed on.
    """

    def __init__(self, model: BitGenModel, temperature: float = 0.07) -> None:
        super().__init__()
        self.model = model
        self.log_temperature = torch.tensor(temperature).log()
        for name, parameter in model.named_parameters():
            if name.startswith(_UNREACHED):
                parameter.requires_grad_(False)

    # --- what the training loop asks -----------------------------------------------------------------------------

    def begin(self, done: float, logged: bool) -> None:
        """Nothing depends on the step."""

    def advance(self, updates: Sequence[Any], ranks: Processes) -> None:
        """Nothing is kept from step to step."""

    def roles(self) -> dict[str, Role]:
        """What every parameter is, and whether an answer reaches it."""
        single = self.model.config.image_tokens == 1  # a softmax over one token has no gradient for its scores
        unreached = ("fusion.norm", "fusion.attention.query") if single else ()
        return {
            f"model.{name}": Role(*role, not name.startswith(_UNREACHED) and not any(one in name for one in unreached))
            for name, role in self.model.roles().items()
        }

    def base_names(self) -> set[str]:
        """Pretrained weights that no run changes."""
        return self.model.base_names()

    def state(self) -> dict[str, Any]:
        """The temperature of the model's contrastive loss, as its own training left it."""
        return {"log_temperature": self.log_temperature}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.log_temperature = state["log_temperature"].cpu()

    def flops(self, inputs: dict[str, torch.Tensor]) -> float | None:
        """No estimate."""
        return None

    # --- one micro-step ------------------------------------------------------------------------------------------

    def image_tokens(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, pixels or features, to the tokens that answers are written from: ``[B, P, D]``."""
        name = "vision_features" if self.model.config.takes_features else "pixel_values"
        encoding: ImageEncoding = self.model.encode_image(**{name: pictures})
        return self.model.pool_image_tokens(encoding.image_tokens)

    def forward(self, batch: dict[str, torch.Tensor]) -> Output:
        """The loss of a batch as ``QuestionCollator`` gives it; with ``advantages [R]`` the policy gradient's, in which
        each sequence counts by its advantage and the sum is divided by ``divisor``."""
        with self.model.embeddings.one_gradient():
            tokens = self.image_tokens(batch["pictures"])[batch["picture_of"]]
            output = self.model.run_stack(batch["input_ids"], batch["attention_mask"], tokens)
            loss = language_loss(
                output.hidden_states, self.model.embeddings.token.weight, batch["labels"], batch["weights"]
            )
        return Output(loss, {"loss": loss.detach(), "answer_loss": loss.detach()})
