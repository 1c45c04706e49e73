"""What an image is, and how large: decided before a pixel is decoded, and before any program is started."""

import io
import struct
import subprocess
import zlib

import pytest
from PIL import Image

from bitgen.model.image_decoding import TOO_LARGE, UNDECODABLE, ImageError, decode_image
from bitgen.model.processing_bitgen import BitGenProcessor
from support.data import encode

MOST = 1_000_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def png(*headers: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(headers) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def icon(picture: bytes) -> bytes:
    """An icon that declares one picture of 16 x 16."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def tiff(width: int, height: int, tile: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 400, 325: 100}
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(400, b"\0") + b"\0" * 100


def changed(content: bytes, mark: bytes, offset: int, layout: str, *values: int) -> bytes:
    """``content`` with other numbers behind the first ``mark``."""
    found = bytearray(content)
    struct.pack_into(layout, found, content.index(mark) + offset, *values)
    return bytes(found)


SMALL = Image.new("RGB", (8, 8))
BOMBS = {
    "PNG": png(header(12_000, 12_000)),
    "PNG that declares two sizes": png(header(8, 8), header(12_000, 12_000)),
    "PNG in an icon": icon(png(header(5000, 5000))),
    "bitmap in an icon": icon(struct.pack("<IiiHHIIiiII", 40, 5000, 10_000, 1, 8, 1, 10, 0, 0, 0, 0) + bytes(2000)),
    "GIF's first frame": changed(encode(SMALL.convert("P"), "GIF"), b"\x2c", 1, "<HHHH", 0, 0, 30_000, 3000),
    "TIFF": tiff(5000, 5000, 64),
    "tile of a TIFF": tiff(64, 64, 40_000),
    "TGA": changed(encode(SMALL, "TGA", compression="tga_rle"), b"\0", 12, "<HH", 5000, 5000),
    "PPM": b"P6 5000 5000 255\n",
    "JPEG 2000": changed(encode(SMALL, "JPEG2000"), b"ihdr", 4, ">II", 5000, 5000),
    "WebP": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + b"\x87\x13\0" * 2,
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.filterwarnings("ignore:Image size")
def test_nothing_larger_than_the_limit_is_decoded(kind, monkeypatch):
    monkeypatch.setattr(Image, "_getdecoder", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError) as caught:
        decode_image(BOMBS[kind], "bomb", MOST)
    assert caught.value.reason == (UNDECODABLE if kind == "WebP" else TOO_LARGE)  # WebP's decoder wants a whole file


@pytest.mark.parametrize("options", [{}, {"bitmap_format": "bmp"}])
def test_icons_within_the_limit_are_decoded(options):
    content = encode(Image.new("RGBA", (32, 32), (255, 0, 0, 255)), "ICO", sizes=[(16, 16), (32, 32)], **options)
    pixels = decode_image(content, "icon", 32 * 64)
    assert pixels.shape == (3, 32, 32) and pixels[:, 5, 5].tolist() == [255, 0, 0]


def test_an_icon_of_very_many_pictures_is_refused():
    entries = b"".join(struct.pack("<BBBBHHII", 1, 1, 0, 0, 1, 32, 9, number) for number in range(200))
    with pytest.raises(ImageError, match="an icon of 200 pictures"):
        decode_image(b"\0\0\1\0" + struct.pack("<H", 200) + entries, "icon")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A stand-in for Ghostscript first on PATH; gives the file that it writes when it is started."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> \'{started}\'\n[ "$1" = --version ] && echo 10.0\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    return started


def test_postscript_never_reaches_ghostscript(ghostscript):
    with pytest.raises(subprocess.CalledProcessError):
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert ghostscript.exists()  # so it would without the door
    ghostscript.unlink()
    for content in (POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT):
        with pytest.raises(ImageError, match="it is none of JPEG, PNG") as caught:
            BitGenProcessor(None, 16).image(content, "page.jpg")
        assert caught.value.reason == UNDECODABLE
    assert not ghostscript.exists()
