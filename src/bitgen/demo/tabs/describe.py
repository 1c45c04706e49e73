"""The tab that describes a picture."""

from __future__ import annotations

import random

import gradio as gr
from PIL import Image

from bitgen.api import Model, VisionLanguage
from bitgen.demo import markup
from bitgen.demo.describing import describe, probabilities
from bitgen.demo.scenes import held_out_scene
from bitgen.demo.tabs.common import QUEUE, guarded, needed, picture_input

_SCENES = 200
NOTHING = "(the model says nothing)"
_WHAT = """The model writes a caption. With temperature 0 it searches for the likeliest one with as many beams as you
say; above 0 it draws each word, and every press gives another caption."""


def build(model: Model | VisionLanguage) -> None:
    """The tab's controls and what they do."""

    @guarded
    def caption(picture: str | None, beams: float, temperature: float) -> tuple[str, str]:
        found = describe(model, needed(picture), int(beams), temperature)
        return found.text or NOTHING, f"{found.seconds:.2f} seconds"

    @guarded
    def coloured(picture: str | None, text: str) -> str:
        words = probabilities(model, needed(picture), "" if text == NOTHING else text)
        return markup.words(words) if words else markup.sentence(text)

    @guarded
    def scene() -> Image.Image:
        return held_out_scene(random.randrange(_SCENES), _SCENES)

    gr.Markdown(_WHAT)
    with gr.Row():
        with gr.Column():
            picture = picture_input(elem_id="describe-picture")
            take = gr.Button("A built-in scene", elem_id="describe-scene")
            beams = gr.Slider(1, 8, value=3, step=1, label="Beams")
            temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature")
            go = gr.Button("Describe", variant="primary", elem_id="describe-go")
        with gr.Column():
            plain = gr.Textbox(label="Caption", lines=2, interactive=False, elem_id="describe-text")
            took = gr.Textbox(label="It took", interactive=False, elem_id="describe-time")
            words = gr.HTML(elem_id="describe-words")
    take.click(scene, None, picture, api_name="scene", **QUEUE)
    said = go.click(caption, [picture, beams, temperature], [plain, took], api_name="describe", **QUEUE)
    said.success(coloured, [picture, plain], words, api_name="word_probabilities", **QUEUE)
