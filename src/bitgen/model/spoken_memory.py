"""A memory that a model speaks from: facts taught in one step, read in closed form, forgotten exactly, kept in a file.

A fact is a text, alone or of a picture; ``recall.py`` makes a key and a value of it. With the keys X and the values Y
of all facts, a key x reads ``x X+ Y``, in float64: of up to k facts whose keys are independent exactly what was taught
(Larimar, arXiv 2403.11901, eq. 3 and 4, whose shrinkage cancels). ``speaking.py`` says which facts a cue means.

Shapes: E facts, keys ``[E, k]``, values ``[E, L d]``; B cues, P tokens of a picture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from .configuration_bitgen import BitGenConfig
from .modeling_bitgen import BitGenModel
from .recall import Recall
from .recalled import Recalled
from .sequence_layout import last_tokens
from .speaking import BY_TEXT, chosen, find, find_asked, recalled_for, told_last
from .spoken_memory_file import MOST_FACTS, Stored, check_text, read_facts, write_facts
from .token_ids import text_ids

logger = logging.getLogger(__name__)

# Probes of one model in other precisions differ by a hundredth, those of two models by more than their length.
_SAME_MODEL = 0.05


def recall_of(model: BitGenModel) -> Recall:
    """The part of a model that speaks from a memory; ``ValueError`` where it has none."""
    if model.recall is None:
        raise ValueError(
            "This model cannot speak from a memory: recall_tokens is 0. Train one that can from its checkpoint, with "
            "src/train_stage1_vision_language.py --config configs/memory_scenes.yaml --init_from its folder, and "
            "export that."
        )
    return model.recall


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True, eq=False)
class _Facts:
    """All facts at one moment: ``texts``, ``keys [E, k]`` and ``values [E, L d]``, float32."""

    texts: tuple[str, ...]
    keys: torch.Tensor
    values: torch.Tensor

    def added(self, text: str, key: torch.Tensor, value: torch.Tensor) -> _Facts:
        """With one more, its ``key [1, k]`` and ``value [1, L d]``."""
        return _Facts((*self.texts, text), torch.cat([self.keys, key]), torch.cat([self.values, value]))

    def without(self, row: int) -> _Facts:
        """As if that one had never been taught."""
        keep = [other for other in range(len(self.texts)) if other != row]
        return _Facts(tuple(self.texts[other] for other in keep), self.keys[keep], self.values[keep])

    @cached_property
    def latest(self) -> torch.Tensor:
        """Rows of the facts that are read: of those whose keys are equal the last."""
        return told_last(self.keys).nonzero().flatten()

    @cached_property
    def latest_values(self) -> torch.Tensor:
        """Of these, ``[N, L d]``."""
        return self.values[self.latest]

    @cached_property
    def _inverse(self) -> torch.Tensor:
        """X+, ``[k, E]``."""
        return torch.linalg.pinv(self.keys[self.latest].double())

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """What the keys of facts read from the memory, rows ``[N]`` of ``latest`` to ``[N, L d]``."""
        cues = self.keys[self.latest][rows.cpu()].double()
        return cues @ self._inverse @ self.latest_values.double()


class SpokenMemory:
    """Facts that ``generate(memory=...)`` of a model speaks from; empty at first.

    Made by ``model.new_memory()`` or ``model.load_memory(file)``. A cue that means nothing that was taught leaves the
    output as it is without a memory, to the last bit.

    Args:
        model: by which keys and values are made. It is put into eval mode while they are.

    Raises:
        ValueError: the model cannot speak from a memory.
    """

    def __init__(self, model: BitGenModel) -> None:
        recall = recall_of(model)
        self.model = model
        self._facts = _Facts((), torch.zeros(0, recall.key_width), torch.zeros(0, recall.value_width))
        self._warned = False  # that there are more facts than can be read exactly

    def __len__(self) -> int:
        return len(self._facts.texts)

    @property
    def texts(self) -> tuple[str, ...]:
        """What was taught, in that order."""
        return self._facts.texts

    @property
    def capacity(self) -> int:
        """k, the number of facts that can be read exactly."""
        return recall_of(self.model).key_width

    # --- writing -------------------------------------------------------------------------------------------------

    def teach(
        self,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
    ) -> int:
        """Teach a text of a picture, or a sentence alone, and return its row.

        What it says of the same thing as an earlier one counts in its place; both are listed. A warning says what of
        the text is longer than a value holds, and that there are more facts than can be read exactly.

        Args:
            tokenizer: the model's; of a processor ``processor.tokenizer``.
            pixel_values: ``[1, 3, H, W]`` or ``[3, H, W]``, as the processor makes them; or instead
            vision_features: ``[1, P, C]`` or ``[P, C]``, for models without a tower.

        Raises:
            ValueError: a text that is empty or too long, another tokenizer, more than one picture or one of the wrong
                kind, NaN, or a memory that is full. Nothing is taught then.
        """
        model, recall = self.model, recall_of(self.model)
        check_text(text)
        if len(self) >= MOST_FACTS:
            raise ValueError(f"a memory holds at most {MOST_FACTS:,} facts: forget some")
        ids = text_ids(tokenizer, [model.config.as_taught(text)])[0]
        if not ids or max(ids) >= model.config.vocab_size:
            raise ValueError(f"the tokenizer makes no ids of this model of {text[:60]!r}: pass the model's own")
        _say_cut(text, ids, min(recall.length, model.config.max_seq_len - 2), tokenizer)
        whole = [tokenizer.bos_token_id, *ids[: model.config.max_seq_len - 2], tokenizer.eos_token_id]
        with _still(model):
            images = None
            if pixel_values is not None or vision_features is not None:
                images = self._image_tokens(_one(pixel_values, 4), _one(vision_features, 3))
            key, value = self._fact(torch.tensor([whole], device=model.device), images)
        if not (key.isfinite().all() and value.isfinite().all()):
            raise ValueError("NaN or infinity in the picture, or in the model: nothing was taught")
        self._facts = self._facts.added(text, key, value)
        if len(self) > self.capacity and not self._warned:
            self._warned = True
            logger.warning(
                "%d facts are taught, and this memory reads %d exactly: the more there are, the less right is what is "
                "read of any of them. Forget some, or teach others in another memory.",
                len(self),
                self.capacity,
            )
        return len(self) - 1

    def forget(self, row: int) -> None:
        """Make it as if that fact had never been taught; those after it move up. ``ValueError``: no such row."""
        if row not in range(len(self)):
            raise ValueError(f"there is no fact {row}: the memory holds {len(self)}, counted from 0")
        self._facts = self._facts.without(row)

    def _fact(self, ids: torch.Tensor, image_tokens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Key ``[1, k]`` and value ``[1, L d]`` of ids ``BOS ... EOS [1, T]``, of a picture or alone."""
        recall, mask = recall_of(self.model), torch.ones_like(ids)
        if image_tokens is None:
            key = recall.text_keys(ids, mask)
        else:
            key = recall.taught_image_key(image_tokens, ids, mask)
        value = recall.values(ids, mask)
        return key.float().cpu(), value.float().cpu()

    def _image_tokens(self, *picture: torch.Tensor | None) -> torch.Tensor:
        """The tokens that text is written from, ``[1, P, D]``, of one picture: ``pixel_values, vision_features``."""
        model = self.model
        given = (None if part is None else part.to(model.device, model.dtype) for part in picture)
        return model.pool_image_tokens(model.encode_image(*given).image_tokens).to(model.dtype)

    # --- reading -------------------------------------------------------------------------------------------------

    def answering(
        self, model: BitGenModel, inputs: torch.Tensor | None, arguments: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """What ``model.generate`` hands to ``forward``: ``recalled`` and ``recalled_mask``, or nothing.

        With pictures these are the cues, otherwise the prompts are; a prompt without a word means nothing.

        Args:
            inputs, arguments: of ``generate``, with ``image_tokens`` in place of pictures.

        Raises:
            ValueError: the memory is of another model, or prompts are given as embeddings.
        """
        self._check(model)
        ids = arguments.get("input_ids") if inputs is None else inputs
        image_tokens = arguments.get("image_tokens")
        if arguments.get("inputs_embeds") is not None:
            raise ValueError("A memory reads what it goes on from: pass input_ids, or leave the memory out.")
        if image_tokens is None and ids is None:
            return {}
        if not len(self):
            return {}
        with _still(model):
            if image_tokens is not None:
                recalled = self._by_pictures(model, image_tokens)
            else:
                assert ids is not None
                mask = arguments.get("attention_mask")
                on_model = None if mask is None else mask.to(model.device)  # transformers takes prompts of the CPU, too
                recalled = self._by_prompts(model, ids.to(model.device), on_model)
        return {} if recalled is None else {"recalled": recalled.tokens, "recalled_mask": recalled.present}

    def _by_pictures(self, model: BitGenModel, image_tokens: torch.Tensor) -> Recalled | None:
        recall, facts = recall_of(model), self._facts
        found = find(recall, facts.keys[facts.latest], facts.latest_values, recall.picture(image_tokens))
        return recalled_for(recall, chosen(found), found, facts.read, image_tokens)

    def _by_prompts(self, model: BitGenModel, ids: torch.Tensor, mask: torch.Tensor | None) -> Recalled | None:
        """Of prompts padded on either side; as in training, the cue is the prompt's words between BOS and EOS."""
        recall, facts, config = recall_of(model), self._facts, model.config
        index, mask = last_tokens(_words(ids, mask, config), ids, config.max_seq_len - 2)
        says, end = mask.any(dim=1), mask.sum(dim=1, keepdim=True) + 1
        ids = F.pad(ids.gather(1, index), (1, 1), value=config.bos_token_id).scatter(1, end, config.eos_token_id)
        mask = F.pad(F.pad(mask.long(), (1, 0), value=1), (0, 1)).scatter(1, end, 1)
        latest = facts.latest
        found = find_asked(recall, facts.keys[latest], facts.latest_values, recall.questions(ids, mask), BY_TEXT)
        rows = [row if said else [] for row, said in zip(chosen(found), says.tolist(), strict=True)]
        return recalled_for(recall, rows, found, facts.read, None)

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, file: str | os.PathLike) -> None:
        """Write texts, keys and values into a file, atomically. ``ValueError``: it cannot be written."""
        facts = self._facts
        write_facts(file, Stored(facts.texts, facts.keys, facts.values, self._probe()))

    @classmethod
    def load(cls, file: str | os.PathLike, model: BitGenModel) -> SpokenMemory:
        """The memory that :meth:`save` wrote.

        Raises:
            ValueError: there is no such file, it is damaged, or of another model; or the model has no recall.
        """
        memory = cls(model)
        stored, empty = read_facts(file), memory._facts
        fits = stored.keys.shape[1:] == empty.keys.shape[1:] and stored.values.shape[1:] == empty.values.shape[1:]
        if not fits or not _same(stored.probe, memory._probe()):
            raise ValueError(f"{file} was made with another model, to which its facts mean nothing: teach them anew")
        memory._facts = _Facts(*stored[:3])
        return memory

    def _check(self, model: BitGenModel) -> None:
        if recall_of(model) is recall_of(self.model):
            return
        if not _same(self._probe(), SpokenMemory(model)._probe()):
            raise ValueError("This memory is of another model, which its keys mean nothing to: teach its facts anew.")

    def _probe(self) -> torch.Tensor:
        """Keys and value of a fixed picture and a fixed text, by which a memory knows its model: ``[2 k + L d]``."""
        config = self.model.config
        seen = (config.image_tokens, config.vision_feature_dim)
        shape = torch.Size(seen if config.takes_features else (3, config.image_size, config.image_size))
        ramp = torch.linspace(0, 50, shape.numel()).sin().view(1, *shape)
        ids = torch.arange(7, 7 * min(8, config.max_seq_len) + 1, 7, device=self.model.device)[None] % config.vocab_size
        with _still(self.model):
            images = self._image_tokens(None, ramp) if config.takes_features else self._image_tokens(ramp, None)
            (pictured, value), (told, _) = self._fact(ids, images), self._fact(ids, None)
        return torch.cat([pictured[0], told[0], F.normalize(value[0], dim=0)])


def checked_memory(memory: Any) -> SpokenMemory:
    """``generate``'s argument, if it is one: a ``ValueError`` says how to make one."""
    if not isinstance(memory, SpokenMemory):
        raise ValueError(
            f"memory is a {type(memory).__name__}: make one with model.new_memory() or model.load_memory(file)."
        )
    return memory


def _words(ids: torch.Tensor, mask: torch.Tensor | None, config: BitGenConfig) -> torch.Tensor:
    """Which tokens of prompts ``[B, T]`` are words: neither padding nor a BOS that begins them or an EOS that ends
    them."""
    pad, eos = config.pad_token_id, config.eos_token_id
    if mask is None:
        mask = ids != pad if pad is not None and pad != eos else torch.ones_like(ids)
    real = mask.bool()
    begins = real & (real.cumsum(dim=1) == 1)
    ends = real & (real.cumsum(dim=1) == real.sum(dim=1, keepdim=True))
    return real & ~(begins & (ids == config.bos_token_id)) & ~(ends & (ids == eos))


def _one(picture: torch.Tensor | None, dimensions: int) -> torch.Tensor | None:
    """One picture, as a batch of one."""
    if picture is None:
        return None
    picture = picture if picture.dim() == dimensions else picture[None]
    if picture.dim() != dimensions or len(picture) != 1:
        raise ValueError(f"a fact has one picture, not {list(picture.shape)}: teach pictures one after the other")
    return picture


def _say_cut(text: str, ids: list[int], held: int, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(ids) > held:
        logger.warning(
            "the text %r is cut: it has %d tokens and a fact holds %d, as far as %r. Shorten it, or begin with what "
            "matters.",
            text[:60],
            len(ids),
            held,
            tokenizer.decode(ids[:held]).strip()[-40:],
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two probes are of one model."""
    return one.shape == other.shape and bool((one - other).norm() <= _SAME_MODEL * other.norm())
