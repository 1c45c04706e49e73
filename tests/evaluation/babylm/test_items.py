"""Damaged evaluation files: an error that names file, line and field, never a score."""

import json
import shutil

import pytest

from bitgen.evaluation.babylm.evaluation import read_evaluation_data
from bitgen.evaluation.babylm.items import read_items
from bitgen.evaluation.babylm.reading import read_reading_data


@pytest.fixture
def sets(eval_dir, tmp_path):
    return shutil.copytree(eval_dir, tmp_path / "sets")


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("blimp_fast/one.jsonl", {"sentence_bad": None}, r"one.jsonl line 3: 'sentence_bad' is None; it must be text"),
        ("blimp_fast/one.jsonl", {"UID": ...}, r"one.jsonl line 3 has no field 'UID'"),
        ("supplement_fast/turns.jsonl", {"sentence_good": ...}, r"turns.jsonl line 3 has no field 'sentence_good'"),
        ("entity_tracking_fast/regular.jsonl", {"options": ["a"]}, r"line 3: 'options' is .* at least two texts"),
        (
            "entity_tracking_fast/regular.jsonl",
            {"numops": "two"},
            r"'numops' is 'two'; it must be a whole number",
        ),
        ("ewok_fast/d.jsonl", {"Domain": ...}, r"line 3 has no field 'Domain'"),
        ("wug_adj_nominalization/wugs.jsonl", {"ratio": float("nan")}, r"line 3: 'ratio' is None; it must be a number"),
        ("wug_adj_nominalization/wugs.jsonl", {"sentences": "one"}, r"line 3: 'sentences' holds one sentence"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(sets, path, change, message):
    lines = (sets / path).read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[2]) | change
    lines[2] = json.dumps({name: value for name, value in record.items() if value is not ...})
    (sets / path).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_evaluation_data(sets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sentence_good": "a"', r"one.jsonl line 1 is not JSON"),
        ('["a", "b"]', r"one.jsonl line 1 is not a JSON object"),
        ("\n\n", r"holds no .jsonl file with items"),
        (b"\xff\xfe\x00", r"one.jsonl cannot be read"),
    ],
)
def test_a_file_that_is_no_json_lines_is_named(tmp_path, content, message):
    path = tmp_path / "blimp_fast" / "one.jsonl"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_items(path.parent)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RTgopast", "RTgo", r"reading_data.csv has no column 'RTgopast'"),
        ("0,None,blue,", "0,None,,", r"row 1: 'word' is empty; it must be a word"),
        ("0,None,", "0,None,,x", r"line 2 does not have the 20 cells of the header"),
    ],
)
def test_reading_data_with_gaps_is_named(sets, old, new, message):
    path = sets / "reading" / "reading_data.csv"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_reading_data(path.parent)


def test_a_cell_that_is_no_number_is_named(sets):
    path = sets / "reading" / "reading_data.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4].rsplit(",", 1)[0] + ",many"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 4: 'prev_length' is 'many'; it must be a number"):
        read_reading_data(path.parent)


def test_folders_of_other_kinds_are_left_out_and_named(sets, caplog):
    (sets / "vqa").mkdir()
    data = read_evaluation_data(sets)
    assert "vqa" in caplog.text and "vqa" not in data.items and data.reading == sets / "reading"
    with pytest.raises(ValueError, match="holds none of blimp"):
        read_evaluation_data(sets / "blimp_fast")
    with pytest.raises(ValueError, match="there is no such folder"):
        read_evaluation_data(sets / "nowhere")
