"""Small videos and medical pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def video(
    levels: list[int],
    size: tuple[int, int] = (64, 48),
    kind: str = "mp4",
    codec: str = "mpeg4",
    left: int | None = None,
) -> bytes:
    """A video whose frames are grey, each of a level of its own, the ``left`` half of another one; PyAV writes it."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for level in levels:
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            if left is not None:
                pixels[:, : size[0] // 2] = left
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        container.start_encoding()  # writes the header where there is no frame
    return buffer.getvalue()


def dicom(values: np.ndarray, kind: str = "MONOCHROME2", **fields: Any) -> bytes:
    """A DICOM file of the picture ``values``: ``[H, W]`` uint16, or colours ``[H, W, 3]`` uint8; and further fields."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3 if values.ndim == 3 else 1), kind
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * values.itemsize
    file.HighBit, file.PixelRepresentation = 8 * values.itemsize - 1, 0
    file.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for name, value in fields.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
