"""Several recipes compared: what a file lists, what is trained and measured, what fails, what goes on."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from bitgen.commands import compare_vlms
from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig
from bitgen.tasks import comparison
from bitgen.tasks.comparison import read_comparison
from support.runs import REPOSITORY
from support.vlm_runs import TINY


def write_file(folder: Path, **content: object) -> Path:
    base = {"recipe": str(REPOSITORY / "configs" / "vlm_quick.yaml"), "settings": dict(TINY)}
    places = {"output_dir": str(folder / "out"), "log_dir": str(folder / "log")}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**base, **places, **content}))
    return path


def test_the_shipped_file_is_eight_recipes_that_can_be() -> None:
    comparison = read_comparison(REPOSITORY / "configs" / "vlm_matrix.yaml", {"max_steps": 7})
    assert [recipe.name[:2] for recipe in comparison.recipes] == [f"E{n}" for n in range(1, 9)]
    for recipe in comparison.recipes:
        language, align, tune = (stage.config for stage in recipe.stages)
        assert language.connector.connector == "none"  # this stage has it off, and keeps it so
        assert (language.adapter.adapter, align.adapter.adapter) == ("none", "none")  # which name none
        assert tune.adapter.adapter == recipe.differs["adapter"]
        assert align.connector.connector == tune.connector.connector == recipe.differs["connector"]
        assert {language.training.max_steps, align.training.max_steps, tune.training.max_steps} == {7}
    assert len({tuple(recipe.differs.values()) for recipe in comparison.recipes}) == 8


def test_the_file_for_photographs_is_the_same_grid() -> None:
    recipes = read_comparison(REPOSITORY / "configs" / "vlm_matrix_smollm2.yaml").recipes
    scenes = read_comparison(REPOSITORY / "configs" / "vlm_matrix.yaml").recipes
    pairs = [[(r.differs["connector"], r.differs["adapter"]) for r in each] for each in (recipes, scenes)]
    assert pairs[0] == pairs[1]
    for recipe in recipes:
        align, tune = (stage.config for stage in recipe.stages)
        assert (align.adapter.adapter, tune.adapter.adapter) == ("none", recipe.differs["adapter"])
        assert align.connector.connector == tune.connector.connector == recipe.differs["connector"]


def test_a_limit_of_steps_shortens_and_never_lengthens(tmp_path) -> None:
    path = write_file(tmp_path, grid={"connector": ["mlp"]})
    whole, cut = (
        [stage.config.training.max_steps for stage in read_comparison(path, limits).recipes[0].stages]
        for limits in ({}, {"max_steps": 250})
    )
    assert min(whole) < 250 < max(whole)
    assert cut == [min(steps, 250) for steps in whole]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "and grid or runs"),
        ({"grid": {"connector": "mlp"}}, "no table of lists"),
        ({"grid": {"conector": ["mlp"]}}, "Did you mean connector?"),
        ({"grid": {"connector": ["mlpp"]}}, "connector"),
        ({"runs": [{"connector": "mlp"}]}, "has no name"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "two runs are named a"),
        ({"grid": {"connector": ["mlp"]}, "max_steps": 0}, "max_steps"),
        ({"gird": {}}, "Did you mean grid?"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, content, says) -> None:
    with pytest.raises(ConfigError, match="grid.yaml|max_steps") as error:
        read_comparison(write_file(tmp_path, **content))
    assert says in str(error.value)


@pytest.fixture
def forks(monkeypatch) -> None:
    """Trainings are forks of one process that has imported everything; test_comparison_stops.py starts new ones."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bitgen.tasks.comparison", "bitgen.tasks.vlm", "peft"])
    monkeypatch.setattr(comparison, "multiprocessing", SimpleNamespace(get_context=lambda _: context))


@pytest.mark.usefixtures("forks")
def test_recipes_are_trained_once_a_failing_one_is_named_and_all_are_compared(tmp_path, capsys) -> None:
    recipe = yaml.safe_load((REPOSITORY / "configs" / "vlm_quick.yaml").read_text())
    recipe["training"]["stages"] = [{"name": "tune", "trains": "connector,language", "max_steps": 9}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Five tokens are no square: refused when the model is built.
    runs = [{"name": "broken", "connector_queries": 5, "connector": "c_abstractor"}]
    runs += [{"name": "a", "connector": "mlp", "connector_depth": 2}, {"name": "b", "connector": "linear"}]
    common = {"recipe": str(tmp_path / "recipe.yaml"), "max_steps": 2, "score": "loss"}
    path = write_file(tmp_path, runs=runs, **common)
    assert compare_vlms.main(["--config", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "broken failed: " in printed and "tokens of a picture" in printed
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["recipes"]
    assert [record["name"] for record in found] == ["broken", "a", "b"]
    assert found[0]["score"] is None and found[0]["error"]
    for record in found[1:]:
        assert record["error"] is None and record["picture_tokens"] == 4  # 28 / 14 squared
        lines = [json.loads(line) for line in (tmp_path / "log" / record["name"] / "tune" / "metrics.jsonl").open()]
        assert record["score"] == [line["val/loss"] for line in lines if "val/loss" in line][-1]
        assert record["seconds"] > 0 and record["peak_memory_bytes"] > 50e6
    # The linear connector has one map less than the MLP.
    hidden = int(TINY["language_hidden_size"])
    assert found[1]["trained_parameters"] - found[2]["trained_parameters"] == (hidden + 1) * hidden
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size[0] > 1000

    # Once more: what is finished is not trained again, and the interrupted one goes on.
    before = {name: (tmp_path / "log" / name / "tune" / "metrics.jsonl").read_text() for name in ("a", "b")}
    (tmp_path / "out" / "b" / "tune" / "finished").unlink()
    path = write_file(tmp_path, runs=runs[1:], **common)
    assert compare_vlms.main(["--config", str(path)]) == 0
    after = {name: (tmp_path / "log" / name / "tune" / "metrics.jsonl").read_text() for name in ("a", "b")}
    assert after["a"] == before["a"]
    again = json.loads((tmp_path / "out" / "comparison.json").read_text())["recipes"]
    assert again[0] == found[1]
    assert again[1]["score"] == found[2]["score"] and again[1]["seconds"] > found[2]["seconds"]


def test_the_base_keeps_what_is_not_asked_for(tmp_path) -> None:
    recipe = read_comparison(write_file(tmp_path, grid={"adapter_rank": [2]})).recipes[0]
    quick = VlmConfig.load(REPOSITORY / "configs" / "vlm_quick.yaml")
    assert recipe.stages[2].config.adapter.adapter_rank == 2  # the stage's own is replaced
    assert recipe.stages[2].config.training.optimizer == quick.training.optimizer


def test_a_run_may_have_stages_of_its_own(tmp_path) -> None:
    runs = [{"name": "own", "stages": [{"name": "only", "trains": "connector", "max_steps": 3}]}, {"name": "base"}]
    own, base = read_comparison(write_file(tmp_path, runs=runs)).recipes
    assert [(stage.name, stage.config.training.max_steps) for stage in own.stages] == [("only", 3)]
    assert [stage.name for stage in base.stages] == ["language", "see", "tune"]
