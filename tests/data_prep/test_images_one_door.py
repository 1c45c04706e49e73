"""Images enter by one door: what preparation accepts, training decodes; what is no image of its own is named."""

import io
import json
import os
import struct
import time

import numpy as np
import pytest
from PIL import Image

from bitgen.data.dataset import payload_tensor
from bitgen.data.records import RecordReader
from bitgen.model.processing_bitgen import BitGenProcessor
from support.data import encode, jpeg

ASKED = 20_000  # pixels


def every_format() -> dict[str, bytes]:
    """A picture in each format and mode that Pillow writes on this machine."""
    Image.init()
    colours = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F"):
            try:
                found[f"{kind}-{mode.replace(';', '_')}"] = encode(colours.convert(mode), kind)
            except Exception:  # this format has no such mode, or Pillow no such conversion
                continue
    exif = struct.pack(">BBH", 0xFF, 0xE1, 30) + b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\1\0\0\0\x36\0\0\0"
    for name, size in (("small", 64), ("large", 140)):
        content = encode(colours.resize((size, size)), "JPEG")
        found[f"JPEG-orientation_as_text_{name}"] = content[:2] + exif + content[2:]
        found[f"JPEG-cut_{name}"] = content[: len(content) * 2 // 3]
        found[f"JPEG-damaged_{name}"] = content[:-200] + bytes(100) + content[-100:]
    return found


@pytest.mark.filterwarnings("ignore")  # Pillow's, of formats and of damaged files
def test_what_preparation_accepts_training_decodes_at_every_size(scripts_on_path):
    from _common.images import check_image
    from _common.problems import Unusable

    processors = [BitGenProcessor(None, size, max_image_pixels=ASKED) for size in (8, 32, 64)]
    accepted, refused = [], []
    for name, content in every_format().items():
        try:
            check_image(content, ASKED)
        except Unusable:
            refused.append(name)
            for processor in processors:
                with pytest.raises(ValueError):
                    processor.image(content, name)
        else:
            accepted.append(name)
            for processor in processors:
                assert processor.image(content, name).isfinite().all(), name
    kinds = {name.split("-")[0] for name in accepted}
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO"} <= kinds
    assert not kinds & {"EPS", "PDF", "PCX", "SGI", "ICNS", "IM"}
    assert {"TIFF-F", "JPEG-cut_small", "JPEG-cut_large"} <= set(refused)


@pytest.fixture
def photos(tmp_path):
    """``photos({name: bytes})`` writes files with captions; returns the folder."""
    folder = tmp_path / "photos"
    folder.mkdir()

    def write(files: dict[str, bytes]):
        for name, content in files.items():
            (folder / name).write_bytes(content)
        lines = [json.dumps({"file_name": name, "caption": f"this is {name}"}) for name in sorted(files)]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.mark.filterwarnings("ignore")
def test_a_prepared_folder_of_every_format_trains(photos, script, tmp_path):
    folder = photos({f"{name}.img": content for name, content in every_format().items()})
    flags = ["--folder", str(folder), "--output", str(tmp_path / "out"), "--max_failed_fraction", "1"]
    script("image_folder")(flags)
    reader = RecordReader(tmp_path / "out")
    kinds = {reader.image_id(row).split("-")[0] for row in range(len(reader))}
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO"} <= kinds
    for row in range(len(reader)):
        found = payload_tensor(reader.payload(row), reader.info, BitGenProcessor(None, 32), reader.image_id(row))
        assert found.shape == (3, 32, 32) and found.isfinite().all()


def test_files_that_are_not_read(photos, script, tmp_path, caplog):
    """A link out of the folder, a pipe and a file beyond any image's size are counted and named."""
    folder = photos({name: jpeg(number) for number, name in enumerate(("a.jpg", "link.jpg", "pipe.jpg", "large.jpg"))})
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    for name in ("link.jpg", "pipe.jpg"):
        (folder / name).unlink()
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "large.jpg", "ab") as file:
        file.truncate(2_000_000_000)  # sparse: it takes no room
    script("image_folder")(["--folder", str(folder), "--output", str(tmp_path / "out"), "--max_failed_fraction", "1"])
    reader = RecordReader(tmp_path / "out")
    assert [reader.image_id(row) for row in range(len(reader))] == ["a.jpg"]
    assert "1 x file name that leaves the image folder: link.jpg leads out" in caplog.text
    assert "1 x missing image: pipe.jpg" in caplog.text
    assert "1 x unreadable file: large.jpg (it has 2,000,000,000 bytes, more than 500,000,000)" in caplog.text


def test_postscript_from_the_web_is_not_opened(site, script, tmp_path, monkeypatch, caplog):
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{started}'\n[ \"$1\" = --version ] && echo 10.0\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    urls = [site.page("/drawing.jpg", page, "image/jpeg"), site.page("/photo.jpg", jpeg(1))]
    (tmp_path / "pairs.tsv").write_text("".join(f"caption\t{url}\n" for url in urls))
    script("cc3m")(["--tsv", str(tmp_path / "pairs.tsv"), "--output", str(tmp_path / "out")])
    assert not started.exists() and len(RecordReader(tmp_path / "out")) == 1
    assert f"1 x undecodable image: {urls[0]}" in caplog.text


def test_downloads_and_folders_see_the_same_photo_alike(scripts_on_path):
    from _common.images import shrink

    upright = np.zeros((300, 400, 3), dtype=np.uint8)
    upright[:, 200:] = 255
    body = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    turned = Image.Exif()
    turned[0x0112] = 6
    content = encode(Image.fromarray(upright), "JPEG", exif=turned)
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    for size in (100, 1000):
        with Image.open(io.BytesIO(shrink(content, size, "shorter", 90, 10**6))) as stored:
            assert stored.width < stored.height
            seen = [BitGenProcessor(None, 32).image(payload) for payload in (content, encode(stored, "PNG"))]
        assert (seen[0] - seen[1]).abs().mean() < 0.1


# ---------------------------------------------------------------- one picture for several URLs, and servers without end


def test_one_picture_that_several_urls_bring_is_a_failure_of_each(site, script, tmp_path, caplog):
    alive = [site.page(f"/alive/{number}.jpg", jpeg(number)) for number in range(3)]
    gone = [site.page(f"/gone/{number}.jpg", b"", status=302, Location="/unavailable.jpg") for number in range(4)]
    site.page("/unavailable.jpg", jpeg(9))
    (tmp_path / "pairs.tsv").write_text("".join(f"caption\t{url}\n" for url in (*alive, *gone)))
    flags = ["--tsv", str(tmp_path / "pairs.tsv"), "--output", str(tmp_path / "out"), "--max_failed_fraction", "0.6"]
    script("cc3m")(flags)
    reader = RecordReader(tmp_path / "out")
    assert [reader.image_id(row) for row in range(len(reader))] == alive
    assert f"4 x one picture for several URLs: {gone[0]}, " in caplog.text
    failures = (tmp_path / "out.failures.csv").read_text()
    assert failures.count("one picture for several URLs,4 URLs bring picture") == 4
    # A restart knows them without fetching anything again; so does one with a journal that has no digests yet.
    journal = tmp_path / "out.downloads" / "journal.jsonl"
    for content in (journal.read_text(), journal.read_text().replace('"digest"', '"other"')):
        journal.write_text(content)
        site.asked.clear()
        script("cc3m")([*flags, "--overwrite", "True"])
        assert not site.asked and len(RecordReader(tmp_path / "out")) == 3
    # Of a shorter list, one of them alone may be a picture of its own.
    (tmp_path / "pairs.tsv").write_text(f"caption\t{gone[0]}\n")
    script("cc3m")([*flags, "--overwrite", "True"])
    assert len(RecordReader(tmp_path / "out")) == 1


def test_packed_answers_are_not_unpacked(site, script, tmp_path, caplog):
    urls = [site.page("/a", jpeg(0), Content_Encoding="gzip"), site.page("/b", jpeg(1))]
    (tmp_path / "pairs.tsv").write_text("".join(f"caption\t{url}\n" for url in urls))
    script("cc3m")(["--tsv", str(tmp_path / "pairs.tsv"), "--output", str(tmp_path / "out")])
    assert f"1 x packed answer: {urls[0]}" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"a": "' + b"x" * 20_000_000 + b'"}', "more than 16,777,216 bytes"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "holds a list where an object should be"),
        (b"\xff", "no JSON"),
    ],
)
def test_json_of_a_server_is_bounded(site, scripts_on_path, answer, message):
    from _common.download import get_json, make_client

    with make_client() as client, pytest.raises(ValueError, match=message):
        get_json(client, site.page("/listing", answer, "application/json"), retries=0)


def test_a_server_that_sends_without_end_is_left(site, scripts_on_path, monkeypatch):
    from _common import download

    monkeypatch.setattr(download, "_LONGEST_ANSWER", 0.2)

    def drip(handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    site.pages["/drip"] = drip
    with download.make_client() as client, pytest.raises(ValueError, match="not whole after 0.2 s"):
        download.get_json(client, f"{site.url}/drip", retries=0)


@pytest.mark.parametrize("name", ["../secret.npy", "/tmp/secret.npy", "a\0b"])
def test_a_server_names_no_file_outside_the_folder(scripts_on_path, tmp_path, name):
    from _common.download import RemoteFile, fetch_file, make_client

    with make_client() as client, pytest.raises(ValueError, match="leads out of the folder|is not the name of a file"):
        fetch_file(client, RemoteFile(name, "http://127.0.0.1:9/", 3, {}), tmp_path / "folder")


def test_a_file_larger_than_the_disk_is_not_begun(scripts_on_path, tmp_path):
    from _common.download import RemoteFile, fetch_file, make_client

    with make_client() as client, pytest.raises(ValueError, match="GB are free there: make room"):
        fetch_file(client, RemoteFile("states.npy", "http://127.0.0.1:9/", 10**18, {}), tmp_path / "folder")
    assert not (tmp_path / "folder" / "states.npy.part").exists()
