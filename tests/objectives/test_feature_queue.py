"""The queue as a first-in-first-out ring, against a deque."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitgen.objectives.feature_queue import EMPTY, FeatureQueue, QueueEntries

WIDTH, LENGTH, TOKENS = 3, 5, 2


def _entries(first: int, count: int, length: int = LENGTH) -> QueueEntries:
    """Pairs numbered from ``first``, each tensor holding its pair's number in its own way."""
    number = torch.arange(first, first + count)
    caption = number[:, None] * 10 + torch.arange(length)[None]
    return QueueEntries(
        image_features=number[:, None].float().expand(-1, WIDTH),
        text_features=-number[:, None].float().expand(-1, WIDTH),
        image_ids=number + 2**40,
        input_ids=caption,
        attention_mask=(torch.arange(length)[None] < number[:, None] % length + 1).long(),
        image_tokens=(number[:, None, None] % 256).to(torch.bfloat16).expand(-1, TOKENS, WIDTH),
    )


def _check_holds(queue: FeatureQueue, numbers: list[int], length: int = LENGTH) -> None:
    """Every row of the queue belongs, in all six tensors, to one of ``numbers``, each once."""
    held = queue.valid()
    assert len(queue) == len(numbers) == len(held.image_ids)
    assert sorted((held.image_ids - 2**40).tolist()) == sorted(numbers)
    for row, number in enumerate((held.image_ids - 2**40).tolist()):
        expected = _entries(number, 1, length)
        assert torch.equal(held.image_features[row], expected.image_features[0])
        assert torch.equal(held.text_features[row], expected.text_features[0])
        assert held.input_ids[row].tolist() == expected.input_ids[0].tolist() + [0] * (LENGTH - length)
        assert held.attention_mask[row].tolist() == expected.attention_mask[0].tolist() + [0] * (LENGTH - length)
        assert torch.equal(held.image_tokens[row], expected.image_tokens[0])


def _queue(size: int) -> FeatureQueue:
    return FeatureQueue(size, WIDTH, LENGTH, TOKENS)


@given(st.integers(1, 7), st.lists(st.integers(1, 17), max_size=9), st.integers(2, LENGTH))
def test_holds_what_a_deque_holds(size: int, batches: list[int], length: int) -> None:
    queue, model, number = _queue(size), deque(maxlen=size), 0
    for count in batches:
        queue.enqueue(_entries(number, count, length))
        model.extend(range(number, number + count))
        number += count
        _check_holds(queue, list(model), length)
        assert (queue.entries.image_ids == EMPTY).sum() == size - len(model)
        # The next pair to go is the oldest one.
        if len(model) == size:
            assert queue.entries.image_ids[queue.position] - 2**40 == model[0]


@given(st.integers(1, 6), st.lists(st.integers(1, 8), max_size=5), st.lists(st.integers(1, 8), max_size=4))
def test_a_restored_queue_goes_on_like_the_saved_one(size: int, before: list[int], after: list[int]) -> None:
    queue, number = _queue(size), 0
    for count in before:
        queue.enqueue(_entries(number, count))
        number += count
    state = {name: value.clone() if torch.is_tensor(value) else value for name, value in queue.state_dict().items()}
    restored = _queue(size)
    restored.enqueue(_entries(900, size))  # nothing of what it held before may stay
    restored.load_state_dict(state)
    for count in after:
        queue.enqueue(_entries(number, count))
        restored.enqueue(_entries(number, count))
        number += count
    assert (restored.position, len(restored)) == (queue.position, len(queue))
    for mine, theirs in zip(restored.entries, queue.entries, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "other", [(4, WIDTH, LENGTH, TOKENS), (5, 4, LENGTH, TOKENS), (5, WIDTH, 6, TOKENS), (5, WIDTH, LENGTH, 1)]
)
def test_refuses_a_state_of_other_shapes_and_keeps_its_own(other: tuple[int, ...]) -> None:
    queue = _queue(5)
    queue.enqueue(_entries(0, 3))
    with pytest.raises(ValueError, match="queue_size"):
        queue.load_state_dict(FeatureQueue(*other).state_dict())
    _check_holds(queue, [0, 1, 2])


def test_refuses_to_be_empty() -> None:
    with pytest.raises(ValueError, match="queue_size=0"):
        _queue(0)


def test_enqueue_copies_and_detaches() -> None:
    queue, new = _queue(4), _entries(0, 2)
    source = new.image_features.clone().requires_grad_(True)
    queue.enqueue(new._replace(image_features=source))
    assert not queue.entries.image_features.requires_grad
    with torch.no_grad():
        source.fill_(99)
    _check_holds(queue, [0, 1])


def test_captions_and_tokens_are_stored_small() -> None:
    entries = _queue(2).entries
    assert (entries.input_ids.dtype, entries.attention_mask.dtype) == (torch.int32, torch.uint8)
    assert (entries.image_tokens.dtype, entries.image_ids.dtype) == (torch.bfloat16, torch.int64)
