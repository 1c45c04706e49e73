"""Turns text files, such as BabyLM's .train files, into a corpus of token ids that training maps into memory.

Text is split into documents (at headings, blank lines and, where a line is very long, at ends of sentences), cleaned,
freed of documents that occur twice, and tokenized. Words are counted as `wc -w` counts them in the files, per source,
because budgets of training data are stated in them; where a script has no spaces, a line is one such word. The same
files and flags give the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from _common.documents import Document, count_letters, count_words, least_words, read_documents, text_files
from _common.flags import fraction, plain_parser, positive, run
from _common.problems import Problems
from bitgen.data.text_shards import (
    TEXT_SIDECAR,
    SourceCount,
    TextInfo,
    TextShardWriter,
    encode_documents,
    tokenizer_sha256,
    write_text_info,
)
from bitgen.data.tokenizer import load_tokenizer, vocabulary_size
from bitgen.data.whole_folder import check_output
from bitgen.machine.files import replacing_folder

EXAMPLE = """\
  python data_prep/train_tokenizer.py --text babylm_text --output data/tokenizer_16k
  python data_prep/babylm_text.py --text babylm_text --tokenizer data/tokenizer_16k --output data/babylm_text \\
      --val_output data/babylm_text_val --val_fraction 0.01"""

DUPLICATE = "document that occurs twice (first one kept)"
SHORT = "document of fewer words than --min_document_words once cleaned"
NO_LANGUAGE = "document that is mostly not letters"

_BATCH = 256
_LEAST_LETTERS = 0.5

logger = logging.getLogger("data_prep")


def add_text_flags(parser: ArgumentParser, required: bool) -> None:
    """Adds what decides how files become documents; the tokenizer is trained on the same documents."""
    parser.add_argument(
        "--text", type=Path, nargs="+", required=required, default=[], help=".train or .txt files, or folders of them"
    )
    parser.add_argument(
        "--speaker_marks",
        choices=("keep", "strip"),
        default="keep",
        help="what to do with CHILDES's *MOT: and Switchboard's A: and B: (default %(default)s)",
    )
    parser.add_argument(
        "--max_document_words",
        type=positive,
        default=1000,
        help="longer documents are cut at an end of a sentence (default %(default)s)",
    )


class Selection:
    """Decides of each document whether it is kept, and counts what is not, by reason.

    Memory grows by 16 bytes and a set's overhead for every document kept.
    """

    def __init__(self, min_words: int, val_fraction: float) -> None:
        self.min_words, self.val_below = min_words, int(val_fraction * 2**64)
        self.problems = Problems(1.0)
        self.words: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def __call__(self, document: Document) -> str | None:
        """``"train"`` or ``"val"``, which depends on the text alone; None for a document that is dropped."""
        reason = self._reason(document.text)
        digest = hashlib.blake2b(document.text.casefold().encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if reason is None and digest in self._seen:
            reason = DUPLICATE
        if reason is not None:
            self.problems.add(reason, document.where, lost=True)
            self.words[reason] += document.words
            return None
        self._seen.add(digest)
        return "val" if int.from_bytes(digest[:8], "big") < self.val_below else "train"

    def _reason(self, text: str) -> str | None:
        if least_words(text) < self.min_words:
            return SHORT
        return NO_LANGUAGE if count_letters(text) < _LEAST_LETTERS * (len(text) - text.count(" ")) else None

    def dropped(self) -> dict[str, dict[str, int]]:
        """Documents and words of each reason."""
        counts = self.problems.counts
        return {reason: {"documents": counts[reason], "words": self.words[reason]} for reason in counts}


def write_source(
    path: Path, args: Namespace, tokenizer: object, select: Selection, folders: dict[str, Path], progress: object
) -> dict[str, SourceCount]:
    """Writes one file's shard into the folder of each split, and counts them."""
    size = vocabulary_size(tokenizer)
    writers = {split: TextShardWriter(folder, path.stem, size) for split, folder in folders.items()}
    for batch in _batches(path, args):
        chosen = [(split, document) for document in batch if (split := select(document)) is not None]
        encoded = encode_documents(tokenizer, [document.text for _, document in chosen]) if chosen else []
        for (split, document), ids in zip(chosen, encoded, strict=True):
            writers[split].add(ids, document.words)
        progress.update(sum(document.words for document in batch))
    return {split: writer.close() for split, writer in writers.items()}


def _batches(path: Path, args: Namespace) -> Iterator[list[Document]]:
    documents = read_documents(path, "--text", args.speaker_marks == "keep", args.max_document_words)
    documents = islice(documents, args.limit)
    while batch := list(islice(documents, _BATCH)):
        yield batch


def prepare(args: Namespace) -> dict[str, TextInfo]:
    """Writes the corpus, and the held-out one where asked for; the sidecar of each."""
    from tqdm import tqdm

    tokenizer = load_tokenizer(args.tokenizer)
    files = text_files(args.text, "--text")
    total = sum(count_words(path, "--text") for path in files)
    select = Selection(args.min_document_words, args.val_fraction)
    counts: dict[str, list[SourceCount]] = {"train": [], "val": []}
    outputs = {"train": args.output} | ({"val": args.val_output} if args.val_output else {})
    with ExitStack() as stack:
        folders = {split: stack.enter_context(replacing_folder(folder)) for split, folder in outputs.items()}
        # With --limit nobody knows how many words that will be.
        with tqdm(total=None if args.limit else total, unit="word", unit_scale=True, disable=None) as progress:
            for path in files:
                progress.set_description(path.stem)
                for split, count in write_source(path, args, tokenizer, select, folders, progress).items():
                    counts[split].append(count)
        names = ("speaker_marks", "max_document_words", "min_document_words", "val_fraction", "limit")
        infos = {}
        for split, folder in folders.items():
            sources = tuple(source for source in counts[split] if source.documents)
            if not sources:
                raise ValueError(
                    f"no document is left for {outputs[split]}; nothing was written. "
                    + ("Raise --val_fraction. " if split == "val" else "")
                    + "\n  ".join(select.problems.lines())
                )
            infos[split] = TextInfo(
                tokenizer_sha256=tokenizer_sha256(tokenizer),
                tokenizer_size=vocabulary_size(tokenizer),
                dtype="uint16" if vocabulary_size(tokenizer) <= 2**16 else "uint32",
                sources=sources,
                preparation={"split": split} | {name: getattr(args, name) for name in names},
                dropped=select.dropped(),
            )
            write_text_info(folder, infos[split])
    for reason, dropped in select.dropped().items():
        where = ", ".join(select.problems.names[reason][:3])
        logger.warning("%d documents, %d words: %s: %s", dropped["documents"], dropped["words"], reason, where)
    for split, info in infos.items():
        _log(outputs[split], info)
    return infos


def _log(folder: Path, info: TextInfo) -> None:
    for source in info.sources:
        logger.info("  %-20s %8d documents %10d words %10d tokens", *source)
    logger.info(
        "%d documents, %d words, %d tokens (%.3f a word) -> %s",
        info.documents,
        info.words,
        info.tokens,
        info.tokens / info.words,
        folder,
    )


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the corpus, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = plain_parser(__doc__, EXAMPLE, "corpus folder", "the corpus")
    add_text_flags(parser, required=True)
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder (data_prep/train_tokenizer.py), or hub id")
    parser.add_argument(
        "--min_document_words",
        type=positive,
        default=3,
        help="documents with fewer words once cleaned are dropped; a character counts as one in scripts without "
        "spaces, such as Chinese, Japanese and Thai (default %(default)s)",
    )
    parser.add_argument("--val_output", type=Path, help="folder for documents held out for validation")
    parser.add_argument(
        "--val_fraction",
        type=fraction,
        default=0.0,
        help="share of the documents held out; which ones depends on their text alone (default %(default)s)",
    )
    parser.add_argument("--limit", type=positive, help="take only the first N documents of each file: a quick look")
    args = parser.parse_args(argv)
    if (args.val_output is None) != (args.val_fraction == 0):
        parser.error("--val_output and --val_fraction belong together: give both, or neither")
    if args.val_output:  # each is written beside its place and then put there: one inside the other would be lost
        one, other = (Path(os.path.realpath(folder)) for folder in (args.output, args.val_output))
        if one == other or one in other.parents or other in one.parents:
            parser.error("--val_output and --output are the same folder, or one is inside the other: name two beside")
    for folder in filter(None, (args.output, args.val_output)):
        check_output(folder, args.overwrite, TEXT_SIDECAR, "text corpus")
    prepare(args)


if __name__ == "__main__":
    run(main)
