"""Learning to speak from a memory: episodes are written in closed form, read back by their queries, and said.

Three losses, of equal weight. *Addressing*: each cue is to find the facts that it is about among all that the episode
taught, or nothing (cross-entropy over the facts and a null that stands at the threshold). Of questions half of it is by
keys and words, half by keys alone. *Values*: the code of a taught text gives its tokens back. *Language*: the answer,
from what the memory gives for the cue.

The write and the read are the closed form of ``memory/associative.py``, with noise: with keys X and values Y, a cue x
reads ``x X^T (X X^T + noise)^-1 Y``, through a Cholesky factor of at most F x F.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from bitgen.data.episodes.dataset import NOTHING
from bitgen.model.likelihood import IGNORED
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.recall import Recall
from bitgen.model.recalled import Recalled
from bitgen.objectives.stateless import StatelessObjective
from bitgen.protocols import Output
from bitgen.stages import Role

# The noise that a cue is read with: one that was written, and one that is merely similar.
EXACT, SIMILAR = 1e-3, 0.1


class Written(NamedTuple):
    """An episode's facts: ``keys [F, k]`` and ``values [F, L d]``."""

    keys: torch.Tensor
    values: torch.Tensor


class _Asked(NamedTuple):
    """Queries: ``tokens [Qi, P, D]`` of pictures and their keys ``by_token [Qi, P, k]``, keys of questions ``texts
    [Q - Qi, k]``; ``logits [Q, F]``, the log odds that each query means each fact, and ``by_keys [Q, F]``, the same
    without the words of questions; ``at [Qi, F]``, the token of a picture that is nearest to a fact."""

    tokens: torch.Tensor
    by_token: torch.Tensor
    texts: torch.Tensor
    logits: torch.Tensor
    by_keys: torch.Tensor
    at: torch.Tensor


def closed_form_read(written: Written, cues: torch.Tensor, noise: float) -> torch.Tensor:
    """``[N, k] -> [N, L d]``: what cues read from facts that were written in one step."""
    keys, values = written.keys.double(), written.values.double()
    gram = keys @ keys.mT + noise * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    mixed = torch.cholesky_solve(keys @ cues.double().mT, torch.linalg.cholesky(gram)).mT
    return (mixed @ values).to(written.values.dtype)


def _pictures_found_alone(written: Written, asked: _Asked, pictures: int) -> tuple[Written, _Asked]:
    """Facts, of which so many have a picture, and queries, through which what is said teaches no keys of pictures.

    These learn from finding alone: once they find, the gradient of the language would be all that is left to move them.
    Those of sentences are taught by it: told in other words, more of them were said (docs/lab_log.md).
    """
    keys = torch.cat([written.keys[:pictures].detach(), written.keys[pictures:]])
    return written._replace(keys=keys), asked._replace(by_token=asked.by_token.detach())


class RecallObjective(StatelessObjective):
    """The model, of which its ``recall`` alone trains, and one forward an episode.

    The rest of the network stays in eval mode, so that what it says without a memory is what it said before.

    Args:
        temperature: of the contrastive loss that the model was trained with, which is passed on.
        weight: of the sum of the three losses.
    """

    def __init__(self, model: BitGenModel, temperature: float = 0.07, weight: float = 1.0) -> None:
        super().__init__(model, temperature)
        assert model.recall is not None
        self.weight = weight
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

    def roles(self) -> dict[str, Role]:
        """What every parameter is; those of ``recall`` alone are reached."""
        return {f"model.{name}": Role(*role, name.startswith("recall.")) for name, role in self.model.roles().items()}

    # --- one episode ---------------------------------------------------------------------------------------------

    def write(self, episode: dict[str, torch.Tensor]) -> Written:
        """The facts of an episode as ``EpisodeDataset`` gives it."""
        recall = self.recall
        ids, mask = episode["taught_ids"], episode["taught_mask"]
        with torch.no_grad():
            tokens = self.image_tokens(episode["taught_pictures"])
        seen = len(tokens)
        keys = []
        if seen:
            keys.append(recall.taught_image_key(tokens, ids[:seen], mask[:seen]))
        if seen < len(ids):
            keys.append(recall.text_keys(ids[seen:], mask[seen:]))
        return Written(torch.cat(keys), recall.values(ids, mask))

    def forward(self, episode: dict[str, torch.Tensor]) -> Output:
        """The losses of an episode, as ``EpisodeDataset`` gives it."""
        written, facts = self.write(episode), episode["facts"]
        asked = self._ask(written, episode)
        with_words, found = self._addressing(asked.logits, facts)
        addressing = (with_words + self._addressing(asked.by_keys, facts)[0]) / 2
        values, right = self._values(written, episode)
        read = self._recalled(*_pictures_found_alone(written, asked, len(episode["taught_pictures"])), facts)
        language = self._language(episode, asked, read)
        loss = self.weight * (addressing + values + language)
        metrics = {
            "loss": loss, "recall_loss": addressing, "value_loss": values, "caption_loss": language,
            "acc_recall": found, "acc_value": right,
        }  # fmt: skip
        return Output(loss, {name: value.detach() for name, value in metrics.items()})

    def _ask(self, written: Written, episode: dict[str, torch.Tensor]) -> _Asked:
        """The cues of an episode's queries, compared with its facts."""
        recall = self.recall
        with torch.no_grad():
            tokens = self.image_tokens(episode["query_pictures"])
        by_token = recall.image_keys(tokens)  # [Qi, P, k]
        cosines, at = (by_token @ written.keys.mT).max(dim=1)  # [Qi, F]
        texts, logits = by_token.new_zeros(0, by_token.shape[-1]), recall.logits(cosines)
        by_keys = logits
        if len(episode["prompt_ids"]):
            question = recall.questions(episode["prompt_ids"], episode["prompt_mask"])
            texts, by_keys = question.keys, torch.cat([logits, recall.asked_by_keys(question, written.keys)])
            near = recall.asked_odds(question, written.keys)
            logits = torch.cat([logits, near - recall.asked_lacking(question, written.values)])
        return _Asked(tokens, by_token, texts, logits, by_keys, at)

    def _addressing(self, logits: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the facts that each query is about, each without the other one, and of the null without
        both; and the share that is found of the facts, and of the nulls of queries about nothing.

        A picture recalls each fact that is likelier than the null (``model/speaking.py``), and not only the likeliest.
        So what a query is not about must be less likely than the null, even where something that it is about is
        likeliest.
        """
        null, nothing = logits.new_zeros(len(logits), 1), facts.new_full((len(facts),), NOTHING)
        losses, right, about_nothing = [], [], (facts < 0).all(dim=1)
        for target, *others in ((facts[:, 0], facts[:, 1]), (facts[:, 1], facts[:, 0]), (nothing, *facts.T)):
            counts = (target >= 0) if target is not nothing else torch.ones_like(about_nothing)
            left_out = torch.zeros_like(logits, dtype=torch.bool)
            for other in others:
                left_out |= F.one_hot(other.clamp_min(0), logits.shape[1]).bool() & (other >= 0)[:, None]
            scores = torch.cat([logits.masked_fill(left_out, -torch.inf), null], dim=1)[counts]
            wanted = torch.where(target >= 0, target, logits.shape[1])[counts]
            losses.append(F.cross_entropy(scores, wanted, reduction="sum"))
            asked = (target >= 0) | about_nothing
            right.append(((scores.argmax(dim=1) == wanted) & asked[counts]).sum())
        count = (facts >= 0).sum()
        return torch.stack(losses).sum() / (count + len(facts)), torch.stack(right).sum() / (
            count + about_nothing.sum()
        )

    def _values(self, written: Written, episode: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the tokens that each value gives back, and the share that is right."""
        length = self.recall.length
        wanted = episode["taught_ids"][:, 1 : length + 1]
        mask = episode["taught_mask"][:, 1 : length + 1] > 0
        logits = self.recall.value_logits(written.values)
        logits, wanted = logits[:, : wanted.shape[1]][mask], wanted[mask]
        return F.cross_entropy(logits, wanted), (logits.argmax(dim=1) == wanted).float().mean()

    def _recalled(self, written: Written, asked: _Asked, facts: torch.Tensor) -> Recalled:
        """What the decoder is given for each query: the values of the facts that it is about, as the memory reads them.

        Half of the facts are read with the query's own cue, which is merely similar, half with the key that it means.
        """
        rows, pictured = facts.clamp_min(0), len(asked.tokens)
        at = asked.at.gather(1, rows[:pictured])  # [Qi, R]
        cues = asked.by_token.gather(1, at[..., None].expand(-1, -1, asked.by_token.shape[-1]))
        cues = torch.cat([cues, asked.texts[:, None].expand(-1, rows.shape[1], -1)])
        seen = self.recall.seen(asked.tokens, at)
        seen = torch.cat([seen, seen.new_zeros(len(asked.texts), *seen.shape[1:])])
        values = closed_form_read(written, written.keys[rows].flatten(0, 1), EXACT)
        if self.training:
            own = closed_form_read(written, cues.flatten(0, 1), SIMILAR)
            values = torch.where(torch.rand(len(values), 1, device=values.device) < 0.5, own, values)
        return self.recall.tokens(values.view(*rows.shape, -1), seen, facts >= 0)

    def _language(self, episode: dict[str, torch.Tensor], asked: _Asked, recalled: Recalled) -> torch.Tensor:
        """Of queries with pictures and of those without, whose passes see no image; a mean over the answers' tokens."""
        model, seen = self.model, len(asked.tokens)
        answers = (episode["facts"] >= 0).any(dim=1).nonzero().flatten()
        pictured, worded = answers[answers < seen], answers[answers >= seen]
        total, count = recalled.tokens.new_zeros(()), 0
        for rows, images in ((pictured, asked.tokens[pictured]), (worded, None)):
            if len(rows):
                ids, mask, labels = (episode[name][rows] for name in ("input_ids", "attention_mask", "labels"))
                given = Recalled(recalled.tokens[rows], recalled.present[rows])
                output = model.run_stack(ids, mask, images, recalled=given)
                counted = labels != IGNORED
                assert output.said is not None
                states = torch.cat([output.hidden_states[counted], output.said[counted]], dim=-1)
                logits = model.lm_logits(states)
                total = total + F.cross_entropy(logits.float(), labels[counted], reduction="sum")
                count += len(logits)
        return total / max(count, 1)
