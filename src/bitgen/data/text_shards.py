"""The on-disk text corpus: token ids of documents, one shard a source, written once and memory-mapped by training.

A corpus is a folder with, for each source (a file such as ``childes.train``),

- ``NAME.tokens.npy``, uint16 or uint32 ``[tokens]``: its documents one after the other, each ``BOS ... EOS``,
- ``NAME.documents.npy``, int64 ``[documents, 2]``: tokens and whitespace words of each document,

and a sidecar ``bitgen_text.json``, which says what tokenizer made the ids. Words are those of the source text as
``wc -w`` counts them, before cleaning took anything out: budgets of training data are stated in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from bitgen.guards.json_files import BadJson, check_keys, read_json
from bitgen.guards.names import inside
from bitgen.guards.printable import printable
from bitgen.model.processing_bitgen import text_ids

TEXT_SIDECAR = "bitgen_text.json"
TEXT_FORMAT_VERSION = 1
_DTYPES = ("uint16", "uint32")
_FIELDS: dict[str, type] = {
    "tokenizer_sha256": str,
    "tokenizer_size": int,
    "dtype": str,
    "sources": list,
    "preparation": dict,
    "dropped": dict,
    "format_version": int,
}
_COUNTS: dict[str, type] = {"name": str, "documents": int, "words": int, "tokens": int}
_REMEDY = "make it with `python data_prep/babylm_text.py --text FOLDER --tokenizer DIR --output {folder}`"


class SourceCount(NamedTuple):
    """What a source holds; ``words`` are whitespace words of the source text."""

    name: str
    documents: int
    words: int
    tokens: int


@dataclass(frozen=True)
class TextInfo:
    """The sidecar: tokenizer, sources, how the text was prepared, and what was left out of it and why.

    ``dropped`` maps a reason to ``{"documents": .., "words": ..}``; ``dtype`` is that of the token ids.
    """

    tokenizer_sha256: str
    tokenizer_size: int
    dtype: str
    sources: tuple[SourceCount, ...]
    preparation: dict[str, object]
    dropped: dict[str, dict[str, int]]
    format_version: int = TEXT_FORMAT_VERSION

    @property
    def documents(self) -> int:
        """Documents of all sources."""
        return sum(source.documents for source in self.sources)

    @property
    def words(self) -> int:
        """Whitespace words of the source text of all documents."""
        return sum(source.words for source in self.sources)

    @property
    def tokens(self) -> int:
        """Tokens of all sources, BOS and EOS among them."""
        return sum(source.tokens for source in self.sources)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Identity of what decides token ids: model, splitting, added tokens, BOS and EOS; the same after saving."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: state[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    parts["ends"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Texts to ids ``BOS ... EOS``, as captions are encoded: text that spells a special token is text."""
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in text_ids(tokenizer, texts)]


class TextShardWriter:
    """Writes one source into ``folder``, at constant memory per document: ``add`` each, then ``close``."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self.folder, self.name = folder, name
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self._counts: list[tuple[int, int]] = []
        self._raw = open(folder / f"{name}.tokens.raw", "w+b")

    def add(self, ids: Sequence[int], words: int) -> None:
        """Appends a document of token ids that stands for so many words."""
        self._raw.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self._counts.append((len(ids), words))

    def close(self) -> SourceCount:
        """Finishes the files and counts them; a source without documents leaves no file."""
        counts = np.array(self._counts, dtype=np.int64).reshape(-1, 2)
        tokens, words = (int(total) for total in counts.sum(axis=0))
        self._raw.flush()
        if tokens:
            np.save(self.folder / f"{self.name}.documents.npy", counts)
            # An .npy states its length at its start, which is known only now.
            np.save(self.folder / f"{self.name}.tokens.npy", np.memmap(self._raw, dtype=self.dtype, mode="r"))
        self._raw.close()
        (self.folder / f"{self.name}.tokens.raw").unlink()
        return SourceCount(self.name, len(counts), words, tokens)


def write_text_info(folder: Path, info: TextInfo) -> None:
    """Writes the sidecar."""
    raw = asdict(info) | {"sources": [source._asdict() for source in info.sources]}
    (folder / TEXT_SIDECAR).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_text_info(folder: str | Path) -> TextInfo:
    """Reads the sidecar of a corpus; ``ValueError`` says what is missing or wrong in it and how to make one."""
    folder = Path(folder)
    path, remedy = folder / TEXT_SIDECAR, _REMEDY.format(folder=folder)
    if not folder.is_dir():
        raise ValueError(f"text folder {folder} {'is a file' if folder.exists() else 'does not exist'}: {remedy}")
    if not path.is_file():
        raise ValueError(f"{folder} is not a BitGen text corpus (it has no {TEXT_SIDECAR}): {remedy}")
    try:
        raw = read_json(path, dict)
        if raw.get("format_version") != TEXT_FORMAT_VERSION:
            found = raw.get("format_version")
            raise ValueError(f"it has format_version {found!r}; this BitGen reads {TEXT_FORMAT_VERSION}")
        unknown = sorted(set(raw) - {field.name for field in fields(TextInfo)})
        if unknown:
            raise ValueError(f"it has unknown fields: {printable(', '.join(unknown), 200)}")
        check_keys(raw, _FIELDS)
        raw["sources"] = tuple(_source(entry) for entry in raw["sources"])
        info = TextInfo(**raw)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used ({error}): {remedy}") from error
    if info.dtype not in _DTYPES:
        raise ValueError(f"{path} declares dtype {info.dtype!r}, not one of {', '.join(_DTYPES)}: {remedy}")
    return info


def _source(entry: object) -> SourceCount:
    if not isinstance(entry, dict):
        raise BadJson("its 'sources' hold what is no object")
    check_keys(entry, _COUNTS)
    return SourceCount(*(entry[name] for name in _COUNTS))


class TextShard:
    """One source of a corpus, memory-mapped: ``tokens [tokens]``, and ``lengths``, ``words`` int64 ``[documents]``.

    Raises ``ValueError`` for files that are missing, damaged, or not what the sidecar counts.
    """

    def __init__(self, folder: Path, source: SourceCount, dtype: str) -> None:
        remedy = f"remove {folder} and {_REMEDY.format(folder=folder)}"
        what = f"source {printable(source.name, 80)} of {folder}"
        try:
            self.tokens = np.load(inside(folder, f"{source.name}.tokens.npy"), mmap_mode="r", allow_pickle=False)
            counts = np.load(inside(folder, f"{source.name}.documents.npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{what} cannot be read ({error}): {remedy}") from error
        dtypes, shapes = (self.tokens.dtype, counts.dtype), (self.tokens.ndim, counts.shape)
        if dtypes != (np.dtype(dtype), np.dtype("int64")) or shapes != (1, (source.documents, 2)):
            raise ValueError(f"{what} has arrays of another shape or dtype: {remedy}")
        if (counts < 0).any():
            raise ValueError(f"{what} has documents of less than no length: {remedy}")
        self.lengths, self.words = counts[:, 0], counts[:, 1]
        found = (int(self.lengths.sum()), int(self.words.sum()), len(self.tokens))
        if found != (source.tokens, source.words, source.tokens):
            raise ValueError(
                f"{what} holds {found[2]} tokens, {found[1]} words; {TEXT_SIDECAR} declares "
                f"{source.tokens} and {source.words}: {remedy}"
            )
