"""Text packed into full sequences without attention across documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.text_shards import TextShard, read_text_info, tokenizer_sha256
from bitgen.data.tokenizer import vocabulary_size
from bitgen.model.likelihood import IGNORED

PADDING_DOCUMENT = -1
_HASHED = 32_768  # tokens at each end of a source


class _Packing:
    """The documents of an epoch in their order, one after the other: where each starts."""

    def __init__(self, order: np.ndarray, lengths: np.ndarray) -> None:
        self.order = order
        self.starts = np.concatenate([[0], np.cumsum(lengths[order])])  # [D + 1]


class TextBlocks(Dataset):
    """Sequences of exactly ``seq_len`` tokens: the corpus's documents, in an order drawn for (seed, epoch), cut evenly.

    An epoch shows every token once. Its documents, each ``BOS ... EOS``, are shuffled, written one after the other and
    cut every ``seq_len`` tokens, so the number of sequences is the same in all epochs, while cuts fall elsewhere in
    each; only the last sequence has padding. A document that a cut divides goes on in the next sequence without what
    was before: its first token there is nobody's label, positions start from 0 again.

    A label is the token that follows, as in :func:`bitgen.model.likelihood.next_token_labels`. A document's last
    word has its EOS as label; the EOS has none (-100), so that no label crosses from a document to the next.

    Args:
        folder: a corpus written by ``data_prep/babylm_text.py``.
        tokenizer: the one that the corpus was made with.
        seq_len: tokens a sequence.
        seed: with the epoch, decides the order of documents, and that of sequences in :meth:`batch_sampler`.
        sources: names of the sources to take; None takes all.

    ``dataset[SampleKey(index, epoch)]`` (a bare int means epoch 0) gives int64 ``[seq_len]`` tensors ``input_ids``,
    ``labels``, ``attention_mask`` (0 on padding), ``document_ids`` (0, 1, ... in the sequence; -1 on padding),
    ``position_ids`` (from 0 in each document), and ints ``words`` and ``index``. ``words`` is how many whitespace words
    of the source text the sequence stands for: a document's are spread evenly over its tokens, and the words of an
    epoch's sequences sum to those of the corpus exactly.

    Raises ``ValueError`` for a damaged, foreign or empty folder, another tokenizer, an unknown source.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerFast,
        seq_len: int,
        seed: int = 0,
        sources: Sequence[str] | None = None,
    ) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len is {seq_len}; a sequence needs at least 2 tokens")
        self.folder, self.info = Path(folder), read_text_info(folder)
        if tokenizer_sha256(tokenizer) != self.info.tokenizer_sha256:
            raise ValueError(
                f"text corpus {folder} was made with another tokenizer (of {self.info.tokenizer_size} tokens, this one "
                f"has {vocabulary_size(tokenizer)}): pass that one with --tokenizer DIR, or prepare the corpus again "
                "with this one"
            )
        names = [source.name for source in self.info.sources]
        unknown = sorted(set(sources or ()) - set(names))
        if unknown:
            raise ValueError(f"text corpus {folder} has no source {', '.join(unknown)}; it has {', '.join(names)}")
        self.sources = [source for source in self.info.sources if sources is None or source.name in sources]
        if not self.sources:
            raise ValueError(f"text corpus {folder} holds no text: prepare it again with data_prep/babylm_text.py")
        self.pad_token_id, self.seq_len, self.seed = tokenizer.pad_token_id, seq_len, seed
        self._map()

    def _map(self) -> None:
        shards = [TextShard(self.folder, source, self.info.dtype) for source in self.sources]
        self._tokens = [shard.tokens for shard in shards]
        self._lengths = np.concatenate([shard.lengths for shard in shards])
        self._words = np.concatenate([shard.words for shard in shards])
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.lengths) for shard in shards])
        self._first = np.concatenate([np.cumsum(shard.lengths) - shard.lengths for shard in shards])
        self.num_tokens, self.num_words = int(self._lengths.sum()), int(self._words.sum())
        self._packed: tuple[int, _Packing] | None = None

    def __getstate__(self) -> dict:
        # Workers started by spawn map the files again instead of getting a copy of the tokens.
        mapped = ("_tokens", "_lengths", "_words", "_shard", "_first", "_packed")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()

    def fingerprint(self) -> str:
        """A hash of what the corpus is by its content, cheap for a large one: its sources, the tokens and words of each
        document in their order, and each source's first and last tokens."""
        sha = hashlib.sha256(json.dumps([source._asdict() for source in self.sources], sort_keys=True).encode())
        for counts in (self._lengths, self._words):
            sha.update(counts.astype("<i8").tobytes())
        for tokens in self._tokens:
            for part in (tokens[:_HASHED], tokens[-_HASHED:]):
                sha.update(np.ascontiguousarray(part).tobytes())
        return sha.hexdigest()

    def __len__(self) -> int:
        return -(-self.num_tokens // self.seq_len)

    def describe(self) -> str:
        """How much there is, for the run's first table."""
        return (
            f"{len(self._lengths):,} documents, {self.num_words:,} words, {self.num_tokens:,} tokens in {len(self):,} "
            f"sequences of {self.seq_len}"
        )

    def batch_sampler(self, batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatchSampler:
        """The batches of one rank, in an order that depends on the dataset's seed.

        Raises ``ValueError`` when one batch of all ranks is more than there is.
        """
        if batch_size * world_size > len(self):
            ranks = f" x {world_size} processes" if world_size > 1 else ""
            raise ValueError(
                f"text_batch_size {batch_size}{ranks} is larger than text corpus {self.folder} ({len(self)} sequences "
                f"of {self.seq_len} tokens): use --text_batch_size {max(len(self) // world_size, 1)} or less, a "
                "smaller --text_seq_len, or more text"
            )
        return ResumableBatchSampler(len(self), batch_size, rank, world_size, self.seed)

    def record_name(self, index: int) -> str:
        """How messages call sequence ``index``; which documents are in it depends on the epoch."""
        return f"text corpus {self.folder}, sequence {index}"

    def _packing(self, epoch: int) -> _Packing:
        """The packing of ``epoch``; the last one asked for is kept, for epochs come one after the other."""
        if self._packed is None or self._packed[0] != epoch:
            order = np.random.default_rng([self.seed % 2**63, epoch]).permutation(len(self._lengths))
            self._packed = (epoch, _Packing(order, self._lengths))
        return self._packed[1]

    def __getitem__(self, key: SampleKey | int) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        packing = self._packing(epoch)
        begin, end = index * self.seq_len, min((index + 1) * self.seq_len, self.num_tokens)
        input_ids = np.full(self.seq_len, self.pad_token_id, dtype=np.int64)
        labels = np.full(self.seq_len, IGNORED, dtype=np.int64)
        document_ids = np.full(self.seq_len, PADDING_DOCUMENT, dtype=np.int64)
        position_ids = np.arange(self.seq_len, dtype=np.int64)
        words = 0
        place = int(np.searchsorted(packing.starts, begin, side="right")) - 1
        first = place
        while place < len(packing.order) and packing.starts[place] < end:
            document, start = packing.order[place], int(packing.starts[place])
            # From and to: which tokens of the document are in this sequence; at: where they go.
            since, until = max(begin - start, 0), min(end - start, int(self._lengths[document]))
            at = slice(start + since - begin, start + until - begin)
            offset = self._first[document]
            ids = self._tokens[self._shard[document]][offset + since : offset + until].astype(np.int64)
            input_ids[at] = ids
            labels[at.start : at.stop - 1] = ids[1:]
            document_ids[at] = place - first
            position_ids[at] -= at.start
            words += self._words_in(document, since, until)
            place += 1
        position_ids[document_ids == PADDING_DOCUMENT] = 0
        arrays = {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": (document_ids != PADDING_DOCUMENT).astype(np.int64),
            "document_ids": document_ids,
            "position_ids": position_ids,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"words": words, "index": index}

    def _words_in(self, document: int, since: int, until: int) -> int:
        """Words that tokens ``since`` to ``until`` of a document stand for; over any cuts they sum to all of its."""
        words, tokens = int(self._words[document]), int(self._lengths[document])
        return words * until // tokens - words * since // tokens


def collate_blocks(samples: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Samples of :class:`TextBlocks` to a batch: the tensors as ``[B, T]``; ``words`` and ``indices`` int64 ``[B]``."""
    assert samples, "a batch holds at least one sample"
    names = [name for name, value in samples[0].items() if isinstance(value, torch.Tensor)]
    return {
        **{name: torch.stack([sample[name] for sample in samples]) for name in names},
        "words": torch.tensor([sample["words"] for sample in samples], dtype=torch.int64),
        "indices": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
    }


def causal_document_mask(document_ids: torch.Tensor) -> torch.Tensor:
    """Which positions may be attended, bool ``[B, 1, T, T]``: those before or at one's own, in the same document.

    Padding attends to padding, so that no row is empty.
    """
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()
