"""A checkpoint's manifest: what was written, with a checksum of its own, and whether that is what lies there."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitgen.guards.json_files import BadJson, Shape, check_keys, read_json
from bitgen.machine.files import file_hash, held

FORMAT_VERSION = 2
# 1: temperature and queue lay beside the step, the schedule under `plan` and the place in the data under `sampler`.
READABLE = (1, FORMAT_VERSION)
MODEL_FILE, EMA_FILE, STATE_FILE, MANIFEST_FILE = (
    "model.safetensors",
    "ema.safetensors",
    "training_state.pt",
    "manifest.json",
)
_CHECKSUM = "sha256"
_KEYS: Shape = {"format_version": int, "step": int, "vision_base": (str, type(None)), "files": dict}
_ENTRY: Shape = {"bytes": int, "sha256": str}


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message names the file and the remedy."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was written: a file is missing, cut short or changed."""


def write_manifest(folder: Path, step: int, base: str | None) -> None:
    """Write down what ``folder`` holds. ``base``: the hash of the frozen base, which lies beside the folder.

    Raises:
        OSError: the disk says no.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in paths}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "vision_base": base, "files": files}
    content = json.dumps({**manifest, _CHECKSUM: _checksum(manifest)}, indent=2)
    (folder / MANIFEST_FILE).write_text(content + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, as it was written.

    Raises:
        DamagedCheckpoint: it is missing, or not what was written. Manifests of earlier versions have no checksum: of
            those, any other shape than theirs is damage.
        CheckpointError: it is whole, and of a newer format.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path, dict, {"format_version": int})
        checksum = manifest.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _checksum(manifest):
            raise BadJson("it is not what was written (its checksum differs)")
        version = manifest["format_version"]
        if checksum is not None and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version}, this BitGen reads up to {FORMAT_VERSION}: use the version that "
                "wrote it."
            )
        if version not in READABLE:
            raise BadJson(f"there is no format version {version}")
        check_keys(manifest, _KEYS)
        if unknown := sorted(set(manifest) - set(_KEYS)):
            raise BadJson(f"it has {unknown[0]!r}, which no manifest has")
        for name, entry in manifest["files"].items():
            if not isinstance(entry, dict) or Path(name).name != name or "\0" in name:
                raise BadJson(f"{name!r} is not the entry of a file")
            check_keys(entry, _ENTRY)
    except OSError as error:
        raise DamagedCheckpoint(f"cannot read {path}: {error.strerror or error}") from error
    except BadJson as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from error
    return manifest


class CheckpointFiles:
    """The files of a checkpoint folder, each opened as the very bytes that were compared with its manifest.

    Raises:
        DamagedCheckpoint: the manifest, here; later, the file that differs.
        CheckpointError: the checkpoint is of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self._compared: set[str] = set()
        for name in (MODEL_FILE, STATE_FILE):
            self._entry(name)
        base = self.manifest["vision_base"]
        if base is not None and not base_path(folder.parent, base).is_file():
            raise DamagedCheckpoint(f"cannot read {base_path(folder.parent, base)}: there is no such file")

    def __contains__(self, name: str) -> bool:
        return name in self.manifest["files"]

    @contextlib.contextmanager
    def open(self, name: str, copied: bool = True) -> Iterator[str]:
        """A path for libraries while the block runs; ``copied`` as of :func:`~bitgen.machine.files.held`."""
        path, entry = self.folder / name, self._entry(name)
        with contextlib.ExitStack() as opened:
            try:
                if (size := path.stat().st_size) != entry["bytes"]:
                    raise DamagedCheckpoint(f"{path} has {size} bytes, {entry['bytes']} were written")
                found = opened.enter_context(held(path, copied))
            except OSError as error:
                raise DamagedCheckpoint(f"cannot read {path}: {error.strerror or error}") from error
            if found.sha256 != entry["sha256"]:
                raise DamagedCheckpoint(f"{path} is not what was written (its SHA-256 differs)")
            self._compared.add(name)
            yield found.name

    def read(self, name: str) -> bytes:
        """All of a file."""
        with self.open(name) as found:
            return Path(found).read_bytes()

    def compare_rest(self) -> None:
        """Compare the files that were not opened."""
        for name in self.manifest["files"]:
            if name not in self._compared:
                with self.open(name, copied=False):
                    pass

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self:
            raise DamagedCheckpoint(f"{self.folder / MANIFEST_FILE} is damaged: it does not list {name}")
        entry: dict[str, Any] = self.manifest["files"][name]
        return entry


def verify(folder: Path) -> dict[str, Any]:
    """Compare all files of a checkpoint with its manifest, which is returned. Errors as of :class:`CheckpointFiles`."""
    files = CheckpointFiles(folder)
    files.compare_rest()
    return files.manifest


def base_path(folder: Path, base_hash: str | None) -> Path:
    """Where a run's folder keeps the frozen base."""
    return folder / f"vision_base-{base_hash}.safetensors"


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
