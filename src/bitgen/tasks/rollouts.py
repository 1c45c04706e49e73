"""Batches that a model writes itself: groups of replies to questions about scenes, with what each is worth.

What step ``s`` asks, and how replies are drawn, are functions of (seed, step, rank) and of the weights, so that a run
resumes exactly.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bitgen.data.questions.dataset import QuestionCollator, QuestionDataset
from bitgen.data.questions.marked_text import MarkedTokens
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import scene_rng
from bitgen.data.scenes.questions import FAMILIES, draw_question
from bitgen.data.scenes.reasoning import pixels_of
from bitgen.data.scenes.tables import FEWEST, table_scene
from bitgen.evaluation.reasoning import Judged, Problem, judged
from bitgen.evaluation.replies import Decoding, read_replies, write_replies
from bitgen.guards.printable import printable
from bitgen.machine.ranks import Processes, sum_over_ranks
from bitgen.model.likelihood import IGNORED
from bitgen.model.processing_bitgen import BitGenProcessor, pad_tokens
from bitgen.objectives.policy_gradient import PASSED_ON, PolicyGradientObjective, leave_one_out
from bitgen.protocols import Batch, Counts, State
from bitgen.stages import Stage

logger = logging.getLogger(__name__)

Reward = Callable[[Judged], float]


class RolloutSettings(NamedTuple):
    """How replies are drawn and weighed.

    Args:
        prompts: a step of this process.
        group: replies to each.
        max_new_tokens: of a reply.
        hops: the fewest and the most of a question.
        supervised: pictures with right answers that are learned beside, and ``supervised_weight``, of their loss.
        only_right: right replies are learned and nothing else is (STaR, arXiv 2203.14465), in place of advantages.
        idle_steps: the run ends after so many steps in a row in which the replies to each prompt were worth the same;
            counted over resumes.
    """

    prompts: int
    group: int
    max_new_tokens: int
    hops: tuple[int, int]
    most_objects: int
    supervised: int
    supervised_weight: float
    only_right: bool
    idle_steps: int


def reward_of(process_weight: float) -> Reward:
    """1 for a reply that ends, has the form and the right answer, else 0; and ``process_weight`` times the share of its
    clauses that hold, of a reply that has the form."""

    def reward(one: Judged) -> float:
        held, said = one.clauses
        share = held / said if said and one.reply.answer is not None else 0.0
        return float(one.right) + process_weight * share

    return reward


class RolloutSource:
    """A ``BatchSource`` of the model's own replies."""

    max_bad_fraction = 0.0
    batches_per_step = 1
    steady = True

    def __init__(
        self,
        objective: PolicyGradientObjective,
        processor: BitGenProcessor,
        supervised: QuestionDataset,
        reward: Reward,
        settings: RolloutSettings,
        steps_per_epoch: int,
        ranks: Processes,
        seed: int,
    ) -> None:
        assert processor.tokenizer is not None
        self.objective, self.processor, self.data, self.reward = objective, processor, supervised, reward
        self.settings, self.ranks, self.seed = settings, ranks, seed
        self.tokens = MarkedTokens(processor.tokenizer)
        self.collate = QuestionCollator(processor.tokenizer.pad_token_id)
        self.steps_per_epoch, self.size = steps_per_epoch, steps_per_epoch * settings.prompts * ranks.world_size
        self._at, self._idle = 0, 0
        self._failure = ""  # of the last reward that could not be computed

    # ---- what the training loop asks ----

    def prepare(self, stage: Stage, step: int, validates: bool) -> None:
        """Nothing."""

    def enter(self, phase: int) -> None:
        """Nothing."""

    def start(self, stage: Stage, step: int) -> None:
        """Draw from ``step`` on."""
        self._at = step

    def stop(self) -> None:
        """Nothing works in the background."""

    def name_of(self, index: int) -> str:
        """How messages call a prompt."""
        return f"prompt {index}"

    def words_per_step(self, world_size: int) -> None:
        """Nobody knows before the model has written them."""

    def steps_per_pass(self) -> float:
        """An epoch's, though every question is new."""
        return self.steps_per_epoch

    def describe(self) -> str:
        """How much there is."""
        return f"{self.settings.group} replies to each of {self.settings.prompts} new questions a step"

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to draw the same."""
        return {"prompts a step": self.settings.prompts, "replies to a prompt": self.settings.group}

    def state(self, stage: Stage, step: int) -> State:
        """Where it stands, and for how many steps there was nothing to learn from."""
        return {"epoch": stage.epoch_at(step), "batch": step % stage.steps_per_epoch, "idle": self._idle}

    def load_state(self, state: State) -> None:
        """Take over what :meth:`state` gave."""
        self._idle = state.get("idle", 0)  # earlier checkpoints have none

    # ---- a step ----

    def draw(self) -> list[Batch]:
        """The replies of the next step.

        Raises:
            ValueError: there was nothing to learn from for too many steps in a row.
        """
        step, settings = self._at, self.settings
        self._at += 1
        was_training = self.objective.training
        self.objective.eval()
        given = [self._problem(step, at) for at in range(settings.prompts)]
        pixels = torch.stack([pixels_of(self.processor, one.scene, one.key) for one in given]).to(self.ranks.device)
        prompts = [self.tokens.prompt(one.question.text, thinks=True) for one in given]
        repeated = [prompt for prompt in prompts for _ in range(settings.group)]
        with torch.no_grad():
            seen = self.objective.image_tokens(pixels).repeat_interleave(settings.group, dim=0)
        generator = torch.Generator(device=self.ranks.device)
        generator.manual_seed(scene_rng(self.seed, "replies", step, self.ranks.rank).getrandbits(62))
        decoding = Decoding(settings.max_new_tokens, 1.0, generator, whole_boxes=False)
        written = write_replies(self.objective.model, self.tokens, seen, repeated, decoding)
        replies = read_replies(self.tokens, written, thinks=True)
        found = [judged(given[row // settings.group], reply) for row, reply in enumerate(replies)]
        rewards = torch.tensor(self._worth(found)).unflatten(0, (-1, settings.group))
        self.objective.train(was_training)
        return [self._batch(step, pixels, repeated, written, found, rewards)]

    def _problem(self, step: int, at: int) -> Problem:
        key = (self.seed, "rollout", step, self.ranks.rank, at)
        rng = scene_rng("questions", *key)
        for attempt in range(1000):
            scene = table_scene((*key, attempt), FEWEST, self.settings.most_objects)
            question = draw_question(scene, rng, FAMILIES, False, self.settings.hops)
            if question is not None:
                return Problem(scene, question, (*key, attempt))
        raise ValueError(f"no scene has a question of {self.settings.hops[0]} to {self.settings.hops[1]} hops")

    def _worth(self, found: Sequence[Judged]) -> list[float]:
        """NaN where the reward cannot be computed, or is none: its group is left out."""
        worth = []
        for one in found:
            try:
                worth.append(float(self.reward(one)))
                failure = "" if math.isfinite(worth[-1]) else f"it is {worth[-1]}"
            except Exception as error:  # whatever a reward of somebody else's may raise
                worth.append(math.nan)
                failure = printable(f"{type(error).__name__}: {error}", 200)
            self._failure = failure or self._failure
        if failed := sum(not math.isfinite(one) for one in worth):
            says = "%d of %d rewards could not be computed (the last: %s); their groups are left out"
            logger.warning(says, failed, len(worth), self._failure)
        return worth

    def _batch(
        self, step: int, pixels: torch.Tensor, prompts: Sequence[list[int]], written: Any, found: Sequence[Judged],
        rewards: torch.Tensor,
    ) -> Batch:  # fmt: skip
        settings = self.settings
        scored = rewards.isfinite().all(dim=1)
        rewards = rewards.where(rewards.isfinite(), 0.0)
        varied = scored & (rewards != rewards[:, :1]).any(dim=1)
        worth = leave_one_out(rewards)
        if settings.only_right:
            right = torch.tensor([float(one.right) for one in found]).unflatten(0, (-1, settings.group))
            varied, worth = scored & (right.sum(dim=1) > 0), right
        # Of all processes together, so that none ends alone while the others wait for it.
        self._idle = 0 if sum_over_ranks(self.ranks, int(varied.any())) else self._idle + 1
        if self._idle >= settings.idle_steps and not scored.any():
            raise ValueError(
                f"in {settings.idle_steps} steps in a row there was nothing to learn from, and in the last one no "
                f"reward could be computed ({self._failure}). Mend the reward, and go on with --resume auto."
            )
        if self._idle >= settings.idle_steps:
            what = "no reply was right" if settings.only_right else "all replies to a question were worth the same"
            raise ValueError(
                f"in {settings.idle_steps} steps in a row {what} (mean reward {rewards.mean():.2f}), so there is "
                "nothing to learn from. Begin a new run that asks harder or easier questions (rollout_min_hops, "
                "max_hops), or one that begins with a model that was trained for longer."
            )
        eos = self.tokens.tokenizer.eos_token_id
        sequences, weights, sampled, picture_of = [], [], [], []
        kept = varied.nonzero()[:, 0].tolist()
        # The same for every batch: what the replies have in tokens, if they are a quarter of the longest.
        constant = max(settings.prompts * settings.group, 1) * settings.max_new_tokens / 4
        for place, prompt_at in enumerate(kept):
            for row in range(prompt_at * settings.group, (prompt_at + 1) * settings.group):
                prompt, reply = prompts[row], written.ids[row] + [eos] * written.ended[row]
                sequences.append([*prompt, *reply])
                advantage = float(worth.flatten()[row]) / constant
                weights.append([0.0] * (len(prompt) - 1) + [advantage] * len(reply))
                sampled.append([float("nan")] * (len(prompt) - 1) + written.log_probs[row].tolist())
                picture_of.append(place)
        pictures = [pixels[kept]]
        beside = self._supervised(step)
        total = int(beside["supervised"])
        for row in range(len(beside["input_ids"])):
            length = int(beside["attention_mask"][row].sum())
            sequences.append(beside["input_ids"][row, :length].tolist())
            shares = beside["weights"][row, : length - 1].float() * (settings.supervised_weight / max(total, 1))
            weights.append(shares.tolist())
            sampled.append([float("nan")] * (length - 1))
            picture_of.append(len(kept) + int(beside["picture_of"][row]))
        pictures.append(beside["pictures"].to(pixels.device))
        padded = pad_tokens([torch.tensor(ids) for ids in sequences], self.tokens.tokenizer.pad_token_id)
        shape = padded["input_ids"].shape
        counts, drawn = torch.zeros(shape), torch.full(shape, float("nan"))
        for row, (own, log_probs) in enumerate(zip(weights, sampled, strict=True)):
            counts[row, : len(own)] = torch.tensor(own)
            drawn[row, : len(log_probs)] = torch.tensor(log_probs)
        labels = torch.full_like(padded["input_ids"], IGNORED)
        labels[:, :-1] = padded["input_ids"][:, 1:]
        inputs = {
            "pictures": torch.cat(pictures),
            "picture_of": torch.tensor(picture_of),
            **padded,
            "labels": labels.masked_fill((counts == 0) & drawn.isnan(), IGNORED),
            "weights": counts,
            "sampled": drawn,
            **self._figures(found, rewards, scored, varied, written),
        }
        indices = torch.arange(settings.prompts) + step * settings.prompts
        words = sum(len(self.tokens.decode(ids).split()) for ids in written.ids)
        return Batch(inputs, Counts(settings.prompts, words, padded["input_ids"].numel()), indices)

    def _supervised(self, step: int) -> dict[str, Any]:
        """Pictures with right answers, other ones each step."""
        first = (step * self.ranks.world_size + self.ranks.rank) * self.settings.supervised
        keys = [divmod(first + at, len(self.data)) for at in range(max(self.settings.supervised, 1))]
        return self.collate([self.data[SampleKey(index, epoch)] for epoch, index in keys])

    def _figures(
        self, found: Sequence[Judged], rewards: torch.Tensor, scored: torch.Tensor, varied: torch.Tensor, written: Any
    ) -> dict[str, torch.Tensor]:
        """For the log. Idle groups teach nothing: their replies were worth the same, or in STaR none was right."""
        held = [one.clauses[0] / one.clauses[1] for one in found if one.clauses[1]]
        figures = {
            **({"reward": float(rewards[scored].mean())} if scored.any() else {}),
            "right": sum(one.right for one in found) / len(found),
            "form": sum(one.reply.answer is not None for one in found) / len(found),
            "clauses": sum(held) / max(len(held), 1),
            "idle_groups": float((scored & ~varied).float().mean()),
            "unscored_groups": float((~scored).float().mean()),
            "reply_tokens": sum(map(len, written.ids)) / len(written.ids),
        }
        return {f"{PASSED_ON}{name}": torch.tensor(value) for name, value in figures.items()}
