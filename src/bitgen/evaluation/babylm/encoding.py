"""Texts to token ids with the characters that each token covers, through whatever processor a model brings."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

BATCH = 2048
_SAMPLES = 8
_UNUSED = {"padding", "truncation"}  # of a tokenizer's settings: nothing here is padded or cut


class Encoded(NamedTuple):
    """Token ids of a text, specials included, and the characters ``(start, end)`` of each; (0, 0) for a special."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class ProcessorEncoder:
    """Encodes as the official pipeline calls a processor or tokenizer: ``processor(text=..., ...)``, nothing cut.

    Many texts go in one call where that gives what single calls give, which is tried on a few of them.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def rules(self) -> str:
        """What decides token ids, as JSON."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        state = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
        kinds = [type(self.processor).__name__, type(tokenizer).__name__]
        return json.dumps([kinds, {name: state[name] for name in state.keys() - _UNUSED}], sort_keys=True)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text with the specials that the processor adds.

        Raises:
            ValueError: the processor gives no offsets (a slow tokenizer).
        """
        if not texts:
            return []
        samples = [texts[i * (len(texts) - 1) // _SAMPLES] for i in range(_SAMPLES + 1)]
        single = [self._encode_one(text) for text in samples]
        try:
            if self._encode_many(samples) == single:
                parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
                return [encoded for part in parts for encoded in self._encode_many(part)]
        except Exception as error:  # a model's own processor may raise anything when it is given a list
            logger.debug("the processor takes no list of texts: %s", error)
        logger.info("the processor encodes texts one at a time only: slower")
        return [self._encode_one(text) for text in texts]

    def _encode_many(self, texts: Sequence[str]) -> list[Encoded]:
        output = self.processor(text=list(texts), return_offsets_mapping=True)
        pairs = zip(output["input_ids"], output["offset_mapping"], strict=True)
        return [_encoded(ids, offsets) for ids, offsets in pairs]

    def _encode_one(self, text: str) -> Encoded:
        try:
            output = self.processor(text=text, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise ValueError(f"the model's tokenizer gives no character offsets ({error}); save a fast one") from error
        ids, offsets = output["input_ids"], output["offset_mapping"]
        if len(ids) == 1 and not isinstance(ids[0], int):
            ids, offsets = ids[0], offsets[0]
        return _encoded(ids, offsets)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself, which may be one part of a processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def begins_with_special(self) -> bool:
        """Whether something, as a BOS, stands before the first token of a text."""
        encoded = self._encode_one("a")
        return bool(encoded.ids) and tuple(encoded.offsets[0]) == (0, 0)

    def encode_word(self, word: str) -> list[int]:
        """The ids of a piece of text, without specials."""
        return [int(token) for token in self.processor(word, add_special_tokens=False)["input_ids"]]

    def decode(self, token: int) -> str:
        """The text of one token."""
        return self.processor.decode(token)


def _encoded(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Encoded:
    return Encoded(list(ids), list(offsets))


def completion_positions(encoded: Encoded, sentence: str, completion: str) -> list[int]:
    """The positions of the tokens that reach into the completion, the text's end; the first token has no prediction.

    A token that straddles the border counts, as in the official pipeline.
    """
    if not encoded.ids:
        return []
    border = len(sentence) - len(completion) + encoded.offsets[0][0]
    return [position for position, (_, end) in enumerate(encoded.offsets) if position and end > border]
