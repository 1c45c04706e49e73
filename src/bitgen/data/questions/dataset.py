"""Pictures with what is asked of them, as tensors: a picture is seen once for all of its sequences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import torch

from bitgen.data.bad_records import BadRecord, load_or_replace
from bitgen.data.questions.marked_text import Asked, MarkedTokens
from bitgen.data.questions.shown import OWN, PictureShown, shown
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.model.likelihood import IGNORED
from bitgen.model.processing_bitgen import pad_tokens

logger = logging.getLogger(__name__)

TOO_LONG = "a sequence longer than the context"
_NO_RATIONALE, _LEFT_OUT = "are answered without their rationale", "are left out"
_LOOKED_AT, _NAMED = 64, 5  # pictures that are looked at before the first step, and those that a message names


class AskedPicture(Protocol):
    """``pixels [3, H, W]``, or features ``[P, C]``, and what is asked of it."""

    @property
    def pixels(self) -> torch.Tensor: ...

    @property
    def asked(self) -> tuple[Asked, ...]: ...


class AskedPictures(Protocol):
    """Where they come from. What a key gives is a function of the key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey, /) -> AskedPicture:
        """Raises ``BadRecord`` where it cannot be used."""

    def name(self, index: int) -> str: ...


class QuestionDataset:
    """Sequences of pictures; a sample is a picture with all of its sequences.

    Args:
        max_length: of a sequence. A rationale that makes it longer is left out; what is still too long is no record.
        answer_weight: how much a token of an answer counts, beside one of a rationale.
        dots: rationales are dots, as many as they have tokens.
    """

    steady, why_uncached = True, "pictures of stage 2 are drawn, or looked at, anew each time"

    def __init__(
        self, pictures: AskedPictures, tokens: MarkedTokens, max_length: int, answer_weight: int, dots: bool, seed: int
    ) -> None:
        self.pictures, self.tokens, self.max_length = pictures, tokens, max_length
        self.answer_weight, self.dots, self.seed = answer_weight, dots, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def describe(self) -> str:
        """How much there is."""
        return f"{len(self):,} pictures an epoch"

    def record_name(self, index: int) -> str:
        """How messages call a picture."""
        return self.pictures.name(index)

    def check_what_is_asked(self, says: bool = True) -> None:
        """Say in the log how much of what is asked, of pictures from all over the data, does not fit; of a picture of
        which nothing fits that is counted when it is read. And how many answers hold words that no token spells.

        Args:
            says: what is found; every process looks, so that all end where nothing can be learned.

        Raises:
            ValueError: all answers do.
        """
        count = min(len(self), _LOOKED_AT)
        asked = unwritten = 0
        long: dict[str, list[str]] = {_NO_RATIONALE: [], _LEFT_OUT: []}
        for number in range(count):
            index = number * len(self) // count
            try:
                given = self.pictures[SampleKey(index)].asked
            except BadRecord:  # which is counted when its turn comes
                continue
            asked += len(given)
            for one in given:
                unwritten += self.tokens.cannot_write(one)
                if len(self.tokens.sequence(one, self.answer_weight, self.dots).ids) > self.max_length:
                    fits = len(self.sequence(one).ids) <= self.max_length
                    long[_NO_RATIONALE if fits else _LEFT_OUT].append(self.record_name(index))
        if unwritten:
            text = (
                f"{unwritten} of {asked} answers have words that the tokenizer has no tokens for, so that they can be "
                "neither learned nor said: take a tokenizer of bytes, or one that was trained on such words."
            )
            if unwritten == asked:
                raise ValueError(text)
            if says:
                logger.warning(text)
        for what, names in long.items():
            if names and says:
                logger.warning(
                    "%d of %d questions are longer than %d tokens (max_seq_len), and %s: those of %s%s",
                    len(names), asked, self.max_length, what, ", ".join(list(dict.fromkeys(names))[:_NAMED]),
                    ", ..." if len(set(names)) > _NAMED else "",
                )  # fmt: skip

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """Pictures in an order of their own each epoch."""
        return ResumableBatchSampler(len(self), batch_size, rank, world_size, self.seed)

    def words_per_batch(self, sampler: Any) -> float | None:
        """Unknown: what is asked is drawn."""
        return None

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        candidates = chain(range(key.index, len(self)), range(key.index))
        sample = load_or_replace(lambda index: self._sample(SampleKey(index, key.epoch)), candidates)
        return sample | {"index": key.index}

    def _sample(self, key: SampleKey) -> dict[str, Any]:
        picture = self.pictures[key]
        sequences = [self.sequence(asked) for asked in picture.asked]
        fitting = [one for one in sequences if len(one.ids) <= self.max_length]
        if not fitting:
            name = self.record_name(key.index)
            raise BadRecord(f"{name}: no question and answer of it fits {self.max_length} tokens", TOO_LONG)
        return {"pixels": picture.pixels, "sequences": fitting}

    def sequence(self, asked: Asked) -> Any:
        """A sequence; without its rationale where that makes it too long."""
        whole = self.tokens.sequence(asked, self.answer_weight, self.dots)
        if len(whole.ids) <= self.max_length or asked.rationale is None:
            return whole
        return self.tokens.sequence(asked._replace(rationale=None), self.answer_weight)


class QuestionCollator:
    """Pictures to a batch: ``pictures [B, ...]``; of all their R sequences ``picture_of [R]``, ``input_ids``,
    ``attention_mask``, ``labels`` and ``weights [R, T]``, where a label is the token after and a weight its own.

    Args:
        picture_shown: with a question; see ``shown.py``.
    """

    def __init__(self, pad_token_id: int, picture_shown: PictureShown = OWN) -> None:
        self.pad_token_id, self.picture_shown = pad_token_id, picture_shown

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [(at, sequence) for at, sample in enumerate(samples) for sequence in sample["sequences"]]
        padded = pad_tokens([torch.tensor(sequence.ids) for _, sequence in rows], self.pad_token_id)
        weights = torch.zeros_like(padded["input_ids"])
        for row, (_, sequence) in enumerate(rows):
            weights[row, : len(sequence.ids) - 1] = torch.tensor(sequence.weights[1:])
        labels = torch.full_like(weights, IGNORED)
        labels[:, :-1] = padded["input_ids"][:, 1:]
        skipped = [sample["skipped"] for sample in samples if "skipped" in sample]
        return {
            **({"skipped": skipped} if skipped else {}),
            "pictures": shown(torch.stack([sample["pixels"] for sample in samples]), self.picture_shown),
            "picture_of": torch.tensor([at for at, _ in rows]),
            **padded,
            "labels": labels.masked_fill(weights == 0, IGNORED),
            "weights": weights,
            "supervised": weights.sum(),
            "indices": torch.tensor([sample["index"] for sample in samples]),
        }
