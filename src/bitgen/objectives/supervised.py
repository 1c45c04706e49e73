"""The loss of a vision-language model of parts: the next token, where an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bitgen.machine.ranks import Processes
from bitgen.protocols import Output
from bitgen.stages import Role
from bitgen.vlm.modeling import VisionLanguageModel


class NextTokens(nn.Module):
    """Mean cross-entropy over the supervised positions of a batch; the objective of every stage of a recipe.

    The batch's ``Counts.supervised`` says how many they are, so that micro-batches and ranks weigh by it.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Output:
        """See ``protocols.Objective``; ``inputs`` as of :meth:`VisionLanguageModel.forward`."""
        logits, targets = self.model(inputs)
        if not len(targets):  # the mean of nothing is no number, and every rank has to run its backward
            return Output(logits.sum() * 0.0, {}, None)
        loss = F.cross_entropy(logits.float(), targets)
        right = (logits.detach().argmax(dim=-1) == targets).float().mean()
        return Output(loss, {"loss": loss.detach(), "token_acc": right}, None)

    def begin(self, done: float, logged: bool) -> None:
        """Nothing changes with the step."""

    def advance(self, updates: Sequence[Any], ranks: Processes) -> None:
        """There is no state beside the weights."""

    def roles(self) -> dict[str, Role]:
        """See ``protocols.Objective``."""
        return {f"model.{name}": self.model.role_of(name, p) for name, p in self.model.named_parameters()}

    def base_names(self) -> set[str]:
        """None: weights that no run changes are not in the model's state at all."""
        return set()

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` for the state of another objective."""
        if state:
            raise ValueError(f"the checkpoint is of another kind of run (it has {', '.join(state)})")

    def flops(self, inputs: dict[str, Tensor]) -> float | None:
        """Not estimated."""
