"""The (Super)GLUE tasks of the BabyLM challenge: their files, how texts are joined, and what the organisers set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bitgen.evaluation.babylm.records import Record

GLUE = "glue"
GLUE_FOLDER = "glue_filtered"
ACCURACY, F1, MCC = "accuracy", "f1", "mcc"
TRAIN, VALID = "train", "valid"


@dataclass(frozen=True)
class GlueTask:
    """A task of classifying pairs of texts.

    Attributes:
        first, second: the fields of the two texts of a pair.
        template: how several fields become the first text; None: it is one field.
        labels: how many classes; labels are 0 ... labels - 1.
        metrics: what is measured.
        metric: which of them chooses the best epoch.
        epochs, batch_size: of the official script.
    """

    name: str
    first: tuple[str, ...]
    second: str
    template: str | None = None
    labels: int = 2
    metrics: tuple[str, ...] = (ACCURACY, F1, MCC)
    metric: str = ACCURACY
    epochs: int = 10
    batch_size: int = 32


_TASKS = (
    GlueTask("boolq", ("question",), "passage", batch_size=16),
    GlueTask("mnli", ("premise",), "hypothesis", labels=3, metrics=(ACCURACY,)),
    GlueTask("mrpc", ("sentence1",), "sentence2", metric=F1),
    GlueTask("multirc", ("question", "answer"), "paragraph", "Question: {} Answer: {}", batch_size=16),
    GlueTask("qqp", ("question1",), "question2", metric=F1),
    GlueTask("rte", ("sentence1",), "sentence2"),
    GlueTask("wsc", ("span2_text", "span1_text"), "text", 'Does "{}" refer to "{}" in this passage?', epochs=30),
)
GLUE_TASKS = {task.name: task for task in _TASKS}


class Example(NamedTuple):
    """A pair of texts and its class; ``origin`` is its file and line, for messages."""

    origin: str
    first: str
    second: str
    label: int


class GlueData(NamedTuple):
    """A task's examples, in the order of its two files."""

    task: GlueTask
    train: list[Example]
    valid: list[Example]


def glue_folder(eval_dir: str | Path) -> Path:
    """The folder of the tasks' files: ``glue_filtered`` or ``glue`` in an evaluation folder, or that folder itself.

    Raises:
        ValueError: there is none.
    """
    eval_dir = Path(eval_dir)
    for folder in (eval_dir / GLUE_FOLDER, eval_dir / GLUE, eval_dir):
        if any((folder / _file_name(name, part)).is_file() for name in GLUE_TASKS for part in (TRAIN, VALID)):
            return folder
    known = ", ".join(_file_name(name, TRAIN) for name in GLUE_TASKS)
    what = "holds none of the (Super)GLUE files" if eval_dir.is_dir() else "there is no such folder"
    raise ValueError(f"{eval_dir}: {what}. Give the folder that holds {GLUE_FOLDER} with {known}")


def tasks_of(folder: Path, names: Sequence[str] | None = None) -> list[GlueTask]:
    """The tasks named, or all of which the folder has a file.

    Raises:
        ValueError: a name that is no task's.
    """
    if names is None:
        there = [name for name in GLUE_TASKS if any((folder / _file_name(name, p)).is_file() for p in (TRAIN, VALID))]
        return [GLUE_TASKS[name] for name in there]
    if unknown := [name for name in names if name not in GLUE_TASKS]:
        raise ValueError(f"{unknown[0]!r} is no (Super)GLUE task that is read here: name {', '.join(GLUE_TASKS)}")
    return [GLUE_TASKS[name] for name in dict.fromkeys(names)]


def read_glue_task(folder: str | Path, task: GlueTask) -> GlueData:
    """Both files of a task.

    Raises:
        ValueError: a file is missing or empty, a record lacks a field or has a label of another task, or training
            knows one class alone; it names file, line and field.
    """
    train, valid = (_read_file(Path(folder) / _file_name(task.name, part), task) for part in (TRAIN, VALID))
    if len({example.label for example in train}) < 2:
        raise ValueError(
            f"{Path(folder) / _file_name(task.name, TRAIN)}: every 'label' is {train[0].label}, nothing can be "
            "learned; download the file again"
        )
    return GlueData(task, train, valid)


def _file_name(task: str, part: str) -> str:
    return f"{task}.{part}.jsonl"


def _read_file(path: Path, task: GlueTask) -> list[Example]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: download glue_filtered again, or leave {task.name} out of --glue_tasks")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from error
    examples = [_example(Record(line, path, number), task) for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise ValueError(f"{path} holds no example; download it again, or leave {task.name} out of --glue_tasks")
    return examples


def _example(record: Record, task: GlueTask) -> Example:
    texts = [record.text(field) for field in task.first]
    first = texts[0] if task.template is None else task.template.format(*texts)
    label = record.integer("label")
    if not 0 <= label < task.labels:
        raise ValueError(
            f"{record.origin}: 'label' is {label}; of {task.name} it must be 0 to {task.labels - 1}. The challenge's "
            "glue_filtered has labels in both files: download it again"
        )
    return Example(record.origin, first, record.text(task.second), label)
