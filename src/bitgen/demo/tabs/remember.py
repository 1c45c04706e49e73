"""The tab that teaches a model pictures, and shows what they bring back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from bitgen.api import Model
from bitgen.demo import remembering
from bitgen.demo.scenes import another_picture, held_out_scene
from bitgen.demo.tabs.common import QUEUE, guarded, needed, picture_input, visitor_of
from bitgen.demo.visitors import PerVisitor
from bitgen.memory import EpisodicMemory

_WHAT = """Teach the model a picture with a text, in one step and without training, and let another picture bring it
back. Your memory is your own: other visitors of this page do not see it, and it is gone when the page is closed unless
you save it."""
_MUTE = """This model was not trained to speak from its memory (`configs/memory_scenes.yaml` trains one that is): its
captions do not change by what it is taught."""
_DISTANCE = """Distance: 0.00 is the very picture or text that was taught. Others mostly have more, but a picture of
something else may come near, too."""
_EXAMPLES = 20


def build(model: Model, folder: Path) -> Callable[[str], None]:
    """The tab's controls and what they do; ``folder``: where memories to be saved are written. Returns what forgets a
    visitor."""
    memories: PerVisitor[EpisodicMemory] = PerVisitor(model.memory)
    speaks = model.trained.model.recall is not None

    def held(memory: EpisodicMemory) -> tuple[list[list[str]], str]:
        return remembering.rows(memory), remembering.summary(memory)

    @guarded
    def teach(picture: str | None, text: str, request: gr.Request) -> tuple[Any, ...]:
        memory = memories.kept(visitor_of(request))
        key = remembering.teach(memory, picture if speaks else needed(picture), text or "")
        return f"Taught as episode {key}.", *held(memory)

    @guarded
    def recall(picture: str | None, text: str, request: gr.Request) -> tuple[list[list[str]], str, str, str]:
        memory = memories.seen(visitor_of(request))
        found = remembering.recall(memory, picture, text or "")
        table = [[f"{one.distance:.2f}", one.id, one.text] for one in found]
        said = remembering.said(model, memory, picture, text or "")
        if said is None:
            return table, "", "", ""
        source = "; ".join(f"{sure:.0%} episode {one.id}: {one.text}" for one, sure in said.facts)
        return table, said.before, said.after, source or "nothing like this was taught"

    @guarded
    def edit(key: str | None, text: str | None, request: gr.Request) -> tuple[Any, ...]:
        memory = memories.kept(visitor_of(request))
        key = (key or "").strip()
        memory.edit(key, text or "")
        return f"Episode {key} has another text.", *held(memory)

    @guarded
    def forget(key: str | None, request: gr.Request) -> tuple[Any, ...]:
        memory = memories.kept(visitor_of(request))
        key = (key or "").strip()
        memory.forget(key)
        return f"Episode {key} is forgotten, as if it had never been taught.", *held(memory)

    @guarded
    def save(request: gr.Request) -> str:
        memory = memories.seen(visitor_of(request))
        if not len(memory):
            raise ValueError("the memory is empty: teach it something before saving")
        path = Path(tempfile.mkdtemp(dir=folder)) / "bitgen.memory"
        memory.save(path)
        return str(path)

    @guarded
    def load(file: str | None, request: gr.Request) -> tuple[Any, ...]:
        memory = memories.kept(visitor_of(request))
        if file is None:
            raise ValueError("there is no memory file: choose one that was saved here or by src/memory.py")
        memory.load(file)
        return f"{len(memory)} episodes were loaded.", *held(memory)

    @guarded
    def draw(request: gr.Request) -> Image.Image:
        drawing = remembering.drawn(memories.seen(visitor_of(request)))
        if drawing is None:
            raise ValueError("the memory is empty: teach it something before drawing it")
        return drawing

    @guarded
    def example(request: gr.Request) -> tuple[Image.Image, int]:
        row = len(memories.seen(visitor_of(request))) % _EXAMPLES
        return held_out_scene(row, _EXAMPLES), row

    @guarded
    def drawn_anew(row: float | None) -> Image.Image:
        if row is None:
            raise ValueError("there is no built-in scene on the left: take one and teach it first")
        return another_picture(int(row) % _EXAMPLES, _EXAMPLES)

    gr.Markdown(_WHAT if speaks else f"{_WHAT}\n\n{_MUTE}")
    with gr.Row():
        with gr.Column():
            gr.Markdown("### Teach")
            picture = picture_input(elem_id="teach-picture")
            scene = gr.Button("A built-in scene", elem_id="teach-scene")
            text = gr.Textbox(label="Text", placeholder="this is Rex, our dog", elem_id="teach-text")
            go = gr.Button("Teach", variant="primary", elem_id="teach-go")
            row = gr.Number(visible=False)
            done = gr.Textbox(label="Done", interactive=False, elem_id="teach-done")
        with gr.Column():
            gr.Markdown("### Recall")
            cue = picture_input(elem_id="recall-picture")
            anew = gr.Button("The built-in scene on the left, drawn anew", elem_id="recall-scene")
            cue_text = gr.Textbox(label="or, without a picture, a text", elem_id="recall-text")
            ask = gr.Button("Recall", variant="primary", elem_id="recall-go")
            headers = ["distance", "episode", "text"]
            found = gr.Dataframe(
                headers=headers, label="Best first", interactive=False, wrap=True, elem_id="recall-table"
            )
            gr.Markdown(_DISTANCE)
            before = gr.Textbox(label="Says without the memory", visible=speaks, interactive=False)
            after = gr.Textbox(label="Says with it", visible=speaks, interactive=False, elem_id="recall-after")
            source = gr.Textbox(label="Remembered from", visible=speaks, interactive=False)
    gr.Markdown("### What it holds")
    summary = gr.Markdown("The memory is empty.", elem_id="memory-summary")
    table = gr.Dataframe(
        headers=["episode", "text", "taught"], label="Episodes", interactive=False, wrap=True, elem_id="memory-table"
    )
    with gr.Row():
        key = gr.Textbox(label="Episode", elem_id="edit-key")
        new = gr.Textbox(label="New text", elem_id="edit-text", scale=3)
        change = gr.Button("Edit", elem_id="edit-go")
        drop = gr.Button("Forget", elem_id="forget-go")
    with gr.Row():
        keep = gr.Button("Save", elem_id="memory-save")
        file = gr.File(label="Saved memory", interactive=False, elem_id="memory-file")
        given = gr.File(label="Memory to load", file_count="single", elem_id="memory-given")
        take = gr.Button("Load", elem_id="memory-load")
    look = gr.Button("Draw slots, addresses, and what each picture recalls", elem_id="memory-draw")
    drawing = gr.Image(
        show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id="memory-drawing"
    )
    states = [table, summary]
    scene.click(example, None, [picture, row], api_name="scene_to_teach", **QUEUE)
    anew.click(drawn_anew, row, cue, api_name="scene_to_recall", **QUEUE)
    go.click(teach, [picture, text], [done, *states], api_name="teach", **QUEUE)
    ask.click(recall, [cue, cue_text], [found, before, after, source], api_name="recall", **QUEUE)
    change.click(edit, [key, new], [done, *states], api_name="edit", **QUEUE)
    drop.click(forget, key, [done, *states], api_name="forget", **QUEUE)
    keep.click(save, None, file, api_name="save_memory", **QUEUE)
    take.click(load, given, [done, *states], api_name="load_memory", **QUEUE)
    look.click(draw, None, drawing, api_name="draw_memory", **QUEUE)
    for gone in (picture.upload, picture.clear):
        gone(lambda: None, None, row, queue=False, api_visibility="private")
    return memories.forget
