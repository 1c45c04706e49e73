"""Medical pictures (DICOM) as grey pictures of eight bits, as a reader would see them at the default window."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bitgen.guards.printable import printable

if TYPE_CHECKING:
    import pydicom

_MARK, _MARK_AT = b"DICM", 128
# Its content is compressed as a whole: kilobytes may become gigabytes before anything of it is known.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422")


class DicomError(ValueError):
    """A DICOM file that cannot be used; the message says what is wrong with it, without its name."""


def is_dicom(payload: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return payload[_MARK_AT : _MARK_AT + len(_MARK)] == _MARK


def dicom_picture(payload: bytes, max_pixels: int | None = None) -> Image.Image:
    """The picture of a DICOM file: grey of 8 bits, or RGB where it is in colour.

    Grey values go through the modality's table or line and then through the table or window of the values of interest
    (DICOM PS3.3, C.11.1 and C.11.2; the first where there are several). MONOCHROME1, in which the least value is
    white, is inverted. The range from the least to the largest value then becomes 0 to 255, rounded; one value alone
    becomes 0.

    Args:
        max_pixels: a picture that declares more is refused before it is decoded.

    Raises:
        DicomError: it is damaged, has no picture, several, or one of another kind.
        ValueError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("reading DICOM files needs pydicom: pip install pydicom, or leave them out") from error
    if _DEFLATED in payload:
        raise DicomError("it is deflated as a whole, which is not read: convert it with `dcmconv +te`")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _picture(pydicom.dcmread(io.BytesIO(payload)), max_pixels)
        except DicomError:
            raise
        except Exception as error:  # pydicom and its decoders raise many kinds for damaged files
            raise DicomError(f"{type(error).__name__}: {printable(error, 200)}") from error


def _picture(file: pydicom.FileDataset, max_pixels: int | None) -> Image.Image:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    kind = str(file.get("PhotometricInterpretation", "none"))
    if "PixelData" not in file or kind not in (*_GREY, *_COLOUR):
        raise DicomError(f"it has no picture in grey or RGB (photometric interpretation {printable(kind, 40)})")
    frames, pixels = int(file.get("NumberOfFrames") or 1), int(file.Rows) * int(file.Columns)
    if frames > 1:
        raise DicomError(f"it holds {frames:,} pictures: write each to a file of its own")
    if max_pixels is not None and pixels > max_pixels:
        raise DicomError(f"it has {file.Columns} x {file.Rows} pixels, more than {max_pixels:,}")
    values = file.pixel_array
    if kind in _COLOUR:
        if values.dtype != np.uint8:
            raise DicomError(f"its colours are of type {values.dtype}, not of 8 bits")
        return Image.fromarray(values)
    return Image.fromarray(_eight_bits(apply_voi_lut(apply_modality_lut(values, file), file), kind == "MONOCHROME1"))


def _eight_bits(values: np.ndarray, inverted: bool) -> np.ndarray:
    """Least to largest value as 0 to 255, uint8; the other way round where ``inverted``."""
    values = values.astype(np.float64)
    least, span = values.min(), values.max() - values.min()
    share = (values - least) / span if span else np.zeros_like(values)
    return np.round(255 * (1 - share if inverted and span else share)).astype(np.uint8)
