"""The files of the BabyLM evaluation as items, by the rules of the official pipeline of a year."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from bitgen.evaluation.babylm.records import Item, Record

logger = logging.getLogger(__name__)

# 2026: `babylm-org/babylm-eval`, strict, since July 2026. 2025: `babylm/evaluation-pipeline-2025`, with which the 2026
# pipeline began (until 22 April 2026).
YEARS = (2025, 2026)
LATEST = YEARS[-1]

# The parts of entity tracking, each counted once however many subtasks it has.
ENTITY_SPLITS = ("regular", "ambiref", "move_contents")
_COMPS_SUBSETS = {
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
    "comps_wugs_dist-in-between": "wugs_dist_in_between",
}


def _blimp(record: Record) -> Item:
    pair = (record.text("sentence_good"), record.text("sentence_bad"))
    if "field" in record:
        groups = {name: record.text(name) for name in ("field", "UID", "linguistics_term")}
        groups["field"] = groups["field"].replace("syntax_semantics", "syntax/semantics")
    else:  # the supplement: a file is a paradigm
        groups = {"field": "supplement", "UID": record.path.stem, "linguistics_term": "supplement"}
    return Item(record.origin, pair, pair, groups)


def _entity_tracking(record: Record) -> Item:
    prefix, options = record.text("input_prefix"), record.texts("options")
    groups = {"UID": f"{record.path.stem}_{record.integer('numops')}_ops"}
    return Item(record.origin, tuple(prefix + option for option in options), options, groups)


def _filtered_entity_tracking(record: Record) -> Item | None:
    """Since July 2026 a question that offers "nothing" as an answer is left out when the file is read."""
    item = _entity_tracking(record)
    return None if any("nothing" in option for option in item.completions) else item


def _ewok_groups(record: Record) -> dict[str, str]:
    return {
        "UID": record.text("Domain"),
        "context_type": record.text("ContextType"),
        "context_contrast": record.text("ContextDiff"),
        "target_contrast": record.text("TargetDiff"),
    }


def _ewok_by_target(record: Record) -> Item:
    """2025: which of two targets follows the first context."""
    context, targets = record.text("Context1"), (record.text("Target1"), record.text("Target2"))
    completions = tuple(" " + target for target in targets)
    sentences = tuple(context + completion for completion in completions)
    return Item(record.origin, sentences, completions, _ewok_groups(record))


def _ewok_by_context(record: Record) -> Item:
    """2026: after which of two contexts the first target is more probable."""
    completion = " " + record.text("Target1")
    sentences = tuple(record.text(name) + completion for name in ("Context1", "Context2"))
    return Item(record.origin, sentences, (completion, completion), _ewok_groups(record), whole=True)


def _comps(record: Record) -> Item:
    if record.path.stem not in _COMPS_SUBSETS:
        known = ", ".join(f"{name}.jsonl" for name in _COMPS_SUBSETS)
        raise ValueError(f"{record.path}: COMPS counts files named {known}; rename it, or take it out of the folder")
    phrase = record.text("property_phrase")
    starts = (record.text("prefix_acceptable"), record.text("prefix_unacceptable"))
    sentences = tuple(f"{start} {phrase}" for start in starts)
    groups = {"UID": _COMPS_SUBSETS[record.path.stem]}
    return Item(record.origin, sentences, (phrase, phrase), groups, whole=True)


def _global_piqa(record: Record, solutions: int) -> Item:
    prompt, label = record.text("prompt"), record.integer("label")
    if not 0 <= label < solutions:
        raise ValueError(f"{record.origin}: 'label' is {label}; it must be one of 0 to {solutions - 1}")
    completions = tuple(" " + record.text(f"solution{number}") for number in range(solutions))
    sentences = tuple(prompt + completion for completion in completions)
    groups = {"UID": record.name("example_id")}
    return Item(record.origin, sentences, completions, groups, label=label, per_token=True)


def _global_piqa_parallel(record: Record) -> Item:
    return _global_piqa(record, 4)


def _global_piqa_nonparallel(record: Record) -> Item:
    return _global_piqa(record, 2)


def _wug(record: Record) -> Item:
    sentences = tuple(record.text("sentences").split("\t"))
    if len(sentences) < 2:
        raise ValueError(f"{record.origin}: 'sentences' holds one sentence; it must be at least two, with tabs between")
    return Item(record.origin, sentences, sentences, {}, record.number("ratio"))


Reader = Callable[[Record], Item | None]

# By how a folder's name begins, as in the official `evaluation_data`. The challenge of 2026 has no WUG any more.
_BOTH: dict[str, Reader] = {"blimp": _blimp, "supplement": _blimp, "comps": _comps, "wug_adj": _wug, "wug_past": _wug}
_READERS: dict[int, dict[str, Reader]] = {
    2025: {**_BOTH, "entity_tracking": _entity_tracking, "ewok": _ewok_by_target},
    2026: {
        **_BOTH,
        "entity_tracking": _filtered_entity_tracking,
        "ewok": _ewok_by_context,
        "global_piqa_parallel": _global_piqa_parallel,
        "global_piqa_nonparallel": _global_piqa_nonparallel,
    },
}


def tasks_of(year: int) -> tuple[str, ...]:
    """The kinds of items that are read by a year's rules.

    Raises:
        ValueError: rules of no such year are known here.
    """
    if year not in _READERS:
        raise ValueError(f"the rules of {year} are not known; give one of {', '.join(map(str, YEARS))}")
    return tuple(_READERS[year])


def task_of(folder_name: str, year: int = LATEST) -> str | None:
    """The kind of items that a folder of this name holds (a prefix of the name); None: not one that is read here."""
    return next((task for task in tasks_of(year) if folder_name.startswith(task)), None)


def read_items(folder: Path, year: int = LATEST) -> list[Item]:
    """All items of a folder's ``.jsonl`` files, file by file in the order of their names.

    Raises:
        ValueError: no such file, no item, or a record that lacks a field; it names file, line and field.
    """
    task = task_of(folder.name, year)
    assert task is not None, folder
    items, left_out = [], 0
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); download it again") from error
        found = [
            _READERS[year][task](Record(line, path, number))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        kept = [item for item in found if item is not None]
        items += kept
        left_out += len(found) - len(kept)
    if not items:
        raise ValueError(_no_items(folder, left_out))
    if task == "entity_tracking" and not any(item.groups["UID"].startswith(ENTITY_SPLITS) for item in items):
        raise ValueError(f"{folder}: entity tracking counts files named after {', '.join(ENTITY_SPLITS)}; name them so")
    if left_out:
        logger.info("%s: %d items are left out, as the rules of %d say; %d stay", folder, left_out, year, len(items))
    return items


def _no_items(folder: Path, left_out: int) -> str:
    if left_out:
        return f"{folder}: all of its {left_out} items are left out by this year's rules; download it again"
    below = next(iter(sorted(folder.rglob("*.jsonl"))), None)
    if below is not None and below.parent != folder:
        return f"{folder}: its .jsonl files lie in {below.parent}; move them up into {folder}"
    if next(folder.glob("*.json"), None) is not None:
        return (
            f"{folder} holds .json files, the form of an earlier year's evaluation; download this year's, whose files "
            "end in .jsonl"
        )
    return f"{folder} holds no .jsonl file with items; download it again, or remove the folder"
