"""The file of a spoken memory: keys, values and a probe as safetensors, the texts in its header."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

MOST_FACTS = 4_096
MOST_CHARACTERS = 2_000  # of a text: so many facts of so many fit into the longest header that safetensors reads
MOST_BYTES = 1 << 30

_FORMAT = "bitgen spoken memory 1"
_TENSORS = ("keys", "values", "probe")


class Stored(NamedTuple):
    """What a file holds: ``texts``, ``keys [E, k]``, ``values [E, L d]`` and the ``probe`` of its model, float32."""

    texts: tuple[str, ...]
    keys: torch.Tensor
    values: torch.Tensor
    probe: torch.Tensor


def check_text(text: str) -> None:
    """Raise ``ValueError`` for a text that is no string, empty, too long, or cannot be written to a file."""
    if not isinstance(text, str):
        raise ValueError(f"the text is a {type(text).__name__}, not a string")
    if not text.strip():
        raise ValueError("the text is empty: write what is to be remembered")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters, at most {MOST_CHARACTERS:,} are taken: shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise ValueError(f"the text is not valid Unicode ({text[:60]!r}): write it anew") from error


def write_facts(file: str | os.PathLike, stored: Stored) -> None:
    """Write atomically: whoever reads the file sees the old content or the new one.

    Raises:
        ValueError: it cannot be written, or would be larger than what can be read; a file that was there is untouched.
    """
    texts = json.dumps(stored.texts, ensure_ascii=False)
    tensors = dict(zip(_TENSORS, stored[1:], strict=True))
    content = save(tensors, {"format": _FORMAT, "texts": texts, "sha256": _digest(texts, tensors)})
    if len(content) > MOST_BYTES:
        raise ValueError(f"{file}: it would take more than {MOST_BYTES:,} bytes; forget some facts")
    target = Path(os.path.realpath(file))  # a link stays, and what it points to is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no regular file")
        try:
            with open(temporary, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, target)
            _sync(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ValueError(f"{file}: cannot write it ({error.strerror or error})") from error


def read_facts(file: str | os.PathLike) -> Stored:
    """Read what :func:`write_facts` wrote.

    Raises:
        ValueError: there is no such file, or it is damaged or no memory.
    """
    try:
        if not Path(file).is_file():  # a pipe would be waited for
            raise ValueError(f"{file}: there is no such memory file")
        with open(file, "rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from error
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        return _stored(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = repr(str(error))[:200]
        raise ValueError(f"{file} is damaged or no spoken memory ({reason}): restore it, or name another") from error


def _stored(content: bytes) -> Stored:
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    said = header["__metadata__"]
    if said["format"] != _FORMAT:
        raise ValueError(f"its format is {said['format'][:40]!r}, this program reads {_FORMAT!r}")
    if tensors.keys() != set(_TENSORS) or _digest(said["texts"], tensors) != said["sha256"]:
        raise ValueError("its content is not what was written")
    texts = json.loads(said["texts"])
    if not isinstance(texts, list):
        raise ValueError("its texts are no list")
    for text in texts:
        check_text(text)
    stored = Stored(tuple(texts), *(tensors[name] for name in _TENSORS))
    keys, values, probe = stored[1:]
    if not len(texts) == len(keys) == len(values) or (keys.dim(), values.dim(), probe.dim()) != (2, 2, 1):
        raise ValueError("its parts do not fit together")
    if len(texts) > MOST_FACTS:
        raise ValueError(f"it has {len(texts):,} facts, more than {MOST_FACTS:,}")
    if any(part.dtype != torch.float32 or not part.isfinite().all() for part in stored[1:]):
        raise ValueError("its numbers are of another kind, or NaN or infinite")
    return stored


def _digest(texts: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all that a file holds."""
    sha = hashlib.sha256(texts.encode())
    for name in _TENSORS:
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _sync(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
