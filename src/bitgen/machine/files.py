"""Files and folders that are whole or absent: on the disk when a call returns, readable, replaced in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

_LEFTOVER = re.compile(r"\..+\.(?:(?P<of_file>\d+)\.tmp|partial-(?:(?P<of_folder>\d+)-)?\w{8})")
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def fsync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's list of names, has reached the disk.

    Raises:
        OSError: the disk says no.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def apply_umask(path: str | Path) -> None:
    """Give a file the rights that a plain ``open`` would have: safetensors makes it readable by its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def behind_link(path: str | Path) -> Path:
    """What a link points to, which is what is to be written where one is named; any other path as it is."""
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what the block writes there takes the place of ``path`` in one step.

    A link stays, and what it points to is replaced. The content has reached the disk when the block is left. A block
    that raises leaves ``path`` as it was, and nothing beside it.

    Raises:
        OSError: the disk says no, or ``path`` is a folder, a device or a pipe, which must not be replaced by a file.
    """
    target = behind_link(path)
    _refuse_irregular(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, target)
        fsync(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def replacing_folder(path: str | Path, replace: bool = True, prefix: str | None = None) -> Iterator[Path]:
    """A folder to fill, which takes the name ``path`` when the block ends without an exception.

    Until then, and for good when the block raises, whatever was at ``path`` stays, and nothing is left beside it. The
    content has reached the disk before it gets its name.

    Args:
        path: its parents are made.
        replace: put the new folder in the place of one that is there; otherwise that one must be absent or empty.
        prefix: of the temporary folder's name, by which its owner finds what a killed process left.

    Raises:
        OSError: the disk says no; ``path`` is the top of a disk; with ``errno`` ENOTEMPTY or EEXIST: a folder that was
            not to be replaced is there.
    """
    target = Path(os.path.realpath(path))  # of a link what it leads to, which may be on the larger disk
    refuse_mount_point(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix or f".{target.name}.partial-{os.getpid()}-", dir=target.parent))
    try:
        new = temporary / target.name  # inside the temporary folder, which only its owner may read
        new.mkdir()
        yield new
        for entry in (*new.rglob("*"), new):
            fsync(entry)
        _put_in_place(new, target, temporary / "replaced" if replace else None)
        fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_mount_point(folder: Path) -> None:
    """Raise OSError for the top of a disk: no folder written beside it can take its place."""
    if os.path.ismount(folder):
        raise OSError(errno.EBUSY, "it is the top of a mounted disk; name a folder inside it", str(folder))


def remove_leftovers(folder: str | Path) -> None:
    """Remove what :func:`replacing` and :func:`replacing_folder` left directly in ``folder`` when they were killed.

    The caller holds the folder's lock and writes nothing yet. Who writes there without the lock, as an evaluation puts
    its results beside a run's log, is spared as long as a process of its number lives on this machine.

    Raises:
        OSError: the folder cannot be read, or a file in it not be removed.
    """
    for path in Path(folder).iterdir():
        found = _LEFTOVER.fullmatch(path.name)
        if found is not None and not _lives(int(found["of_file"] or found["of_folder"] or 0)):
            remove(path)


def _lives(process: int) -> bool:
    """Whether another process of this number is there: in a container every start may have the same one."""
    if process in (0, os.getpid()):
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists() or path.is_symlink():
        path.unlink()


def _put_in_place(new: Path, target: Path, replaced: Path | None) -> None:
    if replaced is not None and target.exists():
        if _exchanged(new, target):  # at no moment is nothing there, even if the process is killed
            return
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it
            os.rename(target, replaced)
    try:
        os.rename(new, target)
    except OSError:
        if replaced is not None and replaced.exists() and not target.exists():
            os.rename(replaced, target)
        raise


def _refuse_irregular(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def write_whole(path: str | Path, content: bytes) -> None:
    """Write atomically: whoever reads the file sees the old content or the new one.

    Raises:
        ValueError: it cannot be written; a file that was there is then untouched.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path}: cannot write it ({error.strerror or error})") from error


def digest(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors."""
    sha = hashlib.sha256()
    for name, tensor in named_tensors:
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


class Held(NamedTuple):
    """An open file: a name under which libraries read the bytes that were hashed, and their SHA-256."""

    name: str
    sha256: str


@contextlib.contextmanager
def held(path: str | Path, copied: bool) -> Iterator[Held]:
    """Hash a regular file and keep it open while the block runs, whoever puts another one in its place meanwhile.

    Args:
        copied: ``name`` is a copy in memory, made while it was hashed, which nothing can change any more. Otherwise it
            is the open file itself, which costs no memory and changes only where somebody writes into that very file.

    Raises:
        OSError: it cannot be read, or is no regular file.
        MemoryError: there is no room for the copy.
    """
    sha = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        # Without waiting, for a pipe that nobody writes to would never open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        copy = opened.enter_context(_in_memory()) if copied else None
        left = status.st_size
        while left and (block := os.read(descriptor, min(left, 1 << 20))):
            sha.update(block)
            left -= len(block)
            if copy is not None:
                _write_all(copy, block)
        number = descriptor if copy is None else copy
        os.lseek(number, 0, os.SEEK_SET)
        yield Held(f"/dev/fd/{number}", sha.hexdigest())


@contextlib.contextmanager
def _in_memory() -> Iterator[int]:
    """The descriptor of a file without a name; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("bitgen")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()


def _write_all(descriptor: int, block: bytes) -> None:
    try:
        while block:
            block = block[os.write(descriptor, block) :]
    except OSError as error:  # not the file's fault, which must not count as damaged
        raise MemoryError(f"no room for a copy ({error.strerror or error})") from error


def check_writable(path: str) -> None:
    """Find out before the work, not after it, that results cannot be written: then ValueError. Makes the folder."""
    target = behind_link(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse_irregular(target)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot write there ({error.strerror or error}); name another file") from error
