"""COCO's numbers of its own files, and of no others."""

from __future__ import annotations

import pytest

from bitgen.data.source_ids import source_id


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("000000391895.jpg", 391895),
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("202411301200.jpg", "202411301200.jpg"),  # by date and time
        ("391895.jpg", "391895.jpg"),
        ("000000391895.gif", "000000391895.gif"),
    ],
)
def test_a_name_tells_coco_s_number_where_it_is_one(name: str, number: int | str) -> None:
    assert source_id({}, name) == number
    assert source_id({name: 7}, name) == 7
