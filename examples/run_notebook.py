"""Run quickstart.ipynb from top to bottom, as `make notebook` does; any error in a cell fails.

A copy is run, and thrown away. With `--write` the notebook itself gets the new outputs.
"""

from __future__ import annotations

import argparse
import base64
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image
from traitlets.config import Config

logger = logging.getLogger("run_notebook")
NOTEBOOK = Path(__file__).resolve().with_name("quickstart.ipynb")
SECONDS = 600  # for one cell
# transformers brings tqdm, which misses a package that shows its bars in notebooks; there are none here.
QUIET = "ignore:IProgress not found"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in its own folder; without the times and versions of that run.

    Raises:
        CellExecutionError: a cell failed; the message has the cell and its error.
    """
    notebook = nbformat.read(path, as_version=4)
    language = dict(notebook.metadata.language_info)
    with tempfile.TemporaryDirectory() as sockets:  # that only this user can open, in place of ports
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            startup_timeout=SECONDS,
            record_timing=False,
            resources={"metadata": {"path": path.parent}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
        )
        client.execute(env={**os.environ, "PYTHONWARNINGS": QUIET})
    notebook.metadata.language_info = language
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data, output.metadata = {"image/png": _small(output.data["image/png"])}, {}
    return notebook


def _small(picture: str) -> str:
    """A PNG in base64, packed as well as it can be without loss: colours are what the pictures are about."""
    content = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the outputs, in the notebook itself")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        notebook = executed(NOTEBOOK)
    except CellExecutionError as error:
        logger.error("a cell of %s failed\n%s", NOTEBOOK.name, error)
        return 1
    if flags.write:
        nbformat.write(notebook, NOTEBOOK)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    logger.info("%s: %d cells ran%s", NOTEBOOK.name, cells, ", outputs written" if flags.write else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
