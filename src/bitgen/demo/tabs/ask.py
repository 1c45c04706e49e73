"""The tabs that answer questions about a picture, and say where things are in it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from bitgen.api import Model, VisionLanguage
from bitgen.demo import markup
from bitgen.demo.asking import Asked, ask, where
from bitgen.demo.scenes import MOST_SCENES, table
from bitgen.demo.tabs.common import QUEUE, guarded, needed, picture_input
from bitgen.evaluation.asking import thinks_by_default

_ASK = """Ask about a picture. The model says why, clause by clause, before it answers, and points at what it speaks of
with numbered boxes. In a built-in scene each clause is checked against what was drawn: whether the things that it names
are where it says."""
_ASK_PARTS = "Ask about a picture. The model answers in its own words."
_WHERE = """Name a thing, and the model draws a box around it, or says that there is none. It writes the box as four
edges, each one of 33 places. No map of attention is shown: with two things in a picture it lies as often on the other
one."""
_NONE = "there is none"


def build_ask(model: Model | VisionLanguage) -> None:
    """The tab for questions."""
    of_stage2 = isinstance(model, Model)

    @guarded
    def answer(picture: str | None, question: str, think: bool, number: float | None) -> tuple[str, str, Any]:
        scene = table(int(number)).scene if number is not None else None
        found = ask(model, needed(picture), question or "", think, scene)
        return found.answer, markup.reasons(found.reasons), found.picture

    gr.Markdown(_ASK if of_stage2 else _ASK_PARTS)
    number = gr.Number(visible=False, minimum=0, maximum=MOST_SCENES - 1)
    with gr.Row():
        with gr.Column():
            picture = picture_input(elem_id="ask-picture")
            if isinstance(model, Model):
                examples = _scenes("ask", picture, number)
            question = gr.Textbox(label="Question", elem_id="ask-question")
            think = gr.Checkbox(
                isinstance(model, Model) and thinks_by_default(model.trained), label="Say why first", visible=of_stage2
            )
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
        with gr.Column():
            said = gr.Textbox(label="Answer", interactive=False, elem_id="ask-answer")
            why = gr.HTML(label="Why", elem_id="ask-why")
            boxes = gr.Image(
                label="Boxes",
                format="png",
                interactive=False,
                visible=of_stage2,
                buttons=["fullscreen"],
                elem_id="ask-boxes",
            )
    if of_stage2:
        examples.input(lambda chosen: chosen, examples, question, queue=False, api_visibility="private")
    gr.on(
        [go.click, question.submit], answer, [picture, question, think, number], [said, why, boxes], api_name="ask",
        **QUEUE,
    )  # fmt: skip


def build_where(model: Model) -> None:
    """The tab for boxes."""

    @guarded
    def find(picture: str | None, thing: str) -> tuple[str, Image.Image | None]:
        found = where(model, needed(picture), thing or "")
        return _place(found), found.picture

    gr.Markdown(_WHERE)
    number = gr.Number(visible=False)
    with gr.Row():
        with gr.Column():
            picture = picture_input(elem_id="where-picture")
            examples = _scenes("where", picture, number)
            thing = gr.Textbox(label="What to look for", placeholder="red star", elem_id="where-thing")
            go = gr.Button("Find it", variant="primary", elem_id="where-go")
        with gr.Column():
            said = gr.Textbox(label="Found", interactive=False, elem_id="where-said")
            boxes = gr.Image(label="Box", format="png", interactive=False, buttons=["fullscreen"], elem_id="where-box")
    examples.input(lambda chosen: chosen, examples, thing, queue=False, api_visibility="private")
    gr.on([go.click, thing.submit], find, [picture, thing], [said, boxes], api_name="where", **QUEUE)


def _scenes(tab: str, picture: gr.Image, number: gr.Number) -> gr.Dropdown:
    """Controls that show a built-in scene, and what can be asked of it; another picture then counts as no scene."""

    @guarded
    def show(chosen: float | None) -> tuple[Image.Image, int, Any]:
        if chosen is None:
            raise ValueError("there is no number: write that of a scene")
        drawn = table(int(chosen))
        choices = [one.text for one in drawn.questions] if tab == "ask" else drawn.things
        return drawn.picture, int(chosen), gr.Dropdown(choices=choices, value=None)

    with gr.Row():
        chosen = gr.Number(13, precision=0, minimum=0, maximum=MOST_SCENES - 1, label="Scene", elem_id=f"{tab}-number")
        take = gr.Button("Show this built-in scene", elem_id=f"{tab}-scene")
    examples = gr.Dropdown([], label="What fits this scene", elem_id=f"{tab}-examples")
    take.click(show, chosen, [picture, number, examples], api_name=f"scene_to_{tab}", **QUEUE)
    for gone in (picture.upload, picture.clear):
        gone(lambda: None, None, number, queue=False, api_visibility="private")
    return examples


def _place(found: Asked) -> str:
    return "in the box" if found.picture is not None else found.answer or _NONE
