"""The fast paths of decoding against Pillow's full decode and antialiased resize; what is refused before decoding."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.model import image_decoding
from bitgen.model.image_decoding import TOO_LARGE, UNDECODABLE, ImageError, decode_image
from bitgen.model.processing_bitgen import WHOLE, BitGenProcessor, View
from support.data import encode

STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def jpeg(width: int, height: int, mode: str = "RGB", **options) -> bytes:
    """A picture with detail at many scales: sums of waves, not noise, which no camera sees."""
    y, x = np.mgrid[0:height, 0:width] / 100
    waves = [np.sin(x * 2**k + k) * np.cos(y * 1.7**k) / (k + 1) for k in range(6)]
    pixels = np.stack([sum(waves), sum(waves[::2]), sum(waves[1::2])], axis=-1)
    image = Image.fromarray(np.uint8(127 + 60 * np.clip(pixels, -2, 2))).convert(mode)
    return encode(image, "JPEG", quality=90, **options)


def by_pillow(data: bytes, size: int, box=None) -> torch.Tensor:
    """Grey levels [3, size, size] of the plain way: full decode, then Pillow's own antialiased resize."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))).permute(2, 0, 1)


def grey_levels(processor: BitGenProcessor, data: bytes, view: View = WHOLE) -> torch.Tensor:
    mean = torch.tensor(processor.image_mean)[:, None, None]
    return (processor.image(data, view=view) * STD + mean) * 255


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (500, 375), (100, 80), (1000, 900), (2000, 250)])
def test_jpegs_are_what_pillow_makes_of_them(width, height, mode):
    data = jpeg(width, height, mode)
    difference = (grey_levels(BitGenProcessor(None, 224), data) - by_pillow(data, 224)).abs()
    reduced = min(width, height) >= 4 * 224
    assert difference.mean() < (0.5 if reduced else 0.1)


def test_much_larger_jpegs_are_decoded_reduced_but_never_below_twice_the_need():
    for width, height, enough, expected in (
        (1000, 800, (100, 100), (250, 200)),
        (1000, 800, (50, 50), (125, 100)),
        (1000, 800, (200, 200), (500, 400)),
        (1000, 800, (201, 201), (1000, 800)),
        (1000, 100, (100, 100), (1000, 100)),
    ):
        assert decode_image(jpeg(width, height), enough=enough).shape == (3, *expected[::-1])
    assert decode_image(jpeg(1000, 800)).shape == (3, 800, 1000)
    # A crop needs more of what is left of the image.
    view = View((0.25, 0.25, 0.5, 0.5))
    data = jpeg(1600, 1600)
    found = grey_levels(BitGenProcessor(None, 100), data, view)
    assert (found - by_pillow(data, 100, box=(400, 400, 800, 800))).abs().mean() < 1


def test_rotated_jpegs_are_reduced_in_their_own_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(1200, 400, exif=exif)
    assert decode_image(data, enough=(100, 300)).shape == (3, 600, 200)
    assert decode_image(data, enough=(300, 100)).shape == (3, 1200, 400)
    assert decode_image(data).shape == (3, 1200, 400)
    found = grey_levels(BitGenProcessor(None, 64), data)
    assert (found - by_pillow(data, 64)).abs().mean() < 0.5


def test_without_torchcodec_pillow_decodes(monkeypatch):
    data = jpeg(300, 200)
    fast = decode_image(data)
    monkeypatch.setattr(image_decoding, "decode_jpeg", None)
    assert (decode_image(data).float() - fast.float()).abs().mean() < 0.1


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares its size and holds next to nothing: what unpacks to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_image_bombs_are_refused_before_decoding(monkeypatch):
    photograph = jpeg(64, 48)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width, height in ((8000, 8000), (30000, 30000)):  # the second beyond Pillow's own limit
        with pytest.raises(ImageError, match="bomb.png") as caught:
            BitGenProcessor(None, 8).image(png_header(width, height), "bomb.png")
        assert caught.value.reason == TOO_LARGE
    with pytest.raises(ImageError, match=r"64 x 48 = 3,072 pixels, more than max_image_pixels 3,000"):
        BitGenProcessor(None, 8, max_image_pixels=3000).image(photograph)
    monkeypatch.undo()
    assert BitGenProcessor(None, 8, max_image_pixels=3072).image(photograph).shape == (3, 8, 8)


def test_formats_that_run_programs_are_no_images():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n%%EOF\n"
    with pytest.raises(ImageError, match="cannot be read as an image") as caught:
        decode_image(script, "page.eps")
    assert caught.value.reason == UNDECODABLE


@pytest.mark.realdata
def test_coco_jpegs_are_decoded_as_pillow_does(shared_data):
    processor = BitGenProcessor(None, 224)
    folder = shared_data / "coco_sample"
    names = [image["file_name"] for image in json.loads((folder / "captions_val2017.json").read_text())["images"]]
    differences = []
    for name in names[:24]:
        data = (folder / "val2017" / name).read_bytes()
        differences.append((grey_levels(processor, data) - by_pillow(data, 224)).abs().mean().item())
    assert len(differences) == 24 and max(differences) < 0.3 and np.mean(differences) < 0.05
