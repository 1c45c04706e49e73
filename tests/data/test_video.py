"""Frames of videos: which are taken, that they are the right ones, and what is refused."""

from __future__ import annotations

import math
import os
import struct
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

from bitgen.data.video import VideoError, frame_indices, read_frames
from support.media import video


def test_indices_are_those_of_a_ruler() -> None:
    """Against exact fractions, one by one."""
    for total in range(1, 40):
        for frames in range(1, 20):
            places = [Fraction(0)] + [Fraction(total - 1, frames - 1) * number for number in range(1, frames)]
            assert frame_indices(total, frames) == [math.floor(place) for place in places]


def test_indices_are_numpys_where_floating_point_does_not_round_them_down() -> None:
    for total, frames in ((100, 8), (23, 8), (17, 5), (301, 16)):
        assert frame_indices(total, frames) == np.linspace(0, total - 1, frames).astype(int).tolist()
    assert frame_indices(3, 8) == [0, 0, 0, 0, 1, 1, 1, 2]
    for total, frames in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            frame_indices(total, frames)


needs_av = pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed")
LEVELS = [10 * number for number in range(23)]


@needs_av
@pytest.mark.parametrize(("kind", "codec"), [("mp4", "h264"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_the_frames_are_those_of_the_indices(kind: str, codec: str, tmp_path) -> None:
    payload = video(LEVELS, kind=kind, codec=codec)
    (tmp_path / "a file").write_bytes(payload)
    for source in (payload, tmp_path / "a file"):
        pictures = read_frames(source, 8)
        levels = [np.asarray(picture).mean() for picture in pictures]
        assert all(picture.size == (64, 48) and picture.mode == "RGB" for picture in pictures)
        # Coding costs a few levels; the next frame is ten away.
        np.testing.assert_allclose(levels, [LEVELS[index] for index in (0, 3, 6, 9, 12, 15, 18, 22)], atol=4)


@needs_av
def test_a_video_of_fewer_frames_shows_them_more_than_once() -> None:
    levels = [np.asarray(picture).mean() for picture in read_frames(video([50, 200]), 4)]
    np.testing.assert_allclose(levels, [50, 50, 50, 200], atol=4)


@needs_av
def test_a_video_without_its_index_is_refused() -> None:
    """An MP4 file has it at its end."""
    with pytest.raises(VideoError, match="cut off before its index"):
        read_frames(video(LEVELS)[:-700], 2)


@needs_av
def test_a_video_is_turned_as_its_matrix_says() -> None:
    """The matrix of QuickTime's file format (x' = ax + cy, y' = bx + dy, y down): here a quarter to the right."""
    one, none = 1 << 16, 0
    upright = struct.pack(">9i", one, none, none, none, one, none, none, none, 1 << 30)
    turned = struct.pack(">9i", none, one, none, -one, none, none, none, none, 1 << 30)
    payload = video([0], left=250)
    at = payload.index(upright, payload.index(b"tkhd"))
    (before,) = read_frames(payload, 1)
    (after,) = read_frames(payload[:at] + turned + payload[at + len(upright) :], 1)
    assert before.size == (64, 48) and after.size == (48, 64)
    assert np.asarray(before)[:, :20].min() > 200 > 50 > np.asarray(before)[:, -20:].max()
    assert np.asarray(after)[:20].min() > 200 > 50 > np.asarray(after)[-20:].max()  # the left is on top


@needs_av
def test_a_video_that_is_cut_off_gives_the_frames_that_are_there() -> None:
    whole = video([int(level) for level in np.linspace(0, 240, 60)], kind="mpegts", codec="mpeg2video")
    levels = [np.asarray(picture).mean() for picture in read_frames(whole[: len(whole) // 2], 3)]
    assert levels[0] < 8 and 60 < levels[2] < 180 and levels[0] < levels[1] < levels[2]


@needs_av
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(range(256)) * 20,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile {secret}\n",
    ],
    ids=["empty", "bytes", "play list", "concatenation"],
)
def test_what_is_no_video_is_refused(payload: bytes, tmp_path) -> None:
    """Play lists too: they would have FFmpeg open what files and addresses they name."""
    (tmp_path / "secret.mp4").write_bytes(video(LEVELS))
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read_frames(payload.replace(b"{secret}", os.fsencode(tmp_path / "secret.mp4")), 2)


@needs_av
def test_frames_that_are_too_large_are_refused_before_one_is_decoded() -> None:
    with pytest.raises(VideoError, match="64 x 48 pixels, more than 3,000"):
        read_frames(video(LEVELS), 2, max_pixels=3000)


@needs_av
def test_what_is_no_regular_file_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match="not a regular file"):
        read_frames(tmp_path / "pipe", 2)
    with pytest.raises(VideoError, match="No such file"):
        read_frames(tmp_path / "missing", 2)


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match="pip install av"):
        read_frames(b"x", 2)
