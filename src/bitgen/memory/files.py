"""A memory's file: codes and a probe as safetensors, everything else as JSON in its header; one writer at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bitgen.machine.files import write_whole
from bitgen.memory.whitening import Whitening

FORMAT_VERSION = 2  # 1 had no whitening
_HEADER = "bitgen_memory"
_TENSORS = ("codes", "probe")
_WHITENING = ("whitening_means", "whitening_matrices")
_KEYS = {"format_version", "slots", "widen", "sigma", "cue_noise", "seed", "next_id", "episodes"}


class Stored(NamedTuple):
    """What a file holds: ``codes [E, 2 D]``, ``probe [2 D]``, whitening (None: none), settings and episodes."""

    codes: Tensor
    probe: Tensor
    whitening: Whitening | None
    header: dict[str, Any]


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold a memory's file for writing; readers are not kept out, as files are replaced whole.

    Raises:
        ValueError: another holder has it now, or its folder cannot be written.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = open(lock, "ab")  # noqa: SIM115 (closed below, which also lets the lock go)
    except OSError as error:
        raise ValueError(f"{path}: cannot write there ({error.strerror or error})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{path} is being written by another process: nothing was changed. Try again when that one is done."
            ) from error
        yield


def write_memory(
    path: str | Path, codes: Tensor, probe: Tensor, whitening: Whitening | None, header: dict[str, Any]
) -> None:
    """Write atomically: an interrupted save leaves the old file. The caller holds :func:`exclusive`.

    Raises:
        ValueError: it cannot be written.
    """
    tensors = {"codes": codes, "probe": probe, **dict(zip(_WHITENING, whitening or (), strict=False))}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, ensure_ascii=False)
    write_whole(path, save(tensors, {_HEADER: text}))


def read_memory(path: str | Path) -> Stored:
    """Read what :func:`write_memory` wrote.

    Raises:
        ValueError: there is no such file, it is damaged or no memory, or of a newer format.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such memory file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {})[_HEADER]
            codes, probe = (file.get_tensor(name) for name in _TENSORS)
            whitens = _WHITENING[0] in file.keys()  # noqa: SIM118 (it is no dict)
            whitening = Whitening(*(file.get_tensor(name) for name in _WHITENING)) if whitens else None
        header = json.loads(text)
        version = header["format_version"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no memory file ({error}): restore it, or name another") from error
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format {version}, this program reads {FORMAT_VERSION}: use the program it is from"
        )
    missing = _KEYS - header.keys()
    if missing or codes.dim() != 2 or len(codes) != len(header["episodes"]) or probe.shape != codes.shape[1:]:
        raise ValueError(f"{path} is damaged: its parts do not fit together; restore it, or name another")
    if whitening is not None and not all(part.isfinite().all() for part in whitening):
        raise ValueError(f"{path} is damaged: NaN in its whitening; restore it, or name another")
    return Stored(codes, probe, whitening, header)
