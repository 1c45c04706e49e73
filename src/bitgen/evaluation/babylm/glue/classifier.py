"""A causal language model as a classifier of texts, and batches of which little is padding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitgen.evaluation.babylm.encoding import BATCH, ProcessorEncoder
from bitgen.evaluation.babylm.glue.data import Example, GlueData, GlueTask
from bitgen.evaluation.babylm.models import BitGenLanguageModel, HuggingFaceModel, LanguageModel

_EPS = 1e-5
# What a pass costs whatever it holds, as tokens: on a GPU the kernels of a small batch take as long as those of a
# large one.
_PASS_COSTS = {"cpu": 64, "cuda": 4096}


class EncodedTask(NamedTuple):
    """A task as token ids: texts and labels of its two files, in their order."""

    task: GlueTask
    train: list[list[int]]
    train_labels: list[int]
    valid: list[list[int]]
    valid_labels: list[int]


def encode_task(encoder: ProcessorEncoder, data: GlueData, sequence_length: int) -> EncodedTask:
    """Pairs of texts as the processor joins them; of a pair that is too long, the longer text loses its end.

    Args:
        sequence_length: the most tokens of a pair.

    Raises:
        ValueError: the processor does not take pairs, or makes no token of one; the message names file and line.
    """
    train, valid = (_encode(encoder, part, sequence_length) for part in (data.train, data.valid))
    labels = [[example.label for example in part] for part in (data.train, data.valid)]
    return EncodedTask(data.task, train, labels[0], valid, labels[1])


def _encode(encoder: ProcessorEncoder, examples: Sequence[Example], sequence_length: int) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        pairs = [(example.first, example.second) for example in part]
        try:
            output = encoder.processor(text=pairs, truncation=True, max_length=sequence_length)["input_ids"]
        except Exception as error:  # a model's own processor may raise anything
            raise ValueError(
                f"{part[0].origin}: the model's processor does not take pairs of texts ({error}); save a fast tokenizer"
            ) from error
        found += [[int(token) for token in ids] for ids in output]
    for example, ids in zip(examples, found, strict=True):
        if not ids:
            raise ValueError(f"{example.origin}: the tokenizer makes no token of it; mend the line, or add a BOS")
    return found


def longest_text(model: LanguageModel, sequence_length: int) -> int:
    """The most tokens of a text: what is asked for, or the model's context where that is shorter."""
    return min(sequence_length, model.max_length or sequence_length)


def classifier_head(width: int, labels: int, dropout: float) -> nn.Sequential:
    """The challenge's head, ``[B, width]`` to logits ``[B, labels]``: normalised, a GELU layer, normalised, linear."""
    norms = [nn.LayerNorm(width, eps=_EPS, elementwise_affine=False) for _ in range(2)]
    inner, outer = nn.Linear(width, width), nn.Linear(width, labels)
    return nn.Sequential(norms[0], inner, nn.GELU(), norms[1], nn.Dropout(dropout), outer)


class TextClassifier(nn.Module):
    """A copy of a language model, all of whose weights learn, and a new head that reads each text's last token.

    A causal model's last token is the one that has seen the whole text. Padding stands on the right here: it is behind
    every real token, so nothing sees it, and neither a mask nor positions are needed. The last real token's state is
    that of a plain pass, as it is with padding on the left and positions that leave it out.

    Raises:
        ValueError: the model does not say how wide its hidden states are.
    """

    def __init__(self, model: LanguageModel, labels: int, dropout: float) -> None:
        super().__init__()
        assert isinstance(model, (BitGenLanguageModel, HuggingFaceModel))
        self.is_bitgen = isinstance(model, BitGenLanguageModel)
        self.body = copy.deepcopy(model.model).requires_grad_(True)
        width = getattr(self.body.config.get_text_config(), "hidden_size", None)
        if not isinstance(width, int):
            raise ValueError(f"{type(self.body).__name__}: its config.json has no hidden_size; write it there")
        self.head = classifier_head(width, labels, dropout)
        self.head.to(next(self.body.parameters()).device)

    def last_states(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """``[B, T]`` ids padded on the right, ``lengths [B]``: the hidden state of each last token, ``[B, D]``."""
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return self._states(input_ids, mask.long())[rows, lengths - 1]

    def _states(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        if self.is_bitgen:
            return self.body.run_stack(input_ids, mask).hidden_states
        base = self.body.base_model
        if base is self.body:  # a model without parts
            output = base(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
            return output.hidden_states[-1]
        output = base(input_ids=input_ids, attention_mask=mask)
        return output[0] if isinstance(output, tuple) else output.last_hidden_state

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``[B, labels]``; arguments as for :meth:`last_states`."""
        return self.head(self.last_states(input_ids, lengths))


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """``input_ids [B, T]``, padded on the right with zeros, and ``lengths [B]``."""
    lengths = torch.tensor([len(ids) for ids in texts])
    rows = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return rows.to(device), lengths.to(device)


def passes(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Cut a batch into passes of texts of like length, so that padding and passes together cost least.

    Every text is in one pass; the passes' gradients add up to the batch's.

    Args:
        lengths: of the texts, in tokens.

    Returns:
        The texts' places in the batch, pass by pass.
    """
    fixed = _PASS_COSTS.get(device.type, _PASS_COSTS["cuda"])
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    # By dynamic programming over the texts, longest first: the first of a pass is as long as the pass.
    least, cut = [0], [0]
    for end in range(1, len(order) + 1):
        costs = [least[start] + fixed + lengths[order[start]] * (end - start) for start in range(end)]
        least.append(min(costs))
        cut.append(costs.index(least[-1]))
    found, end = [], len(order)
    while end:
        found.append(order[cut[end] : end])
        end = cut[end]
    return found[::-1]
