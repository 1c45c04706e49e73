"""Learning to speak from a memory: episodes are written in closed form, read back by their queries, and said.

Three losses, of equal weight. *Addressing*: each cue is to find the facts that it is about among all that the episode
taught, or nothing (cross-entropy over the facts and a null that stands at the threshold). *Values*: the code of a
taught text gives its tokens back. *Language*: the answer, from what the memory gives for the cue.

The write and the read are those of ``memory/associative.py``: with keys X and values Y, reading a cue x gives
``x X^T (X X^T + noise)^-1 Y``; everything is differentiable, through a Cholesky factor of at most F x F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from bitgen.machine.ranks import Processes
from bitgen.model.likelihood import IGNORED
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.recall import Recall
from bitgen.objectives.language import language_loss
from bitgen.protocols import Output
from bitgen.stages import Role

_NOISES = (1e-3, 0.1)  # that cues are read with: as if they had been written, and as if they were merely similar


class Written(NamedTuple):
    """An episode's facts: ``keys [F, k]`` and ``values [F, L d]``."""

    keys: torch.Tensor
    values: torch.Tensor


def closed_form_read(written: Written, cues: torch.Tensor, noise: float) -> torch.Tensor:
    """``[N, k] -> [N, L d]``: what cues read from facts that were written in one step."""
    keys, values = written.keys.double(), written.values.double()
    gram = keys @ keys.mT + noise * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    mixed = torch.cholesky_solve(keys @ cues.double().mT, torch.linalg.cholesky(gram)).mT
    return (mixed @ values).to(written.values.dtype)


class RecallObjective(nn.Module):
    """The model, of which its ``recall`` alone trains, and one forward an episode.

    The rest of the network stays in eval mode, so that what it says without a memory is what it said before.

    Args:
        temperature: of the contrastive loss that the model was trained with, which is passed on.
        weight: of the sum of the three losses.
    """

    def __init__(self, model: BitGenModel, temperature: float = 0.07, weight: float = 1.0) -> None:
        super().__init__()
        assert model.recall is not None
        self.model, self.weight = model, weight
        self.log_temperature = torch.tensor(temperature).log()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("recall."))

    @property
    def recall(self) -> Recall:
        """What trains."""
        assert self.model.recall is not None
        return self.model.recall

    def train(self, mode: bool = True) -> RecallObjective:
        """Train mode for what trains alone."""
        super().train(False)
        self.recall.train(mode)
        self.training = mode
        return self

    # --- what the training loop asks -----------------------------------------------------------------------------

    def begin(self, done: float, logged: bool) -> None:
        """Nothing depends on the step."""

    def advance(self, updates: Sequence[Any], ranks: Processes) -> None:
        """Nothing is kept from step to step."""

    def roles(self) -> dict[str, Role]:
        """What every parameter is; those of ``recall`` alone are reached."""
        return {
            f"model.{name}": Role(*role, name.startswith("recall.")) for name, role in self.model.roles().items()
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

    # --- one episode ---------------------------------------------------------------------------------------------

    def write(self, episode: dict[str, torch.Tensor]) -> Written:
        """The facts of an episode as ``EpisodeDataset`` gives it."""
        recall = self.recall
        ids, mask = episode["taught_ids"], episode["taught_mask"]
        with torch.no_grad():
            embedded = self.model.embeddings.token(ids)
            tokens = self.image_tokens(episode["taught_pictures"])
        seen = len(tokens)
        keys = []
        if seen:
            keys.append(recall.taught_image_key(tokens, embedded[:seen], mask[:seen]))
        if seen < len(ids):
            keys.append(recall.text_keys(embedded[seen:], mask[seen:]))
        # Without its BOS, which all texts share.
        return Written(torch.cat(keys), recall.values(embedded[:, 1:], mask[:, 1:]))

    def image_tokens(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, pixels or features, to the tokens that captions are written from: ``[B, P, D]``."""
        name = "vision_features" if self.model.config.takes_features else "pixel_values"
        return self.model.pool_image_tokens(self.model.encode_image(**{name: pictures}).image_tokens)

    def forward(self, episode: dict[str, torch.Tensor]) -> Output:
        """The losses of an episode."""
        model, recall = self.model, self.recall
        written = self.write(episode)
        facts, ids = episode["facts"], episode["input_ids"]
        with torch.no_grad():
            tokens = self.image_tokens(episode["query_pictures"])
            asked = model.embeddings.token(episode["prompt_ids"])
        # Cosines of each query with each fact: of a picture's tokens the nearest.
        seen, by_token = len(tokens), recall.image_keys(tokens)  # [Qi, P, k]
        cosines, at = (by_token @ written.keys.mT).max(dim=1)  # [Qi, F]
        texts = recall.text_keys(asked, episode["prompt_mask"]) if len(asked) else by_token.new_zeros(0, by_token.shape[-1])
        every = torch.cat([cosines, texts @ written.keys.mT])  # [Q, F]
        addressing, found = self._addressing(every, facts)

        answers = (facts >= 0).any(dim=1)
        rows = facts.clamp_min(0)  # [Q, R]
        index = at.gather(1, rows[:seen])[..., None]  # [Qi, R, 1]
        cues = by_token.gather(1, index.expand(-1, -1, by_token.shape[-1]))
        where = tokens.gather(1, index.expand(-1, -1, tokens.shape[-1]))
        cues = torch.cat([cues, texts[:, None].expand(-1, rows.shape[1], -1)])
        where = torch.cat([where, where.new_zeros(len(texts), *where.shape[1:])])
        # Half of the queries read with their own cue, half with the key that it was found to mean.
        own = closed_form_read(written, cues.flatten(0, 1), _NOISES[1]).view(*rows.shape, -1)
        exact = closed_form_read(written, written.keys[rows].flatten(0, 1), _NOISES[0]).view(*rows.shape, -1)
        take = (torch.rand(len(rows), 1, 1, device=rows.device) < 0.5) if self.training else torch.zeros_like(answers)[:, None, None]
        values = torch.where(take, own, exact)
        recalled = recall.tokens(values, where, facts >= 0)
        language = self._language(episode, tokens, recalled, answers, seen)
        codes = self._values(written, episode)
        loss = self.weight * (addressing + codes["loss"] + language)
        metrics = {
            "loss": loss, "recall_loss": addressing, "value_loss": codes["loss"], "caption_loss": language,
            "acc_recall": found, "acc_value": codes["right"],
        }  # fmt: skip
        return Output(loss, {name: value.detach() for name, value in metrics.items()})

    def _addressing(self, cosines: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the facts that each query is about, one at a time without the other, or of the null."""
        logits = self.recall.logits(cosines)
        null = logits.new_zeros(len(logits), 1)
        losses, right = [], []
        for at in range(facts.shape[1]):
            target, other = facts[:, at], facts[:, 1 - at]
            counts = (target >= 0) if at else (target >= 0) | (other < 0)
            masked = logits.scatter(1, other.clamp_min(0)[:, None], torch.where(other >= 0, -torch.inf, logits.gather(1, other.clamp_min(0)[:, None])[:, 0])[:, None])  # fmt: skip
            scores = torch.cat([masked, null], dim=1)[counts]
            wanted = torch.where(target >= 0, target, logits.shape[1])[counts]
            losses.append(F.cross_entropy(scores, wanted, reduction="sum"))
            right.append((scores.argmax(dim=1) == wanted).sum())
        count = (facts >= 0).sum() + (facts < 0).all(dim=1).sum()
        return torch.stack(losses).sum() / count, torch.stack(right).sum() / count

    def _values(self, written: Written, episode: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        length = self.recall.length
        wanted = episode["taught_ids"][:, 1 : length + 1]
        mask = episode["taught_mask"][:, 1 : length + 1] > 0
        logits = self.recall.value_logits(written.values, self.model.embeddings.token.weight)[:, : wanted.shape[1]]
        loss = F.cross_entropy(logits[mask], wanted[mask])
        return {"loss": loss, "right": (logits[mask].argmax(dim=1) == wanted[mask]).float().mean()}

    def _language(self, episode: dict[str, torch.Tensor], tokens: torch.Tensor, recalled: Any, answers: torch.Tensor, seen: int) -> torch.Tensor:  # fmt: skip
        """Of queries with pictures and of those without, apart: the latter see no image."""
        model, losses = self.model, []
        parts = (slice(0, seen), tokens), (slice(seen, len(answers)), None)
        for part, images in parts:
            rows = answers[part].nonzero().flatten()
            if not len(rows):
                continue
            ids, mask = episode["input_ids"][part][rows], episode["attention_mask"][part][rows]
            given = type(recalled)(*(value[part][rows] for value in recalled))
            hidden = model.run_stack(ids, mask, None if images is None else images[rows], recalled=given).hidden_states
            labels = episode["labels"][part][rows]
            losses.append((language_loss(hidden, model.embeddings.token.weight, labels), (labels != IGNORED).sum()))
        total = sum(count for _, count in losses)
        return sum(loss * count for loss, count in losses) / total  # type: ignore[return-value]
