"""The sampler against transformers' `generate`, against exact enumeration, and against its own promises."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from scipy import stats
from tests.sampling.completions import completions_of

from keel.config import Machine
from keel.config.sampling import Sampling
from keel.data.lengths import prompt_limit
from keel.errors import InputError, RowFault, RunFailed
from keel.models import checkpoints
from keel.records import Bundle, Completion, Origin, PromptRow
from keel.sampling import local
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

CPU = Machine(device="cpu", precision="fp32")
PROMPTS = [
    "what can teddy do in the rain?",
    "ok",
    "let bruno hug near it, then nap near it, ok. what can honey do in the boat?",
    "what can paddy",
    "ok.",
]


def load(folder):
    return checkpoints.load_policy(str(folder), CPU), checkpoints.load_text(str(folder))


def oracle(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logps_of(model, prompt_ids, ids, temperature=1.0):
    """Log-probabilities from the model's own logits, nothing cached, nothing padded."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + ids]), use_cache=False).logits[0].float()
    table = torch.log_softmax(logits[len(prompt_ids) - 1 : -1] / temperature, -1)
    return table[torch.arange(len(ids)), torch.tensor(ids)]


def logps_table(model, prompt_ids):
    """Of every word after a prompt, [V]."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([prompt_ids])).logits[0, -1].double(), -1)


def draw(model, text, prompts=PROMPTS, n=4, *, seed=0, max_new_tokens=12, **options):
    progress = options.pop("progress", None)
    sampler = LocalSampler(model, text, SamplingOptions(max_new_tokens, **options), seed)
    return sample(sampler, as_bundles(text, prompts), n, "test", progress=progress)


# --- the right tokens


@pytest.mark.parametrize("n", [1, 3])
def test_greedy_equals_generate(make_model, architecture, n):
    """Token for token, prompts of unequal length together here and alone there, windows included."""
    folder = make_model(architecture)
    model, text = load(folder)
    theirs = oracle(folder)
    bundles = draw(model, text, n=n, temperature=0.0, max_new_tokens=24)
    lengths = set()
    for bundle in bundles:
        ids = torch.tensor([bundle.prompt_ids])
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        expected = made[0, ids.shape[1] :].tolist()
        assert [c.ids for c in bundle.completions] == [expected] * n
        lengths.add(len(expected))
        for c in bundle.completions:
            torch.testing.assert_close(c.logps, logps_of(theirs, bundle.prompt_ids, c.ids), rtol=0, atol=1e-3)
    assert lengths


@pytest.mark.parametrize("family", ["mistral-window", "gemma2", "gemma3"])
def test_a_window_wider_than_the_text_is_full_attention(make_model, family):
    """Prompts of unequal length are then decoded together, under a mask; numbers stay those of plain passes."""
    folder = make_model(family, sliding_window=64)
    model, text = load(folder)
    theirs = oracle(folder)
    draw(model, text, PROMPTS[:1])  # the ways of decoding are tried now
    shapes: list[int] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(len(k["input_ids"])), with_kwargs=True
    )
    bundles = draw(model, text, PROMPTS[:2] + PROMPTS[3:], n=3)
    handle.remove()
    assert shapes[:2] == [1, 12]  # four prompts in one row, then three answers to each
    for bundle in bundles:
        for c in bundle.completions:
            torch.testing.assert_close(c.logps, logps_of(theirs, bundle.prompt_ids, c.ids), rtol=0, atol=1e-3)


def test_a_prompt_beyond_the_window_slows_no_other(make_model):
    """The short ones are still decoded together, in one row; the long one goes on from the family's own cache."""
    folder = make_model("mistral-window", sliding_window=24)
    model, text = load(folder)
    prompts = [*PROMPTS[:2], PROMPTS[2] * 2]
    draw(model, text, prompts)  # the ways of decoding are tried now
    shapes: list[tuple[int, ...]] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    *short, long = draw(model, text, prompts, n=3)
    handle.remove()
    assert (1, sum(len(b.prompt_ids) for b in short)) in shapes
    assert (1, len(long.prompt_ids)) in shapes
    assert (6, 1) in shapes
    for bundle in (*short, long):
        for c in bundle.completions:
            torch.testing.assert_close(c.logps, logps_of(oracle(folder), bundle.prompt_ids, c.ids), rtol=0, atol=1e-3)


def test_an_answer_that_leaves_the_window_sees_no_further(make_model):
    """The prompt fits into the window and its answers do not: the distribution is that of a plain pass all the same."""
    folder = make_model("mistral-window", sliding_window=24)
    model, text = load(folder)
    (bundle,) = draw(model, text, PROMPTS[:1], n=4, max_new_tokens=40)
    assert len(bundle.prompt_ids) <= 24 < len(bundle.prompt_ids) + max(map(len, bundle.completions)) - 4
    for c in bundle.completions:
        torch.testing.assert_close(c.logps, logps_of(oracle(folder), bundle.prompt_ids, c.ids), rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def six_tokens(tmp_path_factory):
    """A model over six tokens, whose answers of up to three tokens can be enumerated."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("six") / "model"
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.15,
        eos_token_id=1,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_follow_the_exact_law(six_tokens, temperature):
    """Chi-square over all 156 answers of up to three tokens, for two prompts of unequal length decoded together."""
    model, text = load(six_tokens)
    theirs = oracle(six_tokens)
    prompts, n = ["a b c d a", "d c"], 4000
    bundles = draw(model, text, prompts, n, max_new_tokens=3, temperature=temperature, max_rows=5000)
    for bundle in bundles:
        law = {}
        for sequence in product(range(6), repeat=3):
            cut = sequence[: sequence.index(1) + 1] if 1 in sequence else sequence
            if cut not in law:
                law[cut] = float(logps_of(theirs, bundle.prompt_ids, list(cut), temperature).sum().exp())
        assert sum(law.values()) == pytest.approx(1, abs=1e-5)
        counts = Counter(tuple(c.ids) for c in bundle.completions)
        assert counts.keys() <= law.keys()
        common = [s for s in law if law[s] * n >= 5]
        observed = [counts[s] for s in common] + [n - sum(counts[s] for s in common)]
        expected = [law[s] * n for s in common] + [n - sum(law[s] * n for s in common)]
        assert len(common) > 20
        assert stats.chisquare(observed, expected).pvalue > 1e-3


# --- what is recorded


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_recorded_log_probabilities_are_those_of_the_sampling_distribution(make_model, architecture, temperature):
    folder = make_model(architecture)
    model, text = load(folder)
    theirs = oracle(folder)
    for bundle in draw(model, text, n=3, temperature=temperature):
        for c in bundle.completions:
            expected = logps_of(theirs, bundle.prompt_ids, c.ids, temperature)
            assert c.logps.dtype == torch.float32
            torch.testing.assert_close(c.logps, expected, rtol=0, atol=1e-3)


def test_exactly_one_eos_or_truncated(make_model, architecture):
    model, text = load(make_model(architecture))
    bundles = draw(model, text, n=200)
    finished = cut = 0
    for c in completions_of(bundles):
        if c.truncated:
            cut += 1
            assert len(c) == 12
            assert text.eos_id not in c.ids
        else:
            finished += 1
            assert c.ids[-1] == text.eos_id
            assert c.ids.count(text.eos_id) == 1
        assert c.text == text.decode(c.ids)
        assert "</s>" not in c.text
        assert len(c.logps) == len(c)
    assert finished
    assert cut


def test_an_answer_that_ends_at_the_limit_is_not_truncated(base):
    model, text = load(base)
    found = [c for c in completions_of(draw(model, text, n=64, max_new_tokens=3)) if len(c) == 3]
    assert any(c.ids[-1] == text.eos_id for c in found)
    assert all(c.truncated == (c.ids[-1] != text.eos_id) for c in found)


def test_every_eos_of_the_generation_config_ends_an_answer(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    others = list(range(10, 40))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, *others]}))
    model, text = load(folder)
    completions = completions_of(draw(model, text, n=16))
    assert {c.ids[-1] for c in completions if not c.truncated} > {1}
    assert not {1, *others} & {i for c in completions for i in (c.ids if c.truncated else c.ids[:-1])}


def test_pad_equal_to_eos_changes_nothing(make_model):
    plain, shared = (draw(*load(make_model("gpt2", tokenizer=t))) for t in ("plain", "pad-eos"))
    assert [c.ids for c in completions_of(plain)] == [c.ids for c in completions_of(shared)]


# --- seeds and order


def test_same_generator_same_samples(base):
    model, text = load(base)
    first, again, other = (draw(model, text, seed=s) for s in (1, 1, 2))
    ids = [[c.ids for c in completions_of(b)] for b in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert all(torch.equal(a.logps, b.logps) for a, b in zip(completions_of(first), completions_of(again), strict=True))


def test_samples_of_one_prompt_differ(base):
    model, text = load(base)
    assert all(len({tuple(c.ids) for c in b.completions}) > 1 for b in draw(model, text, n=8))


@pytest.mark.parametrize("max_rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_max_rows_only_regroups(make_model, kind, max_rows):
    model, text = load(make_model(kind))
    expected = draw(model, text, n=5, temperature=0.0)
    rows: list[int] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True
    )
    got = draw(model, text, n=5, temperature=0.0, max_rows=max_rows)
    handle.remove()
    assert max(rows) <= max_rows
    assert [b.prompt for b in got] == PROMPTS
    assert [[c.ids for c in b.completions] for b in got] == [[c.ids for c in b.completions] for b in expected]


def test_bundles_come_back_in_the_prompts_order_with_progress(base):
    model, text = load(base)
    told: list[int] = []
    bundles = draw(model, text, n=3, progress=told.append)
    assert [b.prompt for b in bundles] == PROMPTS
    assert [b.prompt_ids for b in bundles] == [text.prompt_ids(p) for p in PROMPTS]
    assert [len(b.completions) for b in bundles] == [3] * len(PROMPTS)
    assert sum(told) == 3 * len(PROMPTS)


# --- no work twice


@contextmanager
def computed(model):
    """The shapes of the ids that the backbone is given meanwhile."""
    shapes: list[tuple[int, int]] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


@pytest.mark.parametrize("n", [1, 4, 16])
def test_prompts_are_computed_once_and_finished_rows_leave(make_model, n):
    model, text = load(make_model("llama"))
    draw(model, text, n=1)  # the probes
    with computed(model) as shapes:
        bundles = draw(model, text, n=n)
    assert shapes[0] == (1, sum(len(b.prompt_ids) for b in bundles))  # one row for all prompts, nothing padded
    steps = shapes[1:]
    assert all(width == 1 for _, width in steps)
    lengths = [len(c) for c in completions_of(bundles)]
    assert [rows for rows, _ in steps] == [sum(length > t + 1 for length in lengths) for t in range(len(steps))]
    assert len(steps) == max(lengths) - 1


def test_prompts_that_wait_enter_as_others_finish(make_model):
    """Forty prompts, eight rows at once: in no more steps than full rows would need, and a little for the last."""
    model, text = load(make_model("gpt2"))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(40)]
    draw(model, text, n=1)
    with computed(model) as shapes:
        bundles = draw(model, text, prompts, n=2, max_rows=8)
    steps = [rows for rows, width in shapes if width == 1]
    drawn = sum(len(c) for c in completions_of(bundles))
    assert max(steps) <= 8
    assert max(rows for rows, _ in shapes) <= 8
    assert len({b.prompt for b in bundles}) == len(PROMPTS)
    assert [b.prompt for b in bundles] == prompts
    by_turns = sum(max(len(c) for b in bundles[i : i + 4] for c in b.completions) for i in range(0, 40, 4))
    assert drawn / 8 <= len(steps) < 0.8 * by_turns


def test_entering_late_changes_no_number(make_model, architecture):
    """Two rows at once, so that most prompts enter beside answers half written: log-probabilities stay the model's."""
    folder = make_model(architecture)
    model, text = load(folder)
    theirs = oracle(folder)
    for bundle in draw(model, text, n=1, max_rows=2):
        for c in bundle.completions:
            torch.testing.assert_close(c.logps, logps_of(theirs, bundle.prompt_ids, c.ids, 1.0), rtol=0, atol=1e-3)


def test_the_order_of_completions_says_nothing_about_their_length(six_tokens):
    """The first of a bundle's answers is an answer like any other, not the one that ended first."""
    model, text = load(six_tokens)
    bundles = draw(model, text, ["a b", "d"] * 100, n=8, max_new_tokens=10, max_rows=64)
    lengths = torch.tensor([[len(c) for c in b.completions] for b in bundles]).double()
    first, last = lengths[:, :4].mean(1), lengths[:, 4:].mean(1)
    assert stats.ttest_rel(first, last).pvalue > 1e-3


# --- top-p


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.75, 0.95])
def test_top_p_draws_among_the_likeliest_and_records_their_shares(six_tokens, top_p, temperature):
    """The likeliest are those of the law at the temperature."""
    model, text = load(six_tokens)
    options = {"max_new_tokens": 1, "top_p": top_p, "temperature": temperature, "max_rows": 5000}
    (bundle,) = draw(model, text, ["a b c"], 3000, **options)
    law = torch.log_softmax(logps_table(oracle(six_tokens), bundle.prompt_ids) / temperature, -1)
    among, covered = [], 0.0
    for word in sorted(range(6), key=lambda i: -law[i]):
        if covered >= top_p:
            break
        among.append(word)
        covered += float(law[word].exp())
    assert 1 <= len(among) < 6 or top_p > 0.9
    counts = Counter(c.ids[0] for c in bundle.completions)
    assert counts.keys() <= set(among)
    if len(among) > 1:
        expected = [3000 * float(law[w].exp()) / covered for w in among]
        assert stats.chisquare([counts[w] for w in among], expected).pvalue > 1e-3
    for c in bundle.completions:
        assert float(c.logps[0]) == pytest.approx(float(law[c.ids[0]]) - math.log(covered), abs=1e-4)


@pytest.mark.parametrize("level", [0, 300, -300])
def test_drawing_in_blocks_is_the_same_law(level):
    """1,000 words in eight blocks, the last one short, and words of no probability at either end.

    At a level of 300 the exponentials of the logits themselves are infinite, at -300 all are 0.
    """
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(4)) * 2 + level
    logits[:3] = logits[997:] = float("-inf")
    uniform = torch.rand(20_000, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    token, logp = local.draw_tokens(logits.expand(20_000, -1), torch.Tensor.float, 1.0, 1.0, uniform)
    law = torch.softmax(logits.double(), -1)
    torch.testing.assert_close(logp.double(), law[token].log(), rtol=0, atol=1e-5 if level == 0 else 1e-4)
    counts = torch.bincount(token, minlength=1000).double()
    assert float(counts[law == 0].sum()) == 0
    common = law * 20_000 >= 5
    observed = [*counts[common].tolist(), float(counts[~common].sum())]
    expected = [*(law[common] * 20_000).tolist(), float(law[~common].sum()) * 20_000]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


# --- refusals and edges


def test_prompts_beyond_the_positions_are_refused(make_model):
    model, text = load(make_model("llama", max_position_embeddings=32))
    length = len(text.prompt_ids(PROMPTS[0]))
    assert draw(model, text, PROMPTS[:1], max_new_tokens=32 - length)
    with pytest.raises(InputError, match=r"32"):
        draw(model, text, PROMPTS[:1], max_new_tokens=33 - length)


def test_a_prompt_may_be_so_long_that_its_longest_answer_just_fits(make_model):
    """Of 24 positions 8 are for the answer: encoding and sampling take a prompt of 16 tokens, and refuse one of 17."""
    model, text = load(make_model("llama", max_position_embeddings=24))
    fits = prompt_limit(Sampling(max_new_tokens=8), 24)
    found = {len(text.prompt_ids(p)): p for i in range(12) for j in range(9) if (p := "ok" * i + "." * j)}
    assert len(text.encode(PromptRow(found[16]), fits).prompt_ids) == 16
    (bundle,) = draw(model, text, [found[16]], max_new_tokens=8)
    assert len(bundle.completions) == 4
    with pytest.raises(RowFault):
        text.encode(PromptRow(found[17]), fits)
    with pytest.raises(InputError, match="17 tokens"):
        draw(model, text, [found[17]], max_new_tokens=8)


def test_one_new_token_and_no_prompts(base):
    model, text = load(base)
    assert {len(c) for c in completions_of(draw(model, text, max_new_tokens=1))} == {1}
    assert draw(model, text, []) == []


def test_an_empty_prompt_starts_from_bos(base):
    model, text = load(base)
    (bundle,) = draw(model, text, [""], n=2)
    assert bundle.prompt_ids == [text.bos_id]
    assert len(bundle.completions) == 2


def test_sampling_leaves_the_model_as_it_was(base):
    model, text = load(base)
    before = checkpoints.weights_hash(model)
    draw(model, text)
    assert checkpoints.weights_hash(model) == before
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


# --- a pretrained model


def test_a_real_model_writes_as_under_generate(shared):
    """Grouped-query heads and a tokenizer that nobody here made; beginnings of unequal length together."""
    folder = shared / "models" / "stories260k"
    model, text = load(folder)
    theirs = oracle(folder)
    prompts = ["Once upon a time", "Lily saw a bear", "The", "Tom and his dog went to the park because"]
    for bundle in draw(model, text, prompts, n=2, temperature=0.0, max_new_tokens=60):
        ids = torch.tensor([bundle.prompt_ids])
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=60)
        assert [c.ids for c in bundle.completions] == [made[0, ids.shape[1] :].tolist()] * 2
    for bundle in draw(model, text, prompts, n=2, temperature=0.8, max_new_tokens=60):
        for c in bundle.completions:
            torch.testing.assert_close(c.logps, logps_of(theirs, bundle.prompt_ids, c.ids, 0.8), rtol=0, atol=1e-3)


# --- memory


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}),
        ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4}),  # other names for the same
        ("gemma4_text", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),  # its layers differ
    ],
)
def test_what_is_said_to_be_kept_holds_what_is_kept(kind, settings):
    """Two prompts of three and five tokens, three answers of four tokens each: every key and value has its place."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, vocab_size=50, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompts = [Bundle([1, 2, 3], []), Bundle([4, 5, 6, 7, 8], [])]
    said = local.cache_bytes(model, prompts, 3, 4, 6)
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    of_a_token = sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values)) * 4 / 5
    places = 2 * 5 + 6 * 4
    assert said == pytest.approx(of_a_token * places + 4 * 6 * 50, rel=1e-3)


def test_what_a_cache_of_a_family_s_own_class_holds_is_reckoned_with():
    """MiniMax's layers of one kind keep a state a row, those of the other keys and values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kinds = ["linear_attention", "full_attention"]
    config = AutoConfig.for_model(
        "minimax", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, intermediate_size=48, num_local_experts=2, layer_types=kinds, block_size=8,
    )  # fmt: skip
    said = local.cache_bytes(AutoModelForCausalLM.from_config(config).eval(), [Bundle([1, 2, 3], [])], 2, 4, 2)
    keys_and_values = 2 * 2 * 8 * 4 * (3 + 2 * 4)
    states = 4 * 8 * 8 * 4 * 2
    assert said == keys_and_values + states + 4 * 2 * 50


# --- the protocol


def test_bundles_are_asked_as_they_are_and_stay_so(make_model):
    """Ids that no text spells are continued; completions that a bundle had are not added to."""
    model, text = load(make_model("llama"))
    had = Bundle([0, 17, 5, 5, 17], [Completion([9, 1])], prompt="something else", margin=2.0)
    (filled,) = sample(LocalSampler(model, text, SamplingOptions(6)), [had], 3, "rollout", 0)
    assert [c.ids for c in had.completions] == [[9, 1]]
    assert (filled.prompt_ids, filled.prompt, filled.margin, len(filled.completions)) == (
        had.prompt_ids,
        had.prompt,
        2.0,
        3,
    )
    for c in filled.completions:
        torch.testing.assert_close(c.logps, logps_of(model, had.prompt_ids, c.ids), rtol=0, atol=1e-4)


def test_draws_are_named_by_seed_purpose_and_what_there_is(make_model):
    model, text = load(make_model("llama"))

    def ids(seed, *purpose, **have):
        ((index, completions, why),) = next(
            LocalSampler(model, text, SamplingOptions(8), seed).fill(as_bundles(text, PROMPTS[:1]), 4, *purpose, **have)
        )
        assert (index, why) == (0, "")
        return [c.ids for c in completions]

    first = ids(0, "collect", 1)
    assert first == ids(0, "collect", 1) == ids(0, "collect", 1, have=0)
    assert first not in (ids(1, "collect", 1), ids(0, "collect", 2), ids(0, "rollout", 1), ids(0, "collect", 1, have=2))


def test_a_sampler_that_gives_fewer_is_a_failure_that_names_the_prompt():
    class Short:
        def fill(self, bundles, n, *purpose, have=0, progress=None):
            yield [(1, [], "refused")]

    with pytest.raises(RunFailed, match=r"0 of 2 completions of .*row 7.*: refused"):
        sample(Short(), [Bundle([1], []), Bundle([2], [], origin=Origin("p.jsonl", 7))], 2, "rollout")
