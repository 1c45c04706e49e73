"""Flickr8k's files, made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image


class Source:
    """A Flickr8k-like source of ``count`` images with two captions each, in a folder."""

    def __init__(self, folder: Path, count: int = 6) -> None:
        self.folder = folder
        self.names = [f"{index}.jpg" for index in range(count)]
        self.captions = {name: [f"picture {name} , close", f'picture {name} "far"'] for name in self.names}
        self.images = folder / "Images"
        self.images.mkdir()
        for index, name in enumerate(self.names):
            values = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(self.images / name, "JPEG")
        self.features = np.random.default_rng(0).normal(size=(count, 4, 3)).astype(np.float32)
        self.info: dict | None = None
        self.feature_names = list(self.names)
        self.split = list(self.names)

    def arguments(self, kind: str, *more: str) -> list[str]:
        """Writes the files and returns the flags."""
        with open(self.folder / "captions.txt", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            writer.writerows((name, text) for name, texts in self.captions.items() for text in texts)
        (self.folder / "split.txt").write_text("\n".join(self.split) + "\n")
        flags = ["--captions", str(self.folder / "captions.txt"), "--split", str(self.folder / "split.txt")]
        if kind == "images":
            flags += ["--images", str(self.images)]
        else:
            np.save(self.folder / "features.npy", self.features)
            (self.folder / "feature_images.txt").write_text("\n".join(self.feature_names))
            flags += ["--features", str(self.folder / "features.npy")]
            flags += ["--feature_images", str(self.folder / "feature_images.txt")]
            if self.info is not None:
                (self.folder / "info.json").write_text(json.dumps(self.info))
                flags += ["--feature_info", str(self.folder / "info.json")]
        return [*flags, "--output", str(self.output), *more]

    @property
    def output(self) -> Path:
        return self.folder / "out"
