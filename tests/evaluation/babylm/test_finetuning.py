"""Fine-tuning on made-up tasks: what is read, what an update is, and what a seed gives."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from bitgen.evaluation.babylm.glue import classifier as finetuning_model
from bitgen.evaluation.babylm.glue import finetuning
from bitgen.evaluation.babylm.glue.classifier import TextClassifier, encode_task, padded, passes
from bitgen.evaluation.babylm.glue.data import GLUE_TASKS, read_glue_task
from bitgen.evaluation.babylm.glue.finetuning import FinetuneSettings, finetune_task, official_settings, rate_factor
from bitgen.evaluation.babylm.models import load_model_folder, run_language_model
from bitgen.trained import open_model
from support.babylm import model_folder
from support.glue import write_glue
from support.runs import written_run

CPU = torch.device("cpu")
QUICK = FinetuneSettings(epochs=6, batch_size=8, learning_rate=3e-3)


def opened(kind):
    if kind == "bitgen":
        return run_language_model(open_model(written_run(features=True, max_seq_len=96)), CPU)
    return load_model_folder(model_folder(kind, bos=True), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"), *GLUE_TASKS) / "glue_filtered"


def encoded(folder, encoder, task="rte"):
    return encode_task(encoder, read_glue_task(folder, GLUE_TASKS[task]), 96)


@pytest.mark.parametrize(("kind", "task"), [("bitgen", "rte"), ("bitgen", "mnli"), ("gpt2", "wsc"), ("llama", "boolq")])
def test_a_rule_is_learned(folder, kind, task):
    model, encoder = opened(kind)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    result = finetune_task(model, encoded(folder, encoder, task), 0, CPU, QUICK, show_progress=False)
    assert result.metrics["accuracy"] > 90
    assert len(result.by_epoch) == 6 and result.by_epoch.index(max(result.by_epoch)) == result.best_epoch - 1
    assert len(result.predictions) == 24
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_a_seed_gives_the_same_bits_whatever_came_before(folder, monkeypatch):
    model, encoder = opened("bitgen")
    task = encoded(folder, encoder)
    settings = FinetuneSettings(epochs=2, batch_size=8, learning_rate=1e-3)
    heads = []
    plain = finetuning.classify
    monkeypatch.setattr(
        finetuning, "classify", lambda one, *rest: heads.append(one.head[-1].weight.clone()) or plain(one, *rest)
    )
    torch.manual_seed(5)
    first = finetune_task(model, task, 7, CPU, settings, show_progress=False)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))  # the generator of everybody else is where it was
    again = finetune_task(model, task, 7, CPU, settings, show_progress=False)
    other = finetune_task(model, task, 8, CPU, settings, show_progress=False)
    assert first._replace(seconds=0) == again._replace(seconds=0) != other._replace(seconds=0)
    assert torch.equal(heads[1], heads[3]) and not torch.equal(heads[1], heads[5])


# ---- what is read ----


@pytest.mark.parametrize("kind", ["bitgen", "gpt2", "llama"])
def test_the_last_state_is_that_of_a_plain_pass_of_the_text_alone(folder, kind):
    model, encoder = opened(kind)
    texts = encoded(folder, encoder).valid
    classifier = TextClassifier(model, 2, 0.1).eval()
    with torch.no_grad():
        together = classifier.last_states(*padded(texts, CPU))
        network = classifier.body
        for state, ids in zip(together, texts, strict=True):
            alone = network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
            assert torch.allclose(state, alone, atol=1e-5)


def test_it_is_what_padding_on_the_left_gives(folder):
    """As the official pipeline calls an export with ``--take_final --padding_side left``."""
    model, encoder = opened("bitgen")
    texts = encoded(folder, encoder).valid
    classifier = TextClassifier(model, 2, 0.1).eval()
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    assert 0 < mask.sum() < mask.numel()
    with torch.no_grad():
        left = classifier.body(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1][:, -1]
        assert torch.allclose(classifier.last_states(*padded(texts, CPU)), left, atol=1e-5)


def test_of_a_pair_that_is_too_long_the_longer_text_loses_its_end(folder):
    model, encoder = opened("bitgen")
    data = read_glue_task(folder, GLUE_TASKS["rte"])
    long = data.valid[0]._replace(first="red cat", second="the dog runs " * 60)
    task = encode_task(encoder, data._replace(valid=[long]), 30)
    whole = encode_task(encoder, data._replace(valid=[long]), 500)
    assert len(task.valid[0]) == 30 and len(whole.valid[0]) > 100
    assert task.valid[0] == whole.valid[0][:30]
    assert finetuning_model.longest_text(model, 512) == 96


# ---- an update ----


def test_passes_hold_each_text_once_and_cost_no_more_than_any_other_cut():
    lengths = [3, 200, 4, 90, 5, 100, 6, 7]
    found = passes(lengths, CPU)
    assert sorted(place for part in found for place in part) == list(range(8))
    assert len(found) > 1

    def cost(parts):
        return sum(finetuning_model._PASS_COSTS["cpu"] + max(part) * len(part) for part in parts)

    ordered = sorted(lengths)
    cuts = [c for n in range(8) for c in itertools.combinations(range(1, 8), n)]
    least = min(cost([ordered[a:b] for a, b in itertools.pairwise((0, *cut, 8))]) for cut in cuts)
    assert cost([[lengths[place] for place in part] for part in found]) == least
    assert len(passes(lengths, torch.device("cuda"))) == 1  # a GPU takes them all at once


def test_the_gradient_of_a_batch_does_not_depend_on_its_passes(folder, monkeypatch):
    model, encoder = opened("llama")  # no dropout
    task = encoded(folder, encoder)
    batch = list(range(16))
    training = finetuning._Training(model, task, 0, CPU, FinetuneSettings(1, 16, learning_rate=0.0, dropout=0.0))
    classifier, found = training.classifier, {}

    def look(*_):
        found.update((name, p.grad.clone()) for name, p in classifier.named_parameters() if p.grad is not None)

    training.optimizer.register_step_pre_hook(look)
    monkeypatch.setattr(finetuning, "passes", lambda *_: [[3, 1, 15], [0, 2, *range(4, 15)]])
    loss = training.step(batch)
    logits = classifier(*padded([task.train[example] for example in batch], CPU))
    plain = F.cross_entropy(logits, torch.tensor([task.train_labels[example] for example in batch]))
    plain.backward()
    assert loss == pytest.approx(plain.item(), abs=1e-6)
    gradients = {name: p.grad for name, p in classifier.named_parameters() if p.grad is not None}
    assert set(gradients) == set(found) and len(gradients) > 10
    assert all(torch.allclose(found[name], gradients[name], atol=1e-6) for name in found)


def test_an_epoch_visits_whole_batches_of_different_texts():
    order = torch.Generator().manual_seed(0)
    epochs = [list(finetuning._batches(21, 4, order)) for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4] * 5
        assert len({example for batch in batches for example in batch}) == 20
    assert epochs[0] != epochs[1]


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    factors = [rate_factor(step, 100, 6, 0.1) for step in range(100)]
    assert factors[:7] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert factors[53] == pytest.approx(0.55) and factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert rate_factor(0, 3, 0, 0.1) == 1


def test_the_official_settings():
    found = {name: official_settings(task) for name, task in GLUE_TASKS.items()}
    assert {name: (one.epochs, one.batch_size) for name, one in found.items()} == {
        **dict.fromkeys(("mnli", "mrpc", "qqp", "rte"), (10, 32)),
        **dict.fromkeys(("boolq", "multirc"), (10, 16)),
        "wsc": (30, 32),
    }
    assert {one.learning_rate for one in found.values()} == {3e-5}
    assert {name for name, task in GLUE_TASKS.items() if task.metric == "f1"} == {"mrpc", "qqp"}


def test_the_first_of_level_epochs_is_the_best(folder, monkeypatch):
    model, encoder = opened("gpt2")
    task = encoded(folder, encoder)
    answers = iter([[0] * 24, task.valid_labels, task.valid_labels])
    monkeypatch.setattr(finetuning, "classify", lambda *_: next(answers))
    result = finetune_task(model, task, 0, CPU, FinetuneSettings(3, 32), show_progress=False)
    assert result.best_epoch == 2 and result.metrics["accuracy"] == 100


# ---- what stops it ----


@pytest.mark.parametrize("kind", ["gpt2", "bitgen"])  # GPT-2 with dropout, BitGen's own with its other generator
def test_an_interrupted_task_goes_on_after_its_last_epoch(folder, tmp_path, monkeypatch, kind):
    model, encoder = opened(kind)
    task, state = encoded(folder, encoder), tmp_path / "kept" / "rte.state.pt"
    settings = FinetuneSettings(epochs=4, batch_size=16, learning_rate=1e-3)
    whole = finetune_task(model, task, 0, CPU, settings, show_progress=False)
    plain, steps = finetuning._Training.step, []

    def step(training, batch):
        if len(steps) == 15:  # in the third epoch of six steps
            raise KeyboardInterrupt
        steps.append(batch)
        return plain(training, batch)

    monkeypatch.setattr(finetuning._Training, "step", step)
    with pytest.raises(KeyboardInterrupt):
        finetune_task(model, task, 0, CPU, settings, state, show_progress=False)
    assert state.exists()
    counted = []
    monkeypatch.setattr(finetuning._Training, "step", lambda *args: counted.append(1) or plain(*args))
    resumed = finetune_task(model, task, 0, CPU, settings, state, show_progress=False)
    assert resumed._replace(seconds=0) == whole._replace(seconds=0)
    assert len(counted) == 12 and not list(state.parent.iterdir())


def test_a_state_kept_on_a_cpu_goes_on_on_a_gpu(tmp_path, monkeypatch):
    """Without a GPU: tensors stay here, and CUDA's generator is only to be left alone."""
    training = object.__new__(finetuning._Training)
    training.device, training.name, training.settings = CPU, "rte (seed 0)", QUICK
    training.classifier = torch.nn.Linear(2, 2)
    training.optimizer = torch.optim.AdamW(training.classifier.parameters())
    training.order = torch.Generator().manual_seed(1)
    for name in finetuning._PROGRESS:
        setattr(training, name, [50.0] if name == "by_epoch" else 3)
    training.keep(tmp_path / "state.pt")
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, map_location, **others: load(path, map_location=CPU, **others))
    training.device, training.by_epoch = torch.device("cuda"), []
    training.go_on(tmp_path / "state.pt")
    assert training.by_epoch == [50.0]


def test_a_damaged_state_is_named(folder, tmp_path):
    model, encoder = opened("gpt2")
    (tmp_path / "state.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"state.pt is damaged \(.*\): delete it, and this task starts anew"):
        finetune_task(model, encoded(folder, encoder), 0, CPU, QUICK, tmp_path / "state.pt", show_progress=False)


def test_a_state_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch, caplog):
    model, encoder = opened("gpt2")
    task = encoded(folder, encoder)
    settings = FinetuneSettings(epochs=2, batch_size=32, learning_rate=1e-3)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    found = finetune_task(model, task, 0, CPU, settings, tmp_path / "state.pt", show_progress=False)
    assert "No space left on device): an interruption would lose this epoch" in caplog.text
    assert found._replace(seconds=0) == finetune_task(model, task, 0, CPU, settings, show_progress=False)._replace(
        seconds=0
    )


def test_a_loss_that_is_not_finite_is_no_score(folder):
    model, encoder = opened("llama")
    task = encoded(folder, encoder)
    settings = FinetuneSettings(epochs=4, batch_size=32, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"rte \(seed 0\): the loss is (nan|inf) at step \d of 12, no score is given"):
        finetune_task(model, task, 0, CPU, settings, show_progress=False)


def test_logits_that_are_not_finite_are_no_score(folder):
    model, encoder = opened("llama")
    classifier = TextClassifier(model, 2, 0.1)
    classifier.head[-1].bias.data[0] = math.nan
    with pytest.raises(ValueError, match="here: the model gives logits that are not finite"):
        finetuning.classify(classifier, encoded(folder, encoder).valid, CPU, "here")


def test_fewer_texts_than_a_batch(folder):
    model, encoder = opened("gpt2")
    with pytest.raises(ValueError, match=r"rte \(seed 3\): 96 training examples are fewer than a batch of 97"):
        finetune_task(model, encoded(folder, encoder), 3, CPU, FinetuneSettings(1, 97))


def test_a_text_without_tokens_is_named(folder):
    _, encoder = load_model_folder(model_folder("gpt2"), CPU)  # no BOS
    data = read_glue_task(folder, GLUE_TASKS["rte"])
    empty = [data.valid[0], data.valid[1]._replace(first="", second="")]
    with pytest.raises(ValueError, match=r"rte.valid.jsonl line 2: the tokenizer makes no token of it"):
        encode_task(encoder, data._replace(valid=empty), 96)
