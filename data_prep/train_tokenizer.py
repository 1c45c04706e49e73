"""Trains a byte-level BPE tokenizer on text files, on the captions of prepared datasets, or on both.

The result is a folder that --tokenizer DIR reads, of training and of data_prep/babylm_text.py, and any Hugging Face
library too. <s>, </s> and <pad> are tokens 0, 1 and 2; every text round-trips, whatever its bytes.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from _common.documents import count_words, read_documents, text_files
from _common.flags import plain_parser, positive, run
from babylm_text import add_text_flags
from bitgen.data.records import RecordReader
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import train_bpe
from bitgen.data.whole_folder import check_output
from bitgen.machine.files import replacing_folder

EXAMPLE = """\
  python data_prep/train_tokenizer.py --text babylm_text --output data/tokenizer_16k
  python data_prep/train_tokenizer.py --text babylm_text --captions data/flickr8k_train --output data/tokenizer_16k
then
  python data_prep/babylm_text.py --text babylm_text --tokenizer data/tokenizer_16k --output data/babylm_text"""

SIDECAR = "bitgen_tokenizer_training.json"

logger = logging.getLogger("data_prep")


def iter_texts(args: Namespace, files: list[Path], readers: list[RecordReader]) -> Iterator[str]:
    """The documents of ``files``, then the captions of the datasets, with a progress bar."""
    from tqdm import tqdm

    with tqdm(desc="reading", unit="text", unit_scale=True, disable=None) as progress:
        for path in files:
            keep = args.speaker_marks == "keep"
            for document in read_documents(path, "--text", keep, args.max_document_words):
                progress.update()
                yield document.text
        for reader in readers:
            for caption in reader.iter_captions():
                progress.update()
                yield caption


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, trains, writes the folder. Raises ``ValueError`` for anything a user can put right."""
    parser = plain_parser(__doc__, EXAMPLE, "tokenizer folder", "the tokenizer")
    add_text_flags(parser, required=False)
    parser.add_argument(
        "--captions", type=Path, nargs="+", default=[], metavar="DATASET", help="datasets whose captions to train on"
    )
    parser.add_argument(
        "--vocab_size", type=positive, default=16384, help="tokens, special ones among them (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if not (args.text or args.captions):
        parser.error("give --text, --captions, or both")
    check_output(args.output, args.overwrite, SIDECAR, "tokenizer trained by this script")
    files = text_files(args.text, "--text")
    words = sum(count_words(path, "--text") for path in files)
    readers = [RecordReader(folder) for folder in args.captions]
    tokenizer = train_bpe(iter_texts(args, files, readers), args.vocab_size)
    if len(tokenizer) < args.vocab_size:
        logger.warning(
            "the text gives only %d tokens of --vocab_size %d: no other pair occurs twice",
            len(tokenizer),
            args.vocab_size,
        )
    meta = {
        "vocab_size": len(tokenizer),
        "sha256": tokenizer_sha256(tokenizer),
        "text": [path.name for path in files],
        "words": words,
        "captions": [folder.name for folder in args.captions],
        "speaker_marks": args.speaker_marks,
    }
    with replacing_folder(args.output) as folder:
        tokenizer.save_pretrained(str(folder))
        (folder / SIDECAR).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    captions = sum(reader.info.num_captions for reader in readers)
    logger.info("%d tokens, from %d words of text and %d captions -> %s", len(tokenizer), words, captions, args.output)


if __name__ == "__main__":
    run(main)
