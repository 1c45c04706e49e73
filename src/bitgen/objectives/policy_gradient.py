"""Reinforcement with rewards that can be checked: sampled replies count by how much better they are than their group.

With rewards ``r_1 .. r_G`` of the G replies to a prompt, reply i has the advantage ``r_i - mean of the others`` (RLOO,
arXiv 2402.14740, equation 8), and the loss is ``- sum_i advantage_i log p(reply_i)`` over a constant. There is no
division by a reply's length or by the rewards' deviation, which favour long wrong replies and easy prompts (Dr. GRPO,
arXiv 2503.20783, section 3). Each batch is drawn by the very weights that it updates, so that there is no ratio of
policies and nothing to clip.
"""

from __future__ import annotations

import logging

import torch

from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.objectives.language import language_loss
from bitgen.objectives.reasoning import UNREACHED, ReasoningObjective
from bitgen.protocols import Output

logger = logging.getLogger(__name__)

_WIDEST_GAP = 1e-3  # nats; both compute in float32, whose sums in another order differ by 3e-7
PASSED_ON = "rollout/"
"""How names of figures begin that a batch brings along for the log."""


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """``[P, G] -> [P, G]``: each reward less the mean of its group's others; a group of one has none, and gets 0."""
    group = rewards.shape[1]
    if group == 1:
        return torch.zeros_like(rewards)
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (group - 1)


class PolicyGradientObjective(ReasoningObjective):
    """The model and the policy gradient on its own replies. It stays in eval mode: dropout would make the policy that
    is updated another one than the policy that was sampled."""

    unreached = (*UNREACHED, "memory.read_logvar")  # of the noise in the memory's reading, which is off too

    def __init__(self, model: BitGenModel, temperature: float = 0.07) -> None:
        super().__init__(model, temperature)
        self.logged, self._warned = False, False

    def train(self, mode: bool = True) -> PolicyGradientObjective:
        """Without dropout in either mode."""
        super().train(False)
        self.training = mode
        return self

    def begin(self, done: float, logged: bool) -> None:
        """Whether the step is logged, for what is measured then alone."""
        self.logged = logged

    def forward(self, batch: dict[str, torch.Tensor]) -> Output:
        """The loss of replies as ``RolloutSource`` gives them: ``weights [R, T]`` are advantages over the constant, and
        ``sampled [R, T]`` the sampler's log-probabilities, NaN where a token was not drawn."""
        with self.model.embeddings.one_gradient():
            states, places = self.predicting_states(batch)
            labels, weights, sampled = (batch[name].flatten()[places] for name in ("labels", "weights", "sampled"))
            loss = language_loss(states[None], self.model.embeddings.token.weight, labels[None], weights[None], 1.0)
        metrics = {"loss": loss.detach()}
        metrics |= {name.removeprefix(PASSED_ON): value for name, value in batch.items() if name.startswith(PASSED_ON)}
        if self.logged:
            metrics["sampler_gap"] = self._gap(states.detach(), labels, sampled)
        return Output(loss, metrics)

    @torch.no_grad()
    def _gap(self, states: torch.Tensor, labels: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """The mean distance of the log-probabilities of drawn tokens from what the sampler gave; 0 where none was.

        Said once in the log where it is too wide: the gradient is then that of another policy than the sampled one.
        """
        drawn = ~sampled.isnan()
        if not drawn.any():
            return states.new_zeros(())
        log_probs = self.model.lm_logits(states[drawn]).float().log_softmax(dim=-1)
        gap = (log_probs.gather(1, labels[drawn][:, None])[:, 0] - sampled[drawn]).abs().mean()
        if gap > _WIDEST_GAP and not self._warned:
            self._warned = True
            says = "log-probabilities of sampled tokens differ by %.2g from those of the update (sampler_gap): replies "
            says += "are no longer drawn by the policy that learns. Has the sampler or the objective been changed?"
            logger.warning(says, float(gap))
        return gap
