import csv
import json

import pytest
from PIL import Image

from bitgen.data.questions.records import QuestionFolder
from bitgen.data.records import RecordReader
from bitgen.data.scenes.descriptions import is_held_out
from bitgen.data.scenes.rationales import is_there, read_rationale
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.tables import FEWEST, MOST, table_scene


def drawn(script, folder, *flags: str) -> list[dict[str, str]]:
    """The rows of the metadata that the script writes."""
    script("scenes")(["--output", str(folder), *flags])
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pixels(folder, name: str) -> bytes:
    with Image.open(folder / name) as image:
        return image.tobytes()


def scenes_of(rows):
    """The scene that all captions of each row say."""
    scenes = []
    for row in rows:
        read = [read_caption(row[f"caption_{number}"]) for number in range(3)]
        assert None not in read and len({scene.meaning for scene in read}) == 1, row
        scenes.append(read[0])
    return scenes


def test_pictures_are_scenes_that_training_never_draws(script, tmp_path):
    rows = drawn(script, tmp_path / "scenes", "--count", "12", "--size", "40")
    assert [row["file_name"] for row in rows] == [f"{number}.png" for number in range(1, 13)]
    assert all(map(is_held_out, scenes_of(rows)))
    for row in rows:
        with Image.open(tmp_path / "scenes" / row["file_name"]) as image:
            assert image.size == (40, 40) and image.mode == "RGB"


def names_in(scene) -> set[str]:
    return {thing.object_name for thing in scene.things}


def test_one_thing_is_first_alone_and_then_beside_others(script, tmp_path):
    scenes = scenes_of(drawn(script, tmp_path / "s", "--with", "Purple star", "--count", "9"))
    assert names_in(scenes[0]) == {"purple star"}
    others = [names_in(scene) - {"purple star"} for scene in scenes[1:]]
    assert all("purple star" in names_in(scene) for scene in scenes) and all(len(other) == 1 for other in others)
    assert len(set().union(*others)) > 4, "beside different things"


def test_two_things_are_first_alone_and_then_together(script, tmp_path):
    flags = ("--with", "purple star", "--with", "blue ring", "--count", "6")
    scenes = scenes_of(drawn(script, tmp_path / "s", *flags))
    assert [names_in(scene) for scene in scenes[:2]] == [{"purple star"}, {"blue ring"}]
    assert all(names_in(scene) == {"purple star", "blue ring"} for scene in scenes[2:])
    assert len({scene.meaning for scene in scenes[2:]}) > 1


def test_flags_decide_the_pictures(script, tmp_path):
    for name, flags in (("one", ()), ("same", ()), ("other", ("--seed", "2")), ("star", ("--with", "red star"))):
        drawn(script, tmp_path / name, "--count", "3", *flags)
    found = {
        name: [pixels(tmp_path / name, f"{number}.png") for number in (1, 2, 3)]
        for name in ("one", "same", "other", "star")
    }
    assert found["one"] == found["same"]
    assert found["one"] != found["other"] and found["one"] != found["star"]


def test_the_folder_is_training_data(script, tmp_path):
    rows = drawn(script, tmp_path / "scenes", "--count", "5")
    script("image_folder")(["--folder", str(tmp_path / "scenes"), "--output", str(tmp_path / "data")])
    reader = RecordReader(tmp_path / "data")
    assert len(reader) == 5
    wanted = {row["file_name"]: [row[f"caption_{number}"] for number in range(3)] for row in rows}
    assert {reader.image_id(at): list(reader.captions(at)) for at in range(5)} == wanted


def test_questions_are_asked_about_scenes_of_several_objects(script, tmp_path):
    folder = tmp_path / "tables"
    flags = ["--questions", "5", "--count", "12", "--seed", "3"]
    script("scenes")(["--output", str(folder), *flags])
    records = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == [f"{at}.png" for at in range(1, 13) for _ in range(5)]
    assert len({(record["image"], record["question"]) for record in records}) == 60, "none is asked twice of a picture"
    assert len({record["family"] for record in records}) > 5
    for record in records:
        scene = table_scene(("file", 3, int(record["image"].removesuffix(".png"))))
        assert FEWEST <= len(scene.objects) <= MOST
        clauses = read_rationale(record["rationale"])
        assert clauses and all(is_there(scene, clause) is not False for clause in clauses), record
    with Image.open(folder / "1.png") as image:
        assert image.size == (84, 84) and len(image.getcolors()) > FEWEST
    script("scenes")(["--output", str(tmp_path / "again"), *flags])
    for name in ("questions.jsonl", "12.png"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    given = ["--source", "jsonl", "--questions", str(folder / "questions.jsonl"), "--images", str(folder)]
    script("questions")([*given, "--output", str(tmp_path / "data")])
    read = QuestionFolder(tmp_path / "data")
    assert (read.info.num_questions, read.info.num_pictures) == (60, 12)
    for at, record in enumerate(records):
        kept = read[at]
        assert (kept.question, kept.answers) == (record["question"], (record["answer"],))
        assert (kept.rationale, kept.family, kept.hops) == (record["rationale"], record["family"], record["hops"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--questions", "2", "--with", "red star"), "pictures of different kinds"),
        (("--questions", "21"), "--questions is at most 20"),
        (("--with", "puce star"), "'puce star' is no thing: give a colour .red, orange"),
        (("--with", "star"), "'star' is no thing"),
        (("--with", "red star\x1b[2J"), r"x1b"),
        (("--with", "red star", "--with", "red star"), "two that differ"),
        (("--with", "red star", "--with", "red ring", "--with", "red heart"), "give one thing, or two"),
        (("--count", "10001"), "--count is at most 10,000"),
        (("--with", "red star", "--with", "red ring", "--count", "1"), "no picture for each of 2 things"),
        (("--size", "2049"), "--size at most 2,048"),
    ],
    ids=str,
)
def test_mistakes_are_named_and_nothing_is_written(script, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        script("scenes")(["--output", str(tmp_path / "s"), *flags])
    assert list(tmp_path.iterdir()) == []


def test_only_a_folder_of_scenes_is_overwritten(script, tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "1.png").write_bytes(b"dear to me")
    with pytest.raises(ValueError, match="not empty and not a BitGen folder of scenes"):
        script("scenes")(["--output", str(mine), "--overwrite", "True"])
    assert (mine / "1.png").read_bytes() == b"dear to me"
    drawn(script, tmp_path / "s", "--count", "4")
    with pytest.raises(ValueError, match="pass --overwrite True"):
        script("scenes")(["--output", str(tmp_path / "s")])
    assert len(drawn(script, tmp_path / "s", "--count", "2", "--overwrite", "True")) == 2
    assert not (tmp_path / "s" / "3.png").exists()
