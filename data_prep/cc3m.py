"""Turns a Conceptual Captions TSV (caption<TAB>URL) into a BitGen dataset, downloading the images by URL.

Images are made smaller, stored as JPEG in a work folder, and written into the dataset when all were tried. The work
folder's journal notes what became of every URL: after any interruption the same command goes on, and fetches only what
is missing or failed for a transient reason (a timeout, a server that was down). What failed, and why, is listed in
OUTPUT.failures.csv. One picture that several URLs bring counts as failed for all of them: hosts answer so for dead
links, and nothing says whose picture it is. Several captions of one URL become one row; its image_id is the URL.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

from _common.flags import add_pixel_flag, count, make_parser, parse, positive, run, seconds
from _common.images import read_image
from _common.journal import Journal
from _common.problems import Problems
from _common.reading import read_lines, with_captions
from _common.web_images import FetchOptions, fetch_images
from _common.writing import EXCLUDED, Excluded, Item, write
from bitgen.data.records import DatasetInfo

EXAMPLE = """\
  python data_prep/cc3m.py --tsv Validation_GCC-1.1.0-Validation.tsv --output data/cc3m_val --limit 200
  python data_prep/cc3m.py --tsv Train_GCC-training.tsv --output data/cc3m_train --concurrency 128
then
  python src/train_stage1_vision_language.py --train_data data/cc3m_train --val_data data/cc3m_val"""

_BAD_ROWS = 0.01

logger = logging.getLogger("data_prep")


def read_rows(path: Path, problems: Problems) -> dict[str, list[str]]:
    """Captions of every URL of a TSV file, in its order.

    Rows of another form are counted; ``ValueError`` when they are more than 1%: then it is another kind of file.
    """
    captions: dict[str, list[str]] = {}
    rows, bad = 0, []
    for number, line in read_lines(path, "--tsv"):
        rows += 1
        caption, _, url = line.partition("\t")
        url = url.strip()
        if not url.lower().startswith(("http://", "https://")) or "\t" in url:
            bad.append(number)
            problems.add("row that is not caption<TAB>URL (dropped)", f"line {number}")
            continue
        captions.setdefault(url, []).append(caption)
    if not rows:
        raise ValueError(f"--tsv {path} is empty")
    if len(bad) > _BAD_ROWS * rows:
        raise ValueError(
            f"--tsv {path}: {len(bad)} of {rows} lines are not caption<TAB>URL, the first of them line {bad[0]}: "
            "is it a Conceptual Captions file?"
        )
    return captions


def add_download_flags(parser: ArgumentParser) -> None:
    """Adds how images are fetched and stored."""
    parser.add_argument("--work", type=Path, help="folder for downloads and journal (default: OUTPUT.downloads)")
    parser.add_argument("--concurrency", type=positive, default=32, help="downloads at a time (default %(default)s)")
    parser.add_argument("--timeout", type=seconds, default=20.0, help="seconds for one attempt (default %(default)s)")
    parser.add_argument("--retries", type=count, default=2, help="attempts after a transient failure (default 2)")
    parser.add_argument(
        "--backoff",
        type=seconds,
        default=1.0,
        help="seconds before the first further attempt, doubled for each next one (default %(default)s)",
    )
    parser.add_argument("--max_redirects", type=count, default=5, help="redirects to follow (default %(default)s)")
    parser.add_argument(
        "--max_bytes", type=positive, default=20_000_000, help="larger files are refused (default %(default)s)"
    )
    parser.add_argument(
        "--image_size", type=positive, default=256, help="pixels of the side that --resize_side names (default 256)"
    )
    parser.add_argument(
        "--resize_side",
        choices=("shorter", "longer"),
        default="shorter",
        help="side that becomes --image_size pixels; smaller images keep their size (default %(default)s)",
    )
    parser.add_argument("--jpeg_quality", type=positive, default=90, help="1 to 95 (default %(default)s)")
    parser.add_argument(
        "--retry_failed",
        choices=("transient", "all"),
        default="transient",
        help="what a restart tries again: failures that may be over by now, or also those such as HTTP 404",
    )
    add_pixel_flag(parser)


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, downloads, writes the dataset, logs a summary.

    Raises ``ValueError`` for anything a user can put right.
    """
    parser = make_parser(
        __doc__,
        EXAMPLE,
        max_failed_fraction=0.5,
        why="the links date from 2018 and many are dead by now, so a small share would never be met; ",
    )
    parser.add_argument("--tsv", type=Path, required=True, help="caption<TAB>URL, one a line, no header")
    add_download_flags(parser)
    args = parse(parser, argv)
    if args.jpeg_quality > 95:
        parser.error("--jpeg_quality is at most 95: above it files grow and images do not improve")

    problems = Problems(args.max_failed_fraction)
    wanted = dict(list(read_rows(args.tsv, problems).items())[: args.limit])
    captions = with_captions(wanted, problems)
    excluded = Excluded(args.exclude)
    urls = []
    for url in captions:
        if url in excluded:
            problems.add(EXCLUDED, url)
        else:
            urls.append(url)
    excluded.warn_of_useless()
    args.exclude = []  # done with, before anything is downloaded
    work = args.work or args.output.with_name(f"{args.output.name}.downloads")
    settings = {"image_size": args.image_size, "resize_side": args.resize_side, "jpeg_quality": args.jpeg_quality}
    options = FetchOptions(
        concurrency=args.concurrency,
        timeout=args.timeout,
        retries=args.retries,
        backoff=args.backoff,
        max_redirects=args.max_redirects,
        max_bytes=args.max_bytes,
        max_image_pixels=args.max_image_pixels,
        image_size=args.image_size,
        resize_side=args.resize_side,
        quality=args.jpeg_quality,
    )
    journal = Journal(work, settings)
    failures = args.output.with_name(f"{args.output.name}.failures.csv")
    try:
        missing = journal.to_fetch(urls, args.retry_failed == "all")
        logger.info("%d images: %d to fetch, %d done before; work folder %s", len(urls), len(missing),
                    len(urls) - len(missing), work)  # fmt: skip
        fetch_images(missing, journal, options)
        journal.refuse_shared(urls)
    finally:
        journal.write_failures(failures, urls)
        journal.close()

    items = []
    for url in urls:
        outcome = journal.outcomes[url]
        if outcome.reason:
            problems.add(outcome.reason, url, lost=True)
        else:
            items.append(Item(url, partial(read_image, journal.path(url), True, args.max_image_pixels), captions[url]))
    if problems.lost:
        logger.info("what failed, and why: %s", failures)
    write(items, DatasetInfo(kind="images", source=f"CC3M: {args.tsv.name}"), problems, len(wanted), args)
    logger.info("the downloads stay in %s for a later run; remove it when you need none", work)


if __name__ == "__main__":
    run(main, "what was downloaded is kept, and the same command goes on from there")
