"""The whole story on the embedded world, in one folder: from nothing to a report that compares DPO, PPO, best-of-N.

Each step leaves its runs and its figures (`steps/NAME.json`) in the folder; a second call reuses the finished ones. The
steps call the same `train` functions as the command line. Only the simulated people and the final evaluation know gold.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from keel import objectives, stats, world
from keel.collect import collect
from keel.config import (
    CollectConfig,
    DataCheckConfig,
    DemoConfig,
    DPOConfig,
    Machine,
    PPOConfig,
    RewardConfig,
    SFTConfig,
)
from keel.data import formats
from keel.data.files import read_lines, write_json, write_lines
from keel.data.preferences import derive
from keel.data.store import Store, said_key
from keel.data.text import Text
from keel.engine import progress
from keel.engine.forward import in_batches, scalars_at_end
from keel.engine.progress import Bar, peak_rss_gb, say
from keel.engine.run import generator
from keel.engine.sampler import sample
from keel.engine.scorers import RewardModelScorer
from keel.errors import InputError, RunFailed
from keel.evaluation import answers as verdict
from keel.evaluation import audit
from keel.methods import dpo, ppo, reward, sft
from keel.models import checkpoints
from keel.raters import Missing, Task
from keel.raters.simulated import Simulated
from keel.records import Bundle, Pair, Result

Row = dict[str, str]

BEST_OF = 16
TEMPERATURE = 0.8
"""Of every sample and every log-probability."""
MICRO_TOKENS = 1_024
"""Little is padded in passes this small, and one thread is busy enough with them."""
WIDE: dict[str, Any] = {"micro_tokens": 4 * MICRO_TOKENS}
"""Where two threads work on one pass."""
MAX_ROWS = 1_024
"""Answers written at once."""
LOVE_OF_LENGTH = 40.0
"""Of the people whose votes mislead on purpose: log-odds for ten words more."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the story in full by default."""

    recalls: int = 12_000
    """Questions about what was just said, to pre-train on first."""
    lessons: int = 5_000
    """Right answers in every tone, to pre-train on after them."""
    demonstrations: int = 14_000
    """Answers of mixed quality for SFT."""
    mismatched: int = 6_000
    """Right answers against right answers to other questions, for the reward model before it sees votes."""
    vote_prompts: int | None = None
    """Training prompts whose answers are shown to people for the reward model and DPO; all of them by default."""
    vote_answers: int = 3
    """Answers to each; people compare every two."""
    second_opinions: int = 400
    """Pairs that another person judges, too: how far people agree."""
    compared: int = 150
    """Pairs that are compared with what the SFT model says."""
    few_votes: int = 150
    """Pairs in the setting with little reward data."""
    held_out_pairs: int = 600
    held_out_prompts: int = 520
    curve_prompts: int = 64
    curve_n: int = 256
    rollout: int = 128
    """Prompts per PPO rollout."""
    ppo_rollouts: int = 12
    hacking_rollouts: int = 9
    max_new_tokens: int = 64


@dataclass
class Story:
    """Where the demo's things lie."""

    config: DemoConfig
    sizes: Sizes = Sizes()

    @property
    def out(self) -> Path:
        return self.config.out

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def machine(self) -> Machine:
        return Machine(seed=self.seed, micro_tokens=MICRO_TOKENS)

    @cached_property
    def prompts(self) -> tuple[list[world.Prompt], list[world.Prompt]]:
        """Train and held-out prompts."""
        return world.split(world.all_prompts(self.seed), seed=self.seed)

    @cached_property
    def text(self) -> Text:
        return checkpoints.load_text(str(self.out / "init"))

    def policy(self, name: str) -> torch.nn.Module:
        return checkpoints.load_policy(str(self.out / name), self.machine)

    def scorer(self, name: str) -> RewardModelScorer:
        return RewardModelScorer(checkpoints.load_reward(str(self.out / name), self.machine), MICRO_TOKENS)

    @property
    def store(self) -> str:
        """Where answers and votes are kept."""
        return f"store:{self.out / 'data' / 'votes.db'}"

    def file(self, name: str) -> str:
        """One of the data files."""
        return str(self.out / "data" / f"{name}.jsonl")

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    def record(self, name: str) -> Path:
        """Where a step leaves its figures: it is finished when this file is there."""
        return self.out / "steps" / f"{name}.json"

    def run(self, name: str, title: str, step: Callable[[Story], dict[str, Any]]) -> None:
        """Do a step and keep its figures."""
        say(f"{title} …")
        began = time.time()
        figures = step(self)
        seconds = round(time.time() - began, 2)
        file = self.record(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file,
            {"name": name, "title": title, "seconds": seconds, "peak_rss_gb": peak_rss_gb(), "figures": figures},
        )

    def records(self) -> dict[str, dict[str, Any]]:
        """What the finished steps left, by name."""
        files = {name: self.record(name) for name, *_ in STEPS}
        return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}

    def fresh(self, name: str) -> Path:
        """The folder of a run that this step is about to do; what an interrupted call left there is removed."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


# --- the model that is to be tuned ----------------------------------------------------------------


def make_world(story: Story) -> dict[str, Any]:
    """Everything that the first training run reads."""
    train, held_out = story.prompts
    folder = story.out / "data"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "prompts.jsonl", ({"prompt": ask(p.text)} for p in train))
    write_lines(folder / "held-out-prompts.jsonl", ({"prompt": ask(p.text), "kind": p.kind} for p in held_out))
    recalls = [demonstration(q, a) for q, a in world.recalls(train, story.rng("recalls"), story.sizes.recalls)]
    lessons = [demonstration(p.text, a) for p, a in world.lessons(train, story.rng("lessons"), story.sizes.lessons)]
    write_lines(folder / "recalls.jsonl", recalls)
    write_lines(folder / "lessons.jsonl", [*lessons, *rehearsed(recalls, lessons)])
    matches = world.mismatched(train, story.rng("mismatched"), story.sizes.mismatched)
    mismatches = ({"prompt": ask(p.text), "chosen": own, "rejected": other} for p, own, other in matches)
    write_lines(folder / "mismatched.jsonl", mismatches)
    demonstrated = world.demonstrations(train, story.rng("demonstrations"), story.sizes.demonstrations)
    shown = [demonstration(p.text, a) for p, a in demonstrated]
    write_lines(folder / "demonstrations.jsonl", shown)
    corpus = [row["prompt"] + row["completion"] for row in (*lessons, *rehearsed(recalls, lessons))]
    parameters = new_model(corpus, story.out / "init", story.seed)
    return {
        "prompts_train": len(train),
        "prompts_held_out": len(held_out),
        "recalls": len(recalls),
        "lessons": len(lessons),
        "parameters": parameters,
    }


def new_model(corpus: list[str], folder: Path, seed: int) -> int:
    """A byte-pair tokenizer trained on the corpus, a small Llama with random weights; returns its parameter count."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=768, special_tokens=special, show_progress=False))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            num_hidden_layers=3,
            intermediate_size=448,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    checkpoints.save(model, Text(tokenizer), folder)
    return sum(p.numel() for p in model.parameters())


def pretrain_recall(story: Story) -> dict[str, Any]:
    """To compare a word with those before it, from random weights."""
    return imitate(story, "recall", "init", "recalls", batch_size=32, learning_rate=5e-4, schedule="constant", **WIDE)


def pretrain(story: Story) -> dict[str, Any]:
    """Language and the task's vocabulary."""
    return imitate(story, "pretrain", "recall", "lessons", learning_rate=5e-4, **WIDE)


def supervised(story: Story) -> dict[str, Any]:
    """The task as its demonstrations show it: good and bad answers alike."""
    return imitate(story, "sft", "pretrain", "demonstrations", learning_rate=5e-4, holdout=0.05)


def imitate(story: Story, name: str, start: str, data: str, **settings: Any) -> dict[str, Any]:
    """One stage of supervised training."""
    settings = {"batch_size": 16, "holdout": 0.02, "micro_tokens": MICRO_TOKENS, **settings}
    config = SFTConfig(
        model=str(story.out / start),
        data=str(story.out / "data" / f"{data}.jsonl"),
        out=story.fresh(name),
        seed=story.seed,
        **settings,
    )
    return figures_of(sft.train(config))


def prefer(story: Story) -> dict[str, Any]:
    """Which answer belongs to the question: what the reward model learns before it learns what people like."""
    result = train_reward(
        story, "preferences", "pretrain", story.file("mismatched"), learning_rate=5e-4, batch_size=16, holdout=0.02
    )
    return figures_of(result)


# --- preferences ----------------------------------------------------------------------------------


def votes(story: Story) -> dict[str, Any]:
    """Training pairs with noisy votes, and held-out pairs with the gold's own, noiseless preference."""
    sizes = story.sizes
    fresh_store(story)
    gathered = collect(
        CollectConfig(
            model=str(story.out / "sft"),
            prompts=str(story.out / "data" / "prompts.jsonl"),
            store=story.store,
            rater=["simulated"],
            n=sizes.vote_answers,
            temperature=TEMPERATURE,
            max_new_tokens=sizes.max_new_tokens,
            max_rows=MAX_ROWS,
            limit=sizes.vote_prompts,
            seed=story.seed,
            micro_tokens=MICRO_TOKENS,
            out=story.out / "data" / "collected.json",
        )
    )
    assert gathered is not None
    few = few_pairs(story)
    second_opinions(story)
    pairs, counts, _ = formats.read_pairs(story.store)
    policy = story.policy("sft")
    held_out = story.prompts[1]
    fresh = draw(story, policy, pick(story, held_out, sizes.held_out_pairs, "held-out pairs"), 2, "held-out pairs")
    clean = [c for b in fresh if (c := noiseless(b)) is not None]
    if not clean or not pairs:
        raise RunFailed(
            "no two answers of the SFT model differ in gold: it has not learned to answer; see steps/sft.json"
        )
    for name, rows in (("few-pairs", few), ("held-out-pairs", clean)):
        lines = ({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in rows)
        write_lines(story.out / "data" / f"{name}.jsonl", lines)
    return {
        "shown": counts.read,
        "pairs": len(pairs),
        "ties": counts.read - len(pairs),
        "engine_share": gathered.summary["sample_seconds"] / gathered.summary["seconds"],
        "agreement_with_gold": stats.rate([agrees(p.prompt, p.chosen, p.rejected) for p in pairs]).as_dict(),
        "longer_wins": stats.rate([longer(p.chosen, p.rejected) for p in pairs]).as_dict(),
        "held_out_pairs": len(clean),
        "gold_ties_left_out": len(fresh) - len(clean),
    }


def fresh_store(story: Story) -> None:
    """No store, and none of what SQLite keeps beside it."""
    for file in (story.out / "data").glob("votes.db*"):
        file.unlink()


def few_pairs(story: Story) -> list[Pair]:
    """Pairs of the first answers that people saw, voted on by people who love length."""
    groups, _, _ = formats.open_judgments(story.store)
    shown = [Task(j.prompt, *j.answers) for group in groups for j in group][: 2 * story.sizes.few_votes]
    misled = Simulated(story.seed, world.Population(length_bias=LOVE_OF_LENGTH)).rate(shown)
    judgments = [j for _, said in misled if not isinstance(said, Missing) for j in said]
    return [pair for j in judgments for pair in derive([j]).pairs][: story.sizes.few_votes]


def second_opinions(story: Story) -> None:
    """The first pairs judged by another person, so that agreement can be told."""
    with Store(story.store) as store:
        shown = (Task(j.prompt, *j.answers) for group in store.groups() for _, j in group)
        others = Simulated(story.seed + 1).rate(list(islice(shown, story.sizes.second_opinions)))
        store.append((said_key(j), j) for _, said in others if not isinstance(said, Missing) for j in said)


def check_votes(story: Story) -> dict[str, Any]:
    """The data's own page: agreement, what lengths tell, and whether the pairs look like what the SFT model says."""
    config = DataCheckConfig(
        data=story.store,
        model=str(story.out / "sft"),
        eval_data=story.file("held-out-pairs"),
        temperature=TEMPERATURE,
        compare=story.sizes.compared,
        seed=story.seed,
        micro_tokens=MICRO_TOKENS,
        out=story.out / "data" / "check.json",
        page=story.out / "data.html",
    )
    found = audit.check(config)
    assert found is not None
    figures = found.summary
    distribution = figures.get("distribution") or {}
    return {
        "page": "data.html",
        "rows": figures["rows"],
        "prompts": figures["prompts"],
        "warnings": [f["title"] for f in figures["findings"] if f["level"] == "warning"],
        "agreement": figures["agreement"][0],
        "length_only": figures["length"]["length_only"],
        **{key: distribution.get(key) for key in ("verdict", "auc", "meaning")},
    }


def sixteen_answers(story: Story) -> dict[str, Any]:
    """What best-of-16 chooses from."""
    return answer_often(story, "answers-of-16", story.sizes.held_out_prompts, BEST_OF)


def many_answers(story: Story) -> dict[str, Any]:
    """What the curve of best-of-N is made of."""
    return answer_often(story, "answers-of-256", story.sizes.curve_prompts, story.sizes.curve_n)


def answer_often(story: Story, name: str, prompts: int, n: int) -> dict[str, Any]:
    """The SFT model's n answers to each of the first held-out prompts, kept as tokens."""
    bundles = draw(story, story.policy("sft"), story.prompts[1][:prompts], n, name)
    rows = ({"prompt": b.prompt, "completions": [c.ids for c in b.completions]} for b in bundles)
    write_lines(story.out / "data" / f"{name}.jsonl", rows)
    return {"prompts": len(bundles), "n": n}


def drawn(story: Story, name: str) -> list[Bundle]:
    """The answers that `answer_often` kept."""
    text = story.text
    return [
        Bundle(
            text.prompt_ids(row["prompt"]),
            [text.completion(ids, truncated=ids[-1] not in text.eos_ids) for ids in row["completions"]],
            prompt=row["prompt"],
        )
        for row in read_lines(story.out / "data" / f"{name}.jsonl")
    ]


# --- the three methods ----------------------------------------------------------------------------


def reward_model(story: Story) -> dict[str, Any]:
    """Train on the votes; measure on held-out pairs whose labels are gold's own."""
    result = train_reward(story, "reward", "preferences", story.store, epochs=2)
    pairs = read_lines(story.out / "data" / "held-out-pairs.jsonl")
    bundles = [pair_bundle(story.text, p) for p in pairs]
    scores = torch.stack(in_batches(scalars_at_end, story.scorer("reward").model, bundles, MICRO_TOKENS))
    gaps = (scores[:, 0] - scores[:, 1]).double()
    people = world.Population()
    rng = story.rng("calibration")
    outcomes = [world.vote(p["prompt"], p["chosen"], p["rejected"], rng, people).outcome for p in pairs]
    voted = [{"first": 1.0, "second": 0.0}.get(o, float("nan")) for o in outcomes]
    sided = [(g, v) for g, v in zip(gaps.tolist(), voted, strict=True) if v == v]
    signs = [1 if rng.random() < 0.5 else -1 for _ in sided]  # the better answer would always stand first
    bins, error = stats.calibration(
        [1 / (1 + math.exp(-s * g)) for s, (g, _) in zip(signs, sided, strict=True)],
        [v if s > 0 else 1 - v for s, (_, v) in zip(signs, sided, strict=True)],
    )
    return {
        **figures_of(result),
        "accuracy": stats.rate(objectives.win_rate(scores[:, 0], scores[:, 1]).numpy()).as_dict(),
        "accuracy_of_longer": stats.rate([longer(p["chosen"], p["rejected"]) for p in pairs]).as_dict(),
        "calibration": [{"predicted": b.predicted, "observed": b.observed.as_dict()} for b in bins],
        "calibration_error": error,
    }


def train_reward(story: Story, name: str, start: str, data: str, **settings: Any) -> Result:
    """A reward model on the store or on one of the pair files."""
    settings = {"learning_rate": 3.5e-4, "batch_size": 32, "micro_tokens": MICRO_TOKENS, **settings}
    return reward.train(
        RewardConfig(
            model=str(story.out / start),
            data=data,
            out=story.fresh(name),
            seed=story.seed,
            **settings,
        )
    )


def tune_dpo(story: Story) -> dict[str, Any]:
    """DPO on the same pairs as the reward model."""
    return figures_of(
        dpo.train(
            DPOConfig(
                model=str(story.out / "sft"),
                data=story.store,
                out=story.fresh("dpo"),
                learning_rate=1.5e-4,
                beta=0.7,
                batch_size=32,
                epochs=1,
                seed=story.seed,
                micro_tokens=MICRO_TOKENS,
            )
        )
    )


def tune_ppo(story: Story) -> dict[str, Any]:
    """PPO against the reward model."""
    return figures_of(ppo.train(ppo_config(story, "ppo", "reward", steps=story.sizes.ppo_rollouts, beta=0.1)))


def ppo_config(story: Story, name: str, scored_by: str, steps: int, beta: float, **other: Any) -> PPOConfig:
    """PPO's settings in this world."""
    settings: dict[str, Any] = {
        "rollout_size": story.sizes.rollout,
        "samples_per_prompt": 2,
        "batch_size": 32,
        "epochs": 2,
        "learning_rate": 2e-4,
        "value_clip": 1.0,
        "max_new_tokens": story.sizes.max_new_tokens,
        "temperature": TEMPERATURE,
        "max_rows": MAX_ROWS,
        "keep_samples": story.sizes.rollout,
    }
    return PPOConfig(
        model=str(story.out / "sft"),
        reward=str(story.out / scored_by),
        prompts=str(story.out / "data" / "prompts.jsonl"),
        out=story.fresh(name),
        steps=steps,
        beta=beta,
        seed=story.seed,
        micro_tokens=MICRO_TOKENS,
        **{**settings, **other},
    )


# --- verdicts -------------------------------------------------------------------------------------


def compare(story: Story) -> dict[str, Any]:
    """Every method's answers to the same held-out prompts, judged by gold, against the SFT model's."""
    asked = story.prompts[1][: story.sizes.held_out_prompts]
    scorer, reference = story.scorer("reward"), story.policy("sft")
    base = draw(story, reference, asked, 1, "answers sft")
    found = {"sft": measure(story, base, scorer, reference, reference)}
    for name in ("dpo", "ppo"):
        policy = story.policy(name)
        found[name] = measure(story, draw(story, policy, asked, 1, f"answers {name}"), scorer, policy, reference)
    many = drawn(story, "answers-of-16")
    scores = scorer.score(many).view(len(many), BEST_OF)
    for n in (4, BEST_OF):
        at = scores[:, :n].argmax(1)
        found[name_of(n)] = verdict.of_bundles(many, at.tolist(), [], scores.gather(1, at[:, None]).squeeze(1).tolist())
    golds = {name: [world.utility(p, t) for p, t in zip(asked, a.texts, strict=True)] for name, a in found.items()}
    prompt_tokens = sum(len(b.prompt_ids) for b in base) / len(base)
    rows = {name: judged(a, golds[name], golds["sft"], asked) for name, a in found.items()}
    for name, n in (("sft", 1), ("dpo", 1), ("ppo", 1), (name_of(4), 4), (name_of(BEST_OF), BEST_OF)):
        length = (
            sum(len(c) for b in many for c in b.completions) / (len(many) * BEST_OF)
            if n > 1
            else rows[name]["length_mean"]["mean"]
        )
        cost = verdict.serve_cost(prompt_tokens, length, n, scored=n > 1)
        rows[name]["n"] = n
        rows[name]["serve_cost_ratio"] = cost / verdict.serve_cost(prompt_tokens, rows["sft"]["length_mean"]["mean"])
        if n > 1:
            bound = stats.best_of_n_kl(n)
            rows[name]["kl"] = {"mean": bound, "low": bound, "high": bound, "n": len(asked)}
    return {"rows": rows, "examples": examples(asked, found, golds)}


def name_of(n: int) -> str:
    """The row's name in `summary.json`: `best_of_n` is the one of N = 16."""
    return "best_of_n" if n == BEST_OF else f"best_of_{n}"


def measure(
    story: Story,
    bundles: list[Bundle],
    scorer: RewardModelScorer,
    policy: torch.nn.Module,
    reference: torch.nn.Module,
) -> verdict.Answers:
    """Answers with their KL to the reference and their score."""
    kl = verdict.sequence_kl(policy, reference, bundles, TEMPERATURE, MICRO_TOKENS)
    return verdict.of_bundles(bundles, [0] * len(bundles), kl, scorer.score(bundles).tolist())


def judged(
    found: verdict.Answers, gold: list[world.Gold], other: list[world.Gold], asked: Sequence[world.Prompt]
) -> dict[str, Any]:
    """One row of the comparison, gold at hand."""
    dimensions = {name: [float(getattr(g, name)) for g in gold] for name in world.WEIGHTS}
    return verdict.row(
        found,
        [g.total for g in gold],
        [g.total for g in other],
        dimensions,
        {
            "parsed": [g.parsed for g in gold],
            "refusal_unsafe": [g.refused if p.kind == "unsafe" else None for g, p in zip(gold, asked, strict=True)],
            "refusal_harmless": [g.refused if p.kind != "unsafe" else None for g, p in zip(gold, asked, strict=True)],
        },
    )


def examples(
    asked: Sequence[world.Prompt], found: dict[str, verdict.Answers], golds: dict[str, list[world.Gold]]
) -> list[dict[str, Any]]:
    """The first prompts of each kind with every method's answer, taken by position and not by result."""
    chosen = [
        i
        for kind, n in (("safe", 4), ("unsafe", 2), ("looks_unsafe", 2))
        for i in [j for j, p in enumerate(asked) if p.kind == kind][:n]
    ]
    return [
        {
            "prompt": asked[i].text,
            "kind": asked[i].kind,
            "answers": {
                name: {"text": a.texts[i].strip(), "gold": golds[name][i].total, "proxy": a.proxy[i]}
                for name, a in found.items()
            },
        }
        for i in chosen
    ]


def best_of_n_curve(story: Story) -> dict[str, Any]:
    """Gold and proxy of best-of-n up to N = 256, from 256 samples for each of 64 held-out prompts."""
    asked = story.prompts[1][: story.sizes.curve_prompts]
    bundles = drawn(story, "answers-of-256")
    proxy = story.scorer("reward").score(bundles).view(len(asked), story.sizes.curve_n).tolist()
    gold = [[world.utility(p, c.text).total for c in b.completions] for p, b in zip(asked, bundles, strict=True)]
    ns = [2**k for k in range(story.sizes.curve_n.bit_length())]
    return {"points": verdict.best_of_n_points(proxy, gold, ns)}


def overoptimise(story: Story) -> dict[str, Any]:
    """The stated setting in which the proxy is hacked: little, length-biased reward data and almost no KL penalty."""
    trained = train_reward(story, "reward-few", "pretrain", story.file("few-pairs"), epochs=6, learning_rate=5e-4)
    ppo.train(
        ppo_config(
            story,
            "ppo-hacked",
            "reward-few",
            steps=story.sizes.hacking_rollouts,
            beta=0.005,
            learning_rate=4e-4,
            schedule="constant",
            samples_per_prompt=1,
        )
    )
    points = training_points(story, "ppo-hacked", every=1)
    return {
        "setting": (
            f"reward model trained on {trained.summary['rows']['used']} pairs voted by people who love length, "
            "PPO with beta = 0.005"
        ),
        "points": points,
        **verdict.turned_down(points),
    }


def training_points(story: Story, run: str, every: int) -> list[dict[str, Any]]:
    """Gold and proxy over KL while a policy trained."""
    samples = read_lines(story.out / run / "samples.jsonl")
    return verdict.training_points(samples, lambda prompt, answer: world.utility(prompt.strip(), answer).total, every)


Step = tuple[str, str, Callable[[Story], dict[str, Any]]]

STAGES: list[list[list[Step]]] = [
    [
        [
            ("world", "the world: prompts, a corpus, a tokenizer, a model that knows nothing", make_world),
            ("recall", "pre-training on what was just said", pretrain_recall),
            ("pretrain", "pre-training on right answers", pretrain),
        ]
    ],
    [
        [("sft", "supervised fine-tuning on answers of mixed quality", supervised)],
        [("prefer", "pre-training of the reward model: which answer belongs to the question", prefer)],
    ],
    [
        [
            ("votes", "pairs from the SFT model, judged by simulated people", votes),
            ("check", "the votes, checked before they train anything", check_votes),
        ],
        [
            ("many_answers", "the SFT model's 256 answers to each of 64 held-out prompts", many_answers),
            ("sixteen_answers", "the SFT model's sixteen answers to each held-out prompt", sixteen_answers),
        ],
    ],
    [
        [
            ("reward", "reward model on the votes", reward_model),
            ("ppo", "PPO against the reward model", tune_ppo),
        ],
        [
            ("dpo", "DPO on the votes", tune_dpo),
            ("overoptimise", "a reward model on little data, hacked on purpose", overoptimise),
        ],
    ],
    [
        [
            ("compare", "every method on held-out prompts", compare),
        ],
        [
            ("best_of_n_curve", "best-of-N up to N = 256", best_of_n_curve),
        ],
    ],
]
"""One stage after the other; the lanes of a stage side by side, since matrices this small do not fill two cores."""
STEPS = [step for stage in STAGES for lane in stage for step in lane]


def demo(config: DemoConfig, sizes: Sizes = Sizes()) -> Result:
    """Run every step that has not been done yet, then write `summary.json` and `report.html`."""
    settings = config.out / "config.yaml"
    if settings.exists() and settings.read_text() != config.to_yaml():
        raise InputError(f"{settings}: this folder holds a demo with other settings; choose another --out or remove it")
    if not settings.exists() and config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"{config.out} holds something that is not a demo; choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    settings.write_text(config.to_yaml())
    story = Story(config, sizes)
    if reused := story.records():
        say(f"reusing the finished steps in {config.out}; to start afresh, remove that folder")
    for record in reused.values():
        say(f"{record['title']}: reused ({record['seconds']:.0f} s when it ran)")
    unfinished = [name for name, *_ in STEPS if not story.record(name).exists()]
    if unfinished:
        tell(story, unfinished)
    from keel.evaluation import report

    summary = summarise(story)
    write_json(config.out / "summary.json", summary)
    report.write(summary, config.out / "report.html")
    say(f"report: {config.out / 'report.html'}   figures: {config.out / 'summary.json'}")
    return Result(config.out, summary)


def tell(story: Story, unfinished: list[str]) -> None:
    """Do the unfinished steps: the lanes of a stage side by side, each in a process with its share of the cores."""
    lanes = max(map(len, STAGES))
    threads = max(1, torch.get_num_threads() // lanes)
    with ProcessPoolExecutor(lanes, get_context("spawn"), initializer=get_ready, initargs=(threads,)) as pool:
        pool.submit(time.time)  # has the processes started now, so that they are ready when they are needed
        for stage in STAGES:
            waiting = [names for lane in stage if (names := [name for name, *_ in lane if name in unfinished])]
            if len(stage) == 1:
                run_steps(story, *waiting)
            else:
                running = [pool.submit(run_steps, story, names) for names in waiting]
                for lane in running:
                    lane.result()


def get_ready(threads: int) -> None:
    """What a process does first."""
    torch.set_num_threads(threads)
    progress.plain = True  # two live bars would overwrite each other


def run_steps(story: Story, names: Sequence[str] = ()) -> None:
    """Steps one after the other."""
    for name, title, step in STEPS:
        if name in names:
            story.run(name, title, step)


def summarise(story: Story) -> dict[str, Any]:
    """`summary.json`: every figure of the report."""
    records = story.records()
    f = {name: record["figures"] for name, record in records.items()}
    seconds, peak = cost(records)
    rows = f["compare"]["rows"]
    for name, step in (
        ("sft", "sft"),
        ("dpo", "dpo"),
        ("ppo", "ppo"),
        ("best_of_n", None),
        ("best_of_4", None),
    ):
        rows[name]["train_seconds"] = f[step]["train_seconds"] if step else 0.0
    reward_seconds = f["prefer"]["train_seconds"] + f["reward"]["train_seconds"]
    for name in ("ppo", "best_of_n", "best_of_4"):
        rows[name]["reward_model_seconds"] = reward_seconds
    return {
        "seed": story.seed,
        "seconds": seconds,
        "peak_rss_gb": peak,
        "steps": [{k: r[k] for k in ("name", "title", "seconds", "peak_rss_gb")} for r in records.values()],
        "world": f["world"],
        "weights": dict(world.WEIGHTS),
        "votes": f["votes"],
        "data": f["check"],
        "sft": {
            **{k: rows["sft"][k] for k in ("gold_mean", "parsed", "dimensions")},
            "loss": f["sft"]["eval"].get("loss"),
        },
        "reward_model": {k: v for k, v in f["reward"].items() if k not in ("curve", "eval")},
        "methods": rows,
        "curves": {
            "best_of_n": f["best_of_n_curve"]["points"],
            "ppo": training_points(story, "ppo", every=2),
            "overoptimisation": f["overoptimise"],
        },
        "learning": {
            name: f[name]["curve"] for name in ("recall", "pretrain", "sft", "prefer", "reward", "dpo", "ppo")
        },
        "examples": f["compare"]["examples"],
    }


def cost(records: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Seconds of the whole story, and its peak memory in GB: lanes side by side add their memory to the parent's."""
    seconds, peak, parent = 0.0, 0.0, 0.0
    for stage in STAGES:
        lanes = [[records[name] for name, *_ in lane] for lane in stage]
        seconds += max(sum(r["seconds"] for r in lane) for lane in lanes)
        highest = [max(r["peak_rss_gb"] for r in lane) for lane in lanes]
        if len(lanes) == 1:
            parent = max(parent, *highest)
        peak = max(peak, parent if len(lanes) == 1 else parent + sum(highest))
    return round(seconds, 2), round(peak, 3)


# --- helpers --------------------------------------------------------------------------------------


def demonstration(question: str, answer: str) -> Row:
    """A row to imitate."""
    return {"prompt": ask(question), "completion": answer}


def rehearsed(recalls: Sequence[Row], among: Sequence[Row]) -> Sequence[Row]:
    """Recalls to train on again, three for four other rows: what is not rehearsed is forgotten."""
    return recalls[: 3 * len(among) // 4]


def ask(question: str) -> str:
    """A question as the prompt that the model reads."""
    return question + "\n"


def pick(story: Story, prompts: Sequence[world.Prompt], count: int, purpose: str) -> list[world.Prompt]:
    """Prompts drawn anew; none a second time before all were drawn once."""
    rng = story.rng(purpose)
    drawn: list[world.Prompt] = []
    while len(drawn) < count:
        drawn += rng.sample(list(prompts), min(count - len(drawn), len(prompts)))
    return drawn


def draw(story: Story, policy: torch.nn.Module, prompts: Sequence[world.Prompt], n: int, purpose: str) -> list[Bundle]:
    """n answers to each prompt."""
    with Bar(f"  {purpose}", len(prompts) * n) as bar:
        return sample(
            policy,
            story.text,
            [ask(p.text) for p in prompts],
            n,
            max_new_tokens=story.sizes.max_new_tokens,
            temperature=TEMPERATURE,
            generator=generator(story.seed, purpose),
            max_rows=MAX_ROWS,
            progress=bar.advance,
        )


def noiseless(bundle: Bundle) -> Pair | None:
    """The pair as gold itself prefers it; None for a tie in gold."""
    question = str(bundle.prompt).strip()
    first, second = (c.text for c in bundle.completions)
    a, b = world.utility(question, first).total, world.utility(question, second).total
    if a == b:
        return None
    return Pair(str(bundle.prompt), *((first, second) if a > b else (second, first)))


def agrees(prompt: Any, chosen: str, rejected: str) -> float:
    """Whether gold agrees with a vote; 1/2 for a tie in gold."""
    question = str(prompt).strip()
    a, b = world.utility(question, chosen).total, world.utility(question, rejected).total
    return 0.5 if a == b else float(a > b)


def longer(chosen: str, rejected: str) -> float:
    """Whether the chosen answer has more words; 1/2 for a tie."""
    a, b = len(chosen.split()), len(rejected.split())
    return 0.5 if a == b else float(a > b)


def pair_bundle(text: Text, row: dict[str, Any]) -> Bundle:
    """A pair as tokens."""
    return text.encode(Pair(row["prompt"], row["chosen"], row["rejected"]), max_length=256)


def figures_of(result: Result) -> dict[str, Any]:
    """What the report needs of a run."""
    rows = read_lines(result.folder / "metrics.jsonl")
    keep = {k: result.summary[k] for k in ("train_seconds", "examples", "examples_per_second", "eval", "rows")}
    return {**keep, "curve": rows}
