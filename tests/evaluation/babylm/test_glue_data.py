"""The files of (Super)GLUE tasks, and the figures of predicted classes."""

import itertools
import json
import math

import pytest
import torch

from bitgen.evaluation.babylm.glue.data import GLUE_TASKS, glue_folder, read_glue_task, tasks_of
from bitgen.evaluation.babylm.glue.metrics import counts_of, mcc, task_metrics
from support.glue import FIELDS, records, write_glue, write_lines

PAIRS = {
    "boolq": ("question", "passage"),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "multirc": ("Question: question Answer: answer", "paragraph"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "wsc": ('Does "span2_text" refer to "span1_text" in this passage?', "text"),
}


@pytest.mark.parametrize("task", PAIRS)
def test_the_fields_of_a_task_become_a_pair_of_texts(tmp_path, task):
    named = [{**{field: field for field in FIELDS[task]}, "label": label} for label in (1, 0)]
    write_lines(tmp_path / f"{task}.train.jsonl", named)
    write_lines(tmp_path / f"{task}.valid.jsonl", records(task, 5))
    data = read_glue_task(tmp_path, GLUE_TASKS[task])
    assert [(one.first, one.second, one.label) for one in data.train] == [(*PAIRS[task], 1), (*PAIRS[task], 0)]
    assert [one.label for one in data.valid] == [one["label"] for one in records(task, 5)]
    assert data.train[1].origin.endswith(f"{task}.train.jsonl line 2")


def test_the_folder_is_found_from_above_and_from_within(tmp_path):
    write_glue(tmp_path, "wsc", "boolq", train=2, valid=2)
    folder = tmp_path / "glue_filtered"
    assert glue_folder(tmp_path) == glue_folder(folder) == folder
    assert [task.name for task in tasks_of(folder)] == ["boolq", "wsc"]
    assert [task.name for task in tasks_of(folder, ["wsc", "rte", "wsc"])] == ["wsc", "rte"]


def _line(**changes):
    fields = {"sentence1": "a", "sentence2": "b", "label": 1} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no example; download it again, or leave rte out of --glue_tasks"),
        ([_line(), "{"], "rte.train.jsonl line 2 is not JSON"),
        ([_line(), "[1]"], "line 2 is not a JSON object"),
        ([_line(sentence2=None)], "line 1 has no field 'sentence2': "),
        ([_line(sentence1=3)], "line 1: 'sentence1' is 3; it must be text"),
        ([_line(label=None)], "line 1 has no field 'label'"),
        ([_line(label="entailment")], "'label' is 'entailment'; it must be a whole number"),
        ([_line(label=True)], "'label' is True; it must be a whole number"),
        (
            [_line(label=-1)],
            "line 1: 'label' is -1; of rte it must be 0 to 1. The challenge's glue_filtered has labels",
        ),
        ([_line(label=2)], "'label' is 2; of rte it must be 0 to 1"),
        ([_line(), _line()], "rte.train.jsonl: every 'label' is 1, nothing can be learned"),
    ],
)
def test_bad_files_are_named(tmp_path, lines, message):
    write_glue(tmp_path, "rte", train=2, valid=2)
    folder = tmp_path / "glue_filtered"
    (folder / "rte.train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=".") as raised:
        read_glue_task(folder, GLUE_TASKS["rte"])
    assert message in str(raised.value)


def test_missing_files_folders_and_tasks_are_named(tmp_path):
    write_glue(tmp_path, "rte", train=2, valid=2)
    with pytest.raises(ValueError, match="nowhere: there is no such folder. Give the folder that holds glue_filtered"):
        glue_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds none of the \(Super\)GLUE files"):
        glue_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="'cola' is no .* that is read here: name boolq, mnli"):
        tasks_of(tmp_path / "glue_filtered", ["cola"])
    (tmp_path / "glue_filtered" / "rte.valid.jsonl").unlink()
    assert [task.name for task in tasks_of(tmp_path / "glue_filtered")] == ["rte"]  # half a task is no missing one
    with pytest.raises(ValueError, match=r"rte.valid.jsonl is missing: download .* leave rte out of --glue_tasks"):
        read_glue_task(tmp_path / "glue_filtered", GLUE_TASKS["rte"])


# ---- figures ----


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_against_sums_over_the_examples(seed):
    draw = torch.Generator().manual_seed(seed)
    labels, predictions = (torch.randint(0, 2, (40,), generator=draw).tolist() for _ in range(2))
    pairs = list(zip(labels, predictions, strict=True))
    found = task_metrics(GLUE_TASKS["mrpc"], predictions, labels)
    precision = pairs.count((1, 1)) / predictions.count(1)
    recall = pairs.count((1, 1)) / labels.count(1)
    assert found["accuracy"] == pytest.approx(100 * sum(a == b for a, b in pairs) / 40)
    assert found["f1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    assert found["mcc"] == pytest.approx(
        100 * torch.corrcoef(torch.tensor([labels, predictions]).double())[0, 1].item()
    )


def test_mcc_of_three_classes_is_the_correlation_of_indicator_vectors():
    draw = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(0, 3, (60,), generator=draw).tolist() for _ in range(2))
    one, other = ([[float(value == k) for k in range(3)] for value in values] for values in (labels, predictions))

    def covariance(a, b):
        means = [[sum(row[k] for row in rows) / len(rows) for k in range(3)] for rows in (a, b)]
        return sum((x[k] - means[0][k]) * (y[k] - means[1][k]) for x, y in zip(a, b, strict=True) for k in range(3))

    expected = covariance(one, other) / math.sqrt(covariance(one, one) * covariance(other, other))
    assert mcc(counts_of(predictions, labels, 3)) == pytest.approx(100 * expected)
    assert set(task_metrics(GLUE_TASKS["mnli"], predictions, labels)) == {"accuracy"}


@pytest.mark.parametrize(("predicted", "label"), list(itertools.product((0, 1), repeat=2)))
def test_figures_that_divide_by_nothing_are_zero(predicted, label):
    found = task_metrics(GLUE_TASKS["qqp"], [predicted] * 4, [label] * 4)
    assert found == {"accuracy": 100.0 * (predicted == label), "f1": 100.0 * (predicted == label == 1), "mcc": 0.0}
