"""Keel's numbers on one tiny model, against transformers' plain forward pass of each sequence alone.

`python -m tests.zoo.examine FOLDER NAME …` prints one JSON line per variant; without names it reads them from standard
input, one a line. The oracle knows nothing of Keel: a freshly loaded `AutoModelForCausalLM` with its default attention,
no cache, one sequence at a time, nothing padded.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .families import VARIANTS, Variant
from .oracle import NEW, Oracle, Sequences
from .rule import END, PAD
from .tiny import model_of, tokenizer
from .worker import place, serve

LENGTHS = ((5, (7, 3)), (14, (12, 9)), (3, (2, 6)), (20, (11, 8)))
"""Tokens of each prompt, and of its two completions."""
PROMPTS = (3, 8, 8, 13, 20)
"""Tokens of the prompts that are answered."""
TIE = 1e-4
"""Two words whose logits are this close may be exchanged by rounding."""
EXACT, DRAWN, READ_BACK = 1e-4, 1e-3, 1e-5
HALF = 2.0, 0.003
"""In bf16: how many times plain bf16's own error, and how much beside it."""
PLAIN = 0.025
"""Taken for that error where transformers does not run a family in bf16."""
LETTERS = "abcdefghijklmnopqrstuvwxyz .,?"


class Wrong(Exception):  # noqa: N818  (no error of the program)
    """Numbers that differ: which, and by how much."""


# --- what is examined -----------------------------------------------------------------------------


@dataclass
class Case:
    """One variant in its folder, the texts that it reads, and what is noted on the way."""

    variant: Variant
    folder: Path
    told: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = random.Random(3)
        self.bundles = [
            ([draw.randrange(256) for _ in range(prompt)], [[draw.randrange(256) for _ in range(n)] for n in lengths])
            for prompt, lengths in LENGTHS
        ]
        self.prompts = ["".join(draw.choices(LETTERS, k=n)) for n in PROMPTS]
        self.oracle = Oracle(self.folder)
        self.expected = self.oracle.logps(self.sequences)
        ids = [list(tokenizer()(prompt).input_ids) for prompt in self.prompts]
        self.answers = [self.oracle.greedy(prompt, set()) for prompt in ids]
        self._choose_end()

    @property
    def sequences(self) -> Sequences:
        return [(prompt, completion) for prompt, completions in self.bundles for completion in completions]

    def _choose_end(self) -> None:
        """Let a word end all answers, such that they end as far apart as they can."""
        lengths = {
            word: {len(_cut(answer, ahead, {word})[0]) for answer, ahead in self.answers}
            for answer, _ in self.answers
            for word in answer[1:]
        }
        self.ends = {END, max(lengths, key=lambda word: len(lengths[word]))}
        file = self.folder / "generation_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps(settings | {"eos_token_id": sorted(self.ends)}))
        self.answers = [_cut(answer, ahead, self.ends) for answer, ahead in self.answers]

    def error(self, got: Tensor) -> float:
        """Root mean square error of the log-probabilities.

        In bf16 a token now and then goes to another expert, or sees other keys, on either side and by chance: the
        worst tenth does not count in families that choose.
        """
        worst = (got.float() - self.expected).abs().sort().values
        chooses = any("expert" in name or "indexer" in name for name in self.oracle.weights())
        return float((worst[: -len(worst) // 10] if chooses else worst).square().mean().sqrt())

    def require(self, what: str, got: Tensor, expected: Tensor, most: float) -> None:
        """Fail with the largest difference beyond `most`."""
        got, expected = got.detach().float().flatten(), expected.detach().float().flatten()
        if got.shape != expected.shape:
            raise Wrong(f"{what}: {len(got)} numbers, {len(expected)} expected")
        off = float((got - expected).abs().max())
        if not off <= most:  # also where it is not a number
            raise Wrong(f"{what}: off by {off:.2g}")


def _cut(answer: list[int], ahead: list[float], ends: set[int]) -> tuple[list[int], list[float]]:
    stop = next((at + 1 for at, word in enumerate(answer) if word in ends), len(answer))
    return answer[:stop], ahead[:stop]


def log_probabilities(case: Case, model: Any) -> None:
    """All at once, in other orders, in passes of other sizes, and each bundle alone."""
    from keel.engine import forward

    bundles = _bundles(case)
    with torch.no_grad():
        together = forward.token_logps(model, bundles)
        case.require("log-probabilities", together, case.expected, EXACT)
        backwards = forward.token_logps(model, bundles[::-1])
        lengths = [sum(map(len, b.completions)) for b in bundles]
        case.require("in another order", torch.cat(backwards.split(lengths[::-1])[::-1]), together, EXACT)
    for most in (64, 8192):
        parts = forward.in_batches(forward.token_logps, model, bundles, most)
        case.require(f"in passes of {most} tokens", torch.cat(parts), case.expected, EXACT)
    alone = [forward.in_batches(forward.token_logps, model, [bundle], 8192)[0] for bundle in bundles]
    case.require("each bundle alone", torch.cat(alone), together, EXACT)


def gradients(case: Case, model: Any) -> None:
    """Of the summed log-probabilities, each parameter's relative to the model's largest."""
    from keel.engine import forward

    model.zero_grad()
    forward.token_logps(model, _bundles(case)).sum().backward()
    expected = case.oracle.gradients(case.sequences)
    largest = max(float(g.abs().max()) for g in expected.values())
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in sorted(expected.keys() | got.keys()):
        one = expected.get(name, torch.zeros(()))
        case.require(f"gradient of {name}", got.get(name, torch.zeros_like(one)) / largest, one / largest, EXACT)
    model.zero_grad()


def half(case: Case) -> None:
    """In bf16, no further from fp32 than twice what plain bf16 is; where that does not run, Keel may refuse it."""
    from keel.config import Machine
    from keel.engine import forward
    from keel.errors import InputError
    from keel.models import checkpoints

    try:
        plain = case.error(Oracle(case.folder, torch.bfloat16).logps(case.sequences))
    except RuntimeError:
        plain = PLAIN
        case.told["plain bf16"] = "does not run"
    try:
        model = checkpoints.load_policy(str(case.folder), Machine(device="cpu", precision="bf16"))
        with torch.no_grad():
            own = case.error(forward.token_logps(model, _bundles(case)))
    except InputError as error:
        if "plain bf16" not in case.told:
            raise
        case.told["bf16"] = f"refused: {error}"
        return
    case.told |= {"plain bf16": case.told.get("plain bf16", round(plain, 5)), "bf16": round(own, 5)}
    if not own <= HALF[0] * plain + HALF[1]:
        raise Wrong(f"bf16: off by {own:.3g}, plain bf16 by {plain:.3g}")


def greedy(case: Case, model: Any, text: Any) -> None:
    """Word for word what a full pass per word says, with one answer a prompt and with four."""
    from keel.sampling.local import LocalSampler
    from keel.sampling.protocol import SamplingOptions, as_bundles, sample

    sampler = LocalSampler(model, text, SamplingOptions(NEW, temperature=0.0))
    for n in (1, 4):
        drawn = sample(sampler, as_bundles(text, case.prompts), n, "zoo")
        for number, (bundle, (answer, ahead)) in enumerate(zip(drawn, case.answers, strict=True)):
            if len(bundle.completions) != n:
                raise Wrong(f"greedy, n = {n}: {len(bundle.completions)} answers")
            for completion in bundle.completions:
                at = next((i for i, (a, b) in enumerate(zip(completion.ids, answer, strict=False)) if a != b), None)
                if at is None and len(completion.ids) != len(answer):
                    raise Wrong(f"greedy, n = {n}: prompt {number} ended elsewhere")
                if at is not None and ahead[at] > TIE:
                    raise Wrong(f"greedy, n = {n}: prompt {number} differs from word {at + 1} on")
    case.told["ends apart"] = len({len(answer) for answer, _ in case.answers}) > 1


def drawn_log_probabilities(case: Case, model: Any, text: Any) -> None:
    """What the sampler recorded, against the trainer's pass and the oracle's."""
    from keel.engine import forward
    from keel.sampling.local import LocalSampler
    from keel.sampling.protocol import SamplingOptions, as_bundles, sample

    drawn = sample(LocalSampler(model, text, SamplingOptions(NEW)), as_bundles(text, case.prompts), 3, "zoo")
    recorded = torch.cat([c.logps for b in drawn for c in b.completions])
    sequences = [(b.prompt_ids, c.ids) for b in drawn for c in b.completions]
    whole = case.oracle.logps(sequences)
    with torch.no_grad():
        case.require("recomputed log-probabilities", forward.token_logps(model, drawn), whole, DRAWN)
    if case.oracle.moving and bool((recorded - whole).abs().max() > DRAWN):
        whole = case.oracle.logps_when_drawn(sequences)
        case.told["crosses"] = "a text that grows beyond its limit is read anew, with other positions"
    case.require("recorded log-probabilities", recorded, whole, DRAWN)


def saved(case: Case, model: Any, text: Any) -> None:
    """The policy, saved after it was computed with, is the same model for transformers."""
    from keel.models import checkpoints

    folder = case.folder / "saved"
    checkpoints.save(model, text, folder)
    try:
        again = Oracle(folder)
    except ValueError as error:
        raise Wrong(f"the saved policy is none for transformers: {' '.join(str(error).split())[:80]}") from error
    case.require("log-probabilities read back", again.logps(case.sequences), case.expected, READ_BACK)


def reward(case: Case, text: Any) -> None:
    """A scalar head on the backbone: what it says, and what it says once it is saved and read back."""
    from keel.engine import forward
    from keel.models import checkpoints
    from keel.models.heads import scalar_head

    machine = _machine()
    model = checkpoints.new_scalar_model(str(case.folder), machine, checkpoints.ensure_pad(text))
    own = _is_own(model)
    case.told["head"] = "Keel's" if own else type(model).__name__
    head = scalar_head(model)
    torch.manual_seed(1)
    torch.nn.init.normal_(head.weight)
    bias = 0.0 if head.bias is None else head.bias.detach()
    bundles = _bundles(case)
    with torch.no_grad():
        said = forward.scalars_at_end(model, bundles)
        states = torch.stack([case.oracle.last_hidden(p + c) for p, c in case.sequences])
        expected = states @ head.weight.detach()[0] + bias
    scale = max(1.0, float(expected.abs().max()))
    case.require("rewards", said / scale, expected / scale, EXACT)
    folder = case.folder / "reward"
    checkpoints.save(model, text, folder)
    again = checkpoints.load_reward(str(folder), machine)
    with torch.no_grad():
        case.require("rewards read back", forward.scalars_at_end(again, bundles) / scale, said / scale, READ_BACK)
    if not own:
        case.require("rewards as transformers reads them", _by_the_library(case, folder) / scale, said / scale, EXACT)


def _is_own(model: Any) -> bool:
    """Whether a scalar model is of Keel's class, which transformers does not load."""
    try:
        from keel.models.scalar import is_own
    except ImportError:
        return False
    return bool(is_own(model))


@torch.no_grad()
def _by_the_library(case: Case, folder: Path) -> Tensor:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    passes = [
        (copy.deepcopy(model) if case.oracle.moving else model)(input_ids=torch.tensor([p + c]), use_cache=False)
        for p, c in case.sequences
    ]
    return torch.cat([out.logits.flatten() for out in passes])


# --- one after the other --------------------------------------------------------------------------


def examine(variant: Variant, folder: Path) -> dict[str, Any]:
    """What became of a variant, and every fault that was found, in the order of the checks.

    `outcome` is 'right', 'refused' (one line of Keel's), 'wrong' (numbers that differ) or 'crashed' (any other
    exception), whichever of the last three came first; `line` says what, and `check` where.
    """
    from keel.errors import InputError

    told: dict[str, Any] = {}
    faults: list[dict[str, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        make(variant, folder)
        for name, check in checks(Case(variant, folder, told)):
            try:
                check()
                continue
            except InputError as error:
                found = "refused", str(error).replace(str(folder), "MODEL")
            except Wrong as error:
                found = "wrong", str(error)
            except Exception as error:
                found = "crashed", place(error)
            faults.append({"check": name, "outcome": found[0], "line": found[1]})
            if name == "load":
                break
    first = faults[0] if faults else {"outcome": "right", "line": "", "check": ""}
    told["seconds"] = round(time.perf_counter() - started, 1)
    return {"name": variant.name, "family": variant.kind, **first, "faults": faults, **told}


def checks(case: Case) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each check by name; the first loads what the others need."""
    from keel.models import checkpoints

    loaded: list[Any] = []

    def load() -> None:
        loaded[:] = checkpoints.load_policy(str(case.folder), _machine()), checkpoints.load_text(str(case.folder))

    yield "load", load
    model, text = loaded
    yield "log-probabilities", lambda: log_probabilities(case, model)
    yield "gradients", lambda: gradients(case, model)
    yield "greedy", lambda: greedy(case, model, text)
    yield "drawn", lambda: drawn_log_probabilities(case, model, text)
    case.told["way"] = way_of(model)
    yield "bf16", lambda: half(case)
    yield "saved", lambda: saved(case, model, text)
    yield "reward", lambda: reward(case, text)
    yield "generate", lambda: _compare_generate(case)


def _compare_generate(case: Case) -> None:
    """Note where transformers' own decoding differs from its full pass; that is no fault of Keel's."""
    differs = 0
    for prompt, (answer, ahead) in list(zip(case.prompts, case.answers, strict=True))[::2]:
        try:
            written = case.oracle.generated(list(tokenizer()(prompt).input_ids), case.ends)
        except Exception as error:  # whatever it is
            case.told["generate"] = f"raises {type(error).__name__}"
            return
        pairs = enumerate(zip(written, answer, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        differs += ahead[at] > TIE if at is not None else len(written) != len(answer)
    case.told["generate"] = "agrees" if not differs else "differs"


def make(variant: Variant, folder: Path) -> None:
    """Write the variant's checkpoint."""
    from transformers import GenerationConfig

    shutil.rmtree(folder, ignore_errors=True)
    model = model_of(variant)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def way_of(model: Any) -> str:
    """How Keel computes with this model, in its own words."""
    try:
        from keel.models.trials import ways_of
    except ImportError:
        return "—"
    return str(ways_of(model).described())


def _bundles(case: Case) -> list[Any]:
    from keel.records import Bundle, Completion

    return [Bundle(prompt, [Completion(ids) for ids in completions]) for prompt, completions in case.bundles]


def _machine() -> Any:
    from keel.config import Machine

    return Machine(device="cpu", precision="fp32")


def main() -> None:
    """Examine the variants named, or those that standard input names as they come."""
    known = {variant.name: variant for variant in VARIANTS}
    serve(lambda name, folder: examine(known[name], folder))


if __name__ == "__main__":
    main()
