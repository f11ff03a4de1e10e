"""The tree: a language small enough to enumerate, and models whose weights are tables over it.

Tokens 0, 1, 2 and EOS (id 3), at most five of them: 364 sequences, 121 prefixes that can go on, and an optimum that is
known exactly. A prompt is the single token "ask" (id 4); a padding token (id 5) is there because folders want one.

Prefixes are numbered breadth-first, as in a heap: the child of prefix n by token a is 3n + 1 + a, so 0 … 120 can go on,
121 … 363 are the 243 cut at five tokens, and 364 + n is prefix n followed by EOS. The models are real Hugging Face
models on a backbone that turns ids into the one-hot of the prefix; their heads *are* the tables.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from keel.config import PPOConfig
from keel.methods import ppo
from keel.models import checkpoints
from keel.records import Bundle, Completion, Result
from keel.text.tokenisation import Text

EOS, ASK, PAD = 3, 4, 5
DEPTH = 5
INNER = 121
"""Prefixes of fewer than five tokens: where the policy chooses and the critic values."""
NODES = INNER + 3**DEPTH + INNER
"""All prefixes: those that go on, those cut at five tokens, those that ended."""
BETA = 0.5
KL_STAR = 1.0618
"""KL(optimum || reference) of the tree that `build` makes, to the digits it is known by."""


# --- the law --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Reference, score and everything that follows from them, in float64."""

    sequences: list[tuple[int, ...]]
    """All 364, by prefix breadth-first and then by token."""
    paths: Tensor
    """Which (prefix, token) choices a sequence makes, 0/1 [364, 121 * 4]: log-probabilities are `paths @ table`."""
    reference_logits: Tensor
    """[121, 4]"""
    scores: Tensor
    """[364]"""

    @functools.cached_property
    def index(self) -> dict[tuple[int, ...], int]:
        return {sequence: i for i, sequence in enumerate(self.sequences)}

    @functools.cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, its EOS included."""
        return torch.tensor([len(s) for s in self.sequences])

    @functools.cached_property
    def ended(self) -> Tensor:
        return torch.tensor([s[-1] == EOS for s in self.sequences])

    @functools.cached_property
    def reference(self) -> Tensor:
        """Log-law of the reference over the sequences."""
        return self.law(self.reference_logits)

    @functools.cached_property
    def optimum(self) -> Tensor:
        """Log-law that maximises E score - beta KL: ref exp(score / beta) / Z."""
        return self.tilt(self.scores)

    def law(self, logits: Tensor) -> Tensor:
        """Log-probability of each sequence under a table of logits [121, 4]."""
        return self.paths @ torch.log_softmax(logits.double(), -1).flatten()

    def tilt(self, scores: Tensor, beta: float = BETA) -> Tensor:
        """Log-law ref exp(score / beta) / Z."""
        return torch.log_softmax(self.reference + scores / beta, 0)

    def log_partition(self, scores: Tensor, beta: float = BETA) -> float:
        """log Z = log E_ref exp(score / beta)."""
        return float(torch.logsumexp(self.reference + scores / beta, 0))


def kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of two log-laws."""
    return float((p.exp() * (p - q)).sum())


def build() -> Tree:
    """One torch generator, seed 0, float64: first the reference's logits, all at once, EOS (the last column) -0.7;
    then 364 noises in the order of `sequences`, of which those of sequences without EOS (they score -1) go unused.
    """
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(INNER, 4, generator=draw, dtype=torch.float64)
    logits[:, EOS] -= 0.7
    prefixes = [p for depth in range(DEPTH) for p in itertools.product(range(3), repeat=depth)]
    sequences = [(*p, a) for p in prefixes for a in range(4) if a == EOS or len(p) == DEPTH - 1]
    noise = torch.randn(len(sequences), generator=draw, dtype=torch.float64)
    scores = torch.tensor(
        [
            0.9 * s.count(0) - 0.2 * len(s) + 0.4 * float(e) if s[-1] == EOS else -1.0
            for s, e in zip(sequences, noise, strict=True)
        ],
        dtype=torch.float64,
    )
    paths = torch.zeros(len(sequences), INNER * 4, dtype=torch.float64)
    number = {prefix: n for n, prefix in enumerate(prefixes)}
    for i, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            paths[i, 4 * number[sequence[:t]] + token] = 1
    return Tree(sequences, paths, logits, scores)


# --- models ---------------------------------------------------------------------------------------


class TreeConfig(PreTrainedConfig):
    """Both heads stand on one-hots of width `hidden_size`: the prefixes 0 … 120, or all of them for a reward.

    Six ids can be read, and the first four of them written.
    """

    model_type = "keel_tree"

    def __init__(self, vocab_size: int = 6, hidden_size: int = INNER, use_cache: bool = True, **kwargs: Any) -> None:
        self.vocab_size, self.hidden_size, self.use_cache = vocab_size, hidden_size, use_cache
        self.num_hidden_layers = 1
        super().__init__(**kwargs)


class TreeBase(PreTrainedModel):
    config_class = TreeConfig
    base_model_prefix = "model"
    _supports_sdpa = True  # there is no attention to refuse

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)


class TreeBackbone(TreeBase):
    """Ids to one-hot prefixes. The number of a prefix is remembered in the cache as if it were keys and values."""

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, 1)  # says how many ids there are; nothing reads its weights
        self.embed_tokens.weight.requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **_: Any) -> BaseModelOutputWithPast:
        node = torch.zeros(len(input_ids), dtype=torch.long)
        if past_key_values is not None and past_key_values.get_seq_length():
            node = past_key_values.layers[0].keys[:, 0, past_key_values.get_seq_length() - 1, 0].long()
        nodes = []
        for token in input_ids.T:
            node = _child(node, token)
            nodes.append(node)
        path = torch.stack(nodes, 1)
        if past_key_values is not None:
            past_key_values.update(path[:, None, :, None].float(), path[:, None, :, None].float(), 0)
        hidden = _one_hots(self.config.hidden_size)[path]
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


@functools.cache
def _one_hots(width: int) -> Tensor:
    """Row n is prefix n; prefixes beyond the width are all zeros."""
    return torch.eye(NODES + 1, width)


def _child(node: Tensor, token: Tensor) -> Tensor:
    """The next prefix; after the end of a sequence only padding can follow, and its prefix is none of the table's."""
    inside = torch.where(token == EOS, INNER + 3**DEPTH + node, 3 * node + 1 + token)
    return torch.where(token == ASK, 0, torch.where(node < INNER, inside, NODES))


class TreeForCausalLM(TreeBase):
    """`lm_head.weight` [4, 121] is the table of logits, one column per prefix."""

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(config)
        self.model = TreeBackbone(config)
        self.lm_head = nn.Linear(config.hidden_size, EOS + 1, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids, **kwargs).last_hidden_state))


class TreeForSequenceClassification(TreeBase):
    """`score.weight` [1, 121] is the table of values; a reward's [1, 485] also has the sequences' scores."""

    def __init__(self, config: TreeConfig) -> None:
        super().__init__(config)
        self.model = TreeBackbone(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SequenceClassifierOutputWithPast:
        scores = self.score(self.model(input_ids, **kwargs).last_hidden_state)
        last = (torch.arange(input_ids.shape[1]) * (input_ids != PAD)).argmax(1)
        return SequenceClassifierOutputWithPast(logits=scores[torch.arange(len(last)), last])


AutoConfig.register("keel_tree", TreeConfig, exist_ok=True)
AutoModelForCausalLM.register(TreeConfig, TreeForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(TreeConfig, TreeForSequenceClassification, exist_ok=True)


def text() -> Text:
    """A tokenizer of six words."""
    words = {"0": 0, "1": 1, "2": 2, "<eos>": EOS, "ask": ASK, "<pad>": PAD}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Text(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"))


def policy_of(tree: Tree) -> TreeForCausalLM:
    """The reference as a model."""
    model = TreeForCausalLM(TreeConfig()).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(tree.reference_logits.T)
    return model


def reward_of(tree: Tree) -> TreeForSequenceClassification:
    """The score as a reward model, read at each sequence's last token; 0 at every other prefix."""
    model = TreeForSequenceClassification(TreeConfig(hidden_size=NODES, num_labels=1)).eval()
    with torch.no_grad():
        for sequence, score in zip(tree.sequences, tree.scores, strict=True):
            node = torch.tensor(0)
            for token in sequence:
                node = _child(node, torch.tensor(token))
            model.score.weight[0, node] = score
    return model


def bundle_of(tree: Tree) -> Bundle:
    """Every sequence as one bundle, in order."""
    return Bundle([ASK], [Completion(list(s), truncated=s[-1] != EOS) for s in tree.sequences], prompt="ask")


# --- PPO as a user runs it ------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """What `keel ppo` is given."""

    policy: Path
    reward: Path
    prompts: Path


def write(tree: Tree, folder: Path) -> Folders:
    """Save the models and a file of eight equal prompts."""
    checkpoints.save(policy_of(tree), text(), folder / "policy")
    checkpoints.save(reward_of(tree), text(), folder / "reward")
    prompts = folder / "prompts.jsonl"
    prompts.write_text((json.dumps({"prompt": "ask"}) + "\n") * 8)
    return Folders(folder / "policy", folder / "reward", prompts)


def ppo_config(tree: Tree, folders: Folders, out: Path, batch: int = 2048, **changes: Any) -> PPOConfig:
    """One update per rollout of `batch` completions; Adam 0.05 and 0.2, both falling linearly to 0.

    PPO centres scores on finished answers of the reference and *then* gives a truncated one its fixed score. So that
    the problem stays the tree's, that fixed score is moved by the same constant: -1 less the expected centre.
    """
    finished = tree.reference.exp()[tree.ended]
    centre = float((finished * tree.scores[tree.ended]).sum() / finished.sum())
    settings = {
        "model": str(folders.policy),
        "reward": str(folders.reward),
        "prompts": str(folders.prompts),
        "out": out,
        "steps": 250,
        "rollout_size": 8,
        "samples_per_prompt": batch // 8,
        "batch_size": 8,
        "epochs": 1,
        "max_new_tokens": DEPTH,
        "max_rows": batch,
        "micro_tokens": 1 << 16,
        "beta": BETA,
        "learning_rate": 0.05,
        "value_learning_rate": 0.2,
        "warmup": 0.0,
        "missing_eos_score": -1.0 - centre,
        "keep_samples": 0,
    }
    return PPOConfig(**(settings | changes))


@dataclass(frozen=True)
class Outcome:
    """Where a PPO run ended, exactly."""

    result: Result
    scores: Tensor
    """What the run maximised, per sequence [364]: centred scores, truncated ones at their fixed score."""
    policy: Tensor
    """Its final log-law."""
    optimum: Tensor
    to_optimum: float
    """KL(policy || optimum)"""
    to_reference: float
    """KL(policy || reference)"""
    kl_star: float
    """KL(optimum || reference)"""


def run_ppo(tree: Tree, config: PPOConfig) -> Outcome:
    """`keel.methods.ppo.train`, and the law of the checkpoint that it leaves."""
    result = ppo.train(config)
    state = torch.load(max((config.out / "checkpoints").iterdir()) / "state.pt", weights_only=True)
    penalised = torch.full_like(tree.scores, config.missing_eos_score)
    scores = torch.where(tree.ended, tree.scores - state["extra"]["centre"], penalised)
    head = TreeForCausalLM.from_pretrained(result.final).lm_head.weight.detach()
    policy, optimum = tree.law(head.T), tree.tilt(scores)
    return Outcome(
        result, scores, policy, optimum, kl(policy, optimum), kl(policy, tree.reference), kl(optimum, tree.reference)
    )


def metrics(result: Result) -> list[dict[str, float]]:
    """`metrics.jsonl`, step by step."""
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
