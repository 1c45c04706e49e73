"""What a vision-language model of parts answers: the last answer of each conversation, written by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bitgen.data.bad_records import BadRecord
from bitgen.data.conversations.dataset import ConversationDataset, start_of_last_answer
from bitgen.data.conversations.speech import Speech
from bitgen.data.scripts import split_words
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
    start = start_of_last_answer(labels)
    return {**sample, "input_ids": sample["input_ids"][:start], "labels": labels[:start]}


def askable(
    dataset: ConversationDataset, rows: Sequence[int], max_new_tokens: int, positions: int
) -> tuple[list[int], list[str]]:
    """Rows whose last question can be asked, and of each of the others its name and why it cannot. No picture is read.

    Args:
        max_new_tokens: of an answer.
        positions: of the language model, for question and answer together.
    """
    found, left_out = [], []
    for row in rows:
        name = dataset.record_name(row)
        try:
            sample = dataset.text(row)
        except BadRecord as error:
            left_out.append(str(error))
            continue
        asked = len(up_to_the_answer(sample)["input_ids"])
        if sample["lost_answer"]:
            left_out.append(f"{name}: its last answer begins behind the {dataset.max_length} tokens that are read")
        elif not asked:
            left_out.append(f"{name}: nothing stands before its answer")
        elif not any(split_words(text) for text in dataset.conversations.references(row)):
            left_out.append(f"{name}: what is to be said has no word")
        elif asked + max_new_tokens > positions:
            left_out.append(
                f"{name}: a question of {asked} tokens and an answer of up to {max_new_tokens} are more than the "
                f"{positions} positions of the language model"
            )
        else:
            found.append(row)
    return found, left_out


def write_answers(
    model: VisionLanguageModel,
    speech: Speech,
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
        speech: decodes what is written, and says what ends an answer: a template may have an end of its own.
        samples: as the dataset gives them for training; their last answers are cut off.
        collate: pads, on either side.
        shared: ranks hold pieces of one model, and all write the same answers.
    """
    answers: list[str] = []
    ends = speech.ends  # it renders a conversation each time
    bar = tqdm(total=total, desc="answers", leave=False, disable=None if show_progress else True)
    with bar, evaluating(model):
        for batch in _batches(samples, batch_size):
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
                    **decoding.settings(speech.tokenizer) | {"eos_token_id": ends},
                )
            # Up to the token that ends it: not every tokenizer calls that token special.
            said = (takewhile(lambda id: id not in ends, ids) for ids in written.tolist())
            texts = (speech.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in said)
            answers += [" ".join(text.split()) for text in texts]
            bar.update(len(batch))
    return answers


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
