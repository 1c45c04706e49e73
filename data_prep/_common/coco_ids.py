"""The numbers that a COCO caption file gives its images: in them COCO's tools want results."""

from __future__ import annotations


def coco_ids(content: object) -> dict[str, int]:
    """The id of each file name in COCO's list of images, where it is a whole number; other layouts have none."""
    images = content.get("images") if isinstance(content, dict) else None
    entries = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    pairs = [(image.get("file_name"), image.get("id")) for image in entries]
    numbers: dict[str, int] = {}
    for name, number in pairs:
        if isinstance(name, str) and type(number) is int:
            numbers.setdefault(name, number)
    return numbers
