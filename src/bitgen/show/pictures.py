"""Pictures of what the model does, as uint8 `[3, H, W]` tensors for TensorBoard. Pure functions, no global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bitgen.show.drawing import (
    DPI,
    QUIET,
    RIGHT,
    WRONG,
    canvas,
    draw_folded,
    draw_rule,
    draw_text,
    draw_tile,
    render,
    shorten,
    spread,
    to_picture,
)


@dataclass(frozen=True)
class Candidate:
    """One retrieved image or caption.

    Args:
        name: caption, or the image's id.
        score: cosine similarity to the query.
        is_right: whether it belongs to the query.
        image: `[H, W, 3]` uint8, or None: a caption, or an image of which only features are at hand.
    """

    name: str
    score: float
    is_right: bool
    image: np.ndarray | None = None


@dataclass(frozen=True)
class Query:
    """A query with its best candidates, best first; `right_rank` (from 1) and `right` tell where a right one was."""

    name: str
    top: tuple[Candidate, ...]
    right_rank: int
    right: Candidate
    image: np.ndarray | None = None


def retrieval_pictures(
    image_features: Tensor,
    text_features: Tensor,
    caption_image: Tensor,
    captions: Sequence[str],
    image_of: Callable[[int], Tensor | None],
    name_of: Callable[[int], str] = lambda row: f"image {row}",
    num_queries: int = 6,
    top_k: int = 5,
    matrix_size: int = 32,
) -> dict[str, Tensor]:
    """The three retrieval pictures of a validation split.

    Args:
        image_features: `[N, D]`, l2-normalised.
        text_features: `[M, D]`, l2-normalised.
        caption_image: `[M]`, the row in `image_features` of each caption's image.
        captions: the M captions.
        image_of: row of an image -> `[3, H, W]` as `to_picture` takes it, or None.
        name_of: row of an image -> its id, shown on the grey tile of an image without pixels.

    Returns:
        `retrieval/text_to_image`, `retrieval/image_to_text`, `retrieval/similarity`. The queries are spread evenly
        over the split and the same at every call, so that TensorBoard's slider shows how they change.
    """
    image_features, text_features = image_features.float().cpu(), text_features.float().cpu()
    caption_image = caption_image.cpu()
    num_images, num_captions = len(image_features), len(text_features)
    top_images, top_captions = min(top_k, num_images), min(top_k, num_captions)

    def image_candidate(row: int, score: float, is_right: bool) -> Candidate:
        pixels = image_of(row)
        return Candidate(name_of(row), score, is_right, None if pixels is None else to_picture(pixels))

    by_text = []
    for caption in spread(num_captions, num_queries):
        scores = image_features @ text_features[caption]
        target = int(caption_image[caption])
        top = scores.topk(top_images).indices.tolist()
        by_text.append(
            Query(
                captions[caption],
                tuple(image_candidate(row, float(scores[row]), row == target) for row in top),
                _rank(scores, target),
                image_candidate(target, float(scores[target]), True),
            )
        )
    by_image = []
    for row in spread(num_images, num_queries):
        scores = text_features @ image_features[row]
        own = (caption_image == row).nonzero().flatten()
        if not len(own):
            continue
        best = int(own[scores[own].argmax()])
        top = scores.topk(top_captions).indices.tolist()
        query_image = image_candidate(row, 1.0, True)
        by_image.append(
            Query(
                query_image.name,
                tuple(Candidate(captions[c], float(scores[c]), int(caption_image[c]) == row) for c in top),
                _rank(scores, best),
                Candidate(captions[best], float(scores[best]), True),
                query_image.image,
            )
        )
    # One caption an image, so that the diagonal holds the true pairs and nothing off it is true.
    rows = spread(num_images, matrix_size)
    firsts = [(row, int(found[0])) for row in rows if len(found := (caption_image == row).nonzero().flatten())]
    image_rows, caption_rows = ([pair[i] for pair in firsts] for i in (0, 1))
    return {
        "retrieval/text_to_image": text_to_image_panel(by_text),
        "retrieval/image_to_text": image_to_text_panel(by_image),
        "retrieval/similarity": similarity_matrix(image_features[image_rows] @ text_features[caption_rows].T),
    }


def reranking_panel(
    examples: Sequence[tuple[str, Tensor, Tensor, Tensor]],
    image_of: Callable[[int], Tensor | None],
    name_of: Callable[[int], str] = lambda row: f"image {row}",
    top_k: int = 5,
) -> Tensor:
    """Two rows an example, before and after re-ranking, as :func:`text_to_image_panel` shows them.

    Args:
        examples: a caption, its best images' rows `[k]` by cosine and after re-ranking, whose first is the right one,
            and the cosines `[N]` of all images.
    """

    def candidate(row: int, cosines: Tensor, right: int) -> Candidate:
        pixels = image_of(row)
        return Candidate(
            name_of(row), float(cosines[row]), row == right, None if pixels is None else to_picture(pixels)
        )

    queries = []
    for caption, by_cosine, reranked, cosines in examples:
        right = int(reranked[0])
        for how, order in (("by cosine", by_cosine.tolist()), ("re-ranked", reranked.tolist())):
            top = tuple(candidate(row, cosines, right) for row in order[:top_k])
            rank = order.index(right) + 1
            queries.append(Query(f"{how}: {caption}", top, rank, candidate(right, cosines, right)))
    return text_to_image_panel(queries)


def text_to_image_panel(queries: Sequence[Query]) -> Tensor:
    """A row a caption: the caption, its best images (right one framed green, wrong ones red) and the right image."""
    tile, gap, text_width, row_height = 150, 14, 250, 196
    count = max(len(query.top) for query in queries)
    right_column = text_width + count * (tile + gap) + 30
    width, height = right_column + tile + 2 * gap, 56 + row_height * len(queries)
    figure, axes = canvas(width, height)
    draw_text(axes, gap, 26, "caption", QUIET)
    draw_text(axes, text_width, 26, "best images, best first (cosine below)", QUIET)
    draw_text(axes, right_column, 26, "right image", QUIET)
    for number, query in enumerate(queries):
        top = 46 + number * row_height
        draw_rule(axes, top - 8, width)
        draw_folded(axes, gap, top, query.name, 30, lines=7)
        for column, candidate in enumerate(query.top):
            x = text_width + column * (tile + gap)
            _candidate_tile(axes, x, top, tile, candidate)
            draw_text(axes, x, top + tile + 18, _score(candidate), _colour(candidate))
        _candidate_tile(axes, right_column, top, tile, query.right)
        found = query.right_rank <= len(query.top)
        draw_text(axes, right_column, top + tile + 18, f"rank {query.right_rank}", RIGHT if found else QUIET)
    return render(figure)


def image_to_text_panel(queries: Sequence[Query]) -> Tensor:
    """A row an image: the image and its best captions, right ones green, wrong ones red, and the best right one."""
    tile, gap, row_height, line = 150, 14, 182, 24
    width, height = 1180, 56 + row_height * len(queries)
    figure, axes = canvas(width, height)
    draw_text(axes, gap, 26, "image", QUIET)
    draw_text(axes, tile + 3 * gap, 26, "best captions, best first (cosine at the left)", QUIET)
    for number, query in enumerate(queries):
        top = 46 + number * row_height
        draw_rule(axes, top - 8, width)
        draw_tile(axes, gap, top, tile, query.image, query.name)
        for place, candidate in enumerate(query.top):
            y = top + 16 + place * line
            draw_text(axes, tile + 3 * gap, y, _score(candidate), _colour(candidate))
            draw_text(axes, tile + 3 * gap + 74, y, shorten(candidate.name, 118), _colour(candidate))
        if query.right_rank > len(query.top):
            y = top + 22 + len(query.top) * line
            caption = shorten(query.right.name, 98)
            draw_text(axes, tile + 3 * gap, y, f"{query.right.score:.2f}", QUIET)
            draw_text(axes, tile + 3 * gap + 74, y, f"rank {query.right_rank}, first right one: {caption}", QUIET)
    return render(figure)


def similarity_matrix(similarity: Tensor) -> Tensor:
    """Cosines `[n, n]` of n images (rows) with their n captions (columns): a model that has learned shows a bright
    diagonal. A ring marks each row's best caption."""
    values = similarity.detach().float().cpu().numpy()
    size = len(values)
    best = values.argmax(axis=1)
    hits = int((best == np.arange(size)).sum())
    figure = Figure(figsize=(8.2, 7.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap="magma", interpolation="nearest")
    axes.scatter(best, np.arange(size), s=26, facecolors="none", edgecolors="#38bdf8", linewidths=1.2)
    axes.set_title(
        f"Image-text cosine of {size} held-out pairs\nbest caption (ring) is the right one: {hits} of {size}"
    )
    axes.set_xlabel("caption (caption i belongs to image i)")
    axes.set_ylabel("image")
    figure.colorbar(shown, ax=axes, shrink=0.9, label="cosine")
    return render(figure)


def slot_usage(usage: Tensor, labels: Sequence[str] | None = None, what: str = "sample") -> Tensor:
    """Which memory slots are read.

    Args:
        usage: mean squared read weight per slot, `[K]` or `[n, K]` (a row a point in time, or a sample).
        labels: names of the n rows (steps); None shows no names.
        what: what a row is, for the axis.

    The bars above are the share of each slot over all rows. The title has the utilization, exp(entropy) / K:
    1 when all slots are read alike, 1 / K when one takes everything.
    """
    values = np.atleast_2d(usage.detach().float().cpu().numpy())
    share = values.mean(axis=0)
    share = share / max(share.sum(), np.finfo(np.float32).tiny)
    slots = len(share)
    entropy = -(share * np.log(np.maximum(share, np.finfo(np.float32).tiny))).sum()
    over_rows = len(values) > 1
    figure = Figure(figsize=(9.0, 6.0 if over_rows else 3.0), dpi=DPI, layout="constrained")
    # One row is all in the bars; a heat map of one row says nothing more.
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2)) if over_rows else [figure.add_subplot()]
    bars = panels[0]
    bars.bar(np.arange(slots), share, color="#2563eb", width=0.8)
    bars.axhline(1 / slots, color=QUIET, linestyle="--", linewidth=1)
    bars.text(slots - 0.5, 1 / slots, " all\n alike", color=QUIET, va="center", ha="left", fontsize=8)
    bars.set_ylabel("share of reads")
    bars.set_title(f"Memory slots read: utilization {np.exp(entropy) / slots:.0%} of {slots} slots")
    bars.set_xlim(-0.5, slots - 0.5)
    panels[-1].set_xlabel("memory slot")
    if not over_rows:
        return render(figure)
    below = panels[1]
    shown = below.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    below.set_ylabel(what)
    if labels is not None:
        # At most a dozen names, or they print over each other.
        ticks = range(0, len(labels), -(-len(labels) // 12))
        below.set_yticks(ticks, [labels[i] for i in ticks])
    figure.colorbar(shown, ax=below, label="mean squared read weight", pad=0.02)
    return render(figure)


def slot_similarity(memory: Tensor) -> Tensor:
    """Cosine between the rows of the memory mean M `[K, C]`: off the diagonal near 0 means slots that differ, a red
    field slots that hold the same thing."""
    rows = torch.nn.functional.normalize(memory.detach().float().cpu(), dim=-1)
    values = (rows @ rows.T).numpy()
    slots = len(values)
    off_diagonal = np.abs(values[~np.eye(slots, dtype=bool)]).mean() if slots > 1 else 0.0
    figure = Figure(figsize=(7.6, 6.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(f"Cosine between memory slots\nmean size off the diagonal: {off_diagonal:.2f}")
    axes.set_xlabel("memory slot")
    axes.set_ylabel("memory slot")
    figure.colorbar(shown, ax=axes, shrink=0.9, label="cosine")
    return render(figure)


# ---- a candidate ----


def _candidate_tile(axes: Axes, x: float, y: float, size: int, candidate: Candidate) -> None:
    draw_tile(axes, x, y, size, candidate.image, candidate.name, _colour(candidate))


def _colour(candidate: Candidate) -> str:
    return RIGHT if candidate.is_right else WRONG


def _score(candidate: Candidate) -> str:
    # The mark says it too, for eyes that do not tell red from green.
    return f"{candidate.score:.2f} {'✓' if candidate.is_right else '✗'}"


def _rank(scores: Tensor, target: int) -> int:
    """Rank from 1; candidates with an equal score count as better."""
    return int((scores >= scores[target]).sum())
