"""Frames of video files, spread evenly. PyAV reads them: its wheels bring FFmpeg's libraries along."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from bitgen.guards.printable import printable

if TYPE_CHECKING:
    from av.container import InputContainer

# Containers of one file. FFmpeg also reads play lists, which name other files and addresses: those are none of a video.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,ogg,gif"
_NO_PROTOCOL = "none"


class VideoError(ValueError):
    """A video that cannot be used; the message says what is wrong with it, without its name."""


def frame_indices(total: int, frames: int) -> list[int]:
    """Which ``frames`` of ``total`` frames are taken: from the first to the last at even distances, rounded down.

    These are the ends of bins, ``linspace(0, total - 1, frames)``, in whole numbers. A video of fewer frames shows some
    of them more than once; of one frame it is the first.

    Raises:
        ValueError: a number is below 1.
    """
    if total < 1 or frames < 1:
        raise ValueError(f"{frames} frames of a video of {total} cannot be taken: both must be at least 1")
    return [number * (total - 1) // max(frames - 1, 1) for number in range(frames)]


def read_frames(source: bytes | Path, frames: int, max_pixels: int | None = None) -> list[Image.Image]:
    """``frames`` RGB pictures of a video, as :func:`frame_indices` chooses them, upright, in their order.

    The video is decoded from its beginning, for an index of frames is often missing or wrong, and only the frames that
    are taken are kept.

    Args:
        source: an encoded file, or where a regular file lies.
        max_pixels: a video of larger frames is refused before one is decoded.

    Raises:
        VideoError: it cannot be read, has no frame, or too large ones.
        ValueError: PyAV is not installed.
    """
    try:
        with contextlib.ExitStack() as files:
            file: Any = io.BytesIO(source) if isinstance(source, bytes) else files.enter_context(_opened(source))
            total = _count_packets(file, max_pixels)
            taken, seen = _decoded(file, frame_indices(total, frames)) if total else ({}, 0)
            if 0 < seen != total:  # a packet without a frame of its own, or a file that is cut off
                taken, seen = _decoded(file, frame_indices(seen, frames))
                total = seen
    except OSError as error:
        raise VideoError(f"it cannot be read: {printable(error.strerror or error, 200)}") from error
    if not seen:
        raise VideoError("it has no frame that can be decoded")
    return [taken[index] for index in frame_indices(total, frames)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A regular file, opened without waiting: a pipe that nobody writes to would never open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VideoError("it is not a regular file")
        yield file


@contextlib.contextmanager
def _container(file: Any) -> Iterator[InputContainer]:
    """An opened video. Raises ``VideoError`` for what FFmpeg cannot read, and for one without a picture."""
    try:
        import av
    except ImportError as error:
        raise ValueError("reading videos needs PyAV: pip install av, or leave the videos out") from error
    file.seek(0)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": _NO_PROTOCOL}
    try:
        with av.open(file, options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError("it has no stream of pictures: it is sound alone, or cut off before its index")
            yield container
    except av.error.FFmpegError as error:
        raise VideoError(f"it cannot be read as a video ({printable(error.strerror or error, 200)})") from error


def _count_packets(file: Any, max_pixels: int | None) -> int:
    """Frames of a video, as its packets say: nothing is decoded."""
    with _container(file) as container:
        stream = container.streams.video[0]
        if max_pixels is not None and stream.width * stream.height > max_pixels:
            raise VideoError(f"its frames have {stream.width} x {stream.height} pixels, more than {max_pixels:,}")
        return sum(1 for packet in container.demux(stream) if packet.size)


def _decoded(file: Any, wanted: list[int]) -> tuple[dict[int, Image.Image], int]:
    """The wanted frames by their index, and how many frames there are.

    What follows a place that cannot be decoded counts as missing."""
    import av

    kept, keep, seen = {}, set(wanted), 0
    with _container(file) as container, contextlib.suppress(av.error.FFmpegError):
        for frame in container.decode(video=0):
            if seen in keep:
                picture = frame.to_image()
                kept[seen] = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
            seen += 1
    return kept, seen
