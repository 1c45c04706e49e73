"""The evaluation data of a submission: a full and a fast part, whose sets are evaluated one by one."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from bitgen.evaluation.babylm.evaluation import EvaluationData, read_evaluation_data
from bitgen.evaluation.babylm.folders import AOA_FOLDERS, nothing_found
from bitgen.evaluation.babylm.items import LATEST
from bitgen.evaluation.babylm.kept import fingerprint
from bitgen.evaluation.babylm.submission.layout import AOA, FAST, FULL, OFFICIAL, PARTS
from bitgen.guards.printable import printable

GLUE_FOLDERS = ("glue_filtered", "glue")


class SetData(NamedTuple):
    """One set: the ``part`` and folder it is of, its items ready to be evaluated, and what its files are by content."""

    part: str
    name: str
    folder: Path
    data: EvaluationData
    fingerprint: str

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.part}/{self.name}"

    @property
    def answers(self) -> dict[str, list[str]]:
        """The right answers of each sub-task, in the order of its items; nothing for a set without questions."""
        found: dict[str, list[str]] = {}
        for item in self.data.items.get(self.name, ()):
            found.setdefault(item.groups.get("UID", self.name), []).append(item.answers[item.label])
        return found


class SubmissionData(NamedTuple):
    """What an evaluation folder holds for a submission.

    ``sets``: by part, in the order of their names. ``glue``, ``aoa``: folders of fine-tuning data and of ages of
    acquisition, if there are some. ``unknown``: folders that are left out, each with what it may have been meant to be.
    """

    sets: list[SetData]
    glue: Path | None
    aoa: Path | None
    unknown: list[str]

    def of(self, part: str) -> list[SetData]:
        """The sets of one part."""
        return [one for one in self.sets if one.part == part]


def read_submission_data(eval_dir: str | Path) -> SubmissionData:
    """Reads a ``full_eval``, a ``fast_eval``, or a folder that holds both, before anything is evaluated.

    Raises:
        ValueError: no such folder, no set in it, sets of both parts side by side, or a damaged file.
    """
    parts = _parts(Path(eval_dir))
    sets: list[SetData] = []
    unknown: list[str] = []
    extra: dict[str, Path] = {}
    for part, folder in parts.items():
        children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        for kind, names in (("glue", GLUE_FOLDERS), (AOA, AOA_FOLDERS)):
            found = next((path for name in names for path in children if path.name == name), None)
            if found is not None:
                extra.setdefault(kind, found)
        others = {*GLUE_FOLDERS, *AOA_FOLDERS}
        # A part may be empty where the other is not, or hold what is not read here alone.
        nothing_here = all(path.name in others for path in children) and (children or len(parts) > 1)
        one_by_one = {} if nothing_here else split(read_evaluation_data(folder))
        sets += [
            SetData(part, name, folder / name, data, fingerprint(folder / name))
            for name, data in sorted(one_by_one.items())
        ]
        known = {*one_by_one, *others}
        unknown += [_hint(part, path.name, known) for path in children if path.name not in known]
    if not sets and not extra:
        raise ValueError(nothing_found(Path(eval_dir), LATEST))
    return SubmissionData(sets, extra.get("glue"), extra.get(AOA), unknown)


def _parts(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. Give evaluation_data, or its full_eval or fast_eval")
    parts = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if parts:
        return parts
    if folder.name in PARTS:
        return {folder.name: folder}
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    fast = sorted(name for name in names if name.endswith("_fast"))
    full = sorted(names & {name for name in OFFICIAL[FULL] if name not in OFFICIAL[FAST]})
    if fast and full:
        raise ValueError(
            f"{folder} holds {fast[0]} of the fast sets and {full[0]} of the full ones side by side. Put the fast ones "
            f"into a folder {FAST} and the others into {FULL}, and give the folder of the two"
        )
    return {FAST if fast else FULL: folder}


def _hint(part: str, name: str, known: set[str]) -> str:
    """A folder that is left out, and the official one that it may have been."""
    wanted = [*(set(OFFICIAL[part]) - known), *(GLUE_FOLDERS[:1] if part == FULL else ())]
    near = difflib.get_close_matches(name.lower(), wanted, n=1)
    shown = printable(f"{part}/{name}", 120)
    return f"{shown} (is it {near[0]}? Then give it that name)" if near else shown


def split(data: EvaluationData) -> dict[str, EvaluationData]:
    """Data of several sets as data of one set each, by name, whatever kinds of sets there are: a field of the data is a
    mapping of sets by name, or the folder of one set that is called as the field; others go with each."""
    fields = data._asdict()
    nothing: dict[str, Any] = {
        field: {} if isinstance(value, dict) else None if isinstance(value, Path) else value
        for field, value in fields.items()
    }
    found = {}
    for field, value in fields.items():
        if isinstance(value, dict):
            for name, items in value.items():
                found[name] = EvaluationData(**nothing | {field: {name: items}})
        elif isinstance(value, Path):
            found[field] = EvaluationData(**nothing | {field: value})
    return found
