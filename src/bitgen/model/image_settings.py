"""How a vision encoder was taught to see: the size, shape and scale of the pictures that it expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# By Pillow's numbers, which preprocessor files hold.
RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
SQUASH, CROP, PAD = "squash", "crop", "pad"
FITS = (SQUASH, CROP, PAD)


class ImageSettings(NamedTuple):
    """What happens to a picture before an encoder sees it.

    Args:
        size: side of the square in pixels; None: as the encoder's configuration has it.
        mean, std: of red, green and blue, for values in [0, 1].
        resample: ``bicubic``, ``bilinear``, ``nearest`` or ``lanczos``.
        fit: how a picture becomes a square: ``squash`` (both sides are resized to ``size``), ``crop`` (the shorter side
            is resized to ``shortest``, then the middle is cut out) or ``pad`` (the mean colour is added to the shorter
            side, then as ``squash``).
        shortest: only with ``crop``; None: ``size``.
    """

    size: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: str = "bicubic"
    fit: str = SQUASH
    shortest: int | None = None


def check_image_settings(
    mean: Sequence[float], std: Sequence[float], resample: str, fit: str = SQUASH, shortest: int | None = None
) -> None:
    """Refuse what no picture can be prepared by.

    Raises:
        ValueError: a mean or a standard deviation is not three numbers, or a word is unknown; it names the field.
    """
    for name, values, fits in (
        ("image_mean", mean, math.isfinite),
        ("image_std", std, lambda value: 0 < value < math.inf),
    ):
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or not all(isinstance(value, (int, float)) and fits(value) for value in values)
        ):
            raise ValueError(f"{name} is {values!r}; it must be three numbers, one for each of red, green and blue")
    for name, word, known in (("image_resample", resample, tuple(RESAMPLINGS.values())), ("image_fit", fit, FITS)):
        if word not in known:
            raise ValueError(f"{name} is {word!r}; choose one of {', '.join(known)}")
    if shortest is not None and (not isinstance(shortest, int) or shortest < 1):
        raise ValueError(f"image_shortest is {shortest!r}; it must be a number of pixels")


def normalisation(content: dict[str, Any], default: ImageSettings) -> ImageSettings:
    """``default`` with the mean, standard deviation and resampling of a ``preprocessor_config.json`` of transformers.

    Args:
        content: the file, or what lies under ``image_processor`` in a ``processor_config.json``.
        default: for what it leaves out.

    Raises:
        ValueError: a field has another form than transformers writes; the message names it.
    """
    mean, std = _three(content.get("image_mean"), default.mean), _three(content.get("image_std"), default.std)
    if content.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor, rescales = content.get("rescale_factor"), content.get("do_rescale")
    if rescales is False or (factor is not None and not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3)):
        raise ValueError(f"rescale_factor is {factor!r} and do_rescale {rescales!r}; pixels must come to [0, 1]")
    number = content.get("resample")
    if number is not None and number not in RESAMPLINGS:
        raise ValueError(f"resample is {number!r}; it must be one of Pillow's {list(RESAMPLINGS)}")
    resample = default.resample if number is None else RESAMPLINGS[number]
    check_image_settings(mean, std, resample)
    return default._replace(mean=mean, std=std, resample=resample)


def from_preprocessor(content: dict[str, Any], default: ImageSettings) -> ImageSettings:
    """All that a ``preprocessor_config.json`` says: :func:`normalisation`, and how pictures become squares.

    Raises:
        ValueError: as there, or pictures would not become squares.
    """
    found = normalisation(content, default)
    size, cropped, crops = content.get("size"), content.get("crop_size"), content.get("do_center_crop")
    if size is None and cropped is None:
        return found
    keeps_shape = not (isinstance(size, dict) and "height" in size)
    if crops is None:  # some files have no such word
        crops = cropped is not None or (keeps_shape and default.fit == CROP)
    side = _side(cropped, "crop_size") if crops and cropped is not None else _side(size, "size")
    if keeps_shape and (crops or isinstance(size, dict)):
        return found._replace(size=side, fit=CROP, shortest=None if size is None else _side(size, "size"))
    if side != _side(size, "size"):
        raise ValueError(f"size {size!r} makes a square of which crop_size {cropped!r} is cut; make them equal")
    return found._replace(size=side, fit=SQUASH, shortest=None)


def _side(size: Any, name: str) -> int:
    """One side of a square: of a number, of ``{"shortest_edge": n}`` or of ``{"height": n, "width": n}``."""
    found = size
    if isinstance(size, dict):
        sides = {size[key] for key in ("shortest_edge", "height", "width") if size.get(key) is not None}
        found = sides.pop() if len(sides) == 1 else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{name} is {size!r}; pictures must become squares, with one number of pixels a side")
    return found


def _three(values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """One number stands for all three channels, as radiographs have it."""
    if values is None:
        return default
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    values = tuple(values) if isinstance(values, (list, tuple)) else values
    return values * 3 if isinstance(values, tuple) and len(values) == 1 else values
