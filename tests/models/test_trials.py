"""Each model is tried before it is trusted: what a trial finds, what is done about it, and what is said.

Oracles are plain passes of transformers' own models, one sequence at a time. The zoo tries all families in this way;
here each trial is shown to notice the fault that it is there for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import nn

from keel.engine import forward
from keel.errors import InputError
from keel.models import fused, heads, limits, passes, trials
from keel.records import Bundle, Completion
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

COMMON: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
FORBIDDEN = {"xlnet": "max_position_embeddings", "prophetnet": "num_hidden_layers"}
"""What a config does not let be set."""


def made(kind: str = "llama", **changes: Any) -> Any:
    """A causal language model with weights that matter."""
    torch.manual_seed(0)
    settings = {name: value for name, value in COMMON.items() if name != FORBIDDEN.get(kind)}
    return t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(kind, **{**settings, **changes})).eval()


@pytest.fixture
def model() -> Any:
    return made()


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """As in a process that has said nothing yet."""
    monkeypatch.setattr(trials, "_TOLD", set())


def bundles_of(*shapes: tuple[int, tuple[int, ...]]) -> list[Bundle]:
    draw = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(2, 60, (n,), generator=draw).tolist()

    return [Bundle(ids(p), [Completion(ids(n)) for n in cs]) for p, cs in shapes]


BUNDLES = bundles_of((5, (7, 3)), (12, (2, 9)), (3, (6, 4)))


@torch.no_grad()
def plain(model: Any, bundles: list[Bundle] = BUNDLES) -> torch.Tensor:
    """Log-probabilities of every token, each sequence alone."""
    found = []
    for bundle in bundles:
        for c in bundle.completions:
            ids = bundle.prompt_ids + c.ids
            table = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
            at = torch.arange(len(bundle.prompt_ids) - 1, len(ids) - 1)
            found.append(table[at, torch.tensor(c.ids)])
    return torch.cat(found)


class NoText:
    """A tokenizer for those who want ids."""

    eos_ids = frozenset({1})

    def prompt_ids(self, prompt: Any) -> list[int]:
        return [int(i) for i in prompt.split()]

    def completion(self, bundle: Bundle, ids: list[int], truncated: bool) -> Completion:
        return Completion(ids, truncated=truncated)


PROMPTS = ["5 9 30", "8 2 44", "11 12 13 14 15 16 17"]


def greedy(model: Any, n: int = 2, new: int = 10) -> list[list[list[int]]]:
    sampler = LocalSampler(model, NoText(), SamplingOptions(new, temperature=0.0))
    bundles = sample(sampler, as_bundles(NoText(), PROMPTS), n, "trial")
    return [[c.ids for c in b.completions] for b in bundles]


@torch.no_grad()
def greedy_anew(model: Any, new: int = 10) -> list[list[int]]:
    """The likeliest word after a full pass over the text so far, again and again."""
    found = []
    for prompt in PROMPTS:
        ids = [int(i) for i in prompt.split()]
        own: list[int] = []
        while len(own) < new and own[-1:] != [1]:
            own.append(int(model(input_ids=torch.tensor([ids + own]), use_cache=False).logits[0, -1].argmax()))
        found.append(own)
    return found


# --- a wrong way is noticed, told once with its reason, and the next slower one is right


def spoilt(way, **options):
    """A pass that says something else, by a little."""

    def spoil(*arguments, **more):
        hidden, *rest = (
            (out := way(*arguments, **more)) if isinstance(out := way(*arguments, **more), tuple) else (out,)
        )
        hidden = hidden * (1 + 1e-3 * torch.arange(len(hidden))[:, None])
        return (hidden, *rest) if rest else hidden

    return spoil


def test_a_fast_model_is_packed_and_says_nothing(model, capsys):
    assert trials.ways_of(model).together is passes.packed
    assert trials.writes(model, "shared")
    assert trials.writes(model, "cached")
    assert trials.ways_of(model).described() == "packed, shared"
    assert capsys.readouterr().err == ""


def test_a_wrong_packed_pass_is_left_for_rows(model, monkeypatch, capsys):
    monkeypatch.setattr(passes, "packed", spoilt(passes.packed))
    theirs = plain(model)
    for _ in range(2):
        torch.testing.assert_close(forward.token_logps(model, BUNDLES), theirs, rtol=0, atol=1e-4)
    assert trials.ways_of(model).together is passes.rows
    assert model.config._attn_implementation == "sdpa"  # as it was
    trials.ways_of(made())  # another model of the kind
    assert capsys.readouterr().err.count("LlamaForCausalLM cannot share a prompt between completions (off by 0.0") == 1


def test_wrong_rows_are_left_for_each_alone(model, monkeypatch, capsys):
    for name in ("packed", "rows"):
        monkeypatch.setattr(passes, name, spoilt(getattr(passes, name)))
    torch.testing.assert_close(forward.token_logps(model, BUNDLES), plain(model), rtol=0, atol=1e-4)
    assert trials.ways_of(model).together is passes.alone
    assert "computes a text differently beside other texts" in capsys.readouterr().err
    tokens = sum(len(b.prompt_ids) + len(c) for b in BUNDLES for c in b.completions)
    assert forward.computed_tokens(model, BUNDLES) == tokens
    assert [len(m.bundles) for m in forward.micro_batches(model, BUNDLES, 1)] == [1, 1, 1]


def test_a_wrong_step_is_left_for_the_family_s_own_cache(model, monkeypatch, capsys):
    monkeypatch.setattr(passes, "decode", spoilt(passes.decode))
    assert greedy(model) == [[one, one] for one in greedy_anew(model)]
    assert trials.ways_of(model).described() == "packed, cached"
    assert "answers are generated with its own cache" in capsys.readouterr().err


def test_a_wrong_cache_is_left_for_the_whole_text_anew(model, monkeypatch, capsys):
    monkeypatch.setattr(passes, "decode", spoilt(passes.decode))
    monkeypatch.setattr(passes.OwnCache, "step", lambda self, token: torch.zeros(len(token), 16))
    assert greedy(model) == [[one, one] for one in greedy_anew(model)]
    assert trials.ways_of(model).described() == "packed, anew"
    assert "each token reads the whole text again" in capsys.readouterr().err


def test_rows_that_change_places_in_a_cache_are_tried(model, monkeypatch):
    """A cache that forgets to move its rows is noticed by the trial, in which one leaves."""
    monkeypatch.setattr(passes, "packed", spoilt(passes.packed))
    real, calls = passes.OwnCache.take, []

    def take(self, rows):
        calls.append(len(rows))
        real(self, rows if len(calls) % 2 else torch.arange(len(rows)))

    monkeypatch.setattr(passes.OwnCache, "take", take)
    assert not trials.writes(model, "cached")


def test_norms_that_go_wrong_together_are_left_as_they_are(model, monkeypatch):
    theirs = plain(model)
    real = fused._RootMeanSquare.forward
    monkeypatch.setattr(
        fused._RootMeanSquare,
        "forward",
        staticmethod(lambda ctx, x, weight, eps: real(ctx, x, weight, eps) * (1.01 if x.shape[-2] == 9 else 1)),
    )  # three rows, as in the trial of one norm, are right
    torch.testing.assert_close(forward.token_logps(model, BUNDLES), theirs, rtol=0, atol=1e-4)
    assert all("fused" not in type(m).forward.__module__ for m in model.modules())


# --- what no way gets right is refused


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("bert", {"is_decoder": False}, "reads ahead"),
        ("rwkv", {"rescale_every": 1, "context_length": 64}, "set rescale_every to 0"),
        ("reformer", {"is_decoder": True, "attn_layers": ["local"], "axial_pos_embds": False}, "no gradient"),
        (
            "prophetnet",
            {"pad_token_id": 0, "num_decoder_attention_heads": 2, "num_decoder_layers": 1},
            "does not reproduce",
        ),
        ("prophetnet", {"num_decoder_layers": 1, "num_decoder_attention_heads": 2}, "cannot read"),  # it wants a pad
    ],
)
def test_what_no_way_gets_right_is_refused_by_name(kind, changes, said):
    with pytest.raises(InputError) as refused:
        trials.ways_of(made(kind, **changes), "the-folder")
    assert str(refused.value).startswith("the-folder: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bf16_that_does_not_run_names_the_remedy(model):
    model.to(torch.bfloat16).model.layers[1].mlp.float()
    with pytest.raises(InputError, match=r"does not run in bf16 \(.*\); use --precision fp32"):
        trials.ways_of(model)


def test_broken_numbers_are_no_matter_of_ways(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        trials.ways_of(model)


# --- windows, whatever they are called


@pytest.mark.parametrize(
    ("kind", "changes", "reach"),
    [
        ("mistral", {"sliding_window": 9}, 9),
        ("mistral", {"sliding_window": None}, trials.UNBOUNDED),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, trials.UNBOUNDED),
        ("gemma3_text", {"sliding_window": 10, "head_dim": 8, "query_pre_attn_scalar": 8}, 10),
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 8}, trials.UNBOUNDED),  # makes masks that none uses
        (
            "llama4_text",
            {"attention_chunk_size": 9, "num_local_experts": 2, "head_dim": 8, "no_rope_layers": [1, 0]},
            9,
        ),
        ("gpt_oss", {"num_local_experts": 4, "sliding_window": 8, "head_dim": 8}, 0),  # sinks: no packing at all
        ("gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}, 0),
    ],
)
def test_how_far_layers_look_back_is_seen_in_what_they_are_given(kind, changes, reach):
    model = made(kind, **changes)
    theirs = plain(model)
    assert trials.ways_of(model).reach == reach
    torch.testing.assert_close(forward.token_logps(model, BUNDLES), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [("doge", {"keep_window_size": 16}), ("doge", {"keep_window_size": 40})])
def test_layers_that_choose_what_they_attend_to_read_each_text_alone(kind):
    """Beyond the number of keys that they choose, which the trials' few tokens do not reach."""
    model, bundles = made(kind[0], **kind[1]), bundles_of((20, (14, 5)), (3, (4, 30)), (34, (9,)))
    theirs = plain(model, bundles)
    torch.testing.assert_close(forward.token_logps(model, bundles), theirs, rtol=0, atol=1e-4)
    assert trials.ways_of(model).together is passes.alone
    assert greedy(model, new=24) == [[one, one] for one in greedy_anew(model, 24)]


# --- positions


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 16,
}


def longrope() -> Any:
    return made("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=16)


def test_texts_on_both_sides_of_a_switch_never_share_a_pass():
    """Short, long, and a prompt with one completion on either side; whatever a pass holds, and in whatever order."""
    model = longrope()
    bundles = bundles_of((10, (3, 9)), (14, (2, 3)), (4, (5, 6)), (20, (4, 2)))
    theirs = plain(model, bundles)
    assert limits.switches(model) == (16,)
    torch.testing.assert_close(forward.token_logps(model, bundles), theirs, rtol=0, atol=1e-4)
    for tokens in (1, 64, 8192):
        found = forward.in_batches(forward.token_logps, model, bundles, tokens)
        torch.testing.assert_close(torch.cat(found), theirs, rtol=0, atol=1e-4)
    backwards = forward.in_batches(forward.token_logps, model, bundles[::-1], 64)
    torch.testing.assert_close(torch.cat(backwards[::-1]), theirs, rtol=0, atol=1e-4)
    apart = forward.TokenCounter(passes.packed, (16,)), forward.TokenCounter(passes.packed)
    assert [max(load.add(b) for b in bundles) for load in apart] == [10 + 12 + 14 + 10 + 5 + 14 + 15 + 26, 82]


def test_a_text_that_grows_beyond_a_switch_is_read_again():
    """Answers begin before the limit and end beyond it; each word is the one that the whole text so far asks for."""
    model = longrope()
    assert greedy(model, new=20) == [[one, one] for one in greedy_anew(model, 20)]
    fixed = made("phi3", rope_parameters={**LONGROPE, "long_factor": [1.0] * 4}, original_max_position_embeddings=16)
    assert greedy_anew(model, 20) != greedy_anew(fixed, 20)  # it mattered


def test_beyond_its_positions_a_model_is_not_asked():
    model = made(max_position_embeddings=20, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    with pytest.raises(InputError, match="text of 21 tokens is longer than the 20 positions"):
        forward.token_logps(model, bundles_of((12, (9,))))


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, 64),
        ("gpt2", {"n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2}, 48),
        ("roberta", {"is_decoder": True, "pad_token_id": 1}, 62),  # numbered from behind the padding
        ("mamba", {}, None),
        ("xlnet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}, None),  # says -1
        ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 40}, 40),
    ],
)
def test_how_many_tokens_a_model_reads(kind, changes, expected):
    named = "max_position_embeddings" if kind in ("llama", "roberta") else "vocab_size"
    settings = {"vocab_size": 60, named: COMMON[named], "num_hidden_layers": 1}
    model = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(kind, **{**settings, **changes}))
    assert limits.positions(model) == expected


# --- heads


@pytest.mark.parametrize(
    ("kind", "changes", "head"),
    [
        ("llama", {}, heads.Head()),
        ("cohere", {"logit_scale": 0.25}, heads.Head(factor=0.25)),
        ("granite", {"logits_scaling": 4.0}, heads.Head(factor=0.25)),
        ("gemma2", {"final_logit_softcapping": 5.0, "head_dim": 8, "query_pre_attn_scalar": 8}, heads.Head(cap=5.0)),
        ("recurrent_gemma", {"logits_soft_cap": 5.0, "lru_width": 16}, heads.Head(cap=5.0)),
        ("bert", {"is_decoder": True}, heads.Head(own=True)),  # a layer and a norm before the matrix
    ],
)
def test_heads_are_found_by_what_they_say(kind, changes, head):
    """Caps and factors whatever the config calls them, also where a few tokens' own logits would not show the cap."""
    model = made(kind, **changes)
    theirs = plain(model)
    assert heads.head_of(model) == head
    torch.testing.assert_close(forward.token_logps(model, BUNDLES), theirs, rtol=0, atol=1e-4)


def test_a_cap_that_a_few_tokens_do_not_show_is_found():
    model = made("gemma2", final_logit_softcapping=5.0, head_dim=8, query_pre_attn_scalar=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    assert heads.head_of(model).cap == 5.0


def test_a_head_of_its_own_has_gradients():
    model = made("bert", is_decoder=True)
    forward.token_logps(model, BUNDLES).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = torch.zeros(())
    for bundle in BUNDLES:
        for c in bundle.completions:
            ids = torch.tensor([bundle.prompt_ids + c.ids])
            table = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            total = total + table[len(bundle.prompt_ids) - 1 : -1].gather(1, torch.tensor(c.ids)[:, None]).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_backbone_in_bf16_that_gives_fp32(monkeypatch):
    """Mamba's residual stream is fp32 whatever its weights are."""
    model = made("mamba", state_size=4).to(torch.bfloat16)
    assert (
        heads.trunk(model)(input_ids=torch.tensor([[5, 6]]), use_cache=False).last_hidden_state.dtype == torch.float32
    )
    exact = plain(made("mamba", state_size=4))
    got = forward.token_logps(model, BUNDLES)
    assert (got - exact).square().mean().sqrt() < 0.05
    got.sum().backward()


def test_the_backbone_of_llama_4_is_not_itself():
    model = made("llama4_text", num_local_experts=2, head_dim=8)
    assert model.base_model is model
    assert heads.trunk(model) is model.model


# --- norms that are not what they look like


class Gated(nn.Module):
    """A norm that can be given a gate (Mamba 2, Qwen3-Next)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, hidden: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        hidden = hidden if gate is None else hidden * gate
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class Raising(Gated):
    """One that wants something of its own."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise RuntimeError("not with three rows")


@pytest.mark.parametrize("norm", [Gated, Raising])
def test_a_norm_that_cannot_be_tried_is_left_alone(norm):
    module = nn.Sequential(norm())
    fused.fuse(module)
    assert type(module[0]) is norm
