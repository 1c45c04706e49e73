"""Replies that many questions get at once, against a plain loop that reads everything anew, one question at a time."""

from __future__ import annotations

import functools

import pytest
import torch

from bitgen.data.questions.boxes import EDGES
from bitgen.data.questions.extended_tokenizer import extended_tokenizer
from bitgen.data.questions.marked_text import MARKS, MarkedTokens
from bitgen.evaluation.replies import Decoding, Written, read_replies, write_replies
from support.models import FEATURES, tiny_model
from support.tokenizers import tiny_tokenizer

LIMIT = 80
QUESTIONS = ["where is it?", "", "what colour is the small thing left of the red mat?", "cat", "the dog <b3> ran here?"]
LAST = len(EDGES) - 1
KINDS = ("learned", "rope", "memory")
ENDS = {"learned": 4.0, "rope": 2.6, "memory": 1.2}  # with which some replies of each end, one after another


@functools.cache
def tokens() -> MarkedTokens:
    return MarkedTokens(extended_tokenizer(tiny_tokenizer(), MARKS, ["small red star"] * 30, 400))


@functools.cache
def model_of(kind: str, ends: float = 0.0):
    """A random model that likes boxes, else it would write hardly any, and that ends its replies more or less soon."""
    sizes = dict(vocab_size=420, max_seq_len=LIMIT, embed_dim=32, vision_embed_dim=32, num_layers=3)
    model = tiny_model(seed=3, **sizes, positions="rope" if kind == "rope" else "learned", use_memory=kind == "memory")
    model.eval()
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator))[
        0
    ]  # else it writes its last token again and again
    plain, liked = model.lm_logits, torch.zeros(420)
    liked[tokens().edges] = 1.0
    liked[tokens().tokenizer.eos_token_id] = ends
    with torch.no_grad():
        scale = 4 / float(plain(torch.randn(64, 32, generator=generator)).std())
    model.lm_logits = lambda hidden: scale * plain(hidden @ turned) + 3 * liked
    return model


def images(count: int) -> torch.Tensor:
    """Image tokens, one row for each of as many questions."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(count, *FEATURES, generator=generator)
    model = model_of("learned")
    with torch.no_grad():
        return model.pool_image_tokens(model.encode_image(vision_features=features).image_tokens)


def prompts(count: int) -> list[list[int]]:
    return [tokens().prompt(QUESTIONS[at % len(QUESTIONS)], at % 2 == 0, trusted=at % 3 == 0) for at in range(count)]


def barred(reply: list[int]) -> list[int]:
    """Tokens that cannot follow a reply, by the marks at its end: boxes are four edges, and nothing stands in one."""
    edge_of = {id: edge for edge, id in enumerate(tokens().edges)}
    run: list[int] = []
    for id in reply:
        run = [*run, edge_of[id]] if id in edge_of else []
    begun = run[len(run) // 4 * 4 :]
    fits = {0: range(LAST), 1: range(LAST)}.get(len(begun)) or range(begun[len(begun) - 2] + 1, LAST + 1)
    others = [id for id in range(420) if id not in edge_of] if begun else []
    return others + [id for id, edge in edge_of.items() if edge not in fits]


@torch.no_grad()
def logits_after(model, ids: list[int], begins: int, image: torch.Tensor, whole_boxes: bool) -> torch.Tensor:
    """``[V]``, without a cache and without a batch."""
    logits = model.lm_logits(model.run_stack(torch.tensor([ids]), None, image[None]).hidden_states[:, -1])[0].float()
    if whole_boxes:
        logits[barred(ids[begins:])] = float("-inf")
    return logits


def plain_greedy(
    model, prompt: list[int], image: torch.Tensor, steps: int, whole_boxes: bool
) -> tuple[list[int], bool]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits_after(model, ids, len(prompt), image, whole_boxes).argmax()))
        if ids[-1] == tokens().tokenizer.eos_token_id:
            return ids[len(prompt) : -1], True
    return ids[len(prompt) :], False


def boxes_are_boxes(written: Written) -> int:
    """Assert that all edges stand in fours that are boxes, save what the limit cut off; how many boxes there are."""
    edge_of, count = {id: edge for edge, id in enumerate(tokens().edges)}, 0
    for ids, ended in zip(written.ids, written.ended, strict=True):
        runs: list[list[int]] = [[]]
        for id in ids:
            if id in edge_of:
                runs[-1].append(edge_of[id])
            else:
                runs.append([])
        for at, run in enumerate(runs):
            assert len(run) % 4 == 0 or (at == len(runs) - 1 and not ended and ids[-1] in edge_of), run
            for start in range(0, len(run) - 3, 4):
                x1, y1, x2, y2 = run[start : start + 4]
                assert x1 < x2 and y1 < y2, run
                count += 1
    return count


# ---- greedily ----


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("whole_boxes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_the_plain_loop(kind: str, whole_boxes: bool, ends: bool) -> None:
    model, given, shown = model_of(kind, ENDS[kind] * ends), prompts(8), images(8)
    assert len({len(prompt) for prompt in given}) > 3, "prompts differ in length"
    written = write_replies(model, tokens(), shown, given, Decoding(16, whole_boxes=whole_boxes))
    for row, prompt in enumerate(given):
        expected = plain_greedy(model, prompt, shown[row], 16, whole_boxes)
        assert (written.ids[row], written.ended[row]) == expected, row
    assert len({tuple(ids) for ids in written.ids}) > 2, "replies differ"
    if ends:
        assert any(written.ended) and len({len(ids) for ids in written.ids}) > 1, "rows end one after another"
    if whole_boxes:
        boxes_are_boxes(written)


def test_a_row_alone_is_the_row_among_others() -> None:
    """Those that end leave the batch, and those that stay do not notice."""
    model, given, shown = model_of("rope", ENDS["rope"]), prompts(10), images(10)
    together = write_replies(model, tokens(), shown, given, Decoding(16))
    assert len({len(ids) for ids in together.ids}) > 2
    for row in range(10):
        alone = write_replies(model, tokens(), shown[row : row + 1], given[row : row + 1], Decoding(16))
        assert (alone.ids[0], alone.ended[0]) == (together.ids[row], together.ended[row])
        assert torch.allclose(alone.log_probs[0], together.log_probs[row], atol=1e-4)


def test_the_image_is_looked_at() -> None:
    model, given = model_of("learned"), prompts(6)
    first = write_replies(model, tokens(), images(6), given, Decoding(12))
    assert first.ids != write_replies(model, tokens(), images(6).flip(0), given, Decoding(12)).ids


# ---- log-probabilities ----


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("whole_boxes", [False, True])
def test_log_probabilities_are_those_of_a_whole_pass(whole_boxes: bool, temperature: float) -> None:
    """Of a reply with what ends it; under ``whole_boxes``, among what could follow."""
    model, given, shown = model_of("learned", 1.0), prompts(6), images(6)
    generator = torch.Generator().manual_seed(1)
    written = write_replies(model, tokens(), shown, given, Decoding(16, temperature, generator, whole_boxes))
    eos = tokens().tokenizer.eos_token_id
    for row, (ids, ended, found) in enumerate(zip(*written, strict=True)):
        reply = [*ids, eos] if ended else ids
        assert found.shape == (len(reply),)
        whole = torch.tensor([[*given[row], *reply]])
        with torch.no_grad():
            logits = model.lm_logits(model.run_stack(whole, None, shown[row : row + 1]).hidden_states)[0].float()
        for at, token in enumerate(reply):
            here = logits[len(given[row]) + at - 1].clone()
            if whole_boxes:
                here[barred(reply[:at])] = float("-inf")
            assert float(found[at]) == pytest.approx(float(here.log_softmax(-1)[token]), abs=1e-4)


# ---- drawn ----


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_every_box_is_a_box(temperature: float) -> None:
    model, generator = model_of("learned", 0.5), torch.Generator().manual_seed(2)
    given, shown = prompts(64), images(64)
    count = 0
    for _ in range(6):
        written = write_replies(model, tokens(), shown, given, Decoding(24, temperature, generator))
        assert all(torch.isfinite(one).all() for one in written.log_probs)
        count += boxes_are_boxes(written)
    assert count > 100
    loose = write_replies(model, tokens(), shown, given, Decoding(24, temperature, generator, whole_boxes=False))
    with pytest.raises(AssertionError):
        boxes_are_boxes(loose)


def test_all_edges_can_be_drawn_where_they_fit() -> None:
    """The last line is never left or top, and the first never right or bottom."""
    model, generator = model_of("learned", 0.5), torch.Generator().manual_seed(3)
    at: list[set[int]] = [set() for _ in range(4)]
    edge_of = {id: edge for edge, id in enumerate(tokens().edges)}
    for _ in range(25):
        written = write_replies(model, tokens(), images(64), prompts(64), Decoding(8, 50.0, generator))
        for ids in written.ids:
            run = 0
            for id in ids:
                if id in edge_of:
                    at[run % 4].add(edge_of[id])
                run = run + 1 if id in edge_of else 0
    assert at[0] == at[1] == set(range(LAST)) and {0}.isdisjoint(at[2] | at[3])
    assert {LAST, LAST - 1, LAST // 2} <= at[2] & at[3]


@pytest.mark.parametrize("whole_boxes", [False, True])
def test_the_same_seed_draws_the_same(whole_boxes: bool) -> None:
    model, given, shown = model_of("learned", 1.0), prompts(12), images(12)

    def drawn(seed: int) -> Written:
        decoding = Decoding(16, 1.0, torch.Generator().manual_seed(seed), whole_boxes)
        return write_replies(model, tokens(), shown, given, decoding)

    one, again, other = drawn(7), drawn(7), drawn(8)
    assert one[:2] == again[:2] and all(map(torch.equal, one.log_probs, again.log_probs))
    assert one.ids != other.ids


def test_drawing_takes_nothing_from_the_shared_generator() -> None:
    before = torch.get_rng_state()
    decoding = Decoding(8, 1.0, torch.Generator().manual_seed(1))
    write_replies(model_of("learned"), tokens(), images(4), prompts(4), decoding)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """The first token of 6,000 replies to one question, against the model's probabilities at the temperature."""
    model, shown = model_of("learned"), images(1)
    prompt = tokens().prompt("what is it?", False)
    expected = (logits_after(model, prompt, len(prompt), shown[0], True) / 1.5).softmax(-1)
    generator, counts = torch.Generator().manual_seed(4), torch.zeros(420)
    for _ in range(6):
        decoding = Decoding(1, 1.5, generator)
        written = write_replies(model, tokens(), shown.expand(1000, -1, -1), [prompt] * 1000, decoding)
        for ids in written.ids:
            counts[ids[0] if ids else tokens().tokenizer.eos_token_id] += 1
    assert (counts / 6000 - expected).abs().sum() / 2 < 0.12
    assert not counts[expected == 0].any()


def test_a_reply_with_tokens_that_are_no_words_has_no_answer() -> None:
    tokenizer = tokens().tokenizer
    (red,) = {tuple(tokens().text("red"))}
    ids = [[*red], [*red, tokenizer.pad_token_id], [tokenizer.bos_token_id, *red], [*red]]
    written = Written(ids, [True, True, True, False], [torch.zeros(len(one)) for one in ids])
    assert [one.answer for one in read_replies(tokens(), written, False)] == ["red", None, None, None]


# ---- limits ----


def test_a_prompt_as_long_as_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=f"fills the context of {LIMIT}; shorten it"):
        write_replies(model_of("learned"), tokens(), images(2), [prompts(1)[0], [5] * LIMIT], Decoding(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_ends_where_the_context_does(kind: str) -> None:
    model, shown = model_of(kind), images(1)
    prompt = tokens().prompt("cat " * LIMIT, False)[: LIMIT - 6]
    written = write_replies(model, tokens(), shown, [prompt], Decoding(50))
    expected = plain_greedy(model, prompt, shown[0], 6, True)
    assert (written.ids[0], written.ended[0]) == expected and len(expected[0]) == 6
