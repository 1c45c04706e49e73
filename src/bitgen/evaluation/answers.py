"""What a vision-language model of parts answers: the last answer of each conversation, written by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bitgen.model.likelihood import IGNORED
from bitgen.vlm.language import generate
from bitgen.vlm.modeling import VisionLanguageModel


@dataclass(frozen=True)
class Decoding:
    """How answers are searched for; figures are printed with it."""

    num_beams: int = 1
    max_new_tokens: int = 64
    temperature: float = 0.0
    length_penalty: float = 1.0

    def settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Fields of transformers' ``GenerationConfig``: an answer ends with the tokenizer's EOS."""
        found: dict[str, Any] = {"num_beams": self.num_beams, "eos_token_id": tokenizer.eos_token_id}
        if self.num_beams > 1:
            found["length_penalty"] = self.length_penalty
        if self.temperature > 0:
            found |= {"do_sample": True, "temperature": self.temperature}
        return found


def up_to_the_answer(sample: dict[str, Any]) -> dict[str, Any]:
    """A training sample without its last answer and what follows: what a model is to go on from.

    ``input_ids`` and ``labels`` are cut where the last run of supervised positions begins, which is where the template
    would ask for an answer.
    """
    labels: Tensor = sample["labels"]
    supervised = (labels != IGNORED).nonzero().flatten().tolist()
    start = supervised[-1]
    known = set(supervised)
    while start - 1 in known:
        start -= 1
    return {**sample, "input_ids": sample["input_ids"][:start], "labels": labels[:start]}


def write_answers(
    model: VisionLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[dict[str, Any]] | Iterator[dict[str, Any]],
    collate: Callable[[Sequence[dict]], dict[str, Any]],
    decoding: Decoding,
    batch_size: int = 16,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    total: int | None = None,
    show_progress: bool = False,
    shared: bool = False,
) -> list[str]:
    """An answer for each sample, in order, on one line, without special tokens.

    Args:
        model: on its device; gets its train or eval mode back.
        samples: as the dataset gives them for training; their last answers are cut off.
        collate: pads, on either side.
        shared: ranks hold pieces of one model, and all write the same answers.
    """
    answers: list[str] = []
    bar = tqdm(total=total, desc="answers", leave=False, disable=None if show_progress else True)
    with bar, evaluating(model):
        for batch in _batches(samples, batch_size):
            # Templates have ends of their own, which need not be the tokenizer's EOS.
            ends = {int(sample["labels"][-1 - _after(sample)]) for sample in batch if not sample["truncated"]}
            inputs = collate([up_to_the_answer(sample) for sample in batch])
            inputs = {name: t.to(model.device) for name, t in inputs.items() if isinstance(t, Tensor)}
            with torch.no_grad(), autocast():
                embeds = model.embed(inputs)
                written = generate(
                    model.language,
                    embeds,
                    inputs["attention_mask"],
                    decoding.max_new_tokens,
                    synced_gpus=shared,
                    **decoding.settings(tokenizer) | {"eos_token_id": sorted({tokenizer.eos_token_id, *ends})},
                )
            answers += [" ".join(tokenizer.decode(ids, skip_special_tokens=True).split()) for ids in written.tolist()]
            bar.update(len(batch))
    return answers


def _after(sample: dict[str, Any]) -> int:
    """Positions after the last supervised one."""
    return int((sample["labels"].flip(0) != IGNORED).nonzero()[0])


def _batches(samples: Any, size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while the block runs, and what it was before afterwards."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
