"""The page: a title, a tab for each thing that the model can do, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import gradio as gr

from bitgen.api import Model, VisionLanguage
from bitgen.demo import about, markup
from bitgen.demo.abilities import ABILITIES, ASK, DESCRIBE, MATCH, REMEMBER, SEARCH, WHERE, why_not
from bitgen.demo.tabs import ask, describe, match, remember, search
from bitgen.demo.tabs.common import QUEUE, compute_alone_if_small, guarded, visitor_of
from bitgen.guards.printable import printable

TITLE = "BitGen"
_INTRODUCTION = """# BitGen
A small model that sees, reads, remembers and writes, on this machine alone: nothing leaves it. Model: `{model}`"""


def build(model: Model | VisionLanguage, scratch: Path, folder: str | None = None) -> gr.Blocks:
    """The page.

    Args:
        scratch: a folder for files that visitors download.
        folder: with pictures, to search in place of the built-in scenes; None: those.

    Raises:
        ValueError: ``folder`` cannot be read, or the model cannot search.
    """
    missing, forgets = why_not(model), list[Callable[[str], None]]()
    if folder is not None and SEARCH in missing:
        raise ValueError(f"{folder}: {missing[SEARCH]}")
    compute_alone_if_small(sum(parameter.numel() for parameter in model.trained.model.parameters()))

    def leave(request: gr.Request) -> None:
        for forget in forgets:
            forget(visitor_of(request))

    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(3600, 86400)) as page:
        name = printable("/".join(model.trained.folder.parts[-2:])).replace("`", " ")
        gr.Markdown(_INTRODUCTION.format(model=name))
        with gr.Tabs():
            for ability in ABILITIES:
                if ability not in missing:
                    with gr.Tab(ability, id=ability):
                        if (forget := _build(ability, model, scratch, folder)) is not None:
                            forgets.append(forget)
            with gr.Tab("About", id="About"):
                _build_about(model, missing)
        page.unload(leave)
    return page


def _build(
    ability: str, model: Model | VisionLanguage, scratch: Path, folder: str | None
) -> Callable[[str], None] | None:
    """A tab; what forgets a visitor, if it keeps something for each."""
    if ability == DESCRIBE:
        describe.build(model)
    elif ability == ASK:
        ask.build_ask(model)
    else:
        assert isinstance(model, Model), ability
        if ability == SEARCH:
            return search.build(model, folder)
        elif ability == MATCH:
            match.build(model)
        elif ability == REMEMBER:
            return remember.build(model, scratch)
        else:
            assert ability == WHERE
            ask.build_where(model)
    return None


def _build_about(model: Model | VisionLanguage, missing: dict[str, str]) -> None:
    @guarded
    def measure() -> str:
        seconds = about.seconds_a_caption(model)
        return f"{seconds:.3f} seconds a caption (the median of three, with three beams, on this machine as it is now)"

    if missing:
        lines = "".join(f"<li><b>{name}</b>: {escape(why)}</li>" for name, why in missing.items())
        gr.HTML(f"<p>What this model cannot do, and why:</p><ul>{lines}</ul>", elem_id="about-missing")
    with gr.Row():
        gr.HTML(markup.table(about.facts(model), "This model"), elem_id="about-facts")
        gr.HTML(markup.table(about.parameters(model), "Its parameters"), elem_id="about-parameters")
    if DESCRIBE not in missing:
        timed = gr.Textbox(label="How long a caption takes", interactive=False, elem_id="about-time")
        button = gr.Button("Measure it", elem_id="about-measure")
        button.click(measure, None, timed, api_name="measure", **QUEUE)
