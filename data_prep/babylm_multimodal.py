"""Turns the image-caption files of BabyLM's multimodal track into a BitGen dataset of features, and downloads them.

Two parts: Conceptual Captions 3M (cc_3M_captions.json, cc_3M_dino_v2_states_1of2.npy, ..._2of2.npy) and Localized
Narratives (local_narr_captions.json, local_narr_dino_v2_states.npy). Caption i belongs to row i of the DINOv2 states,
the halves joined; each row is one vector an image, stored as features [1, 768]. Rows with the same vector are the same
image: they become one row with all its captions.

With --download True the part's files come from OSF (both parts: about 9.8 GB), verified by checksum; after an
interruption the same command goes on.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from itertools import islice
from pathlib import Path

import httpx2
import numpy as np
from tqdm import tqdm

from _common.download import RemoteFile, fetch_file, get_json, make_client
from _common.features import open_array, row_payload, row_shape, stored_dtype
from _common.flags import boolean, make_parser, parse, run
from _common.problems import Problems
from _common.reading import clean_captions, read_json, shown
from _common.writing import Item, write
from bitgen.data.records import DatasetInfo
from bitgen.guards.json_files import BadJson, check_keys
from bitgen.guards.printable import printable

EXAMPLE = """\
  python data_prep/babylm_multimodal.py --part cc_3M --folder babylm --download True --output data/babylm_cc3m
  python data_prep/babylm_multimodal.py --part local_narr --folder babylm --download True --output data/babylm_ln
then
  python src/train_stage1_vision_language.py --vision_encoder features --vision_tuning frozen \\
      --train_data data/babylm_cc3m"""

PARTS = ("cc_3M", "local_narr")
OSF_API = "https://api.osf.io/v2"
_OSF_FILES = "nodes/ad7qg/files/osfstorage/6603014bb3a1e301127dfa59/"
_CAPTION_KEYS = ("caption", "text")
_MOST_PAGES = 100


def remote_files(client: httpx2.Client, url: str) -> list[RemoteFile]:
    """Every file of an OSF folder listing at ``url``, its further pages and its folders.

    Raises ``ValueError`` for a page that is no such listing, or for more than 100 of them.
    """
    files: list[RemoteFile] = []
    waiting, pages = [url], 0
    while waiting:
        url, pages = waiting.pop(0), pages + 1
        if pages > _MOST_PAGES:
            raise ValueError(f"{printable(url, 200)}: the listing of files has more than {_MOST_PAGES} pages")
        page = get_json(client, url)
        try:
            check_keys(page, {"data": list, "links": dict})
            for entry in page["data"]:
                attributes = _field(entry, "attributes")
                check_keys(attributes, {"kind": str, "name": str})
                if attributes["kind"] == "folder":
                    links = _field(entry, "relationships", "files", "links", "related")
                    check_keys(links, {"href": str})
                    waiting.append(links["href"])
                    continue
                check_keys(attributes, {"size": int})
                hashes = (attributes.get("extra") or {}).get("hashes") or {}
                links = _field(entry, "links")
                check_keys(links, {"download": str})
                hashes = {kind: value for kind, value in hashes.items() if isinstance(value, str)}
                files.append(RemoteFile(attributes["name"], links["download"], attributes["size"], hashes))
            following = page["links"].get("next")
            if following:
                check_keys(page["links"], {"next": str})
                waiting.insert(0, following)
        except (BadJson, AttributeError) as error:
            raise ValueError(
                f"{printable(url, 200)} is not a listing of files as OSF writes them ({printable(error, 200)})"
            ) from error
    return files


def _field(entry: object, *names: str) -> dict:
    """The object that is found in ``entry`` under ``names``, one below the other; :class:`BadJson` for another kind."""
    for name in names:
        if not isinstance(entry, dict):
            raise BadJson(f"it has no object {name!r}")
        check_keys(entry, {name: dict})
        entry = entry[name]
    assert isinstance(entry, dict)
    return entry


def download(part: str, folder: Path, api: str) -> None:
    """Downloads the files of ``part`` into ``folder``; raises ``ValueError`` when OSF does not have them."""
    with make_client() as client:
        listed = remote_files(client, f"{api.rstrip('/')}/{_OSF_FILES}")
        files = [file for file in listed if file.name == f"{part}_captions.json" or _is_states(part, file.name)]
        names = {file.name for file in files}
        if f"{part}_captions.json" not in names or len(names) < 2:
            raise ValueError(
                f"OSF lists no captions or no states of {part}, but {printable([file.name for file in listed])}"
            )
        for file in sorted(files):
            fetch_file(client, file, folder)


def _is_states(part: str, name: str) -> bool:
    return re.fullmatch(rf"{part}_dino_v2_states(_\d+of\d+)?\.npy", name) is not None


def find_states(part: str, folder: Path) -> list[Path]:
    """The states' files of ``part``, in order; ``ValueError`` when there is none or a piece is missing."""
    found = sorted(path for path in folder.glob(f"{part}_dino_v2_states*.npy") if _is_states(part, path.name))
    if not found:
        raise ValueError(f"--folder {folder} has no {part}_dino_v2_states*.npy; --download True fetches it")
    numbers = [re.search(r"_(\d+)of(\d+)\.npy$", path.name) for path in found]
    if len(found) == 1 and numbers[0] is None:
        return found
    if None in numbers:
        raise ValueError(f"--folder {folder} has both a whole file of states and pieces: {_names(found)}; keep one")
    pieces = sorted((int(match[1]), int(match[2]), path) for match, path in zip(numbers, found, strict=True))
    if [(k, n) for k, n, _ in pieces] != [(k + 1, pieces[0][1]) for k in range(pieces[0][1])]:
        raise ValueError(f"--folder {folder} lacks a piece of the {part} states: it has {_names(found)}")
    return [path for _, _, path in pieces]


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


class States:
    """The rows of several ``.npy`` files ``[N_i, C]``, one after the other; ``ValueError`` when they do not fit."""

    def __init__(self, paths: list[Path]) -> None:
        self.arrays = [open_array(path, "--folder") for path in paths]
        first = self.arrays[0]
        for path, array in zip(paths, self.arrays, strict=True):
            if array.ndim != 2 or array.dtype.kind != "f":
                raise ValueError(
                    f"{path} holds {array.dtype} {list(array.shape)}; it must hold floats [images, channels]"
                )
            if (row_shape(array), stored_dtype(array)) != (row_shape(first), stored_dtype(first)):
                raise ValueError(
                    f"{path} holds {array.dtype} rows of {array.shape[1]}, but {paths[0]} {first.dtype} rows of "
                    f"{first.shape[1]}; they are not pieces of one array"
                )
        self.starts = np.cumsum([0] + [len(array) for array in self.arrays])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def payload(self, row: int) -> bytes:
        """Stored bytes of a row; ``Unusable`` when it holds NaN or infinite values."""
        piece = int(np.searchsorted(self.starts, row, side="right")) - 1
        return row_payload(self.arrays[piece], row - int(self.starts[piece]))

    def digests(self, rows: int) -> np.ndarray:
        """A hash of each of the first ``rows`` rows' bytes, uint64."""
        digests = np.empty(rows, dtype=np.uint64)
        every = islice((row for array in self.arrays for row in array), rows)
        for index, row in enumerate(tqdm(every, total=rows, desc="reading", unit="row", disable=None)):
            digests[index] = int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
        return digests


def read_captions(path: Path) -> list[str]:
    """Captions in their order, a missing one as ""; entries are strings, or objects with a caption or text.

    Raises ``ValueError`` naming the entry that is neither.
    """
    entries = read_json(path, "--folder")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a JSON list of captions, and not an empty one")
    captions = []
    for index, entry in enumerate(entries):
        cell = entry
        if isinstance(entry, dict):
            cell = next((entry[key] for key in _CAPTION_KEYS if key in entry), entry)
        if not (cell is None or isinstance(cell, str)):
            raise ValueError(
                f"{path} entry {index} is neither a string nor an object with {' or '.join(_CAPTION_KEYS)}: "
                f"{shown(entry)}"
            )
        captions.append(cell or "")
    return captions


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, downloads if asked to, writes the dataset, logs a summary.

    Raises ``ValueError`` for anything a user can put right.
    """
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("--part", choices=PARTS, required=True, help="which of the two parts")
    parser.add_argument("--folder", type=Path, required=True, help="folder with the part's files, or to download into")
    parser.add_argument("--download", type=boolean, default=False, help="True: fetch from OSF what is not in --folder")
    parser.add_argument("--osf_api", default=OSF_API, help="address of OSF's API (default %(default)s)")
    args = parse(parser, argv)

    if args.download:
        download(args.part, args.folder, args.osf_api)
    path = args.folder / f"{args.part}_captions.json"
    if not path.is_file():
        raise ValueError(f"--folder {args.folder} has no {path.name}; --download True fetches it")
    states = States(find_states(args.part, args.folder))
    captions = read_captions(path)
    if len(captions) != len(states):
        raise ValueError(
            f"{path} has {len(captions)} captions but the states have {len(states)} rows; they must match row by row. "
            "One of the files is cut off or of another version: remove it and pass --download True"
        )
    problems = Problems(args.max_failed_fraction)
    items, total = gather(args.part, states, captions, args.limit, problems)
    info = DatasetInfo(
        kind="features",
        source=f"BabyLM: {args.part}",
        feature_shape=row_shape(states.arrays[0]),
        feature_dtype=stored_dtype(states.arrays[0]),
        encoder="DINOv2",
    )
    write(items, info, problems, total, args)


def gather(
    part: str, states: States, captions: list[str], limit: int | None, problems: Problems
) -> tuple[list[Item], int]:
    """Items of the images, captions of equal rows together, in the order of first rows; and the number of images."""
    rows = min(limit or len(states), len(states))
    _, first, image = np.unique(states.digests(rows), return_index=True, return_inverse=True)
    together: dict[int, list[str]] = {}
    for row in range(rows):
        owner = int(first[image[row]])
        if owner != row:
            problems.add("row with the vector of an earlier row (joined with it)", str(row))
        together.setdefault(owner, []).append(captions[row])
    items = []
    for row, texts in together.items():
        name = f"{part}-{row:07d}"
        texts = clean_captions(name, texts, problems)
        if texts:
            items.append(Item(name, partial(states.payload, row), texts))
        else:
            problems.add("image without a caption", name, lost=True)
    return items, len(together)


if __name__ == "__main__":
    run(main, "what was downloaded is kept, and the same command goes on from there")
