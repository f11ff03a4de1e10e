"""The packed forward against plain Hugging Face: one sequence at a time, full logits, no padding."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keel.config import Machine
from keel.engine import forward
from keel.models import checkpoints, passes, trials
from keel.records import Bundle, Completion

CPU = Machine(device="cpu", precision="fp32")
TAU = 0.7


def bundles_of(seed: int = 0, prompts=(5, 1, 9, 3), answers=((4, 1), (7,), (1, 12, 3), (2, 2))) -> list[Bundle]:
    """Unequal prompts with one to three completions of unequal length; ids include EOS (1), pad (3) and 0."""
    draw = random.Random(seed)
    return [
        Bundle(
            [draw.randrange(100) for _ in range(p)],
            [Completion([*(draw.randrange(100) for _ in range(n - 1)), 1]) for n in lengths],
        )
        for p, lengths in zip(prompts, answers, strict=True)
    ]


def plain_distributions(model, bundle, completion, temperature):
    """log p of every next token at the completion's positions [L, V], from the model's own logits."""
    ids = torch.tensor([bundle.prompt_ids + completion.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    start = len(bundle.prompt_ids) - 1
    return torch.log_softmax(logits[start : start + len(completion)] / temperature, -1)


def plain_logps(model, bundles, temperature=1.0):
    parts = []
    for b in bundles:
        for c in b.completions:
            table = plain_distributions(model, b, c, temperature)
            parts.append(table[torch.arange(len(c)), torch.tensor(c.ids)])
    return torch.cat(parts)


def plain_causal(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def plain_classifier(folder):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    assert sum(float(g.norm()) for g in theirs.values()) > 0
    for name, expected in theirs.items():
        gap = float((ours[name] - expected).norm() / expected.norm().clamp_min(1e-12))
        assert gap <= tolerance, f"{name}: {gap}"


# --- log-probabilities


@pytest.mark.parametrize("tokenizer", ["plain", "pad-eos"])
@pytest.mark.parametrize("temperature", [1.0, TAU])
def test_log_probabilities_and_gradients_equal_hugging_face(make_model, architecture, tokenizer, temperature):
    folder = make_model(architecture, tokenizer=tokenizer)
    ours, theirs, bundles = checkpoints.load_policy(str(folder), CPU), plain_causal(folder), bundles_of()
    got, expected = forward.token_logps(ours, bundles, temperature), plain_logps(theirs, bundles, temperature)
    assert got.dtype == torch.float32
    assert got.shape == (sum(len(c) for b in bundles for c in b.completions),)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    weights = torch.randn(len(got), generator=torch.Generator().manual_seed(3))
    assert_same_gradients(gradients(ours, got @ weights), gradients(theirs, expected @ weights))


def test_entropy_and_top_token(make_model, architecture):
    folder = make_model(architecture)
    ours, theirs, bundles = checkpoints.load_policy(str(folder), CPU), plain_causal(folder), bundles_of(1)
    got = forward.token_scores(ours, bundles, TAU)
    tables = torch.cat([plain_distributions(theirs, b, c, TAU) for b in bundles for c in b.completions])
    ids = torch.tensor([i for b in bundles for c in b.completions for i in c.ids])
    torch.testing.assert_close(got.entropy, -(tables.exp() * tables).sum(-1), rtol=0, atol=1e-4)
    assert torch.equal(got.top, (tables.argmax(-1) == ids).float())
    assert got.logps.requires_grad
    assert not got.entropy.requires_grad
    assert not got.top.requires_grad


def test_the_likeliest_token_counts_as_top(base):
    """On the model's own greedy answer everything is; the next best token, or an id beside the likeliest, is not."""
    model, prompt = checkpoints.load_policy(str(base), CPU), [0, 10, 20]
    ids: list[int] = []
    for _ in range(5):
        ids.append(int(model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax()))
    scores = forward.token_scores(model, [Bundle(prompt, [Completion(ids)])])
    assert scores.top.tolist() == [1.0] * 5
    logits = model(input_ids=torch.tensor([prompt + ids[:2]])).logits[0, -1]
    others = [int(logits.topk(2).indices[1]), ids[2] + 1, ids[2] - 1]
    scores = forward.token_scores(model, [Bundle(prompt, [Completion([*ids[:2], other]) for other in others])])
    assert scores.top.tolist() == [1.0, 1.0, 0.0] * 3


def test_sequence_sums_per_completion(base):
    model, bundles = checkpoints.load_policy(str(base), CPU), bundles_of()
    flat = plain_logps(plain_causal(base), bundles, TAU)
    sums, at = [], 0
    for c in (c for b in bundles for c in b.completions):
        sums.append(flat[at : at + len(c)].sum())
        at += len(c)
    torch.testing.assert_close(forward.sequence_logps(model, bundles, TAU), torch.stack(sums), rtol=0, atol=1e-4)


# --- scalars


def test_values_of_states_equal_hugging_face(make_reward, architecture):
    folder = make_reward(architecture)
    ours, theirs, bundles = checkpoints.load_reward(str(folder), CPU), plain_classifier(folder), bundles_of(2)
    expected = []
    for b in bundles:
        for c in b.completions:
            ids = torch.tensor([b.prompt_ids + c.ids])
            states = theirs.score(theirs.base_model(input_ids=ids, use_cache=False).last_hidden_state)[0, :, 0]
            expected.append(states[len(b.prompt_ids) - 1 : -1])
    got, expected = forward.scalars_at_states(ours, bundles), torch.cat(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    weights = torch.randn(len(got), generator=torch.Generator().manual_seed(3))
    assert_same_gradients(gradients(ours, got @ weights), gradients(theirs, expected @ weights))


def test_scalar_after_the_last_token_equals_hugging_face(make_reward, architecture):
    """The classifier's own `logits`, one unpadded sequence at a time."""
    folder = make_reward(architecture)
    ours, theirs, bundles = checkpoints.load_reward(str(folder), CPU), plain_classifier(folder), bundles_of(2)
    expected = torch.cat(
        [theirs(input_ids=torch.tensor([b.prompt_ids + c.ids])).logits[0] for b in bundles for c in b.completions]
    )
    got = forward.scalars_at_end(ours, bundles)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    weights = torch.randn(len(got), generator=torch.Generator().manual_seed(3))
    assert_same_gradients(gradients(ours, got @ weights), gradients(theirs, expected @ weights))


def test_all_values_in_one_pass_are_those_of_two(make_reward, architecture):
    """Of each completion the states before its tokens, then its end: [[0 1 2 | end], [0 | end], …]."""
    model, bundles = checkpoints.load_reward(str(make_reward(architecture)), CPU), bundles_of(2)
    states, ends = forward.scalars_at_states(model, bundles), forward.scalars_at_end(model, bundles)
    flat = iter(states.tolist())
    expected = []
    for end, completion in zip(ends.tolist(), (c for b in bundles for c in b.completions), strict=True):
        expected += [*(next(flat) for _ in completion.ids), end]
    assert forward.scalars_throughout(model, bundles).tolist() == expected
    by_bundle = forward.in_batches(forward.scalars_throughout, model, bundles, 30)
    assert [len(values) for values in by_bundle] == [sum(len(c) + 1 for c in b.completions) for b in bundles]
    torch.testing.assert_close(torch.cat(by_bundle).tolist(), expected, rtol=0, atol=1e-5)


def test_a_value_sees_only_what_came_before(make_reward, architecture):
    """Changing y_t leaves V_0 … V_t as they were and moves V_{t+1} (PPO statement 2)."""
    model = checkpoints.load_reward(str(make_reward(architecture)), CPU)
    ids = [11, 12, 13, 14, 15, 1]
    before = forward.scalars_at_states(model, [Bundle([0, 7, 8], [Completion(ids)])])
    for t in range(len(ids)):
        changed = [*ids[:t], 90, *ids[t + 1 :]]
        after = forward.scalars_at_states(model, [Bundle([0, 7, 8], [Completion(changed)])])
        torch.testing.assert_close(after[: t + 1], before[: t + 1], rtol=0, atol=1e-6)
        if t + 1 < len(ids):
            assert abs((after[t + 1] - before[t + 1]).item()) > 1e-4
    end = forward.scalars_at_end(model, [Bundle([0, 7, 8], [Completion(ids)])])
    assert abs((end - before[-1]).item()) > 1e-4


# --- chunks, padding, accumulation


def test_the_head_sees_completion_rows_alone(base, monkeypatch):
    model, bundles = checkpoints.load_policy(str(base), CPU), bundles_of()
    seen = []
    real = forward.score_tokens
    monkeypatch.setattr(
        forward, "score_tokens", lambda m, hidden, *rest: seen.append(len(hidden)) or real(m, hidden, *rest)
    )
    forward.token_logps(model, bundles)
    assert seen == [sum(len(c) for b in bundles for c in b.completions)]


@pytest.mark.parametrize("tokenizer", ["plain", "pad-eos"])
def test_neighbours_do_not_matter(make_model, architecture, tokenizer):
    """A bundle alone, and the same bundle beside longer ones, give the same numbers: padding never leaks."""
    model = checkpoints.load_policy(str(make_model(architecture, tokenizer=tokenizer)), CPU)
    bundles = [*bundles_of(4), Bundle([5] * 30, [Completion([6] * 30)])]
    together = forward.token_logps(model, bundles)
    alone = torch.cat([forward.token_logps(model, [b]) for b in bundles])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_padding_id_does_not_matter(base, monkeypatch):
    """Exactly, bit for bit, where rows are padded: the same shapes, other ids where nothing is."""
    monkeypatch.setattr(forward, "PACK", False)
    model, bundles = checkpoints.load_policy(str(base), CPU), bundles_of(4)
    expected = forward.token_logps(model, bundles)
    lengths = [len(b.prompt_ids) + len(c) for b in bundles for c in b.completions]
    padded = []

    def fill(module, args, kwargs):
        ids = kwargs["input_ids"].clone()
        for row, length in zip(ids, lengths, strict=True):
            padded.append(len(row) - length)
            row[length:] = 77
        return args, {**kwargs, "input_ids": ids}

    handle = model.base_model.register_forward_pre_hook(fill, with_kwargs=True)
    got = forward.token_logps(model, bundles)
    handle.remove()
    assert max(padded) > 0, "the forward no longer pads where this test looks"
    assert torch.equal(got, expected)


@pytest.mark.parametrize("micro_tokens", [1, 20, 40, 100_000])
def test_accumulated_gradient_is_the_batch_gradient(make_model, micro_tokens):
    """Divided once by the whole batch's count, any cut gives the gradient of one plain pass."""
    folder, bundles = make_model("qwen3"), bundles_of()
    total = sum(len(c) for b in bundles for c in b.completions)
    theirs = plain_causal(folder)
    expected = gradients(theirs, -plain_logps(theirs, bundles, TAU).sum() / total)
    ours = checkpoints.load_policy(str(folder), CPU)
    ours.zero_grad()
    passes = 0
    for micro in forward.micro_batches(ours, bundles, micro_tokens):
        (-forward.token_logps(ours, micro.bundles, TAU).sum() / total).backward()
        passes += 1
    assert passes == {1: 4, 100_000: 1}.get(micro_tokens, passes)
    assert_same_gradients({n: p.grad for n, p in ours.named_parameters()}, expected)


# --- one row for all


@contextmanager
def computed(model):
    """The shapes of the ids that the backbone is given meanwhile."""
    shapes: list[tuple[int, ...]] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


WINDOWED = ("gemma2", "gemma3", "mistral-window")


def test_packing_changes_nothing(make_model, architecture, monkeypatch):
    """Log-probabilities and gradients to 1e-5; each prompt and each completion computed once where the model can."""
    model, bundles = checkpoints.load_policy(str(make_model(architecture)), CPU), bundles_of()
    weights = torch.randn(sum(len(c) for b in bundles for c in b.completions))
    results = []
    for pack in (False, True):
        monkeypatch.setattr(forward, "PACK", pack)
        forward.token_logps(model, bundles)  # whether it can is tried on first use
        with computed(model) as shapes:
            logps = forward.token_logps(model, bundles, TAU)
        results.append((shapes, logps, gradients(model, logps @ weights)))
    (rows, expected, theirs), (packed, got, ours) = results
    assert rows == [(8, 21)]
    assert packed == ([(8, 21)] if architecture in WINDOWED else [(1, 18 + 32)])  # prompts and completions
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert_same_gradients(ours, theirs)


def test_packing_leaves_no_trace_in_a_checkpoint(base, tmp_path):
    """How attention is computed is a matter of this process."""
    model = checkpoints.load_policy(str(base), CPU)
    model.save_pretrained(tmp_path / "before")
    forward.token_logps(model, bundles_of())
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after" / "config.json").read_text() == (tmp_path / "before" / "config.json").read_text()


def test_a_packed_model_is_still_the_model(base):
    """Called as others call it, padded and masked, it gives what it gave."""
    model, theirs = checkpoints.load_policy(str(base), CPU), plain_causal(base)
    forward.token_logps(model, bundles_of())
    ids, mask = torch.tensor([[3, 3, 9, 10], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    got, expected = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (model, theirs))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [20, 21])
def test_a_window_as_long_as_the_text_is_none(make_model, window):
    """The longest text has 21 tokens: all share one row, unless the last one must not see the first."""
    folder = make_model("mistral-window", sliding_window=window)
    model, bundles = checkpoints.load_policy(str(folder), CPU), bundles_of()
    assert max(map(forward.width_of, bundles)) == 21
    forward.token_logps(model, bundles)
    with computed(model) as shapes:
        got = forward.token_logps(model, bundles)
    assert (shapes == [(1, 50)]) == (window == 21)
    torch.testing.assert_close(got, plain_logps(plain_causal(folder), bundles), rtol=0, atol=1e-4)


def test_packed_scalars(make_reward, architecture, monkeypatch):
    model, bundles = checkpoints.load_reward(str(make_reward(architecture)), CPU), bundles_of(2)
    results = []
    for pack in (False, True):
        monkeypatch.setattr(forward, "PACK", pack)
        results.append((forward.scalars_at_end(model, bundles), forward.scalars_at_states(model, bundles)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)


def test_a_bundle_without_completions_takes_no_place(base):
    model, bundles = checkpoints.load_policy(str(base), CPU), bundles_of()
    expected = forward.token_logps(model, bundles)
    torch.testing.assert_close(forward.token_logps(model, [bundles[0], Bundle([5, 6], []), *bundles[1:]]), expected)


def test_positions_that_come_from_the_mask_are_noticed(capsys):
    """Bloom builds them from a mask of whole rows: said once, and the log-probabilities are its own."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model, bundles = (
        BloomForCausalLM(BloomConfig(vocab_size=100, hidden_size=16, n_layer=2, n_head=2)).eval(),
        bundles_of(),
    )
    for _ in range(2):
        got = forward.token_logps(model, bundles)
    torch.testing.assert_close(got, plain_logps(model, bundles), rtol=0, atol=1e-4)
    assert capsys.readouterr().err.count("cannot share a prompt") == 1


def test_a_recurrent_model_is_computedrow_by_row():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    bundles = bundles_of()
    torch.testing.assert_close(forward.token_logps(model, bundles), plain_logps(model, bundles), rtol=0, atol=1e-4)


# --- what bundles have in common


def rounds(seed: int = 2) -> list[Bundle]:
    """All pairs of three answers to two prompts, and of another prompt one, out of order."""
    (a, one), (b, other), (c, _) = (
        (x.prompt_ids, x.completions) for x in bundles_of(seed, (6, 3, 4), ((2, 5, 3),) * 3)
    )
    pairs = [(a, one[0], one[1]), (b, other[0], other[2]), (a, one[2], one[0]), (b, other[2], other[1])]
    pairs += [(c, one[0], one[1]), (a, one[1], one[2]), (b, other[1], other[0])]
    return [Bundle(prompt, [first, second]) for prompt, first, second in pairs]


def test_common_prompts_and_answers_change_no_number(make_model, architecture):
    folder = make_model(architecture)
    ours, theirs, bundles = checkpoints.load_policy(str(folder), CPU), plain_causal(folder), rounds()
    got, expected = forward.token_logps(ours, bundles, TAU), plain_logps(theirs, bundles, TAU)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    weights = torch.randn(len(got), generator=torch.Generator().manual_seed(3))
    assert_same_gradients(gradients(ours, got @ weights), gradients(theirs, expected @ weights))
    once, twice = forward.token_scores(ours, bundles, TAU), forward.token_scores(ours, bundles[:1], TAU)
    assert once.entropy[: len(twice.entropy)].tolist() == pytest.approx(twice.entropy.tolist(), abs=1e-4)
    assert len(once.entropy) == len(once.top) == len(got)


def test_common_answers_have_one_score(reward_folder):
    """The plain model's, wherever an answer stands, with a gradient of all its places."""
    ours, theirs, bundles = checkpoints.load_reward(str(reward_folder), CPU), plain_classifier(reward_folder), rounds()
    got = forward.scalars_at_end(ours, bundles)
    rows = [b.prompt_ids + c.ids for b in bundles for c in b.completions]
    expected = torch.stack([theirs(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert len({tuple(row) for row in rows}) == 8 < len(rows)
    weights = torch.randn(len(got), generator=torch.Generator().manual_seed(4))
    assert_same_gradients(gradients(ours, got @ weights), gradients(theirs, expected @ weights))


def test_what_is_common_is_computed_once(base, monkeypatch):
    """Two prompts with three answers each, and one with two: 13 + 27 tokens, where seven pairs alone are 75."""
    policy, bundles = checkpoints.load_policy(str(base), CPU), rounds()
    once = (6 + 2 + 5 + 3) + (3 + 2 + 5 + 3) + (4 + 2 + 5)
    with computed(policy) as shapes:
        forward.token_logps(policy, bundles)
        assert shapes.pop() == (1, once)
        monkeypatch.setattr(forward, "pass_for", lambda model, longest: passes.rows)
        forward.token_logps(policy, bundles)
        assert shapes.pop() == (8, 11)
        monkeypatch.setattr(forward, "PACK", False)
        forward.token_logps(policy, bundles)
        assert shapes.pop() == (14, 11)


def test_passes_keep_pairs_of_a_prompt_together(base):
    """A budget for one prompt's pairs makes three passes, one for each prompt; the numbers are those of one pass."""
    policy, bundles = checkpoints.load_policy(str(base), CPU), rounds()
    micros = list(forward.micro_batches(policy, bundles, 16))
    assert [len({tuple(b.prompt_ids) for b in m.bundles}) for m in micros] == [1, 1, 1]
    assert [forward.computed_tokens(policy, m.bundles) for m in micros] == [16, 11, 13]
    whole = forward.sequence_logps(policy, bundles).detach().split(2)
    for got, expected in zip(forward.in_batches(forward.sequence_logps, policy, bundles, 16), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


# --- how much at once


sizes = st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), max_size=12)


@pytest.mark.parametrize("packs", [True, False])
@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(1, 200))
def test_micro_batches_cover_every_bundle_once_within_the_budget(packs, shapes, budget):
    bundles = [Bundle([0] * p, [Completion([1] * n) for n in answers]) for p, answers in shapes]
    with patched(packs):
        micros = list(forward.micro_batches(torch.nn.Module(), bundles, budget))
    assert sorted(i for m in micros for i in m.indices) == list(range(len(bundles)))
    for micro in micros:
        assert micro.bundles
        assert all(bundles[i] is b for i, b in zip(micro.indices, micro.bundles, strict=True))
        each = {(len(b.prompt_ids), len(c)) for b in micro.bundles for c in b.completions}  # all ids are alike
        width = max(p + n for p, n in each)
        once = sum({p for p, _ in each}) + sum(n for _, n in each)
        assert len(micro.bundles) == 1 or (once if packs else len(each) * width) <= budget


@contextmanager
def patched(packs):
    """As if the model could pack, or could not."""
    with pytest.MonkeyPatch.context() as patch:
        way = passes.packed if packs else passes.rows
        patch.setattr(forward, "pass_for", lambda model, longest: way)
        patch.setattr(trials, "ways_of", lambda model: trials.Ways("", way, passes.rows, 10, (), 0.0, None))
        yield


def test_micro_batches_use_the_budget():
    """Three completions of 2 tokens behind 4 are 10 tokens in one row, and 18 in three."""
    bundles = [Bundle([i] * 4, [Completion([i, n]) for n in range(3)]) for i in range(10)]
    for packs, expected in ((True, [4, 4, 2]), (False, [2, 2, 2, 2, 2])):
        with patched(packs):
            assert [len(m.bundles) for m in forward.micro_batches(torch.nn.Module(), bundles, 40)] == expected


def test_a_bundle_beyond_the_budget_goes_through_in_parts(base):
    """Sixteen completions in passes of at most 30 tokens; the numbers are those of one pass."""
    policy = checkpoints.load_policy(str(base), CPU)
    bundles = bundles_of(7, prompts=(9,), answers=(tuple(range(1, 17)),))
    with computed(policy) as shapes:
        forward.in_batches(forward.token_logps, policy, bundles, 10_000)
        (got,) = forward.in_batches(forward.token_logps, policy, bundles, 30)
    assert shapes[-1][1] <= 30
    assert len(shapes) > 8
    torch.testing.assert_close(got, forward.token_logps(policy, bundles).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 25, 10_000])
def test_in_batches_keeps_the_order(base, reward_folder, micro_tokens):
    policy, reward = checkpoints.load_policy(str(base), CPU), checkpoints.load_reward(str(reward_folder), CPU)
    bundles = bundles_of(5)
    per_token = forward.in_batches(forward.token_logps, policy, bundles, micro_tokens)
    per_completion = forward.in_batches(forward.scalars_at_end, reward, bundles, micro_tokens)
    assert len(per_token) == len(per_completion) == len(bundles)
    theirs, scores = plain_causal(base), plain_classifier(reward_folder)
    for b, logps, ends in zip(bundles, per_token, per_completion, strict=True):
        assert not logps.requires_grad
        torch.testing.assert_close(logps, plain_logps(theirs, [b]).detach(), rtol=0, atol=1e-4)
        expected = [float(scores(input_ids=torch.tensor([b.prompt_ids + c.ids])).logits) for c in b.completions]
        assert ends.tolist() == pytest.approx(expected, abs=1e-4)


def test_in_batches_of_single_tokens(base):
    """One token per completion: per token and per completion are the same cut."""
    policy = checkpoints.load_policy(str(base), CPU)
    bundles = bundles_of(6, prompts=(3, 8, 2), answers=((1, 1), (1,), (1, 1, 1)))
    got = forward.in_batches(forward.token_logps, policy, bundles, 10)
    assert [len(t) for t in got] == [2, 1, 3]
    torch.testing.assert_close(torch.cat(got), plain_logps(plain_causal(base), bundles).detach(), rtol=0, atol=1e-4)


# --- one packed row, drawn


def test_a_packed_row_drawn(make_model):
    """Two prompts with three answers stand in one row, each prompt once.

    `ids` is the row; `positions` go on behind the prompt in every answer; in the mask a row is a token and a column
    what it may see (`#`) or not (`.`).
    """
    bundles = [Bundle([5, 6, 7], [Completion([8, 9, 1]), Completion([9, 1])]), Bundle([4, 5], [Completion([3, 1])])]
    drawing = """
        ids        5 6 7  8 9 1  9 1  4 5  3 1
        positions  0 1 2  3 4 5  3 4  0 1  2 3

                5  # . .  . . .  . .  . .  . .
                6  # # .  . . .  . .  . .  . .
                7  # # #  . . .  . .  . .  . .

                8  # # #  # . .  . .  . .  . .
                9  # # #  # # .  . .  . .  . .
                1  # # #  # # #  . .  . .  . .

                9  # # #  . . .  # .  . .  . .
                1  # # #  . . .  # #  . .  . .

                4  . . .  . . .  . .  # .  . .
                5  . . .  . . .  . .  # #  . .

                3  . . .  . . .  . .  # #  # .
                1  . . .  . . .  . .  # #  # #
    """
    lines = [line.split() for line in drawing.splitlines() if line.strip()]
    ids, positions = ([int(x) for x in line[1:]] for line in lines[:2])
    visible = torch.tensor([[x == "#" for x in line[1:]] for line in lines[2:]])
    states = [[2, 3, 4, 5], [2, 6, 7], [9, 10, 11]]  # before each answer's first token, …, after its last

    model = checkpoints.load_policy(str(make_model("llama")), CPU)
    given = {}
    trunk = model.model
    trunk.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    hidden, found = passes.packed(model, bundles)
    assert given["input_ids"].tolist() == [ids]
    assert given["position_ids"].tolist() == [positions]
    assert found == states

    bundle, part = given["packing"].places(torch.device("cpu"))
    same = (bundle[:, None] == bundle) & ((part == 0) | (part[:, None] == part))
    assert torch.equal(same.tril(), visible)
    # The spans that are computed together see the same, put together again.
    seen = torch.zeros_like(visible)
    for span in given["packing"].spans():
        tokens = range(span.start, span.stop)
        keys = [*range(span.begin, span.begin + span.seen), *tokens]
        for query, row in zip(tokens, given["packing"].mask(span, torch.float32) == 0, strict=True):
            seen[query, torch.tensor(keys)[row]] = True
    assert torch.equal(seen, visible)
    # And it is what the model computes: the library's own pass over this row with this mask.
    plain = plain_causal(make_model("llama"))
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~visible, float("-inf"))
    out = plain.model(
        input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=mask, use_cache=False
    )
    torch.testing.assert_close(hidden, out.last_hidden_state[0], rtol=0, atol=1e-5)
