"""How many captions of the built-in scenes are right, and in what: each is read back and compared with its scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bitgen.data.scenes.descriptions import Scene
from bitgen.data.scenes.reading import read_caption

# What of a scene is compared, whatever the order of its objects.
_ASPECTS: dict[str, Callable[[Scene], Any]] = {
    "colour": lambda scene: sorted(thing.colour for thing in scene.things),
    "shape": lambda scene: sorted(thing.shape for thing in scene.things),
    "number": lambda scene: sorted(thing.count for thing in scene.things),
    "size": lambda scene: sorted(thing.size for thing in scene.things),
    "where": lambda scene: (scene.kind, scene.where),
}


def _said(scene: Scene) -> tuple:
    """All but the size: which colour has which shape and number, in which relation or place."""
    return scene.kind, scene.where, tuple((thing.colour, thing.shape, thing.count) for thing in scene.things)


def scene_caption_metrics(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares in percent of captions that are right.

    ``right``: in colour, shape and number of every object and in the place, relation or arrangement, together.
    ``right_with_size``: in the sizes too. ``right_colour``, ``right_shape``, ``right_number``, ``right_size``,
    ``right_where``: in that alone. A caption that is no caption of a scene is wrong in everything; ``readable``: the
    share of the others.

    Raises:
        ValueError: no captions.
    """
    read = [read_caption(caption) for caption in captions]
    pairs = list(zip(read, scenes, strict=True))
    if not pairs:
        raise ValueError("no captions to score")

    def share(agrees: Callable[[Scene, Scene], bool]) -> float:
        return 100.0 * sum(said is not None and agrees(said, scene) for said, scene in pairs) / len(pairs)

    return {
        "right": share(lambda said, scene: _said(said) == _said(scene)),
        "right_with_size": share(lambda said, scene: said.meaning == scene.meaning),
        **{f"right_{name}": share(lambda a, b, of=of: of(a) == of(b)) for name, of in _ASPECTS.items()},  # type: ignore[misc]
        "readable": share(lambda said, scene: True),
    }
