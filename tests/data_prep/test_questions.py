"""Questions: every layout as it is published, what is counted, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitgen.data.questions.boxes import Box, box_text
from bitgen.data.questions.records import Question, QuestionFolder
from support.data import encode, jpeg, noise

CLEVR_PICTURE, COCO_PICTURE = "CLEVR_val_000000.png", "COCO_val2014_000000000042.jpg"


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("a.jpg", "2375429.jpg", COCO_PICTURE, "000000000043.jpg"):
        (folder / name).write_bytes(jpeg(len(name)))
    (folder / CLEVR_PICTURE).write_bytes(encode(noise(9)))
    (folder / "below" / "b.jpg").write_bytes(jpeg(1))
    return folder


@pytest.fixture
def prepare(script, images, tmp_path) -> Callable[..., QuestionFolder]:
    """Prepares a content, JSON or a list of lines; ``more``: contents of further flags."""

    def prepared(source: str, content: object, *flags: str, with_images: bool = True, **more: object) -> QuestionFolder:
        lines = source in ("jsonl", "llava_cot")
        path = tmp_path / ("it.jsonl" if lines else "it.json")
        if not isinstance(content, str):
            content = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)  # type: ignore[call-overload]
        path.write_text(content)
        given = ["--source", source, "--questions", str(path), "--output", str(tmp_path / "out"), *flags]
        for flag, second in more.items():
            (tmp_path / f"{flag}.json").write_text(json.dumps(second))
            given += [f"--{flag}", str(tmp_path / f"{flag}.json")]
        script("questions")([*given, *(["--images", str(images)] if with_images else [])])
        return QuestionFolder(tmp_path / "out")

    return prepared


def allow(count: int, of: int) -> tuple[str, str]:
    return "--max_failed_fraction", str(count / of)


# ---- CLEVR ----


def step(function: str, *inputs: int, value: str | None = None) -> dict:
    return {"inputs": list(inputs), "function": function, "value_inputs": [] if value is None else [value]}


LEFT_OF_CUBE = [
    step("scene"),
    step("filter_shape", 0, value="cube"),
    step("unique", 1),
    step("relate", 2, value="left"),
    step("filter_material", 3, value="metal"),
    step("unique", 4),
    step("query_color", 5),
]
SAME_NUMBER = [
    step("scene"),
    step("filter_color", 0, value="red"),
    step("count", 1),
    step("scene"),
    step("filter_size", 3, value="small"),
    step("count", 4),
    step("less_than", 2, 5),
]


def clevr(program: list | None = None, answer: str | None = "red", index: int = 0, **more: object) -> dict:
    entry = {"split": "val", "image_index": 0, "image_filename": CLEVR_PICTURE, "question_index": index}
    entry |= {"question": "What color is it?", "question_family_index": 3, **more}
    entry |= {} if answer is None else {"answer": answer}
    return entry if program is None else {**entry, "program": program}


def of_clevr(*entries: dict) -> dict:
    return {"info": {"split": "val", "version": "1.0"}, "questions": list(entries)}


def thing(shape: str, size: str, color: str, material: str, *pixels: float) -> dict:
    found = {"shape": shape, "size": size, "color": color, "material": material, "pixel_coords": list(pixels)}
    return {**found, "3d_coords": [0.0, 0.0, 0.7], "rotation": 10.0}


SCENE = {
    "image_index": 0,
    "image_filename": CLEVR_PICTURE,
    "split": "val",
    "objects": [
        thing("cube", "large", "gray", "rubber", 300, 160, 10.5),
        thing("sphere", "small", "red", "metal", 105, 80, 10.5),
        thing("cylinder", "small", "red", "rubber", 200, 300, 8.75),
    ],
    "relationships": {"left": [[1, 2], [], [1]], "right": [[], [0, 2], [0]], "front": [[2], [0, 2], []]},
}
BALL = Box((105 - 17.5) / 480, (80 - 17.5) / 320, (105 + 17.5) / 480, (80 + 17.5) / 320)


def test_clevr(prepare, images) -> None:
    number = clevr(SAME_NUMBER, "yes", 1, question="Fewer?")
    found = prepare("clevr", of_clevr(clevr(LEFT_OF_CUBE), number), scenes={"info": {}, "scenes": [SCENE]})
    first, second = found[0], found[1]
    rationale = "everything; cube; that one; left of it; metal; that one; its color"
    assert first == Question("val_0", 0, "What color is it?", ("red",), rationale, first.boxes, "query", 1)
    assert first.boxes == (pytest.approx(BALL),)
    assert second.rationale == "everything; red; how many; everything; small; how many; fewer"
    assert (second.family, second.hops, len(second.boxes), second.picture) == ("compare_number", 0, 2, 0)
    # The cylinder's ball reaches below the picture, and is cut there.
    assert second.boxes[1] == pytest.approx((179 / 480, 279 / 320, 221 / 480, 1))
    assert found.picture(0) == (images / CLEVR_PICTURE).read_bytes() and found.picture_name(0) == CLEVR_PICTURE
    assert found.info.num_pictures == 1 and found.info.source == "clevr: it.json"


@pytest.mark.parametrize(
    ("last", "family", "clause", "boxes"),
    [
        ([step("exist", 1)], "exist", "any", 1),
        ([step("count", 1)], "count", "how many", 1),
        ([step("unique", 1), step("same_size", 2), step("count", 3)], "count", "same size as it; how many", 0),
        (
            [step("unique", 1), step("relate", 2, value="front"), step("union", 1, 3), step("exist", 4)],
            "exist",
            "in front of it; either; any",
            2,
        ),
        ([step("scene"), step("intersect", 1, 2), step("exist", 3)], "exist", "everything; both; any", 1),
        (
            [step("unique", 1), step("query_size", 2), step("query_size", 2), step("equal_size", 3, 4)],
            "compare_attribute",
            "its size; its size; equal size",
            1,
        ),
        ([step("count", 1), step("count", 1), step("equal_integer", 2, 3)], "compare_number", "equally many", 1),
        ([step("count", 1), step("count", 1), step("greater_than", 2, 3)], "compare_number", "more", 1),
    ],
)
def test_steps_of_clevr(prepare, last, family, clause, boxes) -> None:
    program = [step("scene"), step("filter_shape", 0, value="cube"), *last]
    found = prepare("clevr", of_clevr(clevr(program)), scenes={"scenes": [SCENE]})[0]
    assert (found.family, len(found.boxes)) == (family, boxes) and found.rationale.endswith(f"; {clause}")


def test_clevr_without_programs_and_with_the_generator_s_own_names(prepare) -> None:
    old = [{"type": "scene", "inputs": []}, {"type": "filter_color", "inputs": [0], "side_inputs": ["red"]}]
    found = prepare("clevr", of_clevr(clevr(), clevr([*old, {"type": "count", "inputs": [1]}], "1", 1)))
    assert (found[0].rationale, found[0].family, found[0].hops) == ("", "", -1)
    assert (found[1].rationale, found[1].family, found[1].hops, found[1].boxes) == (
        "everything; red; how many", "count", 0, (),
    )  # fmt: skip


CLEVR_WRONG = [
    (clevr(answer=None), "question without an answer"),
    (clevr([step("scene"), step("count", 1)]), "damaged step of a program"),
    (clevr([step("scene"), step("count", "0")]), "damaged step of a program"),  # type: ignore[arg-type]
    (clevr(["scene"]), "program that is not a list of objects"),
    (clevr([step("scene"), step("paint", 0)]), "unknown step of a program"),
    (clevr([step("scene"), step("unique", 0)]), "program and scene that do not fit"),
    (clevr([step("scene"), step("filter_smell", 0, value="x")]), "program and scene that do not fit"),
    (clevr([step("scene"), step("count")]), "program and scene that do not fit"),
    (clevr(LEFT_OF_CUBE, image_filename="a.jpg"), "question about a picture that is not in --scenes"),
]


@pytest.mark.parametrize(("entry", "reason"), CLEVR_WRONG, ids=range(len(CLEVR_WRONG)))
def test_what_is_wrong_with_a_question_of_clevr(prepare, caplog, entry, reason) -> None:
    content = of_clevr(clevr(LEFT_OF_CUBE), {**entry, "question_index": 1})
    assert len(prepare("clevr", content, *allow(1, 2), scenes={"scenes": [SCENE]})) == 1
    assert f"1 x {reason}: it.json[1]" in caplog.text


# ---- VQA v2 and A-OKVQA ----


def vqa(number: int, answers: list[str], most: str = "", image: object = 42) -> tuple[dict, dict]:
    question = {"image_id": image, "question": "How many?", "question_id": number}
    said = [{"answer": text, "answer_confidence": "yes", "answer_id": at} for at, text in enumerate(answers, 1)]
    noted = {"question_type": "how many", "multiple_choice_answer": most, "answers": said, "image_id": image}
    return question, {**noted, "answer_type": "number", "question_id": number}


def of_vqa(*pairs: tuple[dict, dict]) -> tuple[dict, dict]:
    task = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014"}
    return {**task, "questions": [pair[0] for pair in pairs]}, {**task, "annotations": [pair[1] for pair in pairs]}


def test_vqav2_puts_the_answer_of_most_people_first(prepare, images) -> None:
    ten = ["3", "2", "two", "2", "3", "Two", "4", "many", "2", "2"]
    questions, annotations = of_vqa(
        vqa(42000, ten, "2"), vqa(43001, ["a", "b", "b", "a"], "b", 43), vqa(43002, ["", "x"], "x", 43)
    )
    found = prepare("vqav2", questions, annotations=annotations)
    rest = ("3", "two", "2", "3", "Two", "4", "many", "2", "2")
    assert found[0] == Question("42000", 0, "How many?", ("2", *rest), family="number")
    assert found[1].answers == ("b", "a", "b", "a") and found[2].answers == ("x",)
    assert [found.picture_name(row) for row in (0, 1)] == [COCO_PICTURE, "000000000043.jpg"]
    assert found.picture(0) == (images / COCO_PICTURE).read_bytes()


def test_what_is_wrong_with_a_question_of_vqav2(prepare, caplog) -> None:
    pairs = [
        vqa(1, ["a"]),
        vqa(2, []),
        vqa(3, ["a"], image="42"),
        vqa(4, ["a"], image=44),
        vqa(5, ["a"]),
        vqa(1, ["a"]),
    ]
    questions, annotations = of_vqa(*pairs)
    del annotations["annotations"][4]
    assert len(prepare("vqav2", questions, *allow(5, 6), annotations=annotations)) == 1
    for reason in (
        "question without an answer: it.json[1]",
        "`image_id` that is no number of COCO's: it.json[2]",
        "missing image: it.json[3] (COCO_train2014_000000000044.jpg or",
        "question without an annotation: it.json[4]",
        "question with the id of an earlier one: it.json[5] (1)",
    ):
        assert f"1 x {reason}" in caplog.text


def okvqa(**changes: object) -> dict:
    entry = {
        "split": "train", "image_id": 43, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What is he on?",
        "choices": ["bus", "Surfboard", "horse", "train"], "correct_choice_idx": 1,
        "direct_answers": ["board", "surfboard", "surfboard", "wave"], "difficult_direct_answer": False,
        "rationales": ["He stands on a surfboard.", "A surfboard.", "It is the long board that he stands on."],
    }  # fmt: skip
    return {**entry, **changes}


def test_aokvqa(prepare) -> None:
    unknown = okvqa(question_id="b", correct_choice_idx=None, rationales=[])
    found = prepare("aokvqa", [okvqa(), okvqa(question_id="a", direct_answers=["board"]), unknown])
    choices = ("bus", "Surfboard", "horse", "train")
    answers = ("Surfboard", "board", "surfboard", "wave")
    first = Question("22MexNkBPpdZGX6sxbxVBH", 0, "What is he on?", answers, "A surfboard.", choices=choices)
    assert found[0] == first and found[1].answers == ("Surfboard", "board")
    assert (found[2].answers[0], found[2].rationale) == ("surfboard", "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"correct_choice_idx": 4}, "`correct_choice_idx` that is none of the choices"),
        ({"correct_choice_idx": None, "direct_answers": None}, "question without an answer"),
        (
            {"direct_answers": "['board']", "rationales": [3.5]},
            "`rationales` that is neither a text nor a list of texts",
        ),
        ({"image_id": -1}, "`image_id` that is no number of COCO's"),
    ],
)
def test_what_is_wrong_with_a_question_of_aokvqa(prepare, caplog, changes, reason) -> None:
    assert len(prepare("aokvqa", [okvqa(), okvqa(question_id="b", **changes)], *allow(1, 2))) == 1
    assert f"1 x {reason}: it.json[1]" in caplog.text


# ---- GQA ----


def gqa(*steps: tuple[str, str], answer: dict | None = None, **changes: object) -> dict:
    semantic = [{"operation": name, "dependencies": [], "argument": argument} for name, argument in steps]
    entry = {
        "semantic": semantic, "entailed": [], "equivalent": [], "question": "What is on the white wall?",
        "imageId": "2375429", "isBalanced": True, "groups": {"global": "", "local": ""}, "answer": "pipe",
        "semanticStr": "", "annotations": {"answer": answer or {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"}, "fullAnswer": "The pipe.",
    }  # fmt: skip
    return {**entry, **changes}


WALL = [("select", "wall (722332)"), ("filter color", "white"), ("relate", "_,on,s (722335)"), ("query", "name")]
GRAPHS = {
    "2375429": {
        "width": 640,
        "height": 480,
        "objects": {
            "722332": {"name": "wall", "x": 0, "y": 0, "w": 643, "h": 240, "attributes": [], "relations": []},
            "722335": {"name": "pipe", "x": 320, "y": 120, "w": 32, "h": 60, "attributes": [], "relations": []},
            "9": {"name": "dot", "x": 5, "y": 5, "w": 0, "h": 1, "attributes": [], "relations": []},
        },
    }
}
WALL_BOX, PIPE_BOX = Box(0, 0, 1, 0.5), Box(0.5, 0.25, 0.55, 0.375)


def test_gqa(prepare) -> None:
    entries = {"07333408": gqa(*WALL, answer={"0": "722335"}), "2": gqa(*WALL), "3": gqa(("select", "dot (9)"))}
    found = prepare("gqa", entries, scene_graphs=GRAPHS)
    rationale = f"wall {box_text(WALL_BOX)}; white; thing on it {box_text(PIPE_BOX)}; its name"
    assert found[0] == Question(
        "07333408", 0, "What is on the white wall?", ("pipe",), rationale, (PIPE_BOX,), "query", 1
    )
    assert found[1].boxes == (PIPE_BOX,) and found[2].boxes == () and found[2].rationale == "dot"


@pytest.mark.parametrize(
    ("operation", "argument", "clause"),
    [
        ("select", "folding chair (-)", "folding chair"),
        ("select", "farmers (-) ", "farmers"),  # as published, of questions with two branches
        ("relate", "girl,to the left of,s (12)", "girl to the left of it"),
        ("relate", "shirt,wearing,o (12,13)", "it wearing shirt"),
        ("verify rel", "cup,holding,o (4)", "is it it holding cup"),
        ("verify color", "white", "is it white"),
        ("choose color", "red|blue", "red or blue"),
        ("exist", "?", "any"),
        ("and", "", "both"),
        ("or", "", "either"),
        ("same color", "", "same color"),
        ("different shape", "", "different shape"),
        ("common", "", "what they share"),
        ("filter", "not(tall)", "not(tall)"),
    ],
)
def test_steps_of_gqa(prepare, operation, argument, clause) -> None:
    found = prepare("gqa", {"1": gqa(("select", "wall (1)"), (operation, argument))})[0]
    assert found.rationale == f"wall; {clause}" and found.hops == (operation == "relate") and found.boxes == ()


def test_what_is_wrong_with_a_question_of_gqa(prepare, caplog) -> None:
    graphs = {**GRAPHS, "7": {"width": 640}}
    wrong = [
        gqa(answer=None, imageId="7"),
        gqa(semantic="x"),
        gqa(semantic=[{"operation": "select"}]),
        gqa(imageId=None),
    ]
    missing = {key: value for key, value in gqa().items() if key != "answer"}
    entries = {str(number): entry for number, entry in enumerate([gqa(*WALL), *wrong, missing, gqa(imageId="8")])}
    assert len(prepare("gqa", entries, *allow(6, 7), scene_graphs=graphs)) == 1
    for reason in (
        "damaged scene graph: it.json 1",
        "`semantic` that is not a list of objects: it.json 2",
        "record of another format: it has no `argument`: it.json 3",
        "record of another format: it has no `imageId`: it.json 4",
        "question without an answer: it.json 5",
        "missing image: it.json 6 (8.jpg)",
    ):
        assert f"1 x {reason}" in caplog.text


# ---- LLaVA-CoT and plain lines ----


def cot(said: str, asked: str = "<image>\nWhat is it?", **changes: object) -> dict:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    return {"id": "x/1.png", "image": "below/b.jpg", "conversations": turns, **changes}


SAID = (
    "<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> A cat. </CAPTION>\n\n<REASONING> It has\nears and whiskers. "
    "</REASONING>\n\n<CONCLUSION> A cat </CONCLUSION>"
)


def test_llava_cot(prepare, caplog) -> None:
    found = prepare("llava_cot", [cot(SAID)])[0]
    assert found == Question("x/1.png", 0, "What is it?", ("A cat",), "It has ears and whiskers.")
    found = prepare("llava_cot", [cot(SAID)], "--max_rationale_words", "3", "--overwrite", "True")[0]
    assert found.rationale == "It has ears"
    assert "1 x rationale of more than 3 words (cut): it.jsonl line 1" in caplog.text


COT_WRONG = [
    (cot("A cat."), "question without an answer"),
    (cot(SAID, "<image>\n"), "empty question"),
    (cot(SAID, conversations=[]), "conversation that is no question with an answer"),
    (cot(SAID, conversations="x"), "`conversations` that is not a list of objects"),
    (cot(SAID, image=["a.jpg"]), "`image` that is not a text"),
    ({"image": "a.jpg", "question": "What?", "answer": "x"}, "`conversations` that is not a list of objects"),
]


@pytest.mark.parametrize(("entry", "reason"), COT_WRONG, ids=range(len(COT_WRONG)))
def test_what_is_wrong_with_a_line_of_llava_cot(prepare, caplog, entry, reason) -> None:
    assert len(prepare("llava_cot", [cot(SAID), {**entry, "id": "2"}], *allow(1, 2))) == 1
    assert f"1 x {reason}: it.jsonl line 2" in caplog.text


def line(**changes: object) -> dict:
    return {"image": "a.jpg", "question": "What?", "answer": "a cat", **changes}


def test_plain_lines(prepare) -> None:
    box = [0, 0.25, 0.5, 1]
    owner = {"image": "below/b.jpg", "instruction": "Find it.", "reasoning": ["look", "there"], "answer": "here"}
    whole = line(
        answers=["a cat", "cat"], rationale="ears", boxes=[box], family="query", hops=2, choices=["x", "y"], id=7
    )
    robots = {"question": "Which robots?", "answer": ["arm", "drone"], "image": None}
    found = prepare("jsonl", [whole, owner, robots, line(question="How\nmany  are\tthere?", answer=3)])
    assert found[0] == Question(
        "7", 0, "What?", ("a cat", "cat"), "ears", (Box(0, 0.25, 0.5, 1),), "query", 2, ("x", "y")
    )
    assert found[1] == Question("it.jsonl line 2", 1, "Find it.", ("here",), "look; there")
    assert found[2] == Question("it.jsonl line 3", -1, "Which robots?", ("arm", "drone"))
    assert (found[3].question, found[3].answers) == ("How many are there?", ("3",))
    assert len(prepare("jsonl", [robots], "--overwrite", "True", with_images=False)) == 1


WRONG = [
    (line(image="missing.jpg"), "missing image"),
    (line(image="text.jpg"), "undecodable image"),
    (line(image="pipe"), "unreadable file"),
    (line(image="../secret.jpg"), "file name that leaves --images"),
    (line(image="link.jpg"), "file name that leaves --images"),
    (line(image="/etc/passwd"), "file name that leaves --images"),
    (line(image="x" * 300), "file name that cannot be used"),
    (line(image=""), "file name that cannot be used"),
    (line(image="https://example.org/a.jpg"), "address in place of a file"),
    (line(image=["a.jpg"]), "`image` that is not a text"),
    (line(question=" \n"), "empty question"),
    (line(question=None), "`question` that is not a text"),
    (line(question=["What?"]), "`question` that is not a text"),
    ({"image": "a.jpg", "answer": "x"}, "record of another format: it has no `question`"),
    (cot(SAID), "record of another format: it has no `question`"),
    (line(answer=None), "question without an answer"),
    (line(answer=" "), "question without an answer"),
    (line(answer=[]), "question without an answer"),
    (line(answer={"text": "x"}), "`answer` that is neither a text nor a list of texts"),
    (line(answer=["x", None]), "`answer` that is neither a text nor a list of texts"),
    (line(answer=True), "`answer` that is neither a text nor a list of texts"),
    (line(reasoning={"a": 1}), "`reasoning` that is neither a text nor a list of texts"),
    (line(boxes=[0, 0, 1, 1]), "`boxes` that is not a list of boxes"),
    (line(boxes=[[0, 0, 1]]), "box that is not four numbers"),
    (line(boxes=[[0, 0, True, 1]]), "box that is not four numbers"),
    (line(boxes=[[0, 0, None, 1]]), "box that is not four numbers"),
    (line(boxes=[[0, 0, 20, 10]]), "box that cannot be used"),
    (line(boxes=[[0, 0, 0, 1]]), "box that cannot be used"),
    (line(boxes=[[0, 0.5, 1, 0.25]]), "box that cannot be used"),
    (line(family=3), "`family` that is not a text"),
    (line(hops="2"), "`hops` that is not a small whole number"),
    (line(id=True), "record of another format: it has no `id`"),
    (line(id="it.jsonl line 1"), "question with the id of an earlier one"),
]


@pytest.mark.parametrize(("entry", "reason"), WRONG, ids=range(len(WRONG)))
def test_a_record_that_cannot_be_used_is_counted_and_named(prepare, images, caplog, entry, reason) -> None:
    caplog.set_level("INFO")
    (images / "text.jpg").write_text("no picture")
    (images.parent / "secret.jpg").write_bytes(jpeg(5))
    (images / "link.jpg").symlink_to(images.parent / "secret.jpg")
    os.mkfifo(images / "pipe")
    found = prepare("jsonl", [line(), entry], *allow(1, 2))
    assert len(found) == 1 and found.info.num_pictures == 1
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("1 x")]
    assert said.startswith(f"1 x {reason}") and "it.jsonl line 2" in said and said.isprintable()
    assert "1 of 2 questions could not be used" in caplog.text


def test_files_that_count_from_0_each_are_read_together(script, images, tmp_path) -> None:
    paths = [tmp_path / folder / "q.jsonl" for folder in ("train", "val")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        entries = [line(id="0", answer=f"first {number}"), {**line(answer=f"second {number}")}]
        entries[1].pop("id", None)
        path.write_text("\n".join(map(json.dumps, [*entries, entries[0]][: 2 + number])))
    given = ["--source", "jsonl", "--questions", *map(str, paths), "--images", str(images), *allow(1, 5)]
    script("questions")([*given, "--output", str(tmp_path / "out")])
    found = [(one.id, one.answers[0]) for one in QuestionFolder(tmp_path / "out")]
    assert found == [
        ("0", "first 0"),
        ("train/q.jsonl line 2", "second 0"),
        ("val/q.jsonl: 0", "first 1"),
        ("val/q.jsonl line 2", "second 1"),
    ]


def test_too_many_of_them_stop_it_and_a_limit_leaves_them_out(prepare, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"1 of 2 questions \(50.0%\) cannot be used[^$]*missing image: it.jsonl line 2"
    ):
        prepare("jsonl", [line(), line(image="missing.jpg")])
    with pytest.raises(ValueError, match="no question is left to write"):
        prepare("jsonl", [line(image="missing.jpg")], *allow(1, 1))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert len(prepare("jsonl", [line(), line(image="missing.jpg")], "--limit", "1")) == 1


def test_no_picture_of_a_record_that_is_left_out_is_stored(prepare) -> None:
    found = prepare("jsonl", [line(), line(image="below/b.jpg", boxes=[[0, 0, 2, 1]])], *allow(1, 2))
    assert found.info.num_pictures == 1


def test_broken_unicode_costs_itself_only(prepare, caplog) -> None:
    assert prepare("jsonl", [line(answer="half \ud83d")])[0].answers == ("half \ufffd",)
    assert "1 x text that is no valid Unicode (what is broken became U+FFFD): it.jsonl line 1" in caplog.text


@pytest.mark.parametrize("source", ["clevr", "vqav2", "gqa", "aokvqa", "llava_cot", "jsonl"])
@pytest.mark.parametrize("text", ["", "nothing", "3", "[3]", '{"questions": [', '{"a": 1e999}', "[" * 100_000])
def test_a_file_of_another_kind_is_one_line_with_its_name(prepare, source, text) -> None:
    more = {"annotations": {"annotations": [{"question_id": 1}]}} if source == "vqav2" else {}
    with pytest.raises(ValueError, match=r"it\.json") as caught:
        prepare(source, text, **more)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("source", "content", "more", "message"),
    [
        ("clevr", {"questions": []}, {}, "holds no question"),
        ("clevr", [okvqa()], {}, "not an object with a list of objects `questions`: is it a file of CLEVR"),
        ("aokvqa", of_clevr(clevr()), {}, "is not a list of objects: is it a file of A-OKVQA"),
        ("gqa", of_clevr(clevr()), {}, "not an object with an object a question: is it a file of GQA"),
        ("vqav2", of_vqa(vqa(1, ["a"]))[0], {}, "needs --annotations"),
        ("vqav2", of_vqa(vqa(1, ["a"]))[0], {"annotations": {"annotations": [{}]}}, "has no `question_id`"),
        ("clevr", of_clevr(clevr()), {"scenes": [SCENE]}, "--scenes .* with a list of objects `scenes`"),
        ("gqa", {"1": gqa()}, {"scene_graphs": []}, "--scene_graphs .* with a scene graph an image"),
        ("gqa", {"1": gqa()}, {"scenes": {}}, "--scenes does not go with --source gqa"),
    ],
)
def test_files_that_do_not_belong_together_are_named(prepare, source, content, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(source, content, **more)


def test_images_are_asked_for(prepare) -> None:
    with pytest.raises(ValueError, match="name files such as 'a.jpg': add --images FOLDER"):
        prepare("jsonl", [line()], with_images=False)
