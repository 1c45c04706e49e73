"""What ``generate`` is asked to go on from: its prompts, the pictures beside them, and the room behind them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria


def prompts_of(inputs: torch.Tensor | None, arguments: dict[str, Any]) -> torch.Tensor | None:
    """Ids ``[B, T]`` or embeddings ``[B, T, D]`` among the arguments of ``generate``; None: it starts at BOS."""
    given = (inputs, arguments.get("input_ids"), arguments.get("inputs_embeds"))
    return next((one for one in given if one is not None), None)


def one_for_each(image_tokens: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
    """Image tokens ``[B, P, D]`` with as many pictures as there are prompts: one may stand for all.

    Raises:
        ValueError: several pictures, and another number of prompts.
    """
    if prompts is None or len(prompts) == len(image_tokens):
        return image_tokens
    if len(image_tokens) == 1:
        return image_tokens.expand(len(prompts), -1, -1)
    raise ValueError(
        f"{len(image_tokens)} pictures and {len(prompts)} prompts: give one prompt for each picture, one picture for "
        "all prompts, or no prompt"
    )


class _EndOfContext(StoppingCriteria):
    """Ends generation from embeddings, whose length transformers leaves out of ``max_length``."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.new_full((len(input_ids),), input_ids.shape[1] >= self.room, dtype=torch.bool)


def nothing_follows(length: int, limit: int) -> ValueError:
    """What to raise of a prompt that fills the context."""
    return ValueError(
        f"The prompt has {length} tokens and the context max_seq_len={limit}: nothing can follow. Shorten the prompt."
    )


def within_context(inputs: torch.Tensor | None, arguments: dict[str, Any], limit: int) -> dict[str, Any]:
    """Arguments of ``generate``, such that what is written after embeddings ends at the context's ``limit``, and at
    ``max_length`` where that alone is asked for: transformers would prefer the ``max_new_tokens`` of an export's file.

    Raises:
        ValueError: the embeddings fill the context, or the prompt ``max_length``.
    """
    if arguments.get("max_length") is not None and arguments.get("max_new_tokens") is None:
        prompts = prompts_of(inputs, arguments)
        length = 1 if prompts is None else prompts.shape[1]
        most = arguments["max_length"]
        if most <= length:
            raise ValueError(
                f"The prompt has {length} tokens and max_length is {most}: nothing can follow. Ask for more."
            )
        arguments = {name: value for name, value in arguments.items() if name != "max_length"}
        arguments["max_new_tokens"] = most - length
    embeddings = arguments.get("inputs_embeds")
    if embeddings is None or inputs is not None or arguments.get("input_ids") is not None:
        return arguments
    if (room := limit - embeddings.shape[1]) < 1:
        raise nothing_follows(embeddings.shape[1], limit)
    return arguments | {"stopping_criteria": [*(arguments.get("stopping_criteria") or []), _EndOfContext(room)]}
