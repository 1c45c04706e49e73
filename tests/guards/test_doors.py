"""Names, JSON, numbers and texts from outside: what passes, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitgen.evaluation.flags import parse_flags
from bitgen.guards.csv_files import BadCsv, read_csv
from bitgen.guards.json_files import BadJson, parse_json, read_json
from bitgen.guards.names import BadName, Outside, inside
from bitgen.guards.numbers import finite_float
from bitgen.guards.printable import printable
from support.hub_cache import as_in_the_cache


@pytest.mark.parametrize("name", ["a.jpg", "b/c d.jpg", "a..b.jpg", "...", "ä 猫.png", "x" * 255])
def test_a_name_inside_its_folder_is_a_path(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == Path(os.path.realpath(tmp_path)) / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a",
        "b/../../a",
        "/etc/passwd",
        "a\0b",
        "a\x1b[2J",
        "a\nb",
        "x" * 256,
        "é" * 128,
        "\ud83d.png",
        "out/secret",
        "..\\a",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(BadName) as caught:
        inside(folder, name)
    assert isinstance(caught.value, Outside) == ("leads out" in str(caught.value))


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", "a") == Path(os.path.realpath(tmp_path)) / "real" / "a"


def test_a_snapshot_of_the_hubs_cache_links_to_the_blobs_of_its_repository(tmp_path: Path) -> None:
    (tmp_path / "x" / "model").mkdir(parents=True)
    (tmp_path / "x" / "model" / "a.mp4").write_text("b")
    (tmp_path / "x" / "model" / "a.json").write_text("{}")
    snapshot = as_in_the_cache(tmp_path / "x", tmp_path / "hub")
    root = Path(os.path.realpath(snapshot))
    assert inside(snapshot, "model/a.mp4") == root / "model" / "a.mp4", "by its name, which says what it is"
    assert inside(snapshot / "model", "a.mp4") == root / "model" / "a.mp4"
    assert inside(snapshot, "model/a.json") == root / "model" / "a.json"
    blobs = {os.path.realpath(root / "model" / name) for name in ("a.mp4", "a.json")}
    assert {Path(blob).parent.parent.name for blob in blobs} == {"blobs", root.parent.parent.name}, "of either kind"
    shared = next(blob for blob in blobs if Path(blob).parent.parent.name == "blobs")
    (snapshot / "past").symlink_to(shared)
    (root.parent.parent / "blobs" / "leads-out").symlink_to(tmp_path / "x" / "model" / "a.mp4")
    (snapshot / "far").symlink_to("../../blobs/leads-out")
    (snapshot / "other").symlink_to(tmp_path / "x" / "model" / "a.mp4")
    (snapshot / "beside").symlink_to(root.parent.parent / "refs")
    for name in ("other", "beside", "past", "far"):
        with pytest.raises(Outside):
            inside(snapshot, name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[1]", "a list where an object"),
        ("null", "null where an object"),
        ("[" * 100_000, "nested"),
        (b'{"a": "\xff"}', "no JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "too large"),
        ("{}", "no 'a'"),
        ('{"a": "1"}', "'a' is a text where a whole number"),
        ('{"a": true}', "true or false where a whole number"),
    ],
)
def test_json_of_another_shape_is_one_error(text: str | bytes, says: str) -> None:
    with pytest.raises(BadJson, match=says):
        parse_json(text, dict, {"a": int})


def test_nan_of_a_table_is_null_where_that_is_asked_for() -> None:
    assert parse_json('[NaN, "NaN", 1.5]', list, nan_is_null=True) == [None, "NaN", 1.5]
    assert parse_json("3", object) == 3
    for text in ("[Infinity]", "[-Infinity]", "[1e999]"):
        with pytest.raises(BadJson):
            parse_json(text, list, nan_is_null=True)


def test_csv_is_rows_of_the_header(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('\ufeffa,b\n1,"two\n""lines"""\n\n' + "x" * 200_000 + ",3\n", encoding="utf-8")
    assert list(read_csv(file)) == [(3, {"a": "1", "b": 'two\n"lines"'}), (5, {"a": "x" * 200_000, "b": "3"})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1\n", "line 2 does not have the 2 cells of the header"),
        ("a,b\n1,2,3\n", "line 2 does not have the 2 cells of the header"),
        ('a,b\n1,"2\n3,4\n', "line 3 is not CSV"),
        ('a,b\n1,"2" inches\n', "line 2 is not CSV"),
        ("a,a\n1,2\n", "line 1 names two columns 'a'"),
        ("a,b\n1,\x1b[2J,3\n", "line 2 does not have"),
    ],
)
def test_csv_of_another_shape_is_one_error(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadCsv, match=says) as caught:
        list(read_csv(tmp_path / "a.csv"))
    assert str(caught.value).isprintable()


def test_a_json_file_is_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1, "b": [1.5]}')
    assert read_json(file, dict, {"a": int, "b": (list, str)}) == {"a": 1, "b": [1.5]}
    with pytest.raises(BadJson, match="more than"):
        read_json(file, dict, most=5)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadJson, match="regular"):
        read_json(tmp_path / "pipe", dict)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", dict)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "1,5", "\x1b[2J"])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match="not a finite number") as caught:
        finite_float(text)
    assert str(caught.value).isprintable()
    assert finite_float(" -1.5e3") == -1500.0


@pytest.mark.parametrize("flag", ["--rerank_cosine_weight", "--rerank_text_weight"])
def test_a_flag_shows_what_is_no_finite_number(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(["--data", "x", "--checkpoint", "x", flag, "nan"])
    assert f"argument {flag}: 'nan' is not a finite number" in capsys.readouterr().err


def test_no_flag_takes_nan_or_infinity() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [
        path for folder in ("src", "data_prep", "benchmarks", "examples") for path in (root / folder).rglob("*.py")
    ]
    assert len(files) > 100
    assert not [str(path) for path in files if "type=float" in path.read_text(encoding="utf-8")]


def test_text_for_a_terminal_is_one_line_without_orders_to_it() -> None:
    hostile = "a\nb\r\x1b[2J\x9bc\x07\u202e\u2028\ud83dz\x00\t"
    assert printable(hostile).isprintable() and "\x1b" not in printable(hostile)
    assert printable("ein Löwe 猫 👨‍👩‍👧 नमस्ते می‌خواهم") == "ein Löwe 猫 👨‍👩‍👧 नमस्ते می‌خواهم"
    assert printable("x" * 501) == "x" * 500 + "..."
