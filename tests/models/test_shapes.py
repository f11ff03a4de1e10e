"""Few shapes of matrix products: rounded up, and the same numbers as without."""

from __future__ import annotations

import pytest
import torch

from keel.config import Machine
from keel.engine import head
from keel.engine.forward import scalars_throughout, token_scores
from keel.models import attention, checkpoints, machine, passes, shapes
from keel.records import Bundle, Completion
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

CPU = Machine(device="cpu", precision="fp32")
WEIGHT = torch.zeros(1)
LENGTHS = [range(first, 2 * first) for first in range(5, 60)]


@pytest.fixture
def by_kernels():
    torch.set_float32_matmul_precision("medium")


def test_eight_numbers_from_each_power_of_two_to_the_next(by_kernels):
    found = [shapes.rounded(rows, WEIGHT) for rows in range(1, 8193)]
    assert all(rows <= to <= 1.125 * rows for rows, to in enumerate(found, 1))
    assert sorted(set(found)) == found[:8] + [k << e for e in range(10) for k in range(9, 17)]
    assert (found[16], found[999], found[1023], found[1024]) == (18, 1024, 1024, 1152)
    assert shapes.rounded(0, WEIGHT) == 0


def test_rows_stay_as_they_are_where_no_kernel_is_built(by_kernels):
    assert shapes.rounded(1001, torch.zeros(1, device="meta")) == 1001  # any device but the CPU
    assert shapes.rounded(1001, WEIGHT.bfloat16()) == 1024
    torch.set_float32_matmul_precision("highest")
    assert shapes.rounded(1001, WEIGHT) == 1001
    assert shapes.rounded(1001, WEIGHT.bfloat16()) == 1024


def some(first: int) -> list[Bundle]:
    ids = [5 + i % 40 for i in LENGTHS[first % len(LENGTHS)]]
    return [Bundle(ids[:4], [Completion(ids[4:]), Completion(ids[:3])]), Bundle(ids[::-1], [Completion(ids[:2])])]


def numbers(model, reward, bundles):
    """Everything that a pass gives, and the gradients of both models."""
    for module in (model, reward):
        module.zero_grad()
    scores, scalars = token_scores(model, bundles), scalars_throughout(reward, bundles)
    (scores.logps.sin().sum() + scalars.sin().sum()).backward()
    gradients = [p.grad.clone() for m in (model, reward) for p in m.parameters() if p.grad is not None]
    return [scores.logps, scores.entropy, scores.top, scalars, *gradients]


def test_training_s_passes_have_few_shapes_and_the_same_numbers(make_model, reward_folder):
    model = checkpoints.load_policy(str(make_model("llama")), CPU)
    reward = checkpoints.load_reward(str(reward_folder), CPU)
    rows: dict[str, set[int]] = {"highest": set(), "medium": set()}
    layer, norm = model.model.layers[1].mlp.down_proj, model.model.norm
    for module in (layer, norm):
        module.register_forward_hook(lambda *at: rows[torch.get_float32_matmul_precision()].add(at[-1].shape[1]))
    for first in range(len(LENGTHS)):
        found = {}
        for precision in rows:
            torch.set_float32_matmul_precision(precision)
            found[precision] = numbers(model, reward, some(first))
        for a, b in zip(*found.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert rows["medium"] == {shapes.rounded(n, WEIGHT) for n in rows["highest"]}
    assert len(rows["medium"]) < 0.8 * len(rows["highest"])


def test_completions_are_written_in_few_shapes_and_are_the_same(make_model, by_kernels):
    folder = str(make_model("llama"))
    model, text = checkpoints.load_policy(folder, CPU), checkpoints.load_text(folder)
    prompts = as_bundles(text, ["teddy can", "paddy has a tent", "honey sings to the rain"])
    seen: set[int] = set()
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda *at: seen.add(len(at[-1])))
    drawn = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        seen.clear()
        sampler = LocalSampler(model, text, SamplingOptions(24, 1.0, max_rows=40), 3)
        drawn[precision] = [c for b in sample(sampler, prompts, 13, "draw") for c in b.completions]
    assert seen <= {shapes.rounded(n, WEIGHT) for n in range(64)}
    assert [c.ids for c in drawn["medium"]] == [c.ids for c in drawn["highest"]]
    for a, b in zip(*drawn.values(), strict=True):
        torch.testing.assert_close(a.logps, b.logps, rtol=0, atol=1e-5)


def test_attention_has_no_kernels_built(make_model, by_kernels, monkeypatch):
    """Its products are as many as the texts, forward and backward; afterwards the choice is what it was."""
    model = checkpoints.load_policy(str(make_model("llama")), CPU)
    inside = []
    for name in ("_flash", "_flash_backward"):
        kernel = getattr(attention, name)

        def watched(*given, kernel=kernel, **named):
            inside.append(torch.get_float32_matmul_precision())
            return kernel(*given, **named)

        monkeypatch.setattr(attention, name, watched)
    token_scores(model, some(1)).logps.sum().backward()
    assert inside == ["highest"] * len(inside)
    assert len(inside) >= 2 * 2 * 2  # layers, bundles (and what fills the row up), there and back
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(ZeroDivisionError), shapes.without_kernels(WEIGHT):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize(
    ("width", "ratio", "exact", "chosen"),
    [
        (machine.NARROWEST, 1.3, True, "medium"),
        (machine.NARROWEST, 1.1, True, "highest"),
        (machine.NARROWEST, 9.0, False, "highest"),
        (machine.NARROWEST - 1, 9.0, True, "highest"),
    ],
)
def test_the_faster_library_is_chosen_where_it_stays_fp32(monkeypatch, width, ratio, exact, chosen):
    monkeypatch.setattr(
        machine, "_seconds", lambda a, b: ratio if torch.get_float32_matmul_precision() == "highest" else 1.0
    )
    if not exact:
        monkeypatch.setattr(torch, "equal", lambda a, b: False)
    machine.choose_product(width)
    assert torch.get_float32_matmul_precision() == chosen


def test_a_process_stays_with_what_it_chose(monkeypatch, by_kernels):
    monkeypatch.setattr(machine, "_seconds", None)
    machine.choose_product(4096)
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_head_s_blocks_have_few_shapes(make_model, by_kernels, monkeypatch):
    """As many rows as there are completion tokens, rounded up; and a pass gives back no row that fills up."""
    model = checkpoints.load_policy(str(make_model("llama")), CPU)
    seen, walk = set(), head._walk
    monkeypatch.setattr(head, "_walk", lambda hidden, *rest: seen.add(len(hidden)) or walk(hidden, *rest))
    tokens = set()
    for first in range(len(LENGTHS)):
        bundles = some(first)
        tokens.add(len(token_scores(model, bundles).logps))
        row = sum(len(b.prompt_ids) + sum(map(len, b.completions)) for b in bundles)
        assert len(passes.packed(model, bundles)[0]) == row
    assert seen == {shapes.rounded(n, WEIGHT) for n in tokens}
    assert len(seen) < len(tokens)
