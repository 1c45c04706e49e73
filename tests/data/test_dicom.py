"""DICOM pictures against values worked out by hand."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from bitgen.data.dicom import DicomError, dicom_picture, is_dicom
from bitgen.model.image_decoding import decode_image
from support.media import dicom

pytest.importorskip("pydicom")
STORED = np.array([[0, 100, 200], [300, 400, 1000]], dtype=np.uint16)


def pixels(payload: bytes) -> list[list[int]]:
    return np.asarray(dicom_picture(payload)).tolist()


def test_least_to_largest_become_0_to_255() -> None:
    assert is_dicom(dicom(STORED)) and not is_dicom(b"\x89PNG" * 100)
    # 100 / 1000 * 255 = 25.5, which rounds to the even 26.
    assert pixels(dicom(STORED)) == [[0, 26, 51], [76, 102, 255]]


def test_white_and_black_are_exchanged_where_the_least_is_white() -> None:
    # 255 * (1 - 0.1) = 229.5 -> 230
    assert pixels(dicom(STORED, "MONOCHROME1")) == [[255, 230, 204], [178, 153, 0]]


def test_the_window_of_interest() -> None:
    """PS3.3 C.11.2.1.2.1 with centre 200 and width 201: below 100 least, above 300 largest, straight between."""
    payload = dicom(STORED, WindowCenter="200.5", WindowWidth="201")
    # (x - (c - 0.5)) / (w - 1) + 0.5 = (x - 200) / 200 + 0.5: 100 -> 0, 200 -> 0.5, 300 -> 1
    assert pixels(payload) == [[0, 0, 128], [255, 255, 255]]


def test_the_modalitys_line_comes_before_the_window() -> None:
    """As computed tomography has it: stored 0 is -1000 Hounsfield units, and the window is in those."""
    payload = dicom(STORED, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="-399.5", WindowWidth="401")
    # units -1000, -800, -600, -400, -200, 1000; the window runs from -600 to -200
    assert pixels(payload) == [[0, 0, 0], [128, 255, 255]]


def test_one_value_alone_is_black() -> None:
    flat = np.full((2, 2), 7, np.uint16)
    assert pixels(dicom(flat)) == pixels(dicom(flat, "MONOCHROME1")) == [[0, 0], [0, 0]]


def test_three_channels_come_out_of_the_one_door() -> None:
    buffer = io.BytesIO()
    dicom_picture(dicom(STORED)).save(buffer, "PNG")
    tensor = decode_image(buffer.getvalue())
    assert tensor.shape == (3, 2, 3) and (tensor == tensor[0]).all() and tensor[0, 1].tolist() == [76, 102, 255]


def test_colours_are_kept() -> None:
    colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(np.asarray(dicom_picture(dicom(colours, "RGB"))), colours)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\0" * 128 + b"DICM", "no picture"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 50, "."),
        (dicom(STORED)[:-4], "."),
        (dicom(STORED, NumberOfFrames=2), "holds 2 pictures"),
        (dicom(STORED, "PALETTE COLOR"), "no picture in grey or RGB .*PALETTE COLOR"),
        (dicom(STORED, Rows=60000, Columns=60000), "60000 x 60000 pixels, more than 1,000,000"),
        (dicom(STORED).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), "deflated"),
    ],
    ids=["empty", "damaged", "cut", "several", "palette", "large", "deflated"],
)
def test_what_cannot_be_used_says_why(payload: bytes, message: str) -> None:
    with pytest.raises(DicomError, match=message) as caught:
        dicom_picture(payload, max_pixels=1_000_000)
    assert str(caught.value).isprintable()


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match="pip install pydicom"):
        dicom_picture(b"x")
