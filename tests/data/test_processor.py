"""The processor against an independent computation: torchvision's antialiased resize and plain arithmetic."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from bitgen.model.image_decoding import decode_image
from bitgen.model.processing_bitgen import BitGenProcessor, View
from support.data import encode

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
SIZE = 16


def smooth(channels: int, height: int = 40, width: int = 60) -> np.ndarray:
    """uint8 [H, W, channels] without detail finer than the target grid, each channel another ramp."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = [x / width, y / height, (x + y) / (width + height), 1 - x / width]
    return (np.stack(ramps[:channels], axis=-1) * 255).astype(np.uint8)


def expected(rgb: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] -> resized, in [0, 1], normalised once; all in float32."""
    pixels = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255
    pixels = F.resize(pixels, [SIZE, SIZE], interpolation=F.InterpolationMode.BICUBIC, antialias=True)
    return (pixels.clamp(0, 1) - MEAN) / STD  # a cubic overshoots at edges; an image file cannot hold that


def check(source: Image.Image | bytes, rgb: np.ndarray, tolerance: float = 3.0) -> None:
    """Equal within ``tolerance`` of 255 grey levels."""
    found = BitGenProcessor(None, SIZE).images([source])[0]
    assert found.dtype == torch.float32 and found.shape == (3, SIZE, SIZE)
    difference = ((found - expected(rgb)) * STD * 255).abs().max()
    assert difference <= tolerance, f"{difference:.1f} grey levels off"


def test_rgb_is_resized_with_antialiasing_and_normalised_once():
    rgb = smooth(3)
    check(Image.fromarray(rgb), rgb, 1.5)
    check(encode(Image.fromarray(rgb)), rgb, 1.5)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    check(encode(Image.fromarray(noise)), noise, 2.0)  # plain interpolation is far off


def test_an_imagenet_mean_image_becomes_zero_and_white_the_known_values():
    mean = np.broadcast_to(np.array([124, 116, 104], dtype=np.uint8), (5, 7, 3))
    assert BitGenProcessor(None, SIZE).images([Image.fromarray(mean.copy())]).abs().max() < 0.02
    white = BitGenProcessor(None, SIZE).image(Image.new("RGB", (3, 3), "white"))
    torch.testing.assert_close(white[:, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)


def test_whole_image_without_crop():
    rgb = np.zeros((32, 320, 3), dtype=np.uint8)
    rgb[:, :80] = 255
    pixels = BitGenProcessor(None, SIZE).image(Image.fromarray(rgb))
    assert (pixels[0, :, :3] > 2).all() and (pixels[0, :, 5:] < -2).all()


def test_transparency_is_laid_on_white():
    rgb, alpha = smooth(3).astype(np.float64), smooth(4)[..., 3:].astype(np.float64) / 255
    on_white = np.round(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)
    rgba = np.concatenate([smooth(3), smooth(4)[..., 3:]], axis=-1)
    check(encode(Image.fromarray(rgba)), on_white, 2.0)
    grey = smooth(1)[..., 0]
    grey_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(smooth(4)[..., 3])])
    on_white = np.round(grey[..., None] * alpha + 255 * (1 - alpha)).astype(np.uint8).repeat(3, axis=-1)
    check(encode(grey_alpha), on_white, 2.0)


def test_grey_and_bilevel():
    grey = smooth(1)
    check(encode(Image.fromarray(grey[..., 0])), grey.repeat(3, axis=-1), 1.5)
    bits = np.zeros((32, 32), dtype=np.uint8)
    bits[:, 16:] = 255
    check(encode(Image.fromarray(bits).convert("1")), bits[..., None].repeat(3, axis=-1), 1.5)


def test_palette_and_transparent_palette():
    levels = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 20, axis=0), 20, axis=1)
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [90, 60, 30]], dtype=np.uint8)
    image = Image.fromarray(levels)
    image = image.convert("P")
    image.putdata(levels.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    check(encode(image), colours[levels], 1.5)
    see_through = colours.copy()
    see_through[3] = 255
    # Pillow rounds and clips between its two passes, where three corners of white meet: hence the wider tolerance.
    check(encode(image, transparency=3), see_through[levels], 3.0)


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = (smooth(1)[..., 0].astype(np.uint32) * 257).astype(np.uint16)
    check(encode(Image.fromarray(values)), smooth(1).repeat(3, axis=-1), 1.5)
    check(encode(Image.fromarray(values), "TIFF"), smooth(1).repeat(3, axis=-1), 1.5)
    check(Image.fromarray(values.astype(np.int32)), smooth(1).repeat(3, axis=-1), 1.5)


def test_whole_numbers_of_other_ranges_are_refused_and_not_black():
    values = smooth(1)[..., 0]
    for kind in (np.int32, np.uint32, np.int16):
        file = tagged_tiff(values.astype(kind))
        assert Image.open(io.BytesIO(file)).mode.startswith("I")
        with pytest.raises(ValueError, match="no defined range"):
            decode_image(file, "scan.tif")


def tagged_tiff(values: np.ndarray) -> bytes:
    """A grey TIFF of these numbers, written by hand: Pillow writes no signed ones."""
    height, width = values.shape
    sign = 2 if values.dtype.kind == "i" else 1
    entries = [(256, width), (257, height), (258, values.itemsize * 8), (259, 1), (262, 1), (273, 134), (277, 1)]
    entries += [(278, height), (279, values.nbytes), (339, sign)]
    longs = (256, 257, 273, 278, 279)
    body = b"".join(struct.pack("<HHII", tag, 4 if tag in longs else 3, 1, value) for tag, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", 0) + values.tobytes()


def test_transparent_16_bit_grey_is_laid_on_white():
    values = (smooth(1)[..., 0].astype(np.uint32) * 257).astype(np.uint16)
    seen = np.where(values == 0, 255, smooth(1)[..., 0]).astype(np.uint8)
    values[:20], seen[:20] = 0, 255
    check(encode(Image.fromarray(values), transparency=0), seen[..., None].repeat(3, axis=-1), 3.0)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (200_000, 1)])
def test_a_thin_image_fills_no_memory(fit, size):
    """Filled up to a square, or to the shorter side, it would take gigabytes."""
    processor = BitGenProcessor(None, 224, image_fit=fit, image_shortest=256 if fit == "crop" else None)
    row = np.arange(max(size), dtype=np.uint32) % 251
    image = Image.fromarray(row.astype(np.uint8).reshape(size[::-1]))
    assert max(size) < 50_000 or max(size) ** 2 > processor.max_image_pixels
    resized = []

    def look(pixels, size, *arguments, **options):
        out = resize(pixels, size, *arguments, **options)
        resized.append(out.numel())
        return out

    resize = v2.functional.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v2.functional, "resize", look)
        pixels = processor.image(image)
    assert pixels.shape == (3, 224, 224) and max(resized) < 4 * processor.max_image_pixels


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_what_is_seen_of_a_thin_image_is_what_would_be_seen(fit):
    """The same picture with and without the limit that it would exceed."""
    waves = 127 + 120 * np.sin(np.arange(700) / 20)[None, :, None] * np.linspace(0.5, 1, 12)[:, None, None]
    image = Image.fromarray(waves.repeat(3, axis=2).astype(np.uint8))
    whole, limited = (
        BitGenProcessor(None, 32, image_fit=fit, image_shortest=40 if fit == "crop" else None, max_image_pixels=most)
        for most in (50_000_000, 20_000)
    )
    expected, found = whole.image(image), limited.image(image)
    # Resized before it is laid on the square, rows between picture and edge differ.
    close = (expected - found).abs() < 0.2
    assert close.float().mean() > (0.97 if fit == "crop" else 0.9)


def test_cmyk_jpeg():
    # C = 255 - R and so on, without black: back in RGB it is the original.
    cmyk = np.concatenate([255 - smooth(3), np.zeros_like(smooth(1))], axis=-1)
    check(encode(Image.fromarray(cmyk, mode="CMYK"), "JPEG", quality=95), smooth(3), 8.0)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_rotation(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(smooth(3)), "JPEG", quality=95, exif=exif)
    check(data, np.ascontiguousarray(turn(smooth(3))), 6.0)
    with pytest.raises(AssertionError):
        check(data, smooth(3), 6.0)


def test_view_crops_and_mirrors():
    rgb = smooth(3)
    left_half = BitGenProcessor(None, SIZE).image(Image.fromarray(rgb), view=View((0, 0, 0.5, 1)))
    expected_half = expected(np.ascontiguousarray(rgb[:, :30]))
    # The filter may look past the crop's edge in one of them: compare inside.
    torch.testing.assert_close(left_half[:, 2:-2, 2:-2], expected_half[:, 2:-2, 2:-2], atol=0.05, rtol=0)
    mirrored = BitGenProcessor(None, SIZE).image(Image.fromarray(rgb), view=View(mirror=True))
    torch.testing.assert_close(mirrored.flip(-1), BitGenProcessor(None, SIZE).image(Image.fromarray(rgb)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_and_foreign_files_are_named(kind):
    whole = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)), kind)
    processor = BitGenProcessor(None, SIZE)
    for data in (whole[: len(whole) // 2], b"<html>404</html>", b""):
        with pytest.raises(ValueError, match="holiday.jpg cannot be read as an image"):
            processor.images([whole, data], names=["fine", "holiday.jpg"])
    with pytest.raises(ValueError, match="image 1 cannot"):
        processor.images([whole, b"x"])


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="no defined range"):
        decode_image(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "depth map")


# ---------------------------------------------------------------- text


def test_texts_are_framed_padded_and_masked(processor, tokenizer):
    batch = processor.texts(["image 1 seen from afar", ""])
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.dtype == mask.dtype == torch.int64
    inner = tokenizer("image 1 seen from afar", add_special_tokens=False).input_ids
    assert ids[0].tolist() == [bos, *inner, eos]
    assert ids[1].tolist() == [bos, eos] + [pad] * len(inner)
    assert mask.tolist() == [[1] * (len(inner) + 2), [1, 1] + [0] * len(inner)]


@pytest.mark.parametrize("length", [3, 5, 8])
def test_truncation_keeps_the_eos_and_is_counted(tokenizer, length):
    processor = BitGenProcessor(tokenizer, max_length=length)
    long, short = "xyz " * 20, "a"
    ids = processor.texts([long, short, long])["input_ids"]
    inner = tokenizer(long, add_special_tokens=False).input_ids
    assert ids[0].tolist() == [tokenizer.bos_token_id, *inner[: length - 2], tokenizer.eos_token_id]
    assert processor.truncated == 2
    exactly = tokenizer.decode(inner[: length - 2])
    assert len(tokenizer(exactly, add_special_tokens=False).input_ids) == length - 2
    processor.texts([exactly])
    assert processor.truncated == 2


def test_max_length_of_a_call_and_its_limits(processor):
    assert processor.texts(["xyz " * 20], max_length=4)["input_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="at least 3"):
        processor.texts(["a"], max_length=2)
    with pytest.raises(ValueError, match="at least 3"):
        BitGenProcessor(None, max_length=2)


def test_a_caption_cannot_spell_special_tokens(processor, tokenizer):
    ids = processor.texts(["end </s> not <pad> yet <s>"])["input_ids"][0]
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert not specials & set(ids[1:-1].tolist())
    assert tokenizer.decode(ids[1:-1]) == "end </s> not <pad> yet <s>"


def test_mask_does_not_come_from_ids(tokenizer):
    """With GPT-2's tokenizer BOS, EOS and pad are one id."""
    from transformers import PreTrainedTokenizerFast

    same = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>", pad_token="</s>"
    )
    batch = BitGenProcessor(same, max_length=32).texts(["a b", "a"])
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3]


def test_call_takes_one_or_many(processor):
    image = Image.new("RGB", (4, 4))
    both = processor(image, "a")
    assert both["pixel_values"].shape == (1, 3, 8, 8) and both["input_ids"].shape == (1, 3)
    assert processor(images=[image, encode(image)])["pixel_values"].shape == (2, 3, 8, 8)
    assert set(processor(text=["a", "b"])) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="images, text or both"):
        processor()


def test_a_tokenizer_without_special_tokens_is_refused(tokenizer):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no bos token"):
        BitGenProcessor(bare)
