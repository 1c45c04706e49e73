"""Settings of stage 2: what is asked, how it is answered, and reinforcement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitgen.config.fields import AtLeastOne, Few, NotNegative, Rate, setting


@dataclass
class ReasoningSettings:
    """Answering questions about pictures, with rationales and boxes (docs/reasoning.md)."""

    _argument_group_name = "reasoning"

    question_data: str | None = setting(
        None,
        "What is asked, in stage 2: scenes (the built-in scenes of several objects), sort_of_clevr, or a folder that "
        "data_prep/questions.py or data_prep/grounding.py wrote. None: the run is of stage 1.",
    )
    question_val_data: str | None = setting(None, "The same, held out; scenes: scenes that training never shows.")
    questions_per_picture: AtLeastOne = setting(4, "Questions of a picture in a batch; the picture is seen once.")
    rationale: Literal["clauses", "dots", "none"] = setting(
        "clauses",
        "What stands before an answer: clauses (why it is right), dots (as many tokens that say nothing, a control), "
        "none.",
    )
    picture_shown: Literal["own", "other", "nothing"] = setting(
        "own",
        "What is seen with a question: own (its picture), other (that of another question) or nothing (an empty "
        "picture). The last two are controls: they show what the words of questions tell by themselves.",
    )
    rationale_share: Rate = setting(0.5, "Share of the questions that are answered with a rationale.")
    grounding_share: Rate = setting(
        0.25,
        "Of scenes: share of what is asked that is about places; more where a picture has no other question to give.",
    )
    caption_share: Rate = setting(0.1, "Of scenes: share of the pictures that are scenes of stage 1, with captions.")
    answer_weight: AtLeastOne = setting(2, "How much a token of an answer counts, beside one of a rationale.")
    max_hops: AtLeastOne = setting(3, "Of scenes: the longest chain of relations in a question.")
    max_objects: AtLeastOne = setting(6, "Of scenes: the most objects of a scene, at least 3.")
    reinforcement: Literal["none", "policy_gradient", "star"] = setting(
        "none",
        "none: right answers are shown. policy_gradient: the model answers itself, several times, and learns which of "
        "its answers are right. star: it learns its own right answers alone.",
    )
    rollout_group: AtLeastOne = setting(8, "Replies to each question, of which batch_size are asked a step.")
    rollout_tokens: AtLeastOne = setting(96, "The longest reply.")
    rollout_min_hops: Few = setting(1, "The fewest hops of a question that replies are drawn to; max_hops the most.")
    process_weight: NotNegative[float] = setting(
        0.0, "Reward for the share of a reply's clauses that hold, beside 1 for a right answer."
    )
    supervised_pictures: AtLeastOne = setting(4, "Pictures with right answers that are learned beside, a step.")
    supervised_weight: NotNegative[float] = setting(0.15, "Weight of their loss.")
    idle_steps: AtLeastOne = setting(
        20, "Stop after so many steps in a row in which all replies to a question were worth the same."
    )
