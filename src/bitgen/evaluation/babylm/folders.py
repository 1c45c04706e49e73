"""What is said about the folders of an evaluation: which are left out, and which components are missing."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

from bitgen.evaluation.babylm.items import LATEST, tasks_of
from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)

READING = "reading"
AGE_OF_ACQUISITION = "aoa"
AOA_FOLDERS = (AGE_OF_ACQUISITION, "cdi_childes")  # names that the official README and its code give it
# Read by others: ages of acquisition need several checkpoints, GLUE a training.
ELSEWHERE = {
    **dict.fromkeys(AOA_FOLDERS, "its score needs the checkpoints chck_*M"),
    "glue": "its tasks are fine-tuned",
}
_FULL = ("comps", AGE_OF_ACQUISITION)  # components that the fast sets do not have
_OPTIONAL = ("wug_adj", "wug_past")


def components_missing(names: Sequence[str], year: int = LATEST) -> list[str]:
    """The components of a year's challenge that no folder is named after.

    Those that only the full evaluation has are missing where a folder shows that it is one (``blimp_filtered``).
    """
    full = any(name.endswith("_filtered") or name.startswith(_FULL) for name in names)
    wanted = [task for task in (*tasks_of(year), READING) if year != LATEST or task not in _OPTIONAL]
    wanted = [*(task for task in wanted if full or task not in _FULL), *([AGE_OF_ACQUISITION] if full else [])]
    found = [AGE_OF_ACQUISITION if name.startswith(AOA_FOLDERS) else name for name in names]
    return [task for task in wanted if not any(name.startswith(task) for name in found)]


def report_folders(eval_dir: Path, left_out: Sequence[Path], names: Sequence[str], year: int) -> None:
    """Log each folder that is left out, with the name that it should perhaps have, and what is missing, in a line."""
    for folder in left_out:
        why = next((reason for start, reason in ELSEWHERE.items() if folder.name.startswith(start)), None)
        if why is not None:
            logger.info("%s is left out here: %s", printable(folder), why)
            continue
        logger.warning(
            "%s is left out: not a kind of data that is evaluated here%s", printable(folder), _hint(folder, year)
        )
    if missing := components_missing(names, year):
        packed = sorted(path.name for path in eval_dir.glob("*.zip"))
        unpack = f"Unpack {', '.join(packed)} (the pipeline's README has the password); t" if packed else "T"
        logger.warning(
            "%s has no folder %s: no score for %s. %she official pipeline's README says how to download the sets",
            eval_dir,
            ", ".join(f"{name}*" for name in missing),
            "it" if len(missing) == 1 else "them",
            unpack,
        )


def _hint(folder: Path, year: int) -> str:
    """What the folder may be: sets in a folder of their own, or one under another name."""
    kinds = (*tasks_of(year), READING, AGE_OF_ACQUISITION)
    inner = [path for path in sorted(folder.rglob("*")) if path.is_dir() and path.name.startswith(kinds)]
    if inner:
        return f"; it holds {inner[0].relative_to(folder)}: move such folders up, or give {inner[0].parent}"
    name = folder.name.lower().replace("-", "_")
    starts = {kind: difflib.SequenceMatcher(None, name[: len(kind) + 1], kind).ratio() for kind in kinds}
    best = max(starts, key=starts.__getitem__)
    return f"; if it holds {best}, let its name begin so" if starts[best] >= 0.75 else ""


def nothing_found(eval_dir: Path, year: int) -> str:
    """What to do about a folder without any set."""
    known = ", ".join(f"{task}*" for task in tasks_of(year))
    message = f"{eval_dir} holds none of {known}, {READING}; give the folder that they are in"
    below = [name for name in ("fast_eval", "full_eval") if (eval_dir / name).is_dir()]
    return message + (f": {' or '.join(str(eval_dir / name) for name in below)}" if below else "")
