"""A memory's file: codes and a probe as safetensors, everything else as JSON in its header; one writer at a time."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bitgen.guards.json_files import BadJson, check_keys, parse_json
from bitgen.guards.printable import printable
from bitgen.guards.regular_files import BadFile, read_regular_file
from bitgen.machine import locks
from bitgen.machine.files import behind_link, write_whole
from bitgen.memory.whitening import Whitening

FORMAT_VERSION, SPOKEN_VERSION = 2, 3  # 1 had no whitening; 3 has what a model says, of models that speak alone
MOST_HEADER = 100_000_000  # bytes; safetensors reads no more
MOST_BYTES = 4 << 30

_HEADER, _DIGEST = "bitgen_memory", "bitgen_memory_sha256"
_TENSORS = ("codes", "probe")
_WHITENING = ("whitening_means", "whitening_matrices")
_SPOKEN = ("spoken", "spoken_probe")
_SHAPE: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "slots": int,
    "widen": bool,
    "sigma": (int, float),
    "cue_noise": (int, float),
    "seed": int,
    "next_id": int,
    "episodes": list,
}
_EPISODE: dict[str, type | tuple[type, ...]] = {"id": str, "text": str, "written": str, "edited": (str, type(None))}
# Probes of one model on different devices and precisions differ less, those of two models far more.
_SAME_MODEL = 0.02
# SHA-256 of the whole file, in which these 64 digits are zeros while it is computed.
_SEAL, _UNSEALED = f'"{_DIGEST}":"'.encode(), b"0" * 64


class StoredSpoken(NamedTuple):
    """What a model says of the episodes: ``codes [E, k + L d]``, keys and values, and their ``probe [k + L d]``."""

    codes: Tensor
    probe: Tensor


class SpokenProbe(NamedTuple):
    """Key ``[k]`` and value ``[L d]`` that a model which speaks makes of a fixed image and text; all are as wide."""

    key: Tensor
    value: Tensor


class Beside(NamedTuple):
    """What some files hold beside the codes; None where one does not."""

    whitening: Whitening | None
    spoken: StoredSpoken | None


class Stored(NamedTuple):
    """What a file holds: ``codes [E, 2 D]``, ``probe [2 D]``, what is beside them, settings and episodes."""

    codes: Tensor
    probe: Tensor
    beside: Beside
    header: dict[str, Any]


def exclusive(path: str | Path) -> AbstractContextManager[None]:
    """Hold a memory's file for writing; readers are not kept out, as files are replaced whole.

    Raises:
        ValueError: another holder has it now, or its folder cannot be written.
    """
    held = behind_link(path)  # all names of a file are held together
    lock = held.with_name(f".{held.name}.lock")
    return locks.exclusive(lock, printable(path), "Nothing was changed: try again when that one is done.")


def write_memory(
    path: str | Path,
    codes: Tensor,
    probe: Tensor,
    whitening: Whitening | None,
    header: dict[str, Any],
    spoken: StoredSpoken | None = None,
) -> None:
    """Write atomically: an interrupted save leaves the old file. The caller holds :func:`exclusive`.

    Without ``spoken`` the file is of the format that programs read which know of none.

    Raises:
        ValueError: it cannot be written, or would be larger than what can be read.
    """
    tensors = {"codes": codes, "probe": probe, **dict(zip(_WHITENING, whitening or (), strict=False))}
    tensors |= dict(zip(_SPOKEN, spoken or (), strict=False))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    version = FORMAT_VERSION if spoken is None else SPOKEN_VERSION
    text = json.dumps({"format_version": version, **header}, ensure_ascii=False)
    content = save(tensors, {_HEADER: text, _DIGEST: _UNSEALED.decode()})
    if _header_length(content) > MOST_HEADER or len(content) > MOST_BYTES:
        raise ValueError(
            f"{printable(path)}: its texts take more than {MOST_HEADER:,} bytes, or all of it more than "
            f"{MOST_BYTES:,}; nothing was written: forget some episodes, or teach others in another file"
        )
    path = behind_link(path)
    own = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.tmp")  # not those of a longer name
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a writer that was killed
        if own.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
    write_whole(path, content.replace(_SEAL + _UNSEALED, _SEAL + hashlib.sha256(content).hexdigest().encode(), 1))


def read_memory(path: str | Path) -> Stored:
    """Read what :func:`write_memory` wrote: one version of the file, while another process replaces it too.

    Raises:
        ValueError: there is no such file, it is damaged or no memory, or of a newer format.
    """
    name = printable(path)
    try:
        content = read_regular_file(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: there is no such memory file") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
    except BadFile as error:
        raise ValueError(f"{name} is no memory file: {error}") from error
    try:
        header = parse_json(_metadata(content)[_HEADER], dict, {"format_version": int})
        if header["format_version"] not in (1, FORMAT_VERSION, SPOKEN_VERSION):
            raise ValueError(
                f"{name} has format {header['format_version']}, this program reads {SPOKEN_VERSION}: use the program "
                "it is from"
            )
        check_keys(header, _SHAPE)
        for episode in header["episodes"]:
            _check_episode(episode)
        stored = _stored(load(content), header)
    except (SafetensorError, BadJson, KeyError, RuntimeError) as error:
        reason = printable(error, 200)
        raise ValueError(f"{name} is damaged or no memory file ({reason}): restore it, or name another") from error
    codes, probe, (whitening, spoken), _ = stored
    for rows, row in ((codes, probe), *([] if spoken is None else [spoken])):
        fit = rows.dim() == 2 and len(rows) == len(header["episodes"]) and row.shape == rows.shape[1:]
        if not fit or not (rows.is_floating_point() and row.is_floating_point()):
            raise ValueError(f"{name} is damaged: its parts do not fit together; restore it, or name another")
    if whitening is not None and not all(part.isfinite().all() for part in whitening):
        raise ValueError(f"{name} is damaged: NaN in its whitening; restore it, or name another")
    return stored


def check_model(name: str, stored: Stored, probe: Tensor, spoken_probe: SpokenProbe | None) -> None:
    """Raise ValueError unless a file, by its ``name``, was made with the model of these probes.

    Args:
        probe: ``[2 D]``.
        spoken_probe: None: the model does not speak from a memory.
    """
    theirs, spoken = stored.probe, stored.beside.spoken
    if theirs.shape != probe.shape:
        raise ValueError(f"{name} holds codes of width {len(theirs)}, this model's have {len(probe)}: another model")
    if not _is_near(theirs, probe):
        raise ValueError(
            f"{name} was made with another model, whose codes mean something else here: name that model, or teach "
            "a new memory in another file"
        )
    if spoken is not None:
        _check_spoken(name, spoken, spoken_probe)


def _check_spoken(name: str, stored: StoredSpoken, probe: SpokenProbe | None) -> None:
    """Raise ValueError unless keys and values of a file are of the model whose ``probe`` this is."""
    remedy = "name the model that it was taught with, or teach a new memory in another file"
    if probe is None:
        raise ValueError(f"{name} was taught to a model that speaks from it, and this one does not: {remedy}")
    widths = [len(probe.key), len(probe.value)]
    if len(stored.probe) != sum(widths):
        raise ValueError(
            f"{name} holds keys and values of width {len(stored.probe)}, this model's have {sum(widths)}: {remedy}"
        )
    if not all(map(_is_near, stored.probe.split(widths), probe)):
        raise ValueError(
            f"{name} was made with this model after another training to speak from a memory, and what it holds means "
            f"something else here: {remedy}"
        )


def _is_near(theirs: Tensor, probe: Tensor) -> bool:
    """Whether a probe is of the same model; NaN in it is not."""
    return bool((theirs.to(probe) - probe).norm() <= _SAME_MODEL * probe.norm())


def _stored(tensors: dict[str, Tensor], header: dict[str, Any]) -> Stored:
    codes, probe = (tensors[name] for name in _TENSORS)
    whitening = spoken = None
    if any(name in tensors for name in _WHITENING):
        whitening = Whitening(*(tensors[name] for name in _WHITENING))
    if header["format_version"] == SPOKEN_VERSION:
        if not tensors.keys() >= set(_SPOKEN):
            raise BadJson(f"it has format {SPOKEN_VERSION}, and what a model says of its episodes is missing")
        spoken = StoredSpoken(*(tensors[name] for name in _SPOKEN))
    return Stored(codes, probe, Beside(whitening, spoken), header)


def _header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header: its length in 8 bytes, then JSON; checked against the digest, which old files lack."""
    end = 8 + _header_length(content)
    if end > min(len(content), 8 + MOST_HEADER):
        raise BadJson("its header is longer than it may be")
    header = parse_json(content[8:end], dict, {"__metadata__": dict})
    metadata: dict[str, str] = header["__metadata__"]
    check_keys(metadata, dict.fromkeys(metadata, str))
    if metadata.keys() == {_HEADER, _DIGEST}:
        start = content.find(_SEAL, 8, end) + len(_SEAL)
        whole = memoryview(content)
        sha = hashlib.sha256(whole[:start])
        for part in (_UNSEALED, whole[start + len(_UNSEALED) :]):
            sha.update(part)
        if sha.hexdigest() != metadata[_DIGEST]:
            raise BadJson("its content is not what was written")
    elif metadata.keys() != {_HEADER}:
        raise BadJson("its header is none of a memory")
    return metadata


def _check_episode(episode: object) -> None:
    if not isinstance(episode, dict) or episode.keys() != _EPISODE.keys():
        raise BadJson("an episode in it has other parts than id, text and times")
    check_keys(episode, _EPISODE)
    try:
        json.dumps(episode, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # it could be held, and never saved again
        raise BadJson("a text in it is not valid Unicode") from error
