"""Writing checkpoints, so that a crash at any moment leaves the last whole one usable."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bitgen.checkpoint.format import checkpoint_folders, short_hash, step_folder
from bitgen.checkpoint.manifest import (
    EMA_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    STATE_FILE,
    CheckpointError,
    DamagedCheckpoint,
    base_path,
    read_manifest,
    verify,
    write_manifest,
)
from bitgen.guards.failures import is_disk_full
from bitgen.guards.printable import printable
from bitgen.machine.files import apply_umask, fsync, remove, remove_leftovers, replacing, replacing_folder

_TEMPORARY, _DELETING = ".tmp-", ".deleting-"

logger = logging.getLogger(__name__)


def mend_links(folder: str | Path) -> None:
    """Make ``latest`` and ``best`` of a run links where they are folders: what follows links copies the checkpoints
    themselves. The caller holds the run's lock.

    Raises:
        CheckpointError: such a folder holds no checkpoint that this version reads, or cannot be replaced.
    """
    for copied in (Path(folder) / "latest", Path(folder) / "best"):
        if copied.is_symlink() or not copied.is_dir():
            continue
        if not (copied / MANIFEST_FILE).exists():
            raise CheckpointError(f"{copied} was a link to a checkpoint, and is a folder without one. Remove it.")
        try:
            try:
                target = copied.with_name(step_folder(read_manifest(copied)["step"]))
                if target.exists() and not _is_whole(target):  # the copy broke off
                    verify(copied)
                    _set_aside(target)
            except DamagedCheckpoint as error:  # neither is whole: nothing is removed
                logger.warning("%s, a folder in place of a link, is kept as %s: %s", copied, _set_aside(copied), error)
                continue
            if target.exists():
                remove(copied)
            else:
                os.rename(copied, target)
            _link(copied, target)
        except OSError as error:
            raise CheckpointError(
                f"{copied} is a folder in place of a link, and cannot be replaced ({error.strerror or error})"
            ) from error
        logger.warning("%s was a folder, as copies of a run have it: it is a link to %s again", copied, target.name)


class CheckpointStore:
    """Writes a run's checkpoints on rank 0.

    Args:
        output_dir: the run's folder, made when missing; what an interrupted write left in it is removed, for which the
            caller holds the folder's lock.
        keep: how many of the newest to keep, beside the best.
        writes: False on all ranks but 0, which only ask what there is.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """

    def __init__(self, output_dir: str | Path, keep: int, writes: bool = True) -> None:
        self.folder = Path(output_dir)
        self.keep = keep
        self.writes = writes
        if not writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.folder.glob(f"{_TEMPORARY}*"), *self.folder.glob(f"{_DELETING}*")]:
                remove(leftover)
            remove_leftovers(self.folder)
            probe = self.folder / f"{_TEMPORARY}probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"--output_dir {self.folder}: cannot write there ({error.strerror or error}). Choose a folder that you "
                "may write to, or free space and permissions on this one."
            ) from error

    @property
    def best(self) -> Path | None:
        """The best checkpoint so far, if there is one."""
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        return next(iter(checkpoint_folders(self.folder)), None)

    def store_base(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        """Write the frozen base once under its hash; returns the hash, None when there is no base."""
        if not tensors:
            return None
        name = short_hash(tensors)
        target = base_path(self.folder, name)
        if target.exists():
            return name
        need = bytes_of(tensors)
        self._check_space(target, need)
        try:
            with replacing(target) as temporary:
                _save_tensors(tensors, temporary)
        except (OSError, SafetensorError) as error:
            raise self._failure(target, error, need) from error
        return name

    def save(
        self,
        step: int,
        model: Mapping[str, torch.Tensor],
        state: dict[str, Any],
        files: Mapping[str, str],
        base: str | None = None,
        averaged: Mapping[str, torch.Tensor] | None = None,
        is_best: bool = False,
    ) -> Path:
        """Write the checkpoint of ``step`` under a temporary name, put it in place, move the links, drop old ones.

        A crash at any moment leaves the checkpoints before it usable, and this one either whole or absent.

        Raises:
            CheckpointError: it could not be written; the ones before are untouched, what was begun is removed.
        """
        target, need = self.folder / step_folder(step), bytes_of([model, averaged, state])
        self._check_space(target, need)
        try:
            with replacing_folder(target, prefix=f"{_TEMPORARY}{target.name}-") as new:
                _save_tensors(model, new / MODEL_FILE)
                if averaged is not None:  # also of no step yet, so that a run with averages is known for one
                    _save_tensors(averaged, new / EMA_FILE)
                with open(new / STATE_FILE, "wb") as file:
                    torch.save(state, file)
                for name, content in files.items():
                    (new / name).write_text(content, encoding="utf-8")
                write_manifest(new, step, base)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise self._failure(target, error, need) from error
        try:
            _link(self.folder / "latest", target)
            if is_best:
                _link(self.folder / "best", target)
            self._retain()
        except OSError as error:
            raise self._failure(target, error) from error
        return target

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of ``step``."""
        return (self.folder / step_folder(step)).is_dir()

    def mark_best(self, step: int) -> None:
        """Point ``best`` at the checkpoint of ``step``. Raises ``CheckpointError`` where the link cannot be written."""
        try:
            _link(self.folder / "best", self.folder / step_folder(step))
        except OSError as error:
            raise self._failure(self.folder / "best", error) from error

    def keep_as(self, step: int, name: str) -> None:
        """Keep the checkpoint of ``step`` under ``name`` besides, whatever becomes of it; nothing if it is there whole.

        Its files are linked, not copied, where the file system can. So damage to the one is damage to the other.

        Raises:
            CheckpointError: it could not be written.
        """
        target = self.folder / name
        with suppress(CheckpointError):
            verify(target)
            return
        try:
            with replacing_folder(target, prefix=f"{_TEMPORARY}{name}-") as new:
                source = self.folder / step_folder(step)
                shutil.copytree(source, new, copy_function=_link_or_copy, dirs_exist_ok=True)
        except OSError as error:
            raise self._failure(target, error) from error

    def set_aside(self, folder: Path) -> Path:
        """Rename a damaged checkpoint of this run, so that it is neither resumed nor counted; returns its new path."""
        return _set_aside(folder)

    def _retain(self) -> None:
        best = self.best
        for old in checkpoint_folders(self.folder)[self.keep :]:
            if best is None or old.resolve() != best:
                self._delete(old)

    def _delete(self, folder: Path) -> None:
        # Renamed first: a crash half-way through must not leave something that looks like a checkpoint.
        doomed = folder.with_name(f"{_DELETING}{folder.name}")
        remove(doomed)
        os.rename(folder, doomed)
        remove(doomed)

    def _check_space(self, target: Path, need: int) -> None:
        """Before anything is written: libraries' writers do not all say that it was the disk that was full."""
        free = self._free()
        if need > free:
            said = f"{need:,} bytes are needed and {free:,} are free"
            raise self._failure(target, OSError(errno.ENOSPC, said))

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _failure(self, target: Path, error: BaseException, need: int = 0) -> CheckpointError:
        """``need``: bytes that were to be written; what was begun is removed by now."""
        number, said = getattr(error, "errno", None), printable(getattr(error, "strerror", None) or error, 300)
        if is_disk_full(error) or need > self._free():
            said = f"the disk is full ({said})"
            remedy = f"free space on the disk of {self.folder} (or lower --max_checkpoints_to_keep), then"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = f"make {self.folder} writable, then"
        else:
            remedy = "remove the cause, then"
        whole = checkpoint_folders(self.folder)
        where = f"go on from {whole[0].name} with --resume auto" if whole else "start again"
        return CheckpointError(
            f"cannot write checkpoint {target}: {said}. Nothing before it is lost: {remedy} {where}."
        )


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, each tensor once."""
    found: dict[int, int] = {}

    def look(inside: Any) -> None:
        if isinstance(inside, torch.Tensor):
            found[id(inside)] = inside.numel() * inside.element_size()
        elif isinstance(inside, (Mapping, list, tuple)):
            for inner in inside.values() if isinstance(inside, Mapping) else inside:
                look(inner)

    look(value)
    return sum(found.values())


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    apply_umask(path)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _set_aside(folder: Path) -> Path:
    target = folder.with_name(f"damaged-{folder.name}")
    remove(target)
    os.rename(folder, target)
    return target


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f"{_TEMPORARY}{link.name}")
    remove(temporary)
    os.symlink(target.name, temporary)
    os.replace(temporary, link)
    fsync(link.parent)
