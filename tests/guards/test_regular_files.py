"""Files by a name from outside: regular ones of a bounded size."""

from __future__ import annotations

import os

import pytest

from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.regular_files import BadFile, read_regular_file


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("a")
    assert read_regular_file(tmp_path / "a", 1000) == read_regular_file(str(tmp_path / "link"), 5000) == b"x" * 1000
    with pytest.raises(BadFile, match="more than 999"):
        read_regular_file(tmp_path / "a", 999)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "b", 10)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "NUL", "surrogate"])
def test_what_may_never_end_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / ("a\0" if kind == "NUL" else "a\ud800")
    with pytest.raises(BadFile, match="not a regular file|none that a file can have"):
        read_regular_file(path, 10)
    with pytest.raises(BadJson, match="not a regular file|none that a file can have"):
        read_json(path, dict)
