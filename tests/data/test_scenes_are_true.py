"""Captions of the built-in scenes against the pixels, by readers that share no code with the package."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bitgen.data.scenes import dataset as scenes
from bitgen.data.scenes.dataset import iter_scenes, scene_captions
from bitgen.data.scenes.descriptions import COLOURS, PLACES, SHAPES, scene_rng
from bitgen.data.scenes.drawing import place_things

SEED = 7

# ---------------------------------------------------------------- what a picture shows, from its pixels alone

# X11 colours, so that "pink" must look like what others call pink; a colour may have several.
X11 = {
    "red": [(255, 0, 0), (220, 20, 60)],
    "orange": [(255, 165, 0), (255, 140, 0)],
    "yellow": [(255, 255, 0), (255, 215, 0)],
    "green": [(0, 128, 0), (34, 139, 34), (60, 179, 113)],
    "cyan": [(0, 255, 255), (64, 224, 208), (0, 206, 209)],
    "blue": [(0, 0, 255), (65, 105, 225)],
    "purple": [(128, 0, 128), (153, 50, 204)],
    "pink": [(255, 192, 203), (255, 105, 180)],
    "brown": [(165, 42, 42), (139, 69, 19)],
    "grey": [(128, 128, 128), (169, 169, 169)],
}


class Seen(NamedTuple):
    colour: str
    shape: str
    x: float
    y: float
    extent: float


def see(image) -> list[Seen]:
    """The objects of a picture: connected regions that are neither light nor dark."""
    pixels = np.asarray(image).astype(int)
    size = pixels.shape[0]
    foreground = ~((pixels.min(axis=2) > 200) | (pixels.max(axis=2) < 60))
    labels, number = ndimage.label(foreground, structure=np.ones((3, 3)))
    seen = []
    for label in range(1, number + 1):
        region = labels == label
        if region.sum() < 30:  # a blended pixel of an edge
            continue
        assert not (region[0].any() or region[-1].any() or region[:, 0].any() or region[:, -1].any()), "clipped"
        rows, columns = np.nonzero(region)
        colour = name_colour(np.median(pixels[region], axis=0))
        extent = max(np.ptp(rows), np.ptp(columns)) / size
        seen.append(Seen(colour, name_shape(region), columns.mean() / size, rows.mean() / size, extent))
    return seen


def name_colour(rgb: np.ndarray) -> str:
    return min(X11, key=lambda name: min(np.linalg.norm(rgb - np.array(reference)) for reference in X11[name]))


def name_shape(region: np.ndarray) -> str:
    rows, columns = np.nonzero(region)
    height, width, area = np.ptp(rows) + 1, np.ptp(columns) + 1, region.sum()
    fill, centre = area / (height * width), (rows.mean() - rows.min()) / height
    reach = np.hypot(rows - rows.mean(), columns - columns.mean()).max() / np.sqrt(area)
    if ndimage.binary_fill_holes(region).sum() > 1.2 * area:
        return "ring"
    if fill < 0.43:
        return "star"
    if height > 1.25 * width:
        return "diamond"
    if abs(centre - 0.5) > 0.07:
        return "triangle" if centre > 0.5 else "heart"
    if fill < 0.65:
        return "cross"
    return "circle" if reach < 0.64 else "square"


# ---------------------------------------------------------------- what a caption says, from its words alone

CANONICAL = {
    "violet": "purple", "turquoise": "cyan", "gray": "grey", "disc": "circle", "plus": "cross", "hoop": "ring",
    "little": "small", "tiny": "small", "big": "large", "huge": "large",
    "upper": "top", "lower": "bottom", "center": "centre", "middle": "centre",
}  # fmt: skip
NUMBERS = {"one": 1, "two": 2, "pair": 2, "three": 3, "four": 4}
LEFT, RIGHT, UP, DOWN = {"left"}, {"right"}, {"above", "over", "higher", "top"}, {"below", "under", "beneath", "bottom"}


def words_of(caption: str) -> list[str]:
    words = []
    for word in re.sub(r" (on|against) a (light|dark) background$", "", caption).replace(",", "").split():
        if word.rstrip("s") in SHAPES or word.rstrip("s") in CANONICAL:
            word = word.rstrip("s")
        word = {"crosses": "cross", "cros": "cross", "underneath": "under"}.get(word, word)
        words.append(CANONICAL.get(word, word))
    return words


def mentions(words: list[str]) -> list[tuple[int, dict]]:
    """Where each object stands in a relation caption, and what is said of it right before its shape."""
    found = []
    for position, word in enumerate(words):
        if word in SHAPES:
            before = words[max(position - 3, 0) : position]
            said = {"shape": word, "colour": words[position - 1], "count": 1, "size": None}
            for other in before[:-1]:
                said["count"] = NUMBERS.get(other, said["count"])
                said["size"] = other if other in ("small", "large") else said["size"]
            found.append((position, said))
    return found


def direction(words: list[str]) -> str | None:
    sides = {
        name: bool(side & set(words))
        for name, side in {"left": LEFT, "right": RIGHT, "above": UP, "below": DOWN}.items()
    }
    assert sum(sides.values()) <= 1, words
    return next((name for name, there in sides.items() if there), None)


OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def read_relation(caption: str) -> tuple[dict, str, dict]:
    """(first object, which side of the second it is on, second object)."""
    words = words_of(caption)
    (first_at, first), (second_at, second) = mentions(words)
    between, after = words[first_at + 1 : second_at], words[second_at + 1 :]
    between = between[1:] if between[:1] == ["sign"] else between
    between = between[1:] if between[:1] == ["signs"] else between
    if between[0] == "with":
        return first, OPPOSITE[direction(after)], second
    return first, direction(words[:first_at]) or direction(between), second


# ---------------------------------------------------------------- truth


def pictures(kind: str, count: int, size: int = 168):
    """(scene, captions, objects seen) of ``count`` scenes of a kind, from both splits."""
    for split in ("train", "val"):
        reader = scenes.SceneReader(split, 6 * count, SEED)
        of_kind = [index for index, scene in enumerate(reader.scenes) if scene.kind == kind][: count // 2]
        for index in of_kind:
            yield reader.scenes[index], reader.captions(index), see(reader.picture(index, size))


def test_position_captions_agree_with_the_pixels():
    places = Counter()
    for scene, captions, seen in pictures("position", 160):
        assert len(seen) == 1, scene
        (thing,) = seen
        horizontal = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else None
        vertical = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else None
        for caption in captions:
            words = set(words_of(caption))
            assert words & set(COLOURS) == {thing.colour}, caption
            assert words & set(SHAPES) == {thing.shape}, caption
            assert words & {"small", "large"} == {"small" if thing.extent < 0.3 else "large"}, caption
            assert words & {"left", "right"} == {horizontal} - {None}, caption
            assert words & {"top", "bottom"} == {vertical} - {None}, caption
            assert ("corner" in words) == (horizontal is not None and vertical is not None), caption
            assert ("centre" in words) == (horizontal is None and vertical is None), caption
        places[scene.where] += 1
    assert set(places) == set(PLACES)


def test_relation_captions_agree_with_the_pixels():
    relations = Counter()
    for _, captions, seen in pictures("relation", 160):
        for caption in captions:
            first, side, second = read_relation(caption)
            groups = []
            for said in (first, second):
                group = [thing for thing in seen if (thing.colour, thing.shape) == (said["colour"], said["shape"])]
                assert len(group) == said["count"], (caption, seen)
                if said["size"]:
                    assert {thing.extent < 0.3 for thing in group} == {said["size"] == "small"}, caption
                groups.append(group)
            assert len(groups[0]) + len(groups[1]) == len(seen), caption
            axis, sign = {"left": ("x", 1), "right": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[side]
            first_at, second_at = ([sign * getattr(thing, axis) for thing in group] for group in groups)
            assert max(first_at) + 0.25 < min(second_at), (caption, seen)
            if len(seen) == 2:  # ... and not also the other relation
                other = "y" if axis == "x" else "x"
                assert abs(getattr(seen[0], other) - getattr(seen[1], other)) < 0.2, caption
            relations[side] += 1
    assert set(relations) == {"left", "right", "above", "below"}


def test_count_captions_agree_with_the_pixels():
    arrangements = Counter()
    for _, captions, seen in pictures("count", 120):
        assert len({(thing.colour, thing.shape) for thing in seen}) == 1, seen
        spread_x, spread_y = np.ptp([thing.x for thing in seen]), np.ptp([thing.y for thing in seen])
        arrangement = "row" if spread_y < 0.1 else "column" if spread_x < 0.1 else "scattered"
        for caption in captions:
            words = words_of(caption)
            assert set(words) & set(COLOURS) == {seen[0].colour}, caption
            assert set(words) & set(SHAPES) == {seen[0].shape}, caption
            text = " ".join(words)
            if arrangement == "row":
                assert re.search(r"\brow\b|side by side|next to each other|from left to right", text), caption
            elif arrangement == "column":
                assert re.search(r"\bcolumn\b|one (above|below) the other|from top to bottom", text), caption
            else:
                assert re.search(r"scattered|here and there|diagonal", text), caption
            number = next(NUMBERS[word] for word in words if word in NUMBERS)
            assert number == len(seen), caption
        arrangements[arrangement, len(seen)] += 1
    assert len(arrangements) == 9


def test_objects_are_whole_and_apart():
    for index, scene in enumerate(iter_scenes("train", 6000, SEED)):
        placed = place_things(scene, scene_rng("place", index))
        assert len(placed) == sum(thing.count for thing in scene.things)
        for i, one in enumerate(placed):
            reach = 1.2 * one.radius
            assert min(one.x, one.y, 1 - one.x, 1 - one.y) > reach, scene
            for other in placed[:i]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius + 0.02, scene


def test_the_background_a_caption_names_is_the_one_drawn():
    reader = scenes.SceneReader("train", 200, SEED)
    named = Counter()
    for index in range(200):
        corner = np.asarray(reader.picture(index, 56)).astype(int)[:3, :3].mean()
        for caption in reader.captions(index):
            if match := re.search(r"(light|dark) background$", caption):
                assert match[1] == ("light" if corner > 128 else "dark"), caption
                named[match[1]] += 1
    assert min(named["light"], named["dark"]) > 20


def test_captions_are_english_in_form():
    for caption in scene_captions("train", 1500, SEED):
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|  |^ | $|[{}]|\bone \w+ \w+s are\b", caption), caption
        assert not re.search(r"\b(two|three|four|pair of) (\w+ )?\w+ (circle|disc|star|cross|ring|sign)\b", caption), (
            caption
        )


def test_captions_of_a_scene_differ_and_wording_varies():
    captions = [" ".join(caption.split()) for caption in scene_captions("train", 2000, SEED)]
    per_scene = [captions[i : i + 3] for i in range(0, len(captions), 3)]
    assert all(len(set(of_scene)) == 3 for of_scene in per_scene)
    frames = {
        tuple("#" if {CANONICAL.get(w, w), w} & {*COLOURS, *SHAPES, "small", "large"} else w for w in caption.split())
        for caption in captions
    }
    assert len(frames) > 500
