"""A picture with numbered boxes on it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of the picture."""

# Colours that are told apart on light and dark pictures, and by most who do not tell red from green.
_COLOURS = ("#e6194b", "#0082c8", "#f58231", "#911eb4", "#008080", "#aa6e28", "#808000", "#000080")
_LEAST = 480  # pixels of the longer side; smaller pictures are enlarged


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[str, Edges]]) -> Image.Image:
    """A copy of the picture in RGB, enlarged if it is small, with each box and its label."""
    scale = max(1, -(-_LEAST // max(picture.size)))
    drawn = picture.convert("RGB").resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    draw, size = ImageDraw.Draw(drawn), max(drawn.size)
    width, font = max(2, size // 200), ImageFont.load_default(size=max(12, size // 30))
    for number, (label, (x1, y1, x2, y2)) in enumerate(boxes):
        colour = _COLOURS[number % len(_COLOURS)]
        edges = (x1 * drawn.width, y1 * drawn.height, x2 * drawn.width, y2 * drawn.height)
        draw.rectangle(edges, outline=colour, width=width)
        left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
        x, y = min(edges[0], drawn.width - right - 4), max(edges[1] - (bottom - top) - 6, 0)
        draw.rectangle((x, y, x + right - left + 4, y + bottom - top + 6), fill=colour)
        draw.text((x + 2 - left, y + 2 - top), label, fill="white", font=font)
    return drawn
