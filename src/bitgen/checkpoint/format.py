"""Checkpoints: whole or absent, verified when read, and enough of them kept.

A run's folder::

    step-00001234/            model.safetensors     the model without its frozen base
                              ema.safetensors       averaged weights, where a run keeps them (ema_decay, average_last)
                              training_state.pt     everything else that resuming needs; loads with weights_only=True
                              config.yaml           the resolved configuration
                              config.json           BitGenConfig
                              manifest.json         sizes and SHA-256 of the files above, and its own
    vision_base-<hash>.safetensors   the frozen base, once for all checkpoints
    chck_1M/, chck_10M/ ...   checkpoints as above, after so many million words; with words_seen_checkpoints
    latest, best              relative links
    tokenizer/
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from bitgen.checkpoint.manifest import (
    EMA_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    STATE_FILE,
    CheckpointError,
    CheckpointFiles,
    DamagedCheckpoint,
    base_path,
)
from bitgen.guards.printable import printable
from bitgen.machine.files import digest

STEP_PREFIX = "step-"
REVISION_PREFIX = "chck_"  # of folders and Hub revisions, as BabyLM's evaluation names them
_REVISION = re.compile(rf"{REVISION_PREFIX}(\d+)M")


@dataclass
class Checkpoint:
    """A verified checkpoint folder, and its training state once read."""

    files: CheckpointFiles
    step: int
    state: dict[str, Any]
    # Newer ones that were damaged and passed over, with what is wrong with each.
    damaged: dict[Path, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.files.folder


def step_folder(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"{STEP_PREFIX}{step:08d}"


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """All checkpoint folders of a run, newest first. Temporary ones are not among them."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and step_of(p) is not None]
    return sorted(found, key=lambda p: -(step_of(p) or 0))


def revision_folders(folder: str | Path) -> list[Path]:
    """Folders ``chck_1M``, ``chck_2M`` ... of a run or an export, fewest words first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _REVISION.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def step_of(path: Path) -> int | None:
    """The step of a checkpoint folder by its name; None for any other folder."""
    digits = path.name.removeprefix(STEP_PREFIX)
    return int(digits) if path.name.startswith(STEP_PREFIX) and digits.isascii() and digits.isdecimal() else None


# ---- what of a model goes where ----


def split_state(
    model: torch.nn.Module, base_names: Collection[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """``(own, base)``: state-dict entries of the model without its frozen base, and those of the base.

    A tensor under two names (tied weights) is kept under the first.

    Args:
        base_names: parameters that no run changes; another name of the same tensor belongs to them too.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    base = {id(named[name]) for name in base_names}
    base_names = {name for name, parameter in named.items() if id(parameter) in base}
    own: dict[str, torch.Tensor] = {}
    base_state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            (base_state if name in base_names else own)[name] = tensor.detach()
    return own, base_state


def load_tensors(
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    expected: set[str],
    source: Path,
    files: CheckpointFiles | None = None,
) -> None:
    """Copy tensors into the model; their names must be exactly ``expected``, their shapes the model's.

    Args:
        files: of the checkpoint that they belong to, which tells the release of transformers that named them.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in sorted(expected - set(tensors))]
    problems += [f"{name} is unknown to this model" for name in sorted(set(tensors) - expected)]
    problems += [
        f"{name} is {list(tensor.shape)} there and {list(own[name].shape)} here"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join(problems[:4])}{more}."
            + (other_release(files) if files is not None and expected != set(tensors) else "")
            + f" Use the sizes that it was trained with ({source.parent / 'config.yaml'}), or another --output_dir for "
            "a new run."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def other_release(files: CheckpointFiles) -> str:
    """A sentence where a checkpoint was written under another release of transformers, which names weights; else
    nothing."""
    try:
        written = read_state(files, lazily=True).state["versions"]["transformers"]
    except (DamagedCheckpoint, LookupError, TypeError):  # an old one, or of another program: what is said stays true
        return ""
    if written == transformers.__version__:
        return ""
    return (
        f" It was written under transformers {printable(written, 20)}, and {transformers.__version__} is installed: "
        "releases may name an encoder's weights differently. Try that release, or open an export of the model, whose "
        "names do not depend on it."
    )


def load_weights(
    model: torch.nn.Module, files: CheckpointFiles, base_names: Collection[str], averaged: bool = False
) -> None:
    """Read a checkpoint's weights into a model, the frozen base included, all of them verified.

    Args:
        base_names: as of :func:`split_state`.
        averaged: take the averaged weights where the checkpoint has them: for evaluation, never to resume.
    """
    own, base = split_state(model, base_names)
    folder = files.folder
    if base:
        base_hash = files.manifest["vision_base"]
        load_tensors(model, read_base(folder.parent, base_hash), set(base), base_path(folder.parent, base_hash), files)
    with read_tensors(files, MODEL_FILE) as tensors:
        load_tensors(model, tensors, set(own), folder / MODEL_FILE, files)
    if averaged and EMA_FILE in files:
        with read_tensors(files, EMA_FILE) as tensors:
            load_tensors(model, tensors, set(tensors) & set(own), folder / EMA_FILE)


@contextlib.contextmanager
def read_tensors(files: CheckpointFiles, name: str) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a checkpoint's file, to copy while the block runs."""
    with files.open(name) as path:
        yield _read_tensors(files.folder / name, path)


def read_base(folder: Path, base_hash: str | None) -> dict[str, torch.Tensor]:
    """The frozen base that a run's folder keeps, verified.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = base_path(folder, base_hash)
    # Copied first, and then hashed: what is mapped from a file changes with it.
    tensors = {name: tensor.clone() for name, tensor in _read_tensors(path, path).items()}
    if short_hash(tensors) != base_hash:
        raise CheckpointError(
            f"{path} is damaged: its weights do not have the hash in its name. Restore it from a copy."
        )
    return tensors


def short_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The hash that names a stored base: independent of the order of its tensors."""
    return digest(sorted(tensors.items()))[:16]


def _read_tensors(path: Path, source: str | Path) -> dict[str, torch.Tensor]:
    """``path``: what messages call it; ``source``: where its bytes are read."""
    try:
        return load_file(source)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"cannot read {path}: {error}") from error


# ---- reading ----


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify a folder and read its training state.

    Raises:
        DamagedCheckpoint: it is not what was written.
        CheckpointError: it is of a newer format.
    """
    files = CheckpointFiles(folder)
    checkpoint = read_state(files)
    files.compare_rest()
    if checkpoint.step != files.manifest["step"]:
        raise DamagedCheckpoint(f"{folder} is of step {checkpoint.step}, and {files.manifest['step']} by its manifest")
    return checkpoint


def read_state(files: CheckpointFiles, lazily: bool = False) -> Checkpoint:
    """Read the verified training state of a checkpoint; ``lazily``: tensors when they are looked at, for which nothing
    is copied."""
    path = files.folder / STATE_FILE
    try:
        with files.open(STATE_FILE, copied=not lazily) as source:
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=lazily)
        return Checkpoint(files, state["step"], upgrade(state))
    except (MemoryError, DamagedCheckpoint):
        raise
    except Exception as error:  # torch raises many kinds; what was written is verified above, so any of them is damage
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__), 300)
        raise DamagedCheckpoint(f"cannot read {path}: {reason}") from error


def upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """The training state of a checkpoint of any format as today's."""
    if "plan" not in state:
        return state
    state = dict(state)
    plan = state.pop("plan")
    state["total_steps"] = plan["total_steps"]
    # There was one optimizer before there was a choice, and its name was not written.
    state["run"] = {
        "optimizer": "adamw",
        **state["run"],
        "steps per epoch": plan["steps_per_epoch"],
        "first step of phase 2 (lora_warmup_epochs, _steps)": plan["boundary"],
    }
    state["source"] = state.pop("sampler")
    state["objective"] = {name: state.pop(name) for name in ("log_temperature", "queue")}
    return state


def resume_candidates(resume: str, output_dir: str | Path) -> list[Path]:
    """The folders that ``--resume`` means, the first that is whole before the others; none: ``auto`` finds none.

    Raises:
        CheckpointError: the path holds no checkpoint.
    """
    if resume == "auto":
        return checkpoint_folders(output_dir)
    given = Path(resume)
    if not given.exists():
        raise CheckpointError(
            f"--resume {resume}: there is no such folder. Write --resume auto for the newest checkpoint."
        )
    given = given.resolve()
    step = step_of(given)
    if step is None:
        candidates = checkpoint_folders(given)
    else:
        candidates = [p for p in checkpoint_folders(given.parent) if (step_of(p) or 0) <= step]
    if not candidates:
        raise CheckpointError(f"--resume {resume}: no checkpoint (a folder {STEP_PREFIX}NNNNNNNN) in there.")
    return candidates


def find_checkpoint(resume: str, output_dir: str | Path) -> Checkpoint | None:
    """The checkpoint that ``--resume`` means: the newest whole one of ``output_dir`` (``auto``) or of a given folder.

    A damaged one is passed over for the one before it, and listed in ``damaged``. None when ``auto`` finds no
    checkpoint at all.

    Raises:
        CheckpointError: the path holds no checkpoint, or every one is damaged.
    """
    candidates = resume_candidates(resume, output_dir)
    if not candidates:
        return None
    damaged: dict[Path, str] = {}
    for folder in candidates:
        try:
            checkpoint = read_checkpoint(folder)
        except DamagedCheckpoint as error:
            damaged[folder] = str(error)
            continue
        checkpoint.damaged = damaged
        return checkpoint
    raise CheckpointError(
        f"None of the {len(candidates)} checkpoints in {candidates[0].parent} is usable: "
        f"{'; '.join(damaged.values())}. Restore one from a copy, or start again with another --output_dir."
    )


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, or for a run's folder its ``best``, else its newest.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST_FILE).is_file():
        return path.resolve()
    if (path / "best" / MANIFEST_FILE).is_file():
        return (path / "best").resolve()
    folders = checkpoint_folders(path)
    if not folders:
        raise CheckpointError(
            f"{path} is no checkpoint and holds none: give a run's --output_dir or one of its {STEP_PREFIX}NNNNNNNN "
            "folders."
        )
    return folders[0].resolve()
