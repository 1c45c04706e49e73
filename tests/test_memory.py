"""The entry `src/memory.py`, on small models with random weights."""

from __future__ import annotations

import fcntl

import pytest
from PIL import Image

from bitgen.commands import memory
from bitgen.export.revisions import export_run
from support.data import picture
from support.runs import written_run


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"photo {number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


@pytest.fixture
def run(tmp_path, capsys):
    """``run(arguments...)``: the rows that the command prints; the memory is in ``tmp_path / "m"``."""

    def call(*arguments, model=None):
        file = ["--memory", tmp_path / "m"]
        memory.main([str(argument) for argument in ("--model", model or written_run(), *file, *arguments)])
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    return call


@pytest.fixture
def refused(run, capsys):
    def call(*arguments, model=None):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, model=model)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        (["--model", "m", "--memory", "f", "--device", "cpu"], ["list"]),
        (["--model", "m"], ["recall", "--text", "a dog"]),
        (["--model", "m", "--slots", "9", "--widen"], ["teach", "a.png", "a dog"]),
        (["--model", "m", "--slots", "9", "--no-whiten"], ["teach", "--text", "a dog"]),
    ],
    ids=str,
)
def test_flags_stand_before_the_command_or_behind_it(flags, command):
    before, behind = memory.parse_flags([*flags, *command]), memory.parse_flags([*command, *flags])
    assert vars(before) == vars(behind)
    assert before.model == "m" and before.device == ("cpu" if "cpu" in flags else "auto")
    assert getattr(before, "slots", None) == (9 if "9" in flags else None)


def test_no_command_without_a_model(capsys):
    for command in (["list"], ["teach", "a.png", "a dog"]):
        with pytest.raises(SystemExit):
            memory.parse_flags(command)
        assert "required: --model" in capsys.readouterr().err


def test_a_memorys_life(run, photos, tmp_path):
    for number, photo in enumerate(photos):
        assert run("teach", photo, f"the cat {number}") == [[str(number + 1), f"the cat {number}"]]
    header, first, *_ = run("recall", photos[1])
    assert header == ["distance", "id", "text"] and first == ["0.00", "2", "the cat 1"]
    assert run("recall", "--text", "the cat 2", "--top_k", 1)[1] == ["0.00", "3", "the cat 2"]
    assert run("edit", 2, "a red dog") == [["2", "a red dog"]]
    assert run("recall", photos[1])[1][2] == "a red dog"
    assert run("forget", 1) == [["1", "forgotten"]]
    assert [(row[0], row[2]) for row in run("list")[1:]] == [("2", "a red dog"), ("3", "the cat 2")]
    assert run("teach", photos[0], "back", "--id", "rex") == [["rex", "back"]]
    run("show", "--output", tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.format == "PNG" and picture.size == (1200, 1100)


def test_whitening_is_asked_for_once_and_can_be_undone(run, refused, photos, tmp_path):
    run("--whiten", "teach", photos[0], "the cat")
    run("teach", photos[1], "a red dog")
    assert [row[0] for row in run("recall", photos[1])[1:2]] == ["0.00"]
    whitened = float(run("recall", photos[2])[1][0])
    run("--no-whiten", "teach", photos[0], "again", "--id", "x")
    run("forget", "x")
    assert float(run("recall", photos[2])[1][0]) != whitened
    exported = export_run(str(written_run()), str(tmp_path / "model"), False, False, {})
    assert "is an export" in refused("--whiten", "teach", photos[2], "blue mat", model=exported)
    assert "give it with teach" in refused("--whiten", "list")


def test_an_export_uses_the_memory_of_its_run(run, photos, tmp_path):
    run("teach", photos[0], "the cat")
    exported = export_run(str(written_run()), str(tmp_path / "model"), False, False, {})
    assert run("recall", photos[0], model=exported)[1][2] == "the cat"


def test_the_memory_is_beside_the_model(photos, tmp_path, capsys):
    exported = export_run(str(written_run()), str(tmp_path / "model"), False, False, {})
    memory.main(["--model", f"{exported}/", "teach", str(photos[0]), "the cat"])
    assert (tmp_path / "model.memory").is_file() and not list(exported.glob("*memory"))


def test_a_memory_grows_by_asking(run, refused, photos, capsys):
    run("--slots", 1, "teach", photos[0], "the cat")
    run("teach", photos[1], "a red dog")
    run("--slots", 18, "--widen", "teach", photos[2], "blue mat")
    memory_file = run("list")
    assert len(memory_file) == 4 and run("recall", photos[1])[1] == ["0.00", "2", "a red dog"]


def test_a_model_on_features_cannot_look_but_recalls_by_text(run, refused, photos, tmp_path):
    import torch

    from bitgen.memory import EpisodicMemory, open_model

    model = written_run(features=True)
    taught = EpisodicMemory(*open_model(model))
    taught.write(torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0)), ["the cat", "a red dog"])
    taught.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    for arguments in (("recall", photos[0]), ("teach", photos[0], "blue mat")):
        assert "no vision tower: it cannot look at image files" in refused(*arguments, model=model)
    assert (tmp_path / "m").read_bytes() == before
    assert run("recall", "--text", "a red dog", model=model)[1][2] == "a red dog"


def test_what_cannot_be_done_is_said_and_changes_nothing(run, refused, photos, tmp_path):
    assert "there is no memory yet" in refused("list")
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:60])
    assert "cut.png" in refused("teach", tmp_path / "cut.png", "x") and not (tmp_path / "m").exists()
    run("teach", photos[0], "the cat")
    before = (tmp_path / "m").read_bytes()
    for arguments, message in (
        (("teach", photos[1], "x", "--id", "1"), "id '1' is taken"),
        (("teach", photos[1], " "), "empty"),
        (("teach", tmp_path / "none.png", "x"), "none.png cannot be read"),
        (("--slots", 5000, "teach", photos[1], "x"), "slots is 5000"),
        (("edit", "9", "x"), "no episode '9'"),
        (("forget", "9"), "no episode '9'"),
        (("recall", photos[0], "--top_k", 0), "top_k"),
        (("recall",), "IMAGE or --text"),
        (("recall", photos[0], "--text", "x"), "IMAGE or --text"),
        (("show", "--output", "x.jpg"), "PNG"),
        (("--widen", "teach", photos[1], "x"), "--widen needs --slots"),
        (("--slots", 5, "list"), "with teach"),
    ):
        assert message in refused(*arguments)
    assert "another model" in refused("list", model=written_run(use_memory=False))
    assert "no such folder" in refused("list", model=tmp_path / "nowhere")
    run("forget", "1")
    assert "memory is empty" in refused("recall", photos[0])
    assert (tmp_path / "m").read_bytes() != before


def test_a_memory_is_not_drawn_over_itself(run, refused, photos, tmp_path):
    named = ("--memory", tmp_path / "m.png")
    run(*named, "teach", photos[0], "the cat")
    before = (tmp_path / "m.png").read_bytes()
    (tmp_path / "link.png").symlink_to(tmp_path / "m.png")
    for name in ("m.png", "link.png"):
        assert "is the memory itself" in refused(*named, "show", "--output", tmp_path / name)
    assert (tmp_path / "m.png").read_bytes() == before


def test_a_file_held_by_another_process_is_left_alone(run, refused, photos, tmp_path):
    run("teach", photos[0], "the cat")
    before = (tmp_path / "m").read_bytes()
    with open(tmp_path / ".m.lock", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # a lock belongs to the open file: as good as another process's
        assert "in use by another process" in refused("forget", "1")
    assert (tmp_path / "m").read_bytes() == before
    run("forget", "1")
