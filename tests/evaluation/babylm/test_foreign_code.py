"""Python code that a folder brings is run only where that is asked for, and a BitGen export's never."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from bitgen.commands import evaluate
from bitgen.data.tokenizer import load_tokenizer
from bitgen.export.revisions import export_run
from support.babylm import model_folder
from support.runs import written_run

CODE = "from pathlib import Path\nPath({mark!r}).write_text('run')\n"


def evaluated(folder, eval_dir, output, *flags):
    evaluate.main(
        ["--task", "babylm", "--checkpoint", str(folder), "--eval_dir", str(eval_dir), "--device", "cpu"]
        + ["--output", str(output / "results.json"), *flags]
    )


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def foreign(tmp_path, mark):
    """A model of a type that transformers does not know, whose code leaves a mark."""
    folder = shutil.copytree(model_folder(), tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "foreign", "auto_map": names}))
    (folder / "code.py").write_text(
        CODE.format(mark=str(mark))
        + f"from transformers import {config['architectures'][0]}\n"
        + f"Base = {config['architectures'][0]}\n"
        + "class Config(Base.config_class):\n    model_type = 'foreign'\n"
        + "class Model(Base):\n    config_class = Config\n"
    )
    return folder


def test_it_is_not_run_unasked(foreign, eval_dir, tmp_path, mark, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluated(foreign, eval_dir, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and not mark.exists()
    assert "brings Python code of its own" in said and "write --trust_remote_code True" in said


def test_it_is_run_where_that_is_asked_for(foreign, eval_dir, tmp_path, mark):
    evaluated(foreign, eval_dir, tmp_path, "--trust_remote_code", "True")
    assert mark.exists() and "babylm" in json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize("flags", [(), ("--trust_remote_code", "True")])
def test_an_exports_code_is_never_run(eval_dir, tmp_path, mark, flags):
    folder = export_run(str(written_run(features=True, max_seq_len=160)), str(tmp_path / "model"), True, False, {})
    planted = list(folder.glob("*.py"))
    assert planted
    for path in planted:
        path.write_text(CODE.format(mark=str(mark)) + path.read_text())
    evaluated(folder, eval_dir, tmp_path, *flags)
    assert not mark.exists()


def test_a_tokenizers_code_is_not_run(tmp_path, mark):
    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = {"AutoTokenizer": [None, "code.Tokenizer"]}
    settings |= {"auto_map": names, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(CODE.format(mark=str(mark)) + "class Tokenizer: pass\n")
    try:
        load_tokenizer(folder)
    except ValueError as error:
        assert "cannot load tokenizer" in str(error)
    assert not mark.exists()
