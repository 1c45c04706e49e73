"""cc3m.py against a local server that does what three million web servers do, and the real validation file."""

import csv
import io
import json
import multiprocessing
import socket
import time

import numpy as np
import pytest
from PIL import Image

from bitgen.data.records import RecordReader
from support.data import jpeg

FAST = ["--timeout", "2", "--retries", "1", "--backoff", "0.01"]


@pytest.fixture
def cc3m(script):
    return script("cc3m")


@pytest.fixture
def tsv(tmp_path):
    """``tsv(rows)`` writes ``(caption, URL)`` rows and returns the flags that read them."""

    def write(rows, *more: str) -> list[str]:
        text = "".join(f"{caption}\t{url}\n" for caption, url in rows)
        (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8", newline="")
        return ["--tsv", str(tmp_path / "pairs.tsv"), "--output", str(tmp_path / "out"), *FAST, *more]

    return write


def failures(tmp_path) -> dict[str, tuple[str, str]]:
    with open(tmp_path / "out.failures.csv", newline="", encoding="utf-8") as file:
        return {row["url"]: (row["reason"], row["transient"]) for row in csv.DictReader(file)}


def test_everything_a_server_can_do(site, cc3m, tsv, tmp_path, caplog):
    bomb = io.BytesIO()
    Image.new("1", (10_000, 5_001)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 20_000

    def slow(handler):
        time.sleep(3)
        site.send(handler, jpeg(0))

    def trickle(handler):  # never silent for long, and still not done in time
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b"x" * 10)
            handler.wfile.flush()
            time.sleep(0.1)

    def flaky(handler):
        if site.asked["/flaky"] == 1:
            site.send(handler, b"busy", "text/plain", 503, Retry_After="0")
        else:
            site.send(handler, jpeg(3))

    good = site.page("/good", jpeg(1))
    moved = site.page("/moved", b"", status=302, Location="/good?2")
    site.page("/good?2", jpeg(2))
    site.pages |= {"/slow": slow, "/trickle": trickle, "/flaky": flaky}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed_port = unused.getsockname()[1]
    expected = {
        site.url + "/missing": ("HTTP 404", "False"),
        site.page("/down", b"", status=503): ("HTTP 503", "True"),
        site.url + "/slow": ("timed out", "True"),
        site.url + "/trickle": ("timed out", "True"),
        site.page("/truncated", jpeg(4)[:100], Content_Length="5000"): ("connection broke off", "True"),
        site.page("/cut", jpeg(5)[:-200]): ("undecodable image", "False"),
        site.page("/page", b"<p>gone", "text/html; charset=utf-8"): ("HTML instead of an image", "False"),
        site.page("/disguised", b"\n<!DOCTYPE html><p>gone"): ("HTML instead of an image", "False"),
        site.page("/loop", b"", status=302, Location="/loop"): ("redirect loop", "False"),
        site.page("/file", b"", status=302, Location="file:///etc/passwd"): ("bad URL or answer", "False"),
        site.page("/bomb", bomb.getvalue(), "image/png"): ("image of too many pixels", "False"),
        site.page("/large", b"x" * 200_000): ("file too large", "False"),
        site.page("/empty", b""): ("empty answer", "False"),
        site.page("/kept", jpeg(6), X_Robots_Tag="noindex, noai"): ("owner forbids use for AI", "False"),
        f"http://127.0.0.1:{closed_port}/x.jpg": ("cannot connect", "True"),
        "http:///x.jpg": ("bad URL or answer", "False"),
    }
    stored = [good, moved, site.url + "/flaky"]
    rows = [(f"caption {number}", url) for number, url in enumerate([*expected, *stored])]
    cc3m(tsv(rows, "--max_failed_fraction", "0.9", "--max_bytes", "100000"))

    assert failures(tmp_path) == expected
    reader = RecordReader(tmp_path / "out")
    assert [reader.image_id(row) for row in range(len(reader))] == stored  # in the file's order
    assert [reader.captions(row) for row in range(3)] == [[f"caption {number}"] for number in (16, 17, 18)]
    for row in range(3):
        with Image.open(io.BytesIO(reader.payload(row))) as image:
            assert (image.format, image.size) == ("JPEG", (32, 24))
    # Transient failures were tried again, the others were not, and no loop was followed for long.
    assert [site.asked[path] for path in ("/down", "/truncated", "/flaky", "/missing", "/bomb")] == [2, 2, 2, 1, 1]
    assert site.asked["/loop"] == 6
    assert "2 x HTML instead of an image" in caplog.text and "1 x HTTP 404" in caplog.text


def test_an_image_too_long_for_a_jpeg_ends_no_download(site, cc3m, tsv, tmp_path):
    long = io.BytesIO()
    Image.new("L", (70_000, 100)).save(long, "PNG")
    urls = [site.page("/long", long.getvalue(), "image/png"), site.page("/fine", jpeg(0))]
    cc3m(tsv([(url, url) for url in urls]))
    assert len(RecordReader(tmp_path / "out")) == 1
    assert failures(tmp_path)[urls[0]][0] == "image that cannot be stored as JPEG"


def test_images_are_made_smaller(site, cc3m, tsv, tmp_path):
    urls = [site.page("/wide", jpeg(0, 900, 600)), site.page("/small", jpeg(1, 40, 50))]
    rows = [(url, url) for url in urls]
    for side, sizes in (("shorter", [(300, 200), (40, 50)]), ("longer", [(200, 133), (40, 50)])):
        output = str(tmp_path / side)
        cc3m(tsv(rows, "--image_size", "200", "--resize_side", side, "--output", output))
        reader = RecordReader(output)
        images = [Image.open(io.BytesIO(reader.payload(row))) for row in range(2)]
        assert [image.size for image in images] == sizes


def test_stored_pixels_are_those_of_the_image_upright_and_on_white(site, cc3m, tsv, tmp_path):
    gradient = np.linspace(0, 255, 90 * 60 * 3).reshape(60, 90, 3).astype(np.uint8)
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(gradient).save(turned, "PNG", exif=exif)
    Image.new("RGBA", (30, 30), (9, 9, 9, 0)).save(clear, "PNG")
    urls = [site.page("/turned", turned.getvalue(), "image/png"), site.page("/clear", clear.getvalue(), "image/png")]
    cc3m(tsv([("a", urls[0]), ("b", urls[1])]))
    reader = RecordReader(tmp_path / "out")
    upright = np.asarray(Image.open(io.BytesIO(reader.payload(0)))).astype(int)
    assert np.abs(upright - np.rot90(gradient, -1).astype(int)).mean() < 4
    assert np.asarray(Image.open(io.BytesIO(reader.payload(1)))).min() > 250


def test_a_restart_fetches_only_what_is_missing(site, cc3m, tsv, tmp_path):
    urls = [site.page(f"/{number}", jpeg(number)) for number in range(6)]
    site.page("/1", b"", status=503)
    site.page("/2", b"", status=410)
    rows = [(f"caption {number}", url) for number, url in enumerate(urls)]
    with pytest.raises(ValueError, match=r"2 of 6 images \(33.3%\)[^$]*HTTP 503[^$]*HTTP 410"):
        cc3m(tsv(rows, "--max_failed_fraction", "0.1"))
    assert not (tmp_path / "out").exists() and len(failures(tmp_path)) == 2

    work = tmp_path / "out.downloads"
    site.page("/1", jpeg(1))
    lost = next((work / "images").rglob("*.jpg"))
    lost.unlink()
    with open(work / "journal.jsonl", "a") as file:
        file.write('{"url": "http://cut.off.in/the')  # a crash in the middle of a line
    site.asked.clear()
    cc3m(tsv(rows))
    assert sum(site.asked.values()) == 2 and site.asked["/1"] == 1 and site.asked["/2"] == 0
    assert len(RecordReader(tmp_path / "out")) == 5
    assert [url for url in failures(tmp_path)] == [urls[2]]

    site.page("/2", jpeg(2))
    site.asked.clear()
    cc3m(tsv(rows, "--retry_failed", "all", "--overwrite", "True"))
    assert dict(site.asked) == {"/2": 1}
    assert len(RecordReader(tmp_path / "out")) == 6
    assert not (tmp_path / "out.failures.csv").exists()

    site.asked.clear()
    cc3m(tsv(rows, "--overwrite", "True", "--limit", "3"))
    assert not site.asked and len(RecordReader(tmp_path / "out")) == 3


def test_a_killed_process_goes_on(site, cc3m, tsv, tmp_path):
    def page(number):
        def answer(handler):
            time.sleep(0.05)
            site.send(handler, jpeg(number))

        return answer

    site.pages |= {f"/{number}": page(number) for number in range(60)}
    flags = tsv([(f"caption {n}", f"{site.url}/{n}") for n in range(60)], "--concurrency", "2")
    # A fork has PyTorch already; a new process would import it for seconds.
    process = multiprocessing.get_context("fork").Process(target=cc3m, args=(flags,))
    process.start()
    while sum(site.asked.values()) < 20:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    before = sum(site.asked.values())
    assert before < 60 and not (tmp_path / "out").exists()
    cc3m(flags)
    assert sum(site.asked.values()) <= 62  # each of the two workers had one image that was not noted yet
    reader = RecordReader(tmp_path / "out")
    assert [reader.image_id(row) for row in range(60)] == [f"{site.url}/{n}" for n in range(60)]


def test_other_settings_need_another_work_folder(site, cc3m, tsv):
    rows = [("a", site.page("/a", jpeg(0)))]
    cc3m(tsv(rows))
    with pytest.raises(ValueError, match="fetched with .*256.* not with .*128.*--work"):
        cc3m(tsv(rows, "--image_size", "128", "--overwrite", "True"))


def test_a_damaged_journal_is_named(site, cc3m, tsv, tmp_path):
    rows = [("a", site.page("/a", jpeg(0)))]
    cc3m(tsv(rows))
    journal = tmp_path / "out.downloads" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"url"', '"lru"'))
    with pytest.raises(ValueError, match="journal.jsonl is damaged.*remove"):
        cc3m(tsv(rows, "--overwrite", "True"))


def test_captions_of_one_url_are_joined_and_exclude_is_not_fetched(site, cc3m, tsv, tmp_path, caplog):
    a, b = site.page("/a", jpeg(0)), site.page("/b", jpeg(1))
    cc3m(tsv([("one", a)], "--output", str(tmp_path / "val")))
    site.asked.clear()
    cc3m(tsv([("two", b), ("one", a), (" three ", b)], "--exclude", str(tmp_path / "val")))
    reader = RecordReader(tmp_path / "out")
    assert [reader.captions(row) for row in range(len(reader))] == [["two", "three"]]
    assert dict(site.asked) == {"/b": 1}
    assert f"1 x image of an --exclude dataset (left out): {a}" in caplog.text


def test_a_machine_without_a_network_is_told_so(cc3m, tsv, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    rows = [("a", f"http://127.0.0.1:{port}/{n}.jpg") for n in range(200)]
    with pytest.raises(ValueError, match="no host of the first 50 URLs can be reached.*offline"):
        cc3m(tsv(rows, "--concurrency", "4"))
    lines = (tmp_path / "out.downloads" / "journal.jsonl").read_text().splitlines()
    assert 50 <= len(lines) - 1 < 60
    assert json.loads(lines[1])["transient"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"http://x/1.jpg\ta dog\n", "1 of 1 lines are not caption<TAB>URL, the first of them line 1"),
        (b"a dog\thttp://x/1.jpg\textra\n", "not caption<TAB>URL"),
        ("ein Hündchen\thttp://x/1.jpg\n".encode("latin-1"), "not UTF-8.*iconv -f LATIN1"),
        ("a dog\thttp://x/1.jpg\n".encode("utf-16"), "looks like UTF-16"),
    ],
)
def test_files_of_another_kind(cc3m, tsv, tmp_path, content, message):
    flags = tsv([])
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        cc3m(flags)
    assert not (tmp_path / "out.downloads").exists()


@pytest.mark.realdata
def test_the_real_validation_file_parses(shared_data, scripts_on_path):
    from _common.problems import Problems
    from cc3m import read_rows

    problems = Problems(0.5)
    rows = read_rows(shared_data / "cc3m_sample" / "Validation_GCC-1.1.0-Validation.tsv", problems)
    assert len(rows) == 15_833 and not problems.counts  # that data's README gives 15,833 rows
    assert next(iter(rows.values())) == ["author : a life in photography -- in pictures"]
    assert all(len(captions) == 1 and captions[0].strip() for captions in rows.values())


def test_what_a_killed_download_left_is_removed_by_the_next(cc3m, tmp_path):
    from _common.journal import Journal

    left = tmp_path / "work" / "images" / "ab" / "abcd.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    other = left.with_name("notes.txt")
    other.write_text("of somebody")
    Journal(tmp_path / "work", {"a": 1}).close()
    assert not left.exists() and other.exists()
    journal = Journal(tmp_path / "work", {"a": 1})
    left.write_bytes(b"being written")
    with pytest.raises(ValueError, match="is in use by"):
        Journal(tmp_path / "work", {"a": 1})
    journal.close()
    assert left.exists(), "of a live writer, who holds the lock"
