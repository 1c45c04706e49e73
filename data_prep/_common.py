"""What the preparation scripts share: reading lists and features, counting what is wrong, writing the dataset."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from bitgen.data.record_writer import check_output, write_dataset  # noqa: E402
from bitgen.data.records import FEATURE_DTYPES, DatasetInfo, Record  # noqa: E402

logger = logging.getLogger("data_prep")

MAX_MISSING = 0.01
_NAMES_SHOWN = 20


def boolean(text: str) -> bool:
    """Parses True/False as the training command does; ``type=bool`` would read "False" as true."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def positive(text: str) -> int:
    """Parses a positive whole number."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the flags that every script has: --output, --limit, --overwrite, --check_images."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="dataset folder to write (complete or not at all)")
    parser.add_argument("--limit", type=positive, help="take only the first N images: a quick look at the pipeline")
    parser.add_argument("--overwrite", type=boolean, default=False, help="True: replace the dataset in --output")
    parser.add_argument(
        "--check_images",
        type=boolean,
        default=True,
        help="True: decode every image once, so that a damaged file is found now and not in training",
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags and makes sure, before any work, that --output may be written (``ValueError``)."""
    args = parser.parse_args(argv)
    check_output(args.output, args.overwrite)
    return args


class Problems:
    """Counts what is wrong in the source by reason, keeping the first names of each; constant memory."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}
        self.lost = 0

    def add(self, reason: str, name: str, lost: bool = False) -> None:
        """Counts ``name`` under ``reason``; ``lost`` says that its image drops out of the dataset."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN:
            names.append(name)
        self.lost += lost

    def lines(self) -> list[str]:
        """One line a reason: count, reason, names."""
        lines = []
        for reason, count in self.counts.items():
            names = ", ".join(self.names[reason])
            more = count - len(self.names[reason])
            lines.append(f"{count} x {reason}: {names}" + (f", and {more} more" if more else ""))
        return lines

    def stop_if_too_many(self, total: int) -> None:
        """Raises ``ValueError`` with the reasons and names when more than 1% of ``total`` images are lost."""
        if self.lost > MAX_MISSING * total:
            share = 100 * self.lost / total
            raise ValueError(
                f"{self.lost} of {total} images ({share:.1f}%) cannot be used, more than {100 * MAX_MISSING:.0f}%; "
                "nothing was written. Check that the folder, the lists and the captions belong together:\n  "
                + "\n  ".join(self.lines())
            )


class UndecodableImage(ValueError):
    """The file is there but is no whole image."""


class Item(NamedTuple):
    """One image to be written: its name, how to get its payload, its captions."""

    name: str
    load: Callable[[], bytes]
    captions: list[str]


def need_file(path: Path, flag: str) -> Path:
    """Returns ``path`` or raises ``ValueError`` naming the flag."""
    if not path.is_file():
        raise ValueError(f"{flag} {path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}")
    return path


def read_text(path: Path, flag: str) -> str:
    """Reads a UTF-8 file (a byte-order mark is dropped)."""
    try:
        return need_file(path, flag).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {flag} {path}: {error.strerror}") from error


def read_names(path: Path, flag: str) -> list[str]:
    """Reads a list of image names, one a line; blank lines are skipped."""
    names = [line.strip() for line in read_text(path, flag).splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{flag} {path} lists no image")
    return names


def clean_captions(name: str, captions: Iterable[str], problems: Problems) -> list[str]:
    """Strips captions and drops empty ones; repeated ones are counted and kept, for scores count all captions."""
    kept: list[str] = []
    for caption in captions:
        caption = caption.strip()
        if not caption:
            problems.add("empty caption (dropped)", name)
            continue
        if caption in kept:
            problems.add("duplicate caption of the same image (kept)", name)
        kept.append(caption)
    return kept


def read_image(path: Path, check: bool) -> bytes:
    """Returns the file's bytes; with ``check`` raises :class:`UndecodableImage` if they do not decode."""
    from PIL import Image

    payload = path.read_bytes()
    if not check:
        return payload
    try:
        with Image.open(io.BytesIO(payload)) as image:
            # JPEG's reduced decoding still reads the whole file, so it finds truncation at a fraction of the cost.
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    return payload


def image_items(folder: Path, captions: dict[str, list[str]], check: bool, problems: Problems) -> list[Item]:
    """Items for the files of ``captions``' names in ``folder``; files that are not there are counted."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    items = []
    for name, texts in captions.items():
        path = folder / name
        if path.is_file():
            items.append(Item(name, partial(read_image, path, check), texts))
        else:
            problems.add("missing image", name, lost=True)
    return items


class FeatureFile:
    """Rows of a ``.npy`` file ``[N, P, C]`` or ``[N, C]`` (P = 1), one per name in a list; memory-mapped.

    int8/uint8 rows stay quantised (``info_path`` gives scale and zero_point); float64 is stored as float32.
    Raises ``ValueError`` for another rank or dtype, a length that differs from the list's, or NaN and infinities.
    """

    def __init__(self, path: Path, names_path: Path, info_path: Path | None, problems: Problems) -> None:
        self.path = need_file(path, "--features")
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"--features {path} is not a readable .npy array: {error}") from error
        if not isinstance(self.array, np.ndarray):
            raise ValueError(f"--features {path} is an archive of arrays; save one array with numpy.save")
        shape, stored = self.array.shape, self.array.dtype
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                f"--features {path} has shape {list(shape)}; it must be [images, patches, channels] "
                "or [images, channels]"
            )
        dtype = "float32" if stored == np.float64 else stored.name
        if dtype not in FEATURE_DTYPES:
            raise ValueError(f"--features {path} has dtype {stored}; it must be one of {', '.join(FEATURE_DTYPES)}")
        names = read_names(names_path, "--feature_images")
        if len(names) != shape[0]:
            raise ValueError(
                f"--features {path} has {shape[0]} rows but --feature_images {names_path} lists {len(names)} images; "
                "they must match line by row"
            )
        self.rows: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in self.rows:
                problems.add("duplicate name in --feature_images (first row used)", name)
            else:
                self.rows[name] = row
        self.dtype = np.dtype(dtype).newbyteorder("<")
        feature_shape = (shape[1], shape[2]) if len(shape) == 3 else (1, shape[1])
        declared = self._read_declaration(info_path, dtype, feature_shape)
        quantised = dtype.endswith("int8")
        if quantised and not {"scale", "zero_point"} <= set(declared):
            raise ValueError(f"--features {path} is {dtype}: give --feature_info with its scale and zero_point")
        try:
            scale = float(declared["scale"]) if quantised else None
            zero_point = int(declared["zero_point"]) if quantised else None
        except (TypeError, ValueError) as error:
            raise ValueError(f"--feature_info {info_path}: scale and zero_point must be numbers ({error})") from error
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"--feature_info {info_path}: scale is {scale}; it must be positive")
        self.description = {
            "feature_shape": feature_shape,
            "feature_dtype": dtype,
            "scale": scale,
            "zero_point": zero_point,
            "encoder": declared.get("encoder"),
        }

    @staticmethod
    def _read_declaration(path: Path | None, dtype: str, shape: tuple[int, int]) -> dict:
        if path is None:
            return {}
        try:
            declared = json.loads(read_text(path, "--feature_info"))
        except json.JSONDecodeError as error:
            raise ValueError(f"--feature_info {path} is not valid JSON: {error}") from error
        if not isinstance(declared, dict):
            raise ValueError(f"--feature_info {path} must hold a JSON object")
        for field, found in (("dtype", dtype), ("shape_per_image", list(shape))):
            if field in declared and declared[field] != found:
                raise ValueError(
                    f"--feature_info {path} declares {field} {declared[field]}, but --features has {found}"
                )
        return declared

    def payload(self, name: str) -> bytes:
        """Raw little-endian bytes of the row of ``name``."""
        row = np.ascontiguousarray(self.array[self.rows[name]], dtype=self.dtype)
        if self.dtype.kind == "f" and not np.isfinite(row).all():
            raise ValueError(
                f"--features {self.path}: the row of {name} (row {self.rows[name]}) holds NaN or infinite values; "
                "compute it again"
            )
        return row.tobytes()


def _records(items: list[Item], problems: Problems, total: int) -> Iterator[Record]:
    from tqdm import tqdm

    for item in tqdm(items, desc="writing", unit="image", disable=None):
        try:
            payload = item.load()
        except UndecodableImage as error:
            problems.add("undecodable image", f"{item.name} ({error})", lost=True)
            problems.stop_if_too_many(total)
            continue
        yield Record(item.name, payload, item.captions)
    problems.stop_if_too_many(total)


def write(
    items: list[Item], info: DatasetInfo, problems: Problems, total: int, args: argparse.Namespace
) -> DatasetInfo:
    """Writes ``items``, stops when more than 1% of ``total`` are lost, and logs the summary."""
    problems.stop_if_too_many(total)
    info = write_dataset(args.output, _records(items, problems, total), info, overwrite=args.overwrite)
    for line in problems.lines():
        logger.warning(line)
    logger.info("%d images, %d captions -> %s", info.num_images, info.num_captions, args.output)
    return info


def run(main: Callable[[list[str] | None], None]) -> None:
    """Runs a script's ``main``: a user's mistake ends in one line on stderr and exit status 1, not in a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        main(None)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        logger.error("interrupted: nothing was written")
        sys.exit(130)
