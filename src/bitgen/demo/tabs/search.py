"""The tab that finds pictures by a text, and captions by a picture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import gradio as gr
from PIL import Image

from bitgen.api import Model
from bitgen.demo.searching import (
    Found,
    PictureIndex,
    captions_for,
    check_captions,
    folder_index,
    how_reranked,
    pictures_for,
    scenes_index,
)
from bitgen.demo.tabs.common import QUEUE, guarded, needed, picture_input, visitor_of
from bitgen.demo.visitors import PerVisitor
from bitgen.guards.printable import printable

_WHAT = """Write what you look for, and the model finds the pictures that fit, or give it a picture and it finds the
captions. The built-in scenes are there at once; the pictures of a folder on this machine can take their place."""
_SHOWN = 8


def build(model: Model, folder: str | None = None) -> Callable[[str], None]:
    """The tab's controls and what they do; ``folder``: indexed in place of the built-in scenes. Returns what forgets a
    visitor."""
    first = scenes_index(model) if folder is None else folder_index(model, folder)
    indexes: PerVisitor[PictureIndex] = PerVisitor(lambda: first)
    stops: PerVisitor[threading.Event] = PerVisitor(threading.Event)
    how = how_reranked(model)

    @guarded
    def index(folder: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        stopped = stops.kept(visitor_of(request))
        stopped.clear()

        def bar(files: Iterable[Path]) -> Iterable[Path]:
            for file in progress.tqdm(files, desc="reading pictures"):
                go_on()
                yield file

        def go_on() -> None:
            if stopped.is_set():
                raise ValueError("stopped: what was indexed before stays")

        given = (folder or "").strip()
        found = folder_index(model, given, bar) if given else scenes_index(model)
        go_on()  # asked to stop at the last moment
        indexes.replace(visitor_of(request), found)
        return _state(found)

    def stop(request: gr.Request) -> str:
        # Not guarded: it would wait for what it is to stop.
        stops.kept(visitor_of(request)).set()
        return f"Stopped. {_state(indexes.seen(visitor_of(request)))}"

    @guarded
    def pictures(text: str, rerank: bool, request: gr.Request) -> list[tuple[Image.Image, str]]:
        given = indexes.seen(visitor_of(request))
        found = pictures_for(model, given, text or "", _SHOWN, rerank)
        return [(given.thumbnails[one.row], f"{given.names[one.row]}: {_numbers(one)}") for one in found]

    @guarded
    def captions(picture: str | None, lines: str, rerank: bool) -> list[list[str]]:
        given = check_captions((lines or "").splitlines())
        found = captions_for(model, needed(picture), given, _SHOWN, rerank)
        return [[str(place), given[one.row], _scores(one)] for place, one in enumerate(found, start=1)]

    gr.Markdown(_WHAT)
    label = (
        f"Re-rank the nearest {how}" if how else "This model cannot re-rank: it learned neither to match nor to write"
    )
    rerank = gr.Checkbox(how is not None, label=label, interactive=how is not None)
    with gr.Row():
        place = gr.Textbox(
            folder or "",
            label="Folder with pictures",
            placeholder="empty: the built-in scenes",
            elem_id="search-folder",
            scale=3,
        )
        read = gr.Button("Index it", elem_id="search-index")
        halt = gr.Button("Stop", elem_id="search-stop")
    state = gr.Markdown(_state(first), elem_id="search-state")
    with gr.Row():
        text = gr.Textbox("a red circle", label="Text", elem_id="search-text", scale=3)
        find = gr.Button("Find pictures", variant="primary", elem_id="search-go")
    gallery = gr.Gallery(
        label="Best first: cosine, and what it was re-ranked by",
        columns=4,
        height=640,
        object_fit="contain",
        buttons=["fullscreen"],
        elem_id="search-gallery",
        format="png",
    )
    with gr.Row():
        with gr.Column():
            picture = picture_input(elem_id="search-picture")
            lines = gr.Textbox(
                "\n".join(first.captions) or "a photo of a dog\na photo of the sea", lines=6, max_lines=12,
                label="Captions to choose from, one a line",
            )  # fmt: skip
            choose = gr.Button("Find captions", variant="primary", elem_id="search-captions-go")
        table = gr.Dataframe(
            headers=["place", "caption", "scores"],
            label="Best first",
            interactive=False,
            wrap=True,
            column_widths=["12%", "53%", "35%"],
            elem_id="search-captions",
        )
    reading = read.click(index, place, state, api_name="index", **QUEUE)
    halt.click(stop, None, state, cancels=[reading], queue=False, api_name="stop_index")
    gr.on([find.click, text.submit], pictures, [text, rerank], gallery, api_name="find_pictures", **QUEUE)
    choose.click(captions, [picture, lines, rerank], table, api_name="find_captions", **QUEUE)

    def forget(visitor: str) -> None:
        stops.seen(visitor).set()
        for kept in (stops, indexes):
            kept.forget(visitor)

    return forget


def _state(index: PictureIndex) -> str:
    count = len(index.names)
    said = f"{count:,} {'picture' if count == 1 else 'pictures'} of {_code(index.name)} indexed."
    if index.left_out:
        said += f" {len(index.left_out):,} could not be read, first {_code(index.left_out[0])}."
    return said


def _code(text: str) -> str:
    """As it is, in Markdown."""
    return f"`{printable(text, 200).replace('`', ' ')}`"


def _numbers(one: Found) -> str:
    """As :func:`_scores`, short enough for a small picture."""
    return f"{one.cosine:.2f}" if one.reranked is None else f"{one.cosine:.2f}, {one.reranked:.2f}"


def _scores(one: Found) -> str:
    cosine = f"cosine {one.cosine:.3f}"
    return cosine if one.reranked is None else f"{cosine}, together {one.reranked:.2f}"
