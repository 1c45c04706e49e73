"""Expressions with boxes: every layout as it is published, what is counted, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitgen.data.questions.boxes import Box, box_text
from bitgen.data.questions.records import Question, QuestionFolder
from support.data import encode, noise

WIDTH, HEIGHT = 40, 20  # of every picture


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "1000092795.jpg", "COCO_train2014_000000000001.jpg", "000000000042.jpg")):
        (folder / name).write_bytes(encode(noise(number, WIDTH, HEIGHT)))
    return folder


@pytest.fixture
def prepare(script, images, tmp_path) -> Callable[..., QuestionFolder]:
    """Prepares a JSON content, a list of lines, or a folder that is there."""

    def prepared(source: str, content: object, *flags: str) -> QuestionFolder:
        path = tmp_path / ("it.json" if source == "mdetr" else "it.jsonl")
        if isinstance(content, Path):
            path = content
        elif isinstance(content, list):
            path.write_text("\n".join(map(json.dumps, content)))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        given = ["--source", source, "--records", str(path), "--images", str(images), *flags]
        script("grounding")([*given, "--output", str(tmp_path / "out")])
        return QuestionFolder(tmp_path / "out")

    return prepared


def allow(count: int, of: int) -> tuple[str, str]:
    return "--max_failed_fraction", str(count / of)


def test_what_an_expression_becomes(scripts_on_path) -> None:
    from _common.grounding_json import question_about
    from _common.problems import Unusable

    for expression, question in {
        "man in red": "where is the man in red?",
        "The man .": "where is the man?",
        "a dog's tail": "where is a dog's tail?",
        "Bob's hat": "where is Bob's hat?",
        "Two people": "where is two people?",
        "woman, left!": "where is the woman, left?",
        "another one": "where is another one?",
    }.items():
        assert question_about(expression) == question
    for expression, reason in {"": "empty", " . ": "empty", "Him": "pronoun"}.items():
        with pytest.raises(Unusable, match=reason):
            question_about(expression)


# ---- MDETR ----


def image(number: int, caption: str, **changes: object) -> dict:
    entry = {"file_name": "COCO_train2014_000000000001.jpg", "height": HEIGHT, "width": WIDTH, "id": number}
    entry |= {"original_id": 1, "caption": caption, "dataset_name": "refcoco", "tokens_negative": [[0, len(caption)]]}
    return {**entry, **changes}


def note(number: int, bbox: object, *spans: list, **changes: object) -> dict:
    entry = {"area": 1.0, "iscrowd": 0, "image_id": number, "category_id": 1, "id": 0, "bbox": bbox}
    return {**entry, "original_id": 5, "tokens_positive": list(spans), **changes}


def of_mdetr(*pairs: tuple[dict, list]) -> dict:
    return {
        "info": [],
        "licenses": [],
        "images": [pair[0] for pair in pairs],
        "annotations": [each for pair in pairs for each in pair[1]],
        "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
    }


def test_the_same_words_at_two_places_of_a_caption_name_two_things(prepare) -> None:
    notes = [note(1, [0, 0, 10, 10], [0, 3]), note(1, [20, 10, 20, 10], [15, 18]), note(1, [4, 4, 4, 4], [15, 18])]
    caption = image(1, "one in red and one in blue", dataset_name="flickr", height=HEIGHT, width=WIDTH)
    found = prepare("mdetr", of_mdetr((caption, notes)))
    assert [found[index].question for index in range(len(found))] == ["where is one?"] * 2
    assert [found[index].boxes for index in range(2)] == [(Box(0, 0, 0.25, 0.5),), (Box(0.1, 0.2, 1, 1),)]


def test_mdetr(prepare, images) -> None:
    refcoco = (image(7, "lady in blue"), [note(7, [10, 5, 20, 15.5], [0, 4])])
    caption = "Two dogs and a red ball."
    notes = [
        note(8, [0, 0, 10, 10], [0, 8]),
        note(8, [20, 10, 20, 10], [0, 8]),
        note(8, [4, 4, 4, 4], [13, 14], [19, 23]),
    ]
    flickr = (image(8, caption, dataset_name="flickr", height=str(HEIGHT), width=str(WIDTH)), notes)
    found = prepare("mdetr", of_mdetr(refcoco, flickr))
    box = Box(0.25, 0.25, 0.75, 1)  # half a pixel below the picture: moved to its border
    assert found[0] == Question("7", 0, "where is the lady in blue?", (box_text(box),), boxes=(box,), family="where")
    assert [found[index].question for index in (1, 2)] == ["where is two dogs?", "where is a ball?"]
    assert [found[index].boxes for index in (1, 2)] == [(Box(0, 0, 1, 1),), (Box(0.1, 0.2, 0.2, 0.4),)]
    assert [found[index].id for index in (1, 2)] == ["8/0", "8/1"] and len(found) == 3
    assert found.picture(0) == (images / "COCO_train2014_000000000001.jpg").read_bytes()
    assert found.info.source == "mdetr: it.json" and found.info.num_pictures == 1


@pytest.mark.parametrize(
    ("picture", "box", "reason"),
    [
        ({}, [10, 5, 33, 5], "box that cannot be used: images[1] (cup; box (0.25, 0.25, 1.075, 0.5) reaches outside"),
        ({}, [-3, 5, 10, 5], "box that cannot be used"),
        ({}, [10, 5, 0, 5], "box that cannot be used: images[1] (cup; box (0.25, 0.25, 0.25, 0.5) is empty"),
        ({}, [10, 5, 3, -2], "box that cannot be used"),
        ({}, [10, 5, 3], "`bbox` that is not 4 numbers"),
        ({}, [10, 5, 3, "4"], "`bbox` that is not 4 numbers"),
        ({}, None, "`bbox` that is not 4 numbers"),
        ({"caption": 3}, [1, 1, 2, 2], "`caption` that is not a text"),
        ({"caption": " "}, [1, 1, 2, 2], "empty expression"),
        ({"width": 0}, [1, 1, 2, 2], "`width` that is no size of a picture"),
        ({"height": "tall"}, [1, 1, 2, 2], "`height` that is no size of a picture"),
        ({"file_name": "../x.jpg"}, [1, 1, 2, 2], "file name that leaves --images"),
        ({"file_name": "b.jpg"}, [1, 1, 2, 2], "missing image"),
        ({"dataset_name": "flickr"}, [1, 1, 2, 2], "box without `tokens_positive`"),
    ],
)
def test_what_is_wrong_with_a_record_of_mdetr(prepare, caplog, picture, box, reason) -> None:
    pairs = [(image(1, "cup"), [note(1, [1, 1, 2, 2])]), ({**image(2, "cup"), **picture}, [note(2, box)])]
    assert len(prepare("mdetr", of_mdetr(*pairs), *allow(1, 2))) == 1
    assert f"1 x {reason}" in caplog.text and "images[1]" in caplog.text


@pytest.mark.parametrize(
    "spans", [[[0, 4]], [[2, 2]], [[-1, 2]], [[0, 1.5]], [["a", "b"]], [[0]], ["ab"], [3]], ids=range(8)
)
def test_spans_are_inside_their_caption(prepare, caplog, spans) -> None:
    pictures = [image(number, "cup", dataset_name="flickr") for number in (1, 2)]
    content = of_mdetr((pictures[0], [note(1, [1, 1, 2, 2], [0, 3])]), (pictures[1], [note(2, [1, 1, 2, 2], *spans)]))
    assert len(prepare("mdetr", content, *allow(1, 2))) == 1
    assert "`tokens_positive`" in caplog.text


def test_a_caption_without_a_box_is_counted(prepare, caplog) -> None:
    content = of_mdetr((image(1, "cup"), [note(1, [1, 1, 2, 2])]), (image(2, "cup"), []))
    assert len(prepare("mdetr", content, *allow(1, 2))) == 1
    assert "1 x caption without a box: images[1]" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it.json is not valid JSON"),
        ('{"images": [', "it.json is not valid JSON"),
        ([], "it.json"),
        ({"images": []}, "no lists `images` and `annotations`"),
        ({"images": [], "annotations": []}, "holds no expression with a box"),
        ({"images": [3], "annotations": []}, r"images\[0\] is 3, not an object with `id`"),
        ({"images": [], "annotations": [{}]}, r"annotations\[0\] is {}, not an object with `image_id`"),
        ({"images": [], "annotations": [{"image_id": 4}]}, "name images that are not listed, such as 4"),
    ],
)
def test_a_file_that_is_not_mdetr_s(prepare, content, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        prepare("mdetr", content)
    assert str(caught.value).isprintable()


# ---- Flickr30k Entities ----

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts/other shaggy hair] see [/EN#1/people them] in [/EN#8/scene a yard] .
[/EN#0/notvisual It] is [/EN#1/people Two young guys] outside [/EN#7/other nothing] .
"""


def xml(*objects: str, width: str = str(WIDTH), head: str = "") -> str:
    size = f"<size><width>{width}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    body = "".join(f"\n\t<object>{each}</object>" for each in objects)
    return f"{head}<annotation>\n\t<filename>1000092795.jpg</filename>\n\t{size}{body}\n</annotation>\n"


def bounds(*names: int, box: tuple[object, ...]) -> str:
    keys = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
    return "".join(f"<name>{name}</name>" for name in names) + f"<bndbox>{inner}</bndbox>"


OBJECTS = (
    bounds(1, box=(1, 1, 10, 10)),
    bounds(1, 2, box=(21, 6, 30, 20)),
    "<name>8</name><scene>1</scene><nobndbox>0</nobndbox>",
)


@pytest.fixture
def release(tmp_path) -> Callable[..., Path]:
    """A folder with Sentences and Annotations of one picture, or more."""

    def made(text: str = SENTENCES, *contents: str | bytes) -> Path:
        root = tmp_path / "entities"
        for folder in ("Sentences", "Annotations"):
            (root / folder).mkdir(parents=True)
        for number, content in enumerate(contents or (xml(*OBJECTS),)):
            name = f"{1000092795 + number}"
            (root / "Sentences" / f"{name}.txt").write_text(text)
            data = content if isinstance(content, bytes) else content.encode()
            (root / "Annotations" / f"{name}.xml").write_bytes(data)
        return root

    return made


def test_flickr30k_entities(prepare, release) -> None:
    found = prepare("flickr30k_entities", release())
    whole, part = Box(0, 0, 0.75, 1), Box(0.5, 0.25, 0.75, 1)
    asked = [(found[index].id, found[index].question, found[index].boxes) for index in range(len(found))]
    # Neither what is not visual, nor ids without boxes, nor pronouns; pixels are counted from 1.
    assert asked == [
        ("1000092795/0/0", "where is two young guys?", (whole,)),
        ("1000092795/0/1", "where is the shaggy hair?", (part,)),
        ("1000092795/1/1", "where is two young guys?", (whole,)),
    ]
    assert found[0].answers == (box_text(whole),) and found.picture_name(0) == "1000092795.jpg"


def test_the_images_of_a_split_alone_are_taken(prepare, release, images, tmp_path, caplog) -> None:
    (images / "1000092796.jpg").write_bytes(encode(noise(7, WIDTH, HEIGHT)))
    folder = release(SENTENCES, xml(*OBJECTS), xml(bounds(2, box=(0, 1, 41, 20))))
    (tmp_path / "split.txt").write_text("1000092796\n../x\ngone\n")
    found = prepare("flickr30k_entities", folder, "--split", str(tmp_path / "split.txt"), *allow(2, 3))
    assert [found[index].question for index in range(len(found))] == ["where is the shaggy hair?"]
    assert found[0].boxes == (Box(0, 0, 1, 1),) and found.picture_name(0) == "1000092796.jpg"
    assert "1 x file name that cannot be used: ../x" in caplog.text and "1 x unreadable file: gone" in caplog.text


BOMB = '<!DOCTYPE lol [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (xml(*OBJECTS, head=BOMB), "XML with a document type or entities (not read)"),
        (xml(*OBJECTS, head='<?xml version="1.0" encoding="UTF-16"?>' + BOMB).encode("utf-16"), "XML with a document"),
        (xml(*OBJECTS, head='<! doctype x SYSTEM "file:///etc/passwd">'), "XML with a document type or entities"),
        (xml(*OBJECTS)[:-20], "damaged XML"),
        ("", "damaged XML"),
        (b"\xff\xfe\x00", "damaged XML"),
        (xml(*OBJECTS, head='<?xml version="1.0" encoding="no-such"?>'), "damaged XML"),
        (xml(bounds(1, box=(1, "", 3, 4))), "damaged XML"),
        (xml(bounds(1, box=(1, "x", 3, 4))), "damaged XML"),
        (xml(*OBJECTS, width=""), "damaged XML"),
        (xml(*OBJECTS, width="0"), "XML without the size of its picture"),
        (xml(*OBJECTS, width="nan"), "XML without the size of its picture"),
        (xml(bounds(2, box=(5, 1, 45, 20))), "box that cannot be used"),
        (xml(bounds(2, box=("nan", 1, 20, 20))), "box that cannot be used"),
        (xml(bounds(2, box=(9, 5, 8, 20))), "box that cannot be used"),
    ],
    ids=range(15),
)
def test_what_is_wrong_with_xml(prepare, release, images, caplog, content, reason) -> None:
    (images / "1000092796.jpg").write_bytes(encode(noise(7, WIDTH, HEIGHT)))
    found = prepare("flickr30k_entities", release(SENTENCES, xml(*OBJECTS), content), *allow(1, 2))
    assert len(found) == 3 and found.info.num_pictures == 1
    assert f" x {reason}" in caplog.text and "1000092796" in caplog.text


def test_folders_of_entities_that_lack_something(prepare, release, tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match=r"Sentences does not exist"):
        prepare("flickr30k_entities", tmp_path)
    folder = release(SENTENCES, xml(*OBJECTS), "")
    os.remove(folder / "Annotations" / "1000092796.xml")
    assert len(prepare("flickr30k_entities", folder, *allow(1, 4))) == 3
    assert "1 x picture without its XML: 1000092796" in caplog.text
    (folder / "Sentences" / "1000092795.txt").write_text("A man .")
    os.remove(folder / "Sentences" / "1000092796.txt")
    with pytest.raises(ValueError, match="holds no expression with a box"):
        prepare("flickr30k_entities", folder, "--overwrite", "True")


# ---- Localized Narratives ----


def narrative(**changes: object) -> dict:
    spoken = [
        ("In this image there is", 0.0, 1.0), ("a brown", 1.0, 1.5), ("dog", 1.5, 2.0), ("sitting", 2.0, 2.4),
        ("on the green grass.", 3.0, 4.0), ("In the background", 4.0, 5.0), ("we see the sky", 5.0, 6.0),
    ]  # fmt: skip
    timed = [{"utterance": text, "start_time": start, "end_time": end} for text, start, end in spoken]
    path = [[(0.1, 0.2, 0.5), (0.25, 0.5, 1.0), (0.5, 0.75, 1.7)], [(0.4, 1.0, 2.4), (-0.1, 0.6, 3.0), (1.2, 0.9, 4.0)]]
    traces = [[{"x": x, "y": y, "t": time} for x, y, time in one] for one in path]
    entry = {"dataset_id": "mscoco_train2017", "image_id": "42", "annotator_id": 93, "caption": "In this image ..."}
    return {**entry, "timed_caption": timed, "traces": traces, "voice_recording": "x.ogg", **changes}


def test_localized_narratives(prepare) -> None:
    found = prepare("localized_narratives", [narrative()])
    asked = [(found[index].id, found[index].question, found[index].boxes) for index in range(len(found))]
    # The background is no thing, and nothing was pointed at for the sky; a path out of the picture is cut.
    assert asked == [
        ("it.jsonl line 1/0", "where is a brown dog sitting?", (Box(0.25, 0.5, 0.5, 1.0),)),
        ("it.jsonl line 1/1", "where is the green grass?", (Box(0, 0.6, 1, 0.9),)),
    ]
    assert found.picture_name(0) == "000000000042.jpg" and found[0].family == "where"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"traces": None}, "record without `traces`"),
        ({"traces": [3]}, "trace that is not a list of objects"),
        ({"traces": [[{"x": 0.5, "y": "0.5", "t": 1}]]}, "point of a trace that is not 3 numbers"),
        ({"traces": [[{"x": 0.5, "y": 0.5}]]}, "point of a trace that is not 3 numbers"),
        ({"timed_caption": "x"}, "`timed_caption` that is not a list of objects"),
        ({"timed_caption": [{"utterance": "a", "start_time": 1}]}, "times of an utterance that is not 2 numbers"),
        ({"timed_caption": [{"start_time": 1, "end_time": 2}]}, "record of another format: it has no `utterance`"),
        ({"image_id": "cat"}, "image_id that is no number of COCO's"),
        ({"image_id": None}, "record of another format: it has no `image_id`"),
        ({"dataset_id": 3}, "`dataset_id` that is not a text"),
        ({"dataset_id": "open_images_train"}, "missing image"),
    ],
)
def test_what_is_wrong_with_a_narrative(prepare, caplog, changes, reason) -> None:
    found = prepare("localized_narratives", [narrative(), narrative(**changes)], *allow(2, 4))
    assert len(found) == 2
    assert f" x {reason}" in caplog.text and "it.jsonl line 2" in caplog.text


# ---- plain lines ----


def line(**changes: object) -> dict:
    return {"image": "a.png", "expression": "cup on the left", "box": [10, 5, 20, 15], **changes}


def test_plain_lines(prepare) -> None:
    found = prepare("jsonl", [line(), line(id="x", box=[-2, 0, 42, 20.5])])
    box = Box(0.25, 0.25, 0.5, 0.75)
    assert found[0] == Question(
        "it.jsonl line 1", 0, "where is the cup on the left?", (box_text(box),), boxes=(box,), family="where"
    )
    assert found[1].id == "x" and found[1].boxes == (Box(0, 0, 1, 1),)
    flags = ("--normalised", "True", "--overwrite", "True")
    assert prepare("jsonl", [line(box=[0.25, 0.25, 0.5, 0.75])], *flags)[0].boxes == (box,)


WRONG = [
    (line(image="missing.png"), "missing image"),
    (line(image="text.png"), "undecodable image"),
    (line(image="../secret.png"), "file name that leaves --images"),
    (line(image="link.png"), "file name that leaves --images"),
    (line(image="/etc/passwd"), "file name that leaves --images"),
    (line(image=None), "`image` that is not a text"),
    (line(expression=["cup"]), "`expression` that is not a text"),
    (line(expression="."), "empty expression"),
    (line(expression="it"), "expression that is a pronoun"),
    (line(box=[10, 5, 43, 15]), "box that cannot be used"),
    (line(box=[50, 5, 60, 15]), "box that cannot be used"),
    (line(box=[20, 5, 10, 15]), "box that cannot be used"),
    (line(box=[10, 5, 10, 15]), "box that cannot be used"),
    (line(box=[10, 5, None, 15]), "`box` that is not 4 numbers"),
    (line(box="10 5 20 15"), "`box` that is not 4 numbers"),
    ({"image": "a.png", "box": [1, 2, 3, 4]}, "record of another format: it has no `expression`"),
    ({"image": "a.png", "question": "What?", "answer": "x"}, "`box` that is not 4 numbers"),
    (line(id="it.jsonl line 1"), "question with the id of an earlier one"),
]


@pytest.mark.parametrize(("entry", "reason"), WRONG, ids=range(len(WRONG)))
def test_a_record_that_cannot_be_used_is_counted_and_named(prepare, images, caplog, entry, reason) -> None:
    caplog.set_level("INFO")
    (images / "text.png").write_text("no picture")
    (images.parent / "secret.png").write_bytes(encode(noise(5)))
    (images / "link.png").symlink_to(images.parent / "secret.png")
    found = prepare("jsonl", [line(), entry], *allow(1, 2))
    assert len(found) == 1 and found.info.num_pictures == 1
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("1 x")]
    assert said.startswith(f"1 x {reason}") and "it.jsonl line 2" in said and said.isprintable()
    assert "1 of 2 expressions could not be used" in caplog.text


def test_pixels_given_as_fractions_and_the_reverse_are_named(prepare, caplog) -> None:
    with pytest.raises(ValueError, match="box that cannot be used: it.jsonl line 1 .*reaches outside its picture"):
        prepare("jsonl", [line()], "--normalised", "True")
    with pytest.raises(ValueError, match=r"box within one pixel .*--normalised True.*it.jsonl line 1"):
        prepare("jsonl", [line(box=[0.25, 0.25, 0.5, 0.75])])


def test_fractions_that_are_rounded_past_the_edge_are_taken(prepare) -> None:
    assert prepare("jsonl", [line(box=[-1e-7, 0, 1.0000001, 1])], "--normalised", "True")[0].boxes == (Box(0, 0, 1, 1),)


def test_too_many_of_them_stop_it_and_a_limit_leaves_them_out(prepare, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"1 of 2 expressions \(50.0%\) cannot be used[^$]*missing image: it.jsonl line 2"
    ):
        prepare("jsonl", [line(), line(image="missing.png")])
    with pytest.raises(ValueError, match="no expression is left to write"):
        prepare("jsonl", [line(image="missing.png")], *allow(1, 1))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert len(prepare("jsonl", [line(), line(image="missing.png")], "--limit", "1")) == 1


@pytest.mark.parametrize("source", ["localized_narratives", "jsonl"])
@pytest.mark.parametrize("text", ["", "nothing", "3", '{"image": ', '{"a": 1e999}', "[" * 100_000])
def test_a_file_of_another_kind_is_one_line_with_its_name(prepare, source, text) -> None:
    with pytest.raises(ValueError, match=r"it\.jsonl") as caught:
        prepare(source, text)
    assert str(caught.value).isprintable()


def test_flags_that_do_not_go_together_and_files_that_are_not_there(prepare, tmp_path) -> None:
    with pytest.raises(ValueError, match="--normalised does not go with --source mdetr"):
        prepare("mdetr", {}, "--normalised", "True")
    with pytest.raises(ValueError, match="--split does not go with --source jsonl"):
        prepare("jsonl", [line()], "--split", "x")
    with pytest.raises(ValueError, match="--records .*gone does not exist"):
        prepare("jsonl", tmp_path / "gone")


def test_files_that_count_from_0_each_are_read_together(script, images, tmp_path) -> None:
    """As RefCOCO's and RefCOCO+'s do."""
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "caption": "the dot"}],
        "annotations": [{"image_id": 0, "bbox": [0, 0, 20, 10]}],
    }
    paths = [tmp_path / name for name in ("refcoco.json", "refcoco+.json")]
    for path in paths:
        path.write_text(json.dumps(content))
    given = ["--source", "mdetr", "--records", *map(str, paths), "--images", str(images)]
    script("grounding")([*given, "--output", str(tmp_path / "out")])
    assert [one.id for one in QuestionFolder(tmp_path / "out")] == ["0", "refcoco+.json: 0"]
