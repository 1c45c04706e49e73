"""Which settings of stage 2 contradict each other."""

from __future__ import annotations

from typing import Any

from bitgen.config.sources import SCENES, SORT_OF_CLEVR, same_source
from bitgen.config.values import ConfigError

EXTEND = "extend"
"""The tokenizer of the model that a run starts from, with the marks and words of stage 2."""

_FEWEST_OBJECTS, _MOST_OBJECTS, _LONGEST_CHAIN = 3, 8, 4


def check_reasoning(config: Any) -> None:
    """Check the group ``reasoning`` against the others.

    Raises:
        ConfigError: the first setting that contradicts another.
    """
    settings, training = config.reasoning, config.training
    if settings.question_data is None:
        if config.data.tokenizer == EXTEND:
            raise ConfigError(
                "tokenizer is extend, but there is no question_data: words and marks are added for stage 2 alone. "
                "Write tokenizer train, or a tokenizer's folder."
            )
        return
    if config.data.tokenizer != EXTEND:
        raise ConfigError(
            f"tokenizer is {config.data.tokenizer}, but stage 2 goes on with that of init_from and adds its marks. "
            "Write tokenizer extend."
        )
    if training.init_from is None and training.resume is None:
        raise ConfigError(
            "question_data is set, but init_from is none: a model learns to answer when it can describe pictures "
            "already. Train configs/scenes_captions_84.yaml, and write init_from checkpoints/scenes_captions_84."
        )
    if config.vision.vision_encoder == "features":
        raise ConfigError(
            "vision_encoder is features, but stage 2 looks at pictures. Write the encoder that the model of init_from "
            "has."
        )
    for name in ("train_data", "val_data", "text_data", "text_val_data"):
        if getattr(config.data, name) is not None:
            raise ConfigError(f"{name} is {getattr(config.data, name)}, but stage 2 asks. Leave it out: write none.")
    if config.episodes.recall_weight:
        raise ConfigError("recall_weight is on, but episodes and questions are runs of their own. Leave one out.")
    if not config.objective.text_loss_weight:
        raise ConfigError("text_loss_weight is 0, but answers are written. Write 1, as the model of init_from has.")
    _check_questions(settings)
    _check_rollouts(settings, training, config.model.max_seq_len)


def _check_questions(settings: Any) -> None:
    held_out = settings.question_val_data
    if held_out not in (None, SCENES, SORT_OF_CLEVR) and same_source(held_out, settings.question_data):
        raise ConfigError(
            f"question_val_data is {held_out}, the training questions themselves. Write the folder of a held-out split."
        )
    if not _FEWEST_OBJECTS <= settings.max_objects <= _MOST_OBJECTS:
        raise ConfigError(f"max_objects is {settings.max_objects}. Write {_FEWEST_OBJECTS} to {_MOST_OBJECTS}.")
    if settings.max_hops > _LONGEST_CHAIN:
        raise ConfigError(f"max_hops is {settings.max_hops}. Write {_LONGEST_CHAIN} or less.")


def _check_rollouts(settings: Any, training: Any, context: int) -> None:
    if settings.reinforcement == "none":
        return
    if settings.question_data != SCENES:
        raise ConfigError(
            f"reinforcement is {settings.reinforcement}, but question_data is {settings.question_data}: replies are "
            "checked by the description of a scene. Write question_data scenes, or reinforcement none."
        )
    if training.precision != "fp32":
        raise ConfigError(
            f"precision is {training.precision}, but reinforcement needs the sampler and the trainer to agree. Write "
            "precision fp32."
        )
    if training.grad_accum_steps != 1:
        raise ConfigError(
            f"grad_accum_steps is {training.grad_accum_steps}, but a step of reinforcement is one batch. Write 1."
        )
    if settings.picture_shown != "own":
        raise ConfigError(
            f"reinforcement is on, but picture_shown is {settings.picture_shown}: replies are about the own picture. "
            "Write picture_shown own."
        )
    if settings.rationale != "clauses":
        raise ConfigError("reinforcement is on, but rationale is not clauses: replies begin with a rationale.")
    if settings.rollout_group < 2:
        raise ConfigError("rollout_group is 1, so that a reply has no others to be better than. Write 8.")
    if settings.rollout_min_hops > settings.max_hops:
        raise ConfigError(f"rollout_min_hops is {settings.rollout_min_hops}, more than max_hops {settings.max_hops}.")
    if settings.rollout_tokens >= context:
        raise ConfigError(f"rollout_tokens is {settings.rollout_tokens}, but max_seq_len is {context}. Write less.")
