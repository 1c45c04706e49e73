"""Answering questions about pictures, with a rationale or at once: the language loss on what follows each question."""

from __future__ import annotations

import torch

from bitgen.model.likelihood import IGNORED
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.objectives.language import language_loss
from bitgen.objectives.stage1_reach import without_choice
from bitgen.objectives.stateless import StatelessObjective
from bitgen.protocols import Output
from bitgen.stages import Role

_GROUPS = 4  # of rows of like length
# What answering reaches nothing of: retrieval's and matching's parts, and the memory's write.
UNREACHED = ("image_pooling.", "image_projection.", "text_projection.", "itm_head.", "memory.gpm", "recall.")


class ReasoningObjective(StatelessObjective):
    """The model and the loss of its answers. A picture is seen once for all of its sequences.

    Args:
        temperature: of the contrastive loss that the model was trained with, which is passed on.
    """

    unreached: tuple[str, ...] = UNREACHED

    def __init__(self, model: BitGenModel, temperature: float = 0.07) -> None:
        super().__init__(model, temperature)
        for name, parameter in model.named_parameters():
            if name.startswith(self.unreached):
                parameter.requires_grad_(False)

    def roles(self) -> dict[str, Role]:
        """What every parameter is, and whether an answer reaches it."""
        alone = without_choice(self.model.config)
        return {
            f"model.{name}": Role(*role, not name.startswith(self.unreached) and not any(one in name for one in alone))
            for name, role in self.model.roles().items()
        }

    # --- one micro-step ------------------------------------------------------------------------------------------

    def predicting_states(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The stack's outputs where something is to be predicted ``[N, D]``, and the elements ``[N]`` of the batch's
        ``[R, T]`` that those are.

        Rows go through the stack in groups of like length: two thirds of a whole batch would be padding.
        """
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        seen, lengths = self.image_tokens(batch["pictures"]), mask.sum(dim=1)
        states, places = [], []
        for rows in lengths.argsort(stable=True).tensor_split(min(_GROUPS, len(ids))):
            width = int(lengths[rows].max())
            part = slice(0, width)
            image_tokens = seen[batch["picture_of"][rows]]
            hidden = self.model.run_stack(ids[rows, part], mask[rows, part], image_tokens).hidden_states
            row, column = (labels[rows, part] != IGNORED).nonzero(as_tuple=True)
            states.append(hidden[row, column])
            places.append(rows[row] * ids.shape[1] + column)
        return torch.cat(states), torch.cat(places)

    def forward(self, batch: dict[str, torch.Tensor]) -> Output:
        """The loss of a batch as ``QuestionCollator`` gives it: the mean over what is to be predicted, by weights."""
        with self.model.embeddings.one_gradient():
            states, places = self.predicting_states(batch)
            labels, weights = (batch[name].flatten()[places] for name in ("labels", "weights"))
            loss = language_loss(states[None], self.model.embeddings.token.weight, labels[None], weights[None])
        return Output(loss, {"loss": loss.detach(), "answer_loss": loss.detach()})
