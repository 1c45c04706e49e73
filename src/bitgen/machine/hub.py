"""The Hugging Face hub: whether it can be reached, and the files of a repository as a folder on this machine."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download

from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A model has one of these.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def hub_answers() -> bool:
    """Whether a hub can be there at all: asking an unreachable one costs three quarters of a minute of retries."""
    if any(name != "no" for name in getproxies()):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((url.hostname, url.port or {"http": 80}.get(url.scheme, 443)), timeout=5).close()
    except OSError:
        return False
    return True


def hub_folder(name: str | Path, revision: str | None, what: str, files: Sequence[str]) -> Path:
    """The folder of a repository's files: ``name`` itself where it is a folder, else the hub's files in its cache.

    Where the cache holds what is wanted, it is taken without asking the hub; ``revision`` is a branch, tag or commit.

    Args:
        what: a word for the message, such as ``language model``.
        files: patterns of names that are wanted, at the repository's top.

    Raises:
        ValueError: there is no such folder, or the hub has no such repository, wants a login, or cannot be reached. The
            message says what to download, and where to put it.
    """
    if Path(name).is_dir():
        return Path(name)
    name = str(name)
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(f"{what} {printable(name)}: there is no such folder; name one that is there, or a hub id")
    snapshot = partial(snapshot_download, name, revision=revision, allow_patterns=list(files), ignore_patterns=["*/*"])
    cached = None
    try:
        try:
            cached = Path(snapshot(local_files_only=True))
        except Exception as error:
            if hasattr(error, "snapshot_path"):  # the cache knows that it has a part alone
                cached = Path(error.snapshot_path)
            elif constants.HF_HUB_OFFLINE or not hub_answers():
                raise
        if cached is None:
            return Path(snapshot())
        if _is_whole(cached, files) or constants.HF_HUB_OFFLINE or not hub_answers():
            return cached
        # Completed at its own commit, not left for a newer one; unless that commit lacks what is wanted.
        completed = Path(snapshot(revision=revision or cached.name))
        return completed if revision or _is_whole(completed, files) else Path(snapshot())
    except Exception as error:  # no such repository, gated, offline: the hub raises many kinds
        reason = printable(next(iter(str(error).splitlines()), "no reason given"), 200)
        if cached is not None:  # a login that ran out, say; what is missing is said where it is looked for
            says = "%s: the hub does not complete what its cache has of it (%s: %s)"
            logger.warning(says, printable(name, 100), type(error).__name__, reason)
            return cached
        of = f" --revision {printable(revision, 80)}" if revision else ""
        shown = printable(name, 100)
        raise ValueError(
            f"{what} {shown} is not on this machine and the hub does not give it ({type(error).__name__}: {reason}); "
            f"where there is a network: hf download {shown}{of} --local-dir FOLDER, then name FOLDER here"
        ) from error


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    """Whether a snapshot of the cache has what is wanted: other programs may have fetched a part of it."""
    if not (folder / "config.json").is_file():
        return False
    wanted = " ".join(files)
    tokenizers = [name for name in TOKENIZERS if (folder / name).is_file()]
    if "tokenizer" in wanted and not (tokenizers and (folder / "tokenizer_config.json").is_file()):
        return False
    if "safetensors" not in wanted:
        return True
    index = folder / constants.SAFETENSORS_INDEX_FILE
    if not index.is_file():
        return (folder / constants.SAFETENSORS_SINGLE_FILE).is_file()
    try:
        names = read_json(index, dict, {"weight_map": dict})["weight_map"].values()
    except (OSError, BadJson):
        return False
    return all((folder / str(name)).is_file() for name in names)


def is_commit(revision: object) -> bool:
    """Whether a revision is a commit, which is the same for ever, and no branch or tag, which may move."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def revision_of(folder: str | Path) -> str | None:
    """The commit that a folder of the hub's cache (``.../snapshots/COMMIT``) holds; None of any other folder."""
    path = Path(folder).absolute()
    return path.name if path.parent.name == "snapshots" and is_commit(path.name) else None
