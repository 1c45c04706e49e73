"""babylm_multimodal.py on small files of the published form, and its download from a server that mimics OSF."""

import hashlib
import json

import numpy as np
import pytest

from bitgen.data.records import RecordReader

LISTING = "/v2/nodes/ad7qg/files/osfstorage/6603014bb3a1e301127dfa59/"


@pytest.fixture
def babylm(script):
    return script("babylm_multimodal")


class Files:
    """Conceptual Captions' three files for nine images, in memory until :meth:`save`."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.rows = np.random.default_rng(0).normal(size=(9, 768)).astype(np.float32)
        self.captions: list = [f"caption {row}" for row in range(9)]

    def content(self) -> dict[str, bytes]:
        """Name and bytes of each file."""
        self.folder.mkdir(exist_ok=True)
        for name, rows in (("1of2", self.rows[:5]), ("2of2", self.rows[5:])):
            np.save(self.folder / f"cc_3M_dino_v2_states_{name}.npy", rows)
        (self.folder / "cc_3M_captions.json").write_text(json.dumps(self.captions), encoding="utf-8")
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def flags(self, *more: str) -> list[str]:
        return ["--part", "cc_3M", "--folder", str(self.folder), "--output", str(self.folder.parent / "out"), *more]

    def save(self, *more: str) -> list[str]:
        self.content()
        return self.flags(*more)

    def reader(self) -> RecordReader:
        return RecordReader(self.folder.parent / "out")


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path / "babylm")


def test_halves_are_joined_row_by_row(files, babylm):
    files.captions[2] = {"caption": "a dict", "image_id": 7}
    babylm(files.save())
    reader = files.reader()
    assert (reader.info.feature_shape, reader.info.feature_dtype) == ((1, 768), "float32")
    assert [record.captions for record in reader] == [
        ["a dict"] if row == 2 else [f"caption {row}"] for row in range(9)
    ]
    for row in range(9):
        assert reader.image_id(row) == f"cc_3M-{row:07d}"
        np.testing.assert_array_equal(reader.info.dequantize(reader.payload(row)), files.rows[row : row + 1])
    babylm(files.flags("--limit", "6", "--overwrite", "True"))
    assert len(files.reader()) == 6


def test_local_narratives_are_one_file(files, babylm, tmp_path):
    files.folder.mkdir()
    np.save(files.folder / "local_narr_dino_v2_states.npy", files.rows.astype(np.float16))
    (files.folder / "local_narr_captions.json").write_text(json.dumps(files.captions))
    babylm(["--part", "local_narr", "--folder", str(files.folder), "--output", str(tmp_path / "out")])
    reader = files.reader()
    assert reader.info.feature_dtype == "float16" and reader.image_id(8) == "local_narr-0000008"
    np.testing.assert_array_equal(reader.info.dequantize(reader.payload(8))[0], files.rows[8].astype(np.float16))


def test_rows_of_one_image_are_joined(files, babylm, caplog):
    files.rows[7] = files.rows[1]  # in the other half
    files.rows[8] = files.rows[1]
    files.captions[8] = "caption 1"
    babylm(files.save())
    reader = files.reader()
    assert [record.image_id[-1] for record in reader] == list("0123456")
    assert reader.captions(1) == ["caption 1", "caption 7", "caption 1"]
    assert "2 x row with the vector of an earlier row (joined with it): 7, 8" in caplog.text
    assert "1 x duplicate caption of the same image (kept): cc_3M-0000001" in caplog.text


def test_empty_captions_and_damaged_rows_are_counted(files, babylm, caplog):
    files.captions[3] = "  "
    files.rows[6, 5] = np.nan
    files.rows[0, 0] = -np.inf
    flags = files.save()
    with pytest.raises(ValueError, match=r"of 9 images[^$]*image without a caption: cc_3M-0000003"):
        babylm(flags)
    babylm([*flags, "--max_failed_fraction", "0.5"])
    assert [record.image_id[-1] for record in files.reader()] == list("124578")
    assert "2 x features with NaN or infinite values: cc_3M-0000000 (row 0), cc_3M-0000006 (row 1)" in caplog.text


@pytest.mark.parametrize("count", [8, 10])
def test_lengths_must_match(files, babylm, count):
    files.captions = [f"caption {row}" for row in range(count)]
    with pytest.raises(ValueError, match=f"has {count} captions but the states have 9 rows; they must match"):
        babylm(files.save())


def test_files_that_do_not_fit(files, babylm):
    flags = files.save()
    first, second = (files.folder / f"cc_3M_dino_v2_states_{name}.npy" for name in ("1of2", "2of2"))
    np.save(second, files.rows[5:, :384])
    with pytest.raises(ValueError, match="rows of 384, but .*1of2.npy float32 rows of 768; they are not pieces"):
        babylm(flags)
    np.save(second, files.rows[5:].astype(np.int8))
    with pytest.raises(ValueError, match=r"2of2.npy holds int8 \[4, 768\]; it must hold floats"):
        babylm(flags)
    second.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(ValueError, match="2of2.npy is not a readable .npy array"):
        babylm(flags)
    second.unlink()
    with pytest.raises(ValueError, match="lacks a piece of the cc_3M states: it has cc_3M_dino_v2_states_1of2.npy"):
        babylm(flags)
    first.unlink()
    with pytest.raises(ValueError, match="has no cc_3M_dino_v2_states.*--download True"):
        babylm(flags)
    (files.folder / "cc_3M_captions.json").unlink()
    with pytest.raises(ValueError, match="has no cc_3M_captions.json; --download True"):
        babylm(flags)


@pytest.mark.parametrize(
    ("captions", "message"),
    [({"a": 1}, "must hold a JSON list"), ([], "not an empty one"), (["a", 3], "entry 1 is neither a string")],
)
def test_captions_of_another_kind(files, babylm, captions, message):
    files.captions = captions
    with pytest.raises(ValueError, match=message):
        babylm(files.save())


# ---------------------------------------------------------------- download


class Osf:
    """A server with OSF's listing (two pages, and files in a folder) and downloads behind a redirect, by range."""

    def __init__(self, site, content: dict[str, bytes], monkeypatch) -> None:
        self.site, self.content = site, content
        self.cut: dict[str, int] = {}  # name: the connection ends after so many bytes, once
        self.hashes = {
            name: {"md5": hashlib.md5(body).hexdigest(), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in content.items()
        }
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        self.write_listing()
        for name in content:
            site.page(f"/download/{name}/", b"", status=302, Location=f"/storage/{name}")
            site.pages[f"/storage/{name}"] = lambda handler, name=name: self.storage(handler, name)

    def write_listing(self) -> None:
        """Writes the listing."""
        site, (first, *others) = self.site, self.content
        folder = {
            "attributes": {"name": "more", "kind": "folder"},
            "relationships": {"files": {"links": {"related": {"href": f"{site.url}/folder"}}}},
        }
        pages = {
            LISTING: ([self.entry(first), folder], f"{site.url}/page2"),
            "/page2": ([self.entry(others[0])], None),
            "/folder": ([self.entry(name) for name in others[1:]], None),
        }
        for path, (data, following) in pages.items():
            body = json.dumps({"data": data, "links": {"next": following}}).encode()
            site.page(path, body, "application/vnd.api+json")

    def entry(self, name: str) -> dict:
        extra = {"hashes": self.hashes[name], "downloads": 3}
        attributes = {"name": name, "kind": "file", "size": len(self.content[name]), "extra": extra}
        return {"id": name, "attributes": attributes, "links": {"download": f"{self.site.url}/download/{name}/"}}

    def storage(self, handler, name: str) -> None:
        body, asked = self.content[name], handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if asked else {}
        end = self.cut.pop(name, len(body))
        length = str(len(body) - start)
        self.site.send(handler, body[start:end], status=206 if asked else 200, Content_Length=length, **headers)

    def flags(self) -> list[str]:
        return ["--download", "True", "--osf_api", f"{self.site.url}/v2"]


@pytest.fixture
def osf(site, files, monkeypatch) -> Osf:
    content = files.content()
    for name in content:
        (files.folder / name).unlink()
    content["local_narr_captions.json"] = b"[]"
    return Osf(site, content, monkeypatch)


FIRST = "cc_3M_dino_v2_states_1of2.npy"


def test_download_verifies_and_happens_once(osf, files, babylm):
    babylm(files.flags(*osf.flags()))
    assert len(files.reader()) == 9
    found = {path.name: path.read_bytes() for path in files.folder.iterdir()}
    assert found == {name: body for name, body in osf.content.items() if name.startswith("cc_3M")}
    osf.site.asked.clear()
    babylm(files.flags(*osf.flags(), "--overwrite", "True"))
    assert not any(path.startswith("/download") for path in osf.site.asked)


def test_a_broken_connection_is_resumed_by_range(osf, files, babylm):
    osf.cut[FIRST] = 5000
    babylm(files.flags(*osf.flags()))
    assert "bytes=5000-" in osf.site.ranges and osf.site.asked[f"/storage/{FIRST}"] == 2
    assert (files.folder / FIRST).read_bytes() == osf.content[FIRST]


def test_a_restart_goes_on_from_the_part(osf, files, babylm):
    (files.folder / f"{FIRST}.part").write_bytes(osf.content[FIRST][:7000])
    babylm(files.flags(*osf.flags()))
    assert "bytes=7000-" in osf.site.ranges
    assert (files.folder / FIRST).read_bytes() == osf.content[FIRST]


def test_a_server_without_ranges_sends_everything_again(osf, files, babylm):
    (files.folder / f"{FIRST}.part").write_bytes(b"?" * 7000)
    osf.site.page(f"/storage/{FIRST}", osf.content[FIRST])
    babylm(files.flags(*osf.flags()))
    assert (files.folder / FIRST).read_bytes() == osf.content[FIRST]


def test_a_damaged_part_is_downloaded_anew(osf, files, babylm, caplog):
    (files.folder / f"{FIRST}.part").write_bytes(b"?" * len(osf.content[FIRST]))
    babylm(files.flags(*osf.flags()))
    assert f"{FIRST}: sha256" in caplog.text and "downloading it anew" in caplog.text
    assert (files.folder / FIRST).read_bytes() == osf.content[FIRST]


def test_damage_on_the_server_stops(osf, files, babylm):
    osf.content[FIRST] = b"!" + osf.content[FIRST][1:]
    with pytest.raises(ValueError, match="arrives damaged twice .sha256"):
        babylm(files.flags(*osf.flags()))
    assert not (files.folder / FIRST).exists() and not (files.folder / f"{FIRST}.part").exists()


def test_a_listing_with_other_checksums(osf, files, babylm, caplog):
    for hashes in osf.hashes.values():
        del hashes["sha256"]
    osf.hashes["cc_3M_captions.json"].clear()
    osf.write_listing()
    osf.content[FIRST] = b"!" + osf.content[FIRST][1:]
    with pytest.raises(ValueError, match="arrives damaged twice .md5"):
        babylm(files.flags(*osf.flags()))
    assert "cc_3M_captions.json: the server gives no checksum; only the size was compared" in caplog.text


def test_servers_that_fail(osf, files, babylm):
    osf.site.page(f"/storage/{FIRST}", b"", status=503)
    (files.folder / f"{FIRST}.part").write_bytes(osf.content[FIRST][:100])
    with pytest.raises(ValueError, match=r"HTTP 503\); 100 of \d+ bytes are kept in .*goes on from there"):
        babylm(files.flags(*osf.flags()))
    osf.site.page(f"/storage/{FIRST}", b"", status=404)
    with pytest.raises(ValueError, match="cannot download .*HTTP 404"):
        babylm(files.flags(*osf.flags()))
    (files.folder / FIRST).write_bytes(b"short")
    with pytest.raises(ValueError, match=r"1of2.npy has 5 bytes, not \d+ as on the server; remove it"):
        babylm(files.flags(*osf.flags()))
    osf.site.page("/page2", json.dumps({"data": [{"id": 1}], "links": {}}).encode())
    with pytest.raises(ValueError, match="page2 is not a listing of files as OSF writes them"):
        babylm(files.flags(*osf.flags()))
    osf.site.page(LISTING, b'{"data": [], "links": {"next": null}}')
    with pytest.raises(ValueError, match=r"OSF lists no captions or no states of cc_3M, but \[\]"):
        babylm(files.flags(*osf.flags()))
    osf.site.page(LISTING, b"", status=500)
    with pytest.raises(ValueError, match="cannot read .*HTTP 500.*online"):
        babylm(files.flags(*osf.flags()))
