"""Learning to speak from a memory: read as the memory reads, losses that are what they say, recall alone trains."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bitgen.data.sampler import SampleKey
from bitgen.machine.ranks import Processes
from bitgen.memory.address_space import IMAGE, AddressSpace
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.reading import reader_of
from bitgen.model.likelihood import IGNORED
from bitgen.model.question import lacking
from bitgen.objectives.recall import EXACT, RecallObjective, Written, _pictures_found_alone, closed_form_read
from support.speaking import batch, dataset, make_objective

WIDTH, VALUE = 16, 12
ROUNDING = 1e-9


def facts(count: int, seed: int = 0) -> Written:
    """Keys of length 1 and values, in float64."""
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn(count, WIDTH, generator=random, dtype=torch.float64)
    return Written(F.normalize(keys, dim=1), torch.randn(count, VALUE, generator=random, dtype=torch.float64))


def memory_of(written: Written, slots: int = WIDTH, cue_noise: float = 0.1) -> AssociativeMemory:
    space = AddressSpace(WIDTH, slots, value=VALUE)
    return AssociativeMemory.empty(space, cue_noise).written(torch.cat(written, dim=1))


def strangers(count: int, seed: int = 1) -> torch.Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


# ---- writing and reading ----


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_cue_that_was_not_written_reads_as_from_the_memory(count: int, noise: float) -> None:
    written, cues = facts(count), strangers(7)
    reading = memory_of(written, cue_noise=noise).read(cues, IMAGE)
    assert not reading.is_known.any()
    torch.testing.assert_close(closed_form_read(written, cues, noise), reading.halves, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-8, 1e-3, 0.1])
def test_keys_read_as_from_the_memory_with_the_same_noise(noise: float) -> None:
    written = facts(10)
    reader = reader_of(*written)
    expected = reader.mixed(written.keys, noise) @ reader.values
    torch.testing.assert_close(closed_form_read(written, written.keys, noise), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("slots", [8, 16, 64])
def test_keys_read_their_values_exactly_up_to_capacity(slots: int) -> None:
    capacity = AddressSpace(WIDTH, slots, value=VALUE).capacity
    assert capacity == min(slots, WIDTH)
    for count in (1, capacity // 2, capacity):
        written = facts(count)
        reading = memory_of(written, slots).read(written.keys, IMAGE)
        assert reading.is_known.all()
        torch.testing.assert_close(reading.halves, written.values, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(closed_form_read(written, written.keys, 1e-12), written.values, atol=1e-6, rtol=1e-6)


def test_exact_is_near_enough_to_exact() -> None:
    """Training reads a written key with a little noise, where the memory reads it with none."""
    written = facts(6)
    error = (closed_form_read(written, written.keys, EXACT) - written.values).norm() / written.values.norm()
    assert error < 0.02


def test_a_fact_that_is_forgotten_or_replaced_reads_as_if_it_had_never_been_there() -> None:
    written, cues = facts(8), strangers(5)
    keep = [0, 1, 3, 4, 5, 6, 7]
    memory = memory_of(written)
    left = Written(written.keys[keep], written.values[keep])
    torch.testing.assert_close(memory.without(2).read(cues, IMAGE).halves, closed_form_read(left, cues, 0.1))
    new = facts(8, seed=3)
    changed = Written(written.keys, written.values.clone())
    changed.values[2] = new.values[2]
    replaced = memory.replaced(2, torch.cat([written.keys[2], new.values[2]]))
    torch.testing.assert_close(replaced.read(cues, IMAGE).halves, closed_form_read(changed, cues, 0.1))


def test_reading_is_differentiable_through_the_write() -> None:
    written, cues = facts(4), strangers(3)
    inputs = [part.clone().requires_grad_() for part in (*written, cues)]

    def read(keys: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return closed_form_read(Written(keys, values), asked, 0.1)

    assert torch.autograd.gradcheck(read, inputs)


def test_reading_is_done_in_double_and_given_in_the_values_type() -> None:
    written = Written(*(part.float() for part in facts(12)))
    found = closed_form_read(written, written.keys, 1e-7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, written.values, atol=1e-3, rtol=1e-3)


# ---- the losses, each against plain loops ----


@pytest.fixture(scope="module")
def objective() -> RecallObjective:
    return make_objective()


def addressing_loss(logits: torch.Tensor, rows: list[list[int]]) -> tuple[float, float]:
    """Each fact of a query is one example, in which the other facts of the query are no answers; and so is nothing,
    where none of them is an answer."""
    losses, right = [], []
    for scores, about in zip(logits.tolist(), rows, strict=True):
        for fact in [*about, None]:
            others = [score for row, score in enumerate(scores) if row not in about or row == fact]
            wanted = 0.0 if fact is None else scores[fact]
            total = math.log(sum(math.exp(score) for score in [*others, 0.0]))
            losses.append(total - wanted)
            if fact is not None or not about:  # that nothing else is meant is learned, and not counted as found
                right.append(wanted == max([*others, 0.0]))
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize(
    "rows",
    [
        [[0], [3], [1]],
        [[], [], []],
        [[0, 2], [4, 1], [2, 0]],
        [[0, 2], [], [3]],
        [[], [1, 0], []],
        [[0], [], []],
    ],
    ids=str,
)
def test_addressing_against_plain_loops(objective, rows: list[list[int]]) -> None:
    random = torch.Generator().manual_seed(len(str(rows)))
    logits = torch.randn(3, 5, generator=random) * 5
    table = torch.tensor([[*about, -1, -1][:2] for about in rows])
    loss, share = objective._addressing(logits, table)
    expected, right = addressing_loss(logits, rows)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(share) == pytest.approx(right)


def test_what_a_query_is_about_besides_is_neither_right_nor_wrong(objective) -> None:
    """Of two facts each is found without the other: their own order has no gradient."""
    both = torch.tensor([[4.0, -1.0, 0.5]], requires_grad=True)
    objective._addressing(both, torch.tensor([[0, 1]]))[0].backward()
    alone = torch.tensor([[4.0, 0.5]], requires_grad=True)
    objective._addressing(alone, torch.tensor([[0, -1]]))[0].backward()
    torch.testing.assert_close(3 * both.grad[0, 0], 2 * alone.grad[0, 0])  # of three examples, and of two


def test_what_a_query_is_not_about_falls_below_nothing_though_it_is_not_the_likeliest(objective) -> None:
    """Else it would be recalled beside what the query is about: each fact is recalled that is likelier than nothing."""
    logits = torch.tensor([[25.0, 10.0, -15.0]], requires_grad=True)
    objective._addressing(logits, torch.tensor([[0, -1]]))[0].backward()
    assert logits.grad[0, 1] > 0.4 > abs(logits.grad[0, 2])


def test_a_forward_is_what_each_query_is_alone(objective) -> None:
    """Language, values and addressing of an episode, query by query, by the definitions."""
    objective.eval()
    model, recall = objective.model, objective.recall
    tensors = batch(index=2, picture_queries=16, sentence_queries=5)
    with torch.no_grad():
        whole = objective(tensors)
        written = objective.write(tensors)
        table, seen = model.embeddings.token.weight, len(tensors["query_pictures"])
        logits, by_keys, losses = [], [], []
        for row, about in enumerate(tensors["facts"].tolist()):
            if row < seen:
                tokens = objective.image_tokens(tensors["query_pictures"][row : row + 1])
                cues = recall.image_keys(tokens)[0]
                logits.append(recall.logits((cues @ written.keys.mT).amax(dim=0)))
                by_keys.append(logits[-1])
            else:
                kept = tensors["prompt_mask"][row - seen].bool()
                ids = tensors["prompt_ids"][row - seen][kept][None]
                question = recall.questions(ids, torch.ones_like(ids))
                tokens, cues = None, question.keys
                near, alone = (
                    recall.log_scale[kind].exp() * ((cues @ written.keys.mT)[0] - recall.threshold[kind])
                    for kind in (1, 2)
                )
                logits.append(near - lacking(question, written.values)[0])
                by_keys.append(alone)
            nearest = cues @ written.keys.mT
            taught = [fact for fact in about if fact >= 0]
            if not taught:
                continue
            values = closed_form_read(written, written.keys[taught], EXACT)[None]
            sights = torch.zeros(1, len(taught), model.config.embed_dim)
            if tokens is not None:
                sights = recall.seen(tokens, nearest.argmax(dim=0)[taught][None])
            given = recall.tokens(values, sights, torch.ones(1, len(taught), dtype=torch.bool))
            length = int(tensors["attention_mask"][row].sum())
            ids, labels = (tensors[name][row, :length] for name in ("input_ids", "labels"))
            output = model.run_stack(ids[None], None, tokens, recalled=given)
            said = output.hidden_states[0] @ table.mT + recall.said_logits(output.said[0])
            found = F.cross_entropy(said, labels, ignore_index=IGNORED, reduction="none")
            losses += found[labels != IGNORED].tolist()
        about = [[fact for fact in row if fact >= 0] for row in tensors["facts"].tolist()]
        addressing, right = addressing_loss(torch.stack(logits), about)
        addressing = (addressing + addressing_loss(torch.stack(by_keys), about)[0]) / 2
        coded = value_loss(objective, tensors)
    found = {name: float(value) for name, value in whole.metrics.items()}
    assert {len(row) for row in about} == {0, 1, 2}
    assert found["caption_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["recall_loss"] == pytest.approx(addressing, rel=1e-4) and found["acc_recall"] == pytest.approx(right)
    assert found["value_loss"] == pytest.approx(coded, rel=1e-4)
    assert float(whole.loss) == pytest.approx(found["caption_loss"] + found["recall_loss"] + coded, rel=1e-5)


def value_loss(objective: RecallObjective, tensors: dict[str, torch.Tensor]) -> float:
    """Of each token of each taught text, by the cosines of its code with the codes of all tokens."""
    recall = objective.recall
    codes, scale = F.normalize(recall.code_embedding.weight, dim=1), float(recall.log_say.exp())
    losses = []
    for ids, mask in zip(tensors["taught_ids"], tensors["taught_mask"], strict=True):
        for token in ids[1 : int(mask.sum())][: recall.length].tolist():
            cosines = codes @ codes[token]
            losses.append(float(F.cross_entropy(scale * cosines[None], torch.tensor([token]))))
    return sum(losses) / len(losses)


def test_the_weight_is_of_the_whole(objective) -> None:
    objective.eval()
    tensors = batch()
    with torch.no_grad():
        whole = objective(tensors).loss
        objective.weight = 0.25
        part = objective(tensors).loss
        objective.weight = 1.0
    torch.testing.assert_close(4 * part, whole)


def test_in_training_half_of_the_queries_read_with_their_own_cue(objective) -> None:
    tensors = batch(picture_queries=16)
    objective.train()
    torch.manual_seed(1)
    written = objective.write(tensors)
    asked = objective._ask(written, tensors)
    given = [objective._recalled(written, asked, tensors["facts"]).tokens.detach() for _ in range(2)]
    objective.eval()
    exact = objective._recalled(written, asked, tensors["facts"]).tokens.detach()
    rows = tensors["facts"][:, 0] >= 0
    for tokens in given:
        own = (tokens - exact).abs().amax(dim=(1, 2))[rows] > 1e-6
        assert 0.2 < own.float().mean() < 0.95
    assert not torch.equal(*given)


def test_what_is_said_teaches_keys_of_sentences_and_none_of_pictures(objective) -> None:
    """Of pictures the gradient of the language alone would move them once they find."""
    tensors = batch()
    objective.zero_grad()  # other tests share it
    written = objective.write(tensors)
    asked = objective._ask(written, tensors)
    kept = _pictures_found_alone(written, asked, len(tensors["taught_pictures"]))
    objective._language(tensors, asked, objective._recalled(*kept, tensors["facts"])).backward()
    reached = {name for name, one in objective.recall.named_parameters() if one.grad is not None and one.grad.any()}
    of_sentences = ("text_position", "text_layers", "text_key", "token_embedding")
    keys = ("image_key", "image_weight", "text_weight", *of_sentences, "word_worth", "threshold", "log_scale")
    found = {start for start in keys if any(name.startswith(start) for name in reached)}
    assert found == set(of_sentences)
    assert {"code_embedding.weight", "value_out.weight", "where.1.weight", "pointer.query.weight"} <= reached
    objective.zero_grad()
    asked = objective._ask(objective.write(tensors), tensors)
    sum(objective._addressing(one, tensors["facts"])[0] for one in (asked.logits, asked.by_keys)).backward()
    reached = {name for name, one in objective.recall.named_parameters() if one.grad is not None and one.grad.any()}
    assert {start for start in keys if any(name.startswith(start) for name in reached)} == set(keys)


def test_a_text_that_no_value_can_hold_is_learned_up_to_where_it_is_cut() -> None:
    objective = make_objective(recall_tokens=2).eval()
    tensors = batch()
    assert tensors["taught_mask"].sum(dim=1).min() > 3
    output = objective(tensors)
    assert output.loss.isfinite()
    with torch.no_grad():
        assert float(output.metrics["value_loss"]) == pytest.approx(value_loss(objective, tensors), rel=1e-4)


# ---- what trains ----


def changed_by_training(objective: RecallObjective, steps: int, **options) -> tuple[set[str], set[str]]:
    """Names of the parameters and buffers that change in some steps, and of those that ever had a gradient."""
    data = dataset(**options)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    reached: set[str] = set()
    objective.train()
    for index in range(steps):
        optimizer.zero_grad(set_to_none=True)
        tensors = {name: value for name, value in data[SampleKey(index)].items() if name != "index"}
        objective(tensors).loss.backward()
        for name, parameter in objective.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().max() > ROUNDING:
                reached.add(name)
        optimizer.step()
    return {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}, reached


def test_every_parameter_of_recall_is_reached_and_no_other() -> None:
    objective = make_objective()
    ours = {name for name, _ in objective.named_parameters() if name.startswith("model.recall.")}
    assert {name for name, p in objective.named_parameters() if p.requires_grad} == ours
    assert {name for name, role in objective.roles().items() if role.reached} == ours
    changed, reached = changed_by_training(objective, 3)
    assert ours - reached == set(), "trained in vain"
    assert reached <= ours and changed <= ours
    assert all(p.grad is None for name, p in objective.named_parameters() if name not in ours)


@pytest.mark.parametrize("sentences", [False, True])
def test_each_forward_reaches_every_parameter_of_recall(sentences: bool) -> None:
    """Several processes wait for a gradient of each, be it zero: also where only one kind of query is answered."""
    objective = make_objective()
    tensors = batch(picture_queries=4, sentence_queries=4)
    seen = len(tensors["query_pictures"])
    tensors["facts"][seen:] = torch.tensor([2, -1]) if sentences else -1
    tensors["facts"][:seen] = -1 if sentences else torch.tensor([0, -1])
    tensors["labels"] = torch.where(
        tensors["facts"][:, :1] >= 0, tensors["input_ids"].roll(-1, dims=1), torch.tensor(IGNORED)
    )
    objective(tensors).loss.backward()
    assert {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


def test_an_episode_that_answers_nothing_has_finite_gradients() -> None:
    objective = make_objective()
    tensors = batch()
    tensors["facts"] = torch.full_like(tensors["facts"], -1)
    tensors["labels"] = torch.full_like(tensors["labels"], IGNORED)
    output = objective(tensors)
    output.loss.backward()
    assert output.loss.isfinite() and float(output.metrics["caption_loss"]) == 0
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


def test_train_leaves_all_but_recall_in_eval_mode() -> None:
    objective = make_objective(dropout=0.5, compressor_dropout=0.5, lora_dropout=0.5, vision_tuning="lora")
    for mode in (True, False, True):
        assert objective.train(mode) is objective and objective.training == mode
        for name, module in objective.named_modules():
            if name:
                assert module.training == (mode and (name + ".").startswith("model.recall.")), name
    objective.eval()
    assert not any(module.training for module in objective.modules())


def test_in_train_mode_the_plain_model_still_says_what_it_said() -> None:
    """With dropout everywhere and a memory layer, which draws noise in train mode."""
    objective = make_objective(dropout=0.5, compressor_dropout=0.5)
    model, tensors = objective.model, batch()
    with torch.no_grad():
        said = []
        for mode in (True, False):
            objective.train(mode)
            tokens = objective.image_tokens(tensors["query_pictures"])
            seen = len(tokens)
            said.append(model(tensors["input_ids"][:seen], tensors["attention_mask"][:seen], tokens))
    assert torch.equal(*said)


def test_a_step_leaves_the_running_memory_and_the_temperature_as_they_are() -> None:
    objective = make_objective()
    state = objective.model.memory.state.clone()
    output = objective(batch())
    objective.begin(0.5, True)
    objective.advance([output.update], Processes(0, 1, torch.device("cpu")))
    assert torch.equal(objective.model.memory.state, state)
    kept = objective.state()
    other = make_objective()
    other.log_temperature = torch.tensor(0.0)
    other.load_state(kept)
    assert torch.equal(other.log_temperature, objective.log_temperature)
    assert kept["log_temperature"].exp().item() == pytest.approx(0.07)


def test_metrics_are_detached_and_name_each_loss() -> None:
    output = make_objective()(batch())
    assert set(output.metrics) == {"loss", "recall_loss", "value_loss", "caption_loss", "acc_recall", "acc_value"}
    assert not any(value.requires_grad for value in output.metrics.values()) and output.loss.requires_grad


def test_one_episode_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addressing and values altogether; of the language what a network of random weights can be made to say."""
    monkeypatch.setattr("bitgen.model.recall._TEXT_DROPPED", 0.0)
    objective, tensors = make_objective(), batch(picture_queries=8, sentence_queries=8)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-2)
    first = objective(tensors).metrics
    for _ in range(200):
        optimizer.zero_grad()
        objective(tensors).loss.backward()
        optimizer.step()
    last = objective.eval()(tensors).metrics
    # A tower of random weights may take one thing for another.
    assert first["acc_recall"] < 0.7 and last["acc_recall"] > 0.8 and last["acc_value"] == 1
    assert last["recall_loss"] < 0.3 * first["recall_loss"] and last["caption_loss"] < 0.6 * first["caption_loss"]
