"""What all tabs share: how a picture comes in, and how an error is shown."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from html import escape
from typing import Any, TypeVar

import gradio as gr
import torch
from gradio.utils import get_upload_folder

from bitgen.guards.printable import printable

logger = logging.getLogger(__name__)

# Of every event: computations wait for one another, whoever asked for them.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
NO_PICTURE = "there is no picture: choose one, or take a built-in scene"
_UNEXPECTED = "Something went wrong that should not have. The terminal that runs this page says what. The page goes on."
_PACKAGE = __name__.split(".")[0]
_LONGEST = 600  # characters of a message

# One thread for all computations: how many cores one computes with is said thread by thread.
_COMPUTING = ThreadPoolExecutor(1, "model")
_SMALL = 50_000_000  # parameters

Function = TypeVar("Function", bound=Callable[..., Any])


def picture_input(label: str = "Picture", **options: Any) -> gr.Image:
    """A picture as the file that the browser sent: it is decoded where all pictures are, within the same limits."""
    settings: dict[str, Any] = {"type": "filepath", "format": "png", "sources": ["upload", "clipboard"], "height": 320}
    settings["buttons"] = ["fullscreen"]
    picture = gr.Image(label=label, **(settings | options))
    # Gradio would open the file itself. (A class of our own it would take for a component to be fetched.)
    picture.preprocess = _path  # type: ignore[method-assign]
    return picture


def _path(payload: Any) -> str | None:
    if payload is None:
        return None
    if payload.path is None:
        raise shown("the picture is no file: send one")
    return payload.path


def shown(error: object) -> gr.Error:
    """A message for the page. Gradio renders it as HTML, so that what files and models say is escaped."""
    return gr.Error(escape(readable(error)), title="That did not work", print_exception=False)


def readable(text: object) -> str:
    """On one line, with the names of files as the person gave them, and not as the page keeps them."""
    kept = re.escape(get_upload_folder().rstrip("/"))
    return printable(re.sub(rf"{kept}/[0-9a-f]{{64}}/", "", str(text)), _LONGEST)


def guarded(function: Function) -> Function:
    """The function, whose errors are messages on the page: those that a person can mend in the words of the command
    line, others in general words, with the whole story in the terminal."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        heard = _Heard()
        try:
            return _COMPUTING.submit(copy_context().run, heard.to, function, *args, **kwargs).result()
        except gr.Error:
            raise
        except (ValueError, OSError) as error:
            raise shown(error) from error
        except Exception as error:
            logger.exception("the page could not do what was asked")
            raise shown(_UNEXPECTED) from error
        finally:
            for text in heard.said:
                gr.Warning(escape(readable(text)))

    return call  # type: ignore[return-value]  # it takes and gives the same


class _Heard(logging.Handler):
    """What the package warns of in one thread: of a text that is cut, of a memory that is full."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self._thread = 0

    def to(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in this thread, and hear what it says."""
        self._thread = threading.get_ident()
        with self:
            return function(*args, **kwargs)

    def __enter__(self) -> _Heard:
        logging.getLogger(_PACKAGE).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_PACKAGE).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is said."""
        if record.thread == self._thread and record.levelno == logging.WARNING:
            self.said.append(record.getMessage())


def compute_alone_if_small(parameters: int) -> None:
    """Let a small model compute with one core. Beside the threads that serve the page, several cores wait for one
    another at each of its many short steps: a caption then takes twice as long (docs/demo.md)."""
    if parameters < _SMALL:
        _COMPUTING.submit(torch.set_num_threads, 1).result()


def needed(picture: str | None) -> str:
    """The picture's file.

    Raises:
        ValueError: there is none.
    """
    if picture is None:
        raise ValueError(NO_PICTURE)
    return picture


def visitor_of(request: gr.Request) -> str:
    """What tells a visitor from others."""
    return str(request.session_hash)
