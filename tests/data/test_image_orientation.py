"""One rule of orientation, whoever decodes: a photo is upright at every image_size, with TorchCodec and without."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bitgen.model import image_decoding
from bitgen.model.image_decoding import decode_image
from bitgen.model.processing_bitgen import BitGenProcessor, View
from support.data import encode
from support.runs import REPOSITORY

XMP = b"http://ns.adobe.com/xap/1.0/\0"


def segment(body: bytes, marker: int = 0xE1) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def tag(kind: int, value: bytes, count: int = 1, number: int = 0x0112) -> bytes:
    return struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")


def exif(*tags: bytes, prefix: bytes = b"Exif\0\0", after: bytes = b"") -> bytes:
    body = prefix + b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + struct.pack("<I", 0) + after
    return segment(body)


def short(orientation: int) -> bytes:
    return tag(3, struct.pack("<H", orientation))


def xmp(text: str) -> bytes:
    return segment(XMP + f"<x:xmpmeta xmlns:x='adobe:ns:meta/' {text}/>".encode())


# What stands between the start of the file and its pixels, and how the picture is to be seen: 1 is as it is stored.
METADATA = {
    **{f"orientation {number}": (exif(short(number)), number) for number in range(1, 9)},
    "no number from 1 to 8": (exif(short(9)), 1),
    "zero": (exif(short(0)), 1),
    "XMP before EXIF": (xmp("") + exif(short(6)), 6),
    "another segment before EXIF": (segment(b"Ducky", 0xEC) + exif(short(6)), 6),
    "EXIF twice": (exif(short(6)) + xmp("") + segment(b"Exif\0\0"), 6),
    "orientation in XMP alone": (xmp('tiff:Orientation="6"'), 6),
    "as ASCII": (exif(tag(2, b"6\0")), 1),
    "as BYTE": (exif(tag(1, b"\6")), 1),
    "as LONG": (exif(tag(4, struct.pack("<I", 6))), 6),
    "as two numbers": (exif(tag(3, struct.pack("<HH", 6, 6), count=2)), None),
    "of an unknown type": (exif(tag(99, struct.pack("<H", 6))), 1),
    "after a tag of an unknown type": (exif(tag(99, b"", number=0x0100), short(6)), 6),
    "after a rational that points nowhere": (exif(tag(5, struct.pack("<I", 9999), number=0x011A), short(6)), None),
    "a prefix that is almost EXIF's": (exif(short(6), prefix=b"Exif\0\xff"), 1),
    "EXIF that is cut off": (segment(b"Exif\0\0II*\0\x08"), 1),
}


def photo(metadata: bytes, width: int, height: int) -> bytes:
    """A picture whose four quarters differ, with these segments after the start of the file."""
    quarters = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], dtype=np.uint8)
    image = Image.fromarray(quarters).resize((width, height), Image.Resampling.NEAREST)
    content = encode(image, "JPEG", quality=95)
    return content[:2] + metadata + content[2:]


def turned(content: bytes, orientation: int | None) -> Image.Image:
    """The picture as it is to be seen; ``None``: as Pillow says."""
    opened = Image.open(io.BytesIO(content))
    if orientation is None:
        return ImageOps.exif_transpose(opened).convert("RGB")
    methods = (None, 0, 3, 1, 5, 4, 6, 2)  # of Image.Transpose, for 1 to 8
    method = methods[orientation - 1]
    image = opened.convert("RGB")
    return image if method is None else image.transpose(method)


@pytest.mark.parametrize("torchcodec", [True, False])
@pytest.mark.parametrize(("width", "height"), [(80, 60), (400, 300), (1600, 1200)])
@pytest.mark.parametrize("case", METADATA)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
def test_a_photo_is_upright_at_every_size(case, width, height, torchcodec, monkeypatch):
    if not torchcodec:
        monkeypatch.setattr(image_decoding, "decode_jpeg", None)
    metadata, orientation = METADATA[case]
    content = photo(metadata, width, height)
    upright = np.asarray(turned(content, orientation)).astype(int)
    assert np.abs(decode_image(content).permute(1, 2, 0).numpy() - upright).mean() < 2
    for size in (32, 224):
        seen = decode_image(content, enough=(size, size)).permute(1, 2, 0).numpy()
        small = np.asarray(Image.fromarray(upright.astype(np.uint8)).resize(seen.shape[1::-1])).astype(int)
        assert np.abs(seen - small).mean() < 3, size


def test_damaged_metadata_is_passed_over_in_silence(tmp_path):
    """In a process of its own, for pytest sets filters too; other warnings are shown as before."""
    damaged = exif(tag(2, struct.pack("<I", 10**6), count=500, number=0x010E), short(6))
    for name, metadata in (("value", damaged), ("cut", exif(short(6))[:-8]), ("empty", segment(b"Exif\0\0II*\0"))):
        (tmp_path / f"{name}.jpg").write_bytes(photo(metadata, 80, 60))
    program = (
        "import pathlib, sys, warnings, PIL.Image, io\n"
        "contents = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).glob('*.jpg'))]\n"
        "with warnings.catch_warnings(record=True) as before:\n"
        "    warnings.simplefilter('always')\n"
        "    for content in contents: PIL.Image.open(io.BytesIO(content)).getexif()\n"
        "assert before\n"
        "from bitgen.model.image_decoding import decode_image\n"
        "for content in contents: print(tuple(decode_image(content).shape))\n"
        "warnings.warn('of somebody else')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "EXIF" not in done.stderr and done.stderr.count("Warning") == 1 and "of somebody else" in done.stderr


@pytest.mark.parametrize("case", ["orientation 6", "XMP before EXIF", "orientation in XMP alone"])
def test_one_photo_seen_whole_and_through_a_crop_is_turned_alike(case):
    content = photo(METADATA[case][0], 1000, 750)
    for size in (112, 180, 224):
        whole, crop = (BitGenProcessor(None, size).image(content, view=View(box)) for box in
                       ((0, 0, 1, 1), (0.1, 0.1, 0.9, 0.9)))  # fmt: skip
        assert (whole - crop).abs().mean() < 0.3  # lying on its side it differs by more than 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_other_formats_are_turned_once(kind, orientation):
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    plain = Image.open(io.BytesIO(photo(b"", 40, 30)))
    seen = decode_image(encode(plain, kind, exif=metadata))
    upright = turned(photo(b"", 40, 30), orientation)
    assert (seen.float() - torch.from_numpy(np.array(upright)).permute(2, 0, 1)).abs().mean() < 8


def test_unusual_layouts_of_a_jpeg_are_decoded_all_the_same():
    whole = photo(exif(short(6)), 80, 60)
    expected = decode_image(whole).float()
    for content in (
        whole[:2] + b"\xff" + whole[2:],  # a byte of filling before a marker
        whole[:2] + segment(b"\xff\xda comment", 0xFE) + whole[2:],
    ):
        assert (decode_image(content) - expected).abs().mean() < 1


def test_a_jpeg_without_its_mark_of_the_end_is_refused():
    with pytest.raises(ValueError, match="cannot be read as an image"):
        decode_image(photo(exif(short(6)), 80, 60)[:-2])
