"""The tab that says which caption belongs to a picture."""

from __future__ import annotations

import random

import gradio as gr
from PIL import Image

from bitgen.api import Model
from bitgen.demo import markup
from bitgen.demo.matching import match
from bitgen.demo.scenes import swapped_example
from bitgen.demo.tabs.common import QUEUE, guarded, needed, picture_input

_WHAT = """The model reads each caption together with the picture. The bars say how sure it is that each of them is the
one, if one of them is. *Swapped words* takes a scene and two captions with the same words in another order: only one is
true, and who looks at words one by one cannot tell which. Small models are often no better than chance at it."""


def build(model: Model) -> None:
    """The tab's controls and what they do."""

    @guarded
    def judge(picture: str | None, lines: str) -> str:
        return markup.bars(match(model, needed(picture), (lines or "").splitlines()))

    @guarded
    def example() -> tuple[Image.Image, str]:
        picture, captions = swapped_example(random.randrange(64))
        random.shuffle(captions)
        return picture, "\n".join(captions)

    gr.Markdown(_WHAT)
    with gr.Row():
        with gr.Column():
            picture = picture_input(elem_id="match-picture")
            swapped = gr.Button("Swapped words", elem_id="match-example")
            lines = gr.Textbox(label="Captions, one a line", lines=4, elem_id="match-captions")
            go = gr.Button("Match", variant="primary", elem_id="match-go")
        result = gr.HTML(elem_id="match-bars")
    swapped.click(example, None, [picture, lines], api_name="swapped_words", **QUEUE)
    go.click(judge, [picture, lines], result, api_name="match", **QUEUE)
