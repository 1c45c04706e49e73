"""Conversations as tensors: ids with labels, the pictures in reading order, and batches of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bitgen.data.bad_records import BadRecord, load_or_replace
from bitgen.data.conversations.records import Conversation, Conversations, Picture, Turn, check_visuals, visual_names
from bitgen.data.dataset import DAMAGED_REMEDY
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.guards.printable import printable
from bitgen.model.image_decoding import ImageError
from bitgen.model.likelihood import IGNORED

logger = logging.getLogger(__name__)

UNSUPERVISED = "no token of an answer to learn from"
CUT = "images longer than the text may be"
REFUSED = "an image of more pictures, or fewer, than the model takes"

Encode = Callable[[Sequence[Turn], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
"""``(turns, tokens of each visual) -> (ids, labels)``, both ``[T]``; a visual's tokens have negative ids."""

_LOOKED_AT = 256
_NAMED = 5


class ConversationDataset(Dataset):
    """Samples of a source of conversations.

    Args:
        conversations: a folder of conversations, or images with captions as such.
        encode: one rendering of the turns as ids and labels; what is not the assistant's is labelled -100.
        tokens: how many tokens a visual of so many pictures becomes (a connector's ``tokens``); ``ValueError`` where it
            takes no such visual.
        picture: ``(encoded file or picture, its name) -> [3, S, S]``; may raise ``ImageError``. Features are
            taken as they are.
        max_length: tokens of a sample, those of its pictures included; what is longer loses its end.
        replace_bad: in place of a record that cannot be used, give the next one's sample, which then carries
            ``skipped``; else raise.

    ``dataset[SampleKey(index, epoch)]`` gives ``input_ids``, ``labels`` int64 ``[T]``; where there are visuals
    ``pixel_values [K, 3, S, S]`` or ``vision_features [K, N, C]`` float32 of all K pictures in reading order;
    ``frames``, the pictures of each visual; ``index``, ``image_id`` (-1: no picture), ``words`` of the answers, whether
    it is ``truncated``, and whether ``lost_answer``: its last answer begins behind what is read. Raises ``BadRecord``
    naming a record that cannot be used; one without a token to learn from is named with its text.

    Some conversations, spread evenly, are encoded at once: it is logged how many are truncated and how many of no use.

    Raises:
        ValueError: none of those is of use; it names the first.
    """

    def __init__(
        self,
        conversations: Conversations,
        encode: Encode,
        tokens: Callable[[int], int],
        picture: Callable[[Any, str], torch.Tensor],
        max_length: int,
        replace_bad: bool = False,
    ) -> None:
        self.conversations, self.encode, self.tokens, self.picture = conversations, encode, tokens, picture
        self.max_length, self.replace_bad = max_length, replace_bad
        self._look()

    def showing(self, conversations: Conversations) -> ConversationDataset:
        """The same samples with other pictures in the same places, such as their features; nothing is looked at."""
        other = copy.copy(self)
        other.conversations = conversations
        return other

    def _look(self) -> None:
        count = min(len(self), _LOOKED_AT)
        truncated, bad = [], []
        for number in range(count):
            index = number * len(self) // count
            try:
                if self.text(index)["truncated"]:
                    truncated.append(self.record_name(index))
            except BadRecord as error:
                bad.append(str(error))
        if len(bad) == count:
            raise ValueError(f"none of {count} conversations can be used, the first: {bad[0]}")
        if truncated:
            message = "%d of %d conversations are longer than %d tokens and lose their end: %s%s"
            more = ", ..." if len(truncated) > _NAMED else ""
            logger.warning(message, len(truncated), count, self.max_length, ", ".join(truncated[:_NAMED]), more)
        if bad:
            logger.warning("%d of %d conversations cannot be used, the first: %s", len(bad), count, bad[0])

    # ---------------------------------------------------------------- what there is

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def steady(self) -> bool:
        """Yes: a batch without a picture runs what sees all the same, with weight zero."""
        return True

    @property
    def why_uncached(self) -> str | None:
        """Why the features of its pictures cannot be computed once; None: they can."""
        return self.conversations.why_uncached

    @property
    def feature_shape(self) -> tuple[int, int] | None:
        """``(N, C)`` where pictures are stored features; None: they are pictures."""
        return self.conversations.feature_shape

    def describe(self) -> str:
        """How much there is, for the run's first table."""
        return self.conversations.describe()

    def record_name(self, index: int) -> str:
        """How messages call a sample."""
        return self.conversations.record_name(index)

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """The batches of one rank, in an order that depends on the source's seed."""
        return ResumableBatchSampler(len(self), batch_size, rank, world_size, self.conversations.seed)

    def words_per_batch(self, sampler: ResumableBatchSampler) -> float:
        """Mean words of the answers of a batch."""
        return self.conversations.mean_words() * sampler.batch_size

    def lengths(self) -> list[int]:
        """Tokens of every sample, as the first epoch has it; 0 of a record that cannot be used. No picture is read."""
        found = []
        for index in range(len(self)):
            try:
                found.append(len(self.text(index)["input_ids"]))
            except BadRecord:  # what stands in for it is known when it is read
                found.append(0)
        return found

    def text(self, index: int) -> dict:
        """A sample without its pictures, as the first epoch has it. Errors as of ``dataset[index]``."""
        return self._encoded(self.conversations.text(index), index)

    # ---------------------------------------------------------------- tensors

    def __getitem__(self, key: SampleKey | int) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if not self.replace_bad:
            return self._sample(index, epoch)
        following = ((index + step) % len(self) for step in range(len(self)))
        return load_or_replace(lambda candidate: self._sample(candidate, epoch), following)

    def _sample(self, index: int, epoch: int) -> dict:
        conversation = self.conversations[SampleKey(index, epoch)]
        sample = self._encoded(conversation, index)
        pictures = [picture for visual in conversation.visuals for picture in visual]
        if not pictures:
            return sample
        names = visual_names(self.record_name(index), conversation.visuals)
        tensors = torch.stack([self._tensor(*each) for each in zip(pictures, names, strict=True)])
        return {"vision_features" if self.feature_shape else "pixel_values": tensors, **sample}

    def _tensor(self, picture: Picture, name: str) -> torch.Tensor:
        if isinstance(picture, torch.Tensor):
            return picture
        if isinstance(picture, np.ndarray):
            return torch.from_numpy(picture)
        try:
            return self.picture(picture, name)
        except ImageError as error:
            raise BadRecord(f"{error}; {DAMAGED_REMEDY}", error.reason) from error

    def _encoded(self, conversation: Conversation, index: int) -> dict:
        """A sample without its pictures."""
        name = self.record_name(index)
        check_visuals(conversation, name)
        frames = [len(visual) for visual in conversation.visuals]
        try:
            counts = [self.tokens(count) for count in frames]
        except ValueError as error:
            raise BadRecord(f"{name}: {error}", REFUSED) from error
        try:
            encoded = self.encode(conversation.turns, counts)
        except BadRecord as error:
            raise BadRecord(f"{name}: {error}", error.reason) from error
        ids, labels = (torch.as_tensor(values, dtype=torch.int64) for values in encoded)
        assert ids.shape == labels.shape and int((ids < 0).sum()) == sum(counts), (
            "ids, labels and visuals belong together"
        )
        truncated, last = len(ids) > self.max_length, start_of_last_answer(labels)
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        if int((ids < 0).sum()) < sum(counts):
            raise BadRecord(
                f"{name}: its images, {sum(counts)} tokens, and the text before them are longer than {self.max_length} "
                "tokens; allow more, or let the connector make fewer tokens of an image",
                CUT,
            )
        if not count_supervised(labels):
            text = " | ".join(f"{turn.role}: {turn.text}" for turn in conversation.turns)
            where = f"within the {self.max_length} tokens that are read" if truncated else "in it"
            raise BadRecord(
                f"{name}: there is no token of an answer to learn from {where}: {printable(text, 300)}", UNSUPERVISED
            )
        words = sum(len(answer.split()) for answer in conversation.answers)
        sample = {"input_ids": ids, "labels": labels, "frames": frames, "index": index, "image_id": conversation.image}
        return {**sample, "words": words, "truncated": truncated, "lost_answer": last >= self.max_length}


def count_supervised(labels: torch.Tensor) -> int:
    """Positions of ``[..., T]`` whose label is predicted; nothing stands before the first, so that never is."""
    return int((labels[..., 1:] != IGNORED).sum())


def start_of_last_answer(labels: torch.Tensor) -> int:
    """Where the last run of supervised positions of ``[T]`` begins; their number where there is none."""
    supervised = labels != IGNORED
    begins = supervised & ~torch.cat([supervised.new_zeros(1), supervised[:-1]])
    found = begins.nonzero()
    return int(found[-1]) if len(found) else len(labels)


class VisualCollator:
    """Stacks samples of :class:`ConversationDataset` into a batch.

    ``input_ids``, ``labels``, ``attention_mask`` int64 ``[B, T]``, padded on ``side`` to the longest; the mask comes
    from lengths, never from ids, for the padding's id may be a word's. ``pictures [K, 3, S, S]`` or
    ``features [K, N, C]``: all pictures of all samples in reading order, absent where no sample has one;
    ``frames [V]``: the pictures of each visual. ``supervised [1]``: labels to be predicted. ``words``, ``truncated``,
    ``indices``, ``image_ids`` ``[B]``. Where samples stand in for bad records, ``skipped``, a list.
    """

    def __init__(self, pad_id: int, side: str = "right") -> None:
        assert side in ("left", "right")
        self.pad_id, self.side = pad_id, side

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        assert samples, "a batch holds at least one sample"
        skipped = [sample["skipped"] for sample in samples if "skipped" in sample]
        labels = self._padded([sample["labels"] for sample in samples], IGNORED)
        return {
            **({"skipped": skipped} if skipped else {}),
            **_joined(samples, "pixel_values", "pictures"),
            **_joined(samples, "vision_features", "features"),
            "frames": torch.tensor([count for sample in samples for count in sample["frames"]], dtype=torch.int64),
            "input_ids": self._padded([sample["input_ids"] for sample in samples], self.pad_id),
            "labels": labels,
            "attention_mask": self._padded([torch.ones_like(sample["input_ids"]) for sample in samples], 0),
            "supervised": torch.tensor([count_supervised(labels)]),
            **{
                name: torch.tensor([int(sample[of]) for sample in samples], dtype=torch.int64)
                for name, of in (
                    ("words", "words"),
                    ("truncated", "truncated"),
                    ("indices", "index"),
                    ("image_ids", "image_id"),
                )
            },
        }

    def _padded(self, rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=value, padding_side=self.side
        )


def _joined(samples: Sequence[dict], of: str, name: str) -> dict[str, torch.Tensor]:
    found = [sample[of] for sample in samples if of in sample]
    return {name: torch.cat(found)} if found else {}
