"""What the page says of a model: its parts, what it was trained on, and how long a caption takes here."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bitgen.api import Model, VisionLanguage
from bitgen.demo.describing import describe
from bitgen.demo.scenes import held_out_scenes
from bitgen.guards.printable import printable
from bitgen.show.parameters import COMPONENTS, count_parameters

_CAPTIONS = 3
LICENCE = (
    "BitGen is under Apache-2.0 (LICENSE). What a model may be used for depends on the data it was trained on, too."
)


def parameters(model: Model | VisionLanguage) -> list[list[str]]:
    """Component and number of parameters, largest part of the network first to last as a batch passes them."""
    if isinstance(model, VisionLanguage):
        network = model.trained.model
        parts = {"vision encoder": network.tower, "connector": network.connector, "language model": network.language}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    else:
        components = count_parameters(model.trained.model).components
        counts = {COMPONENTS[name]: count.total for name, count in components.items()}
    return [[name, f"{count:,}"] for name, count in counts.items()] + [["total", f"{sum(counts.values()):,}"]]


def facts(model: Model | VisionLanguage) -> list[list[str]]:
    """Where the model is from and what it was trained on, a row each."""
    trained = model.trained
    found = [["model", printable(trained.folder)], ["device", str(trained.model.device)]]
    if isinstance(model, VisionLanguage) or model.trained.kind == "export":
        return [*found, ["training data", "the model's folder does not say"], ["licence", LICENCE]]
    config, tokenizer = model.trained.config, model.trained.tokenizer
    sources = {
        "pictures with captions": config.data.train_data,
        "text": config.data.text_data,
        "questions": config.reasoning.question_data,
    }
    data = [[f"trained on {what}", printable(source)] for what, source in sources.items() if source]
    size = model.trained.model.config.image_size
    return [
        *found,
        *data,
        ["pictures are seen as", f"{size} x {size} pixels"],
        ["vocabulary", f"{len(tokenizer):,} tokens"],
        ["licence", LICENCE],
    ]


def seconds_a_caption(model: Model | VisionLanguage) -> float:
    """The median time of captions of built-in scenes, in seconds, on this machine as it is now."""
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for number, scene in enumerate(held_out_scenes(1 + _CAPTIONS)):
            path = Path(folder) / f"{number}.png"
            scene.picture.save(path)
            times.append(describe(model, path).seconds)
    return statistics.median(times[1:])
