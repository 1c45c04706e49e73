"""Image files that people name, at every entry that reads one: regular files of an image's size, or one line of why."""

import os
from pathlib import Path

import pytest

from bitgen.commands import caption
from bitgen.commands import memory as memory_command
from bitgen.evaluation.contact_sheet import choose_pictures
from support.data import jpeg
from support.runs import written_run


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def beyond_any_image(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2_000_000_000)  # sparse: it takes no room


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")


BAD = {
    "a pipe": (os.mkfifo, "it is not a regular file"),
    "a folder": (folder, "it is not a regular file"),
    "a device": (device, "it is not a regular file"),
    "too large": (beyond_any_image, "it has 2,000,000,000 bytes, more than 500,000,000"),
    "PostScript": (postscript, "it is none of JPEG, PNG"),
    "missing": (lambda path: None, "No such file"),
}


def by_caption(path: Path, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        caption.main([str(path), "--model", str(written_run())])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def by_memory(path: Path, capsys) -> str:
    memory = ["--model", str(written_run()), "--memory", str(path.with_name("a.memory"))]
    with pytest.raises(SystemExit) as stopped:
        memory_command.main([*memory, "teach", str(path), "a text"])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("entry", [by_caption, by_memory])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_file_is_named(entry, kind, tmp_path, capsys):
    make, says = BAD[kind]
    path = tmp_path / "photo.jpg"
    make(path)
    said = entry(path, capsys)
    assert says in said and str(path) in said and "Traceback" not in said


class Split:
    """As much of a dataset as a contact sheet asks for: images of these ids."""

    kind = "features"

    def __init__(self, *ids: str) -> None:
        self.ids, self.image_count, self.reader = ids, len(ids), self

    def image_id(self, row: int) -> str:
        return self.ids[row]


def test_ids_of_images_stay_inside_the_folder_of_a_sheet(tmp_path, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (tmp_path / "secret.jpg", photos / "a.jpg"):
        path.write_bytes(jpeg(1))
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(photos / "pipe.jpg")
    ids = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "a\0b", "x" * 300, "pipe.jpg", "a.jpg"]
    assert [picture.row for picture in choose_pictures(Split(*ids), photos)] == [6]
    assert f"{photos}: 5 images are left out of the sheet, the first: ../secret.jpg leads out" in caplog.text
    with pytest.raises(ValueError, match=r"the first one would be .*a\\x1bb"):
        choose_pictures(Split("a\x1bb"), photos)
    postscript(photos / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg cannot be read as an image"):
        choose_pictures(Split("a.jpg"), photos)
