"""What a run began with: new weights, or those of an earlier run, which has seen words of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from bitgen.checkpoint.format import resolve_checkpoint
from bitgen.checkpoint.manifest import STATE_FILE
from bitgen.guards.json_files import read_json

logger = logging.getLogger(__name__)

STARTED_FROM = "started_from"  # its name in a training state
Start = dict[str, int | None]


def started_from(init_from: str | None, checkpoints: bool, budget: int | None) -> Start | None:
    """What a new run keeps of the one whose weights it starts with: ``words_seen``, with those of runs before that one,
    or None where it does not say. None: the weights are new. A warning says where words that count are counted anew.

    Args:
        checkpoints: the run keeps some by words seen (``words_seen_checkpoints``).
        budget: ``max_words_seen``.
    """
    if init_from is None:
        return None
    folder = Path(init_from)
    try:
        words = _of_checkpoint(folder) if _is_run(folder) else _of_export(folder)
    except Exception:  # of another kind, or damaged: whoever takes its weights says so
        words = None
    _warn_of_counts(words or None, checkpoints, budget)
    return {"words_seen": words or None}


def words_before(state: Mapping[str, Any], init_from: str | None) -> int | None:
    """Words that the weights of a run had seen before it: 0 where they were new, None where nobody knows.

    Args:
        state: a training state.
        init_from: what the run's settings say; it counts for checkpoints from before their state did.
    """
    if STARTED_FROM not in state:
        return 0 if init_from is None else None
    start = state[STARTED_FROM]
    return 0 if start is None else start["words_seen"]


def _warn_of_counts(words: int | None, checkpoints: bool, budget: int | None) -> None:
    named = [f"max_words_seen {budget:,}"] if budget is not None else []
    named += ["words_seen_checkpoints"] if checkpoints else []
    if not named:
        return
    before = "words that it does not tell" if words is None else f"{words:,} words"
    text = f"init_from: the run that this one starts from has seen {before}, and words are counted anew. "
    text += f"{' and '.join(named)} {'count' if len(named) > 1 else 'counts'} those of this run alone."
    if checkpoints:
        text += " BabyLM means all words by chck_1M: train without init_from for that."
    logger.warning(text)


def _is_run(folder: Path) -> bool:
    """As opposed to an export, whose settings lie beside its weights."""
    return not (folder / "config.json").is_file() or (folder / "config.yaml").is_file()


def _of_checkpoint(folder: Path) -> int | None:
    folder = resolve_checkpoint(folder)
    # Unverified, and tensors are not read: a state may be tens of gigabytes, and this is one number for people.
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    before = words_before(state, settings.get("training", {}).get("init_from"))
    return None if before is None else before + state["progress"]["words_seen"]


def _of_export(folder: Path) -> int | None:
    words = read_json(folder / "config.json", dict)["trained_with"]["words_seen"]
    return words if isinstance(words, int) and not isinstance(words, bool) else None
