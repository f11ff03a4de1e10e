"""What transformers says of each sequence alone; nothing of Keel is known here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .rule import PAD

NEW = 12
"""Tokens of an answer, at most."""
Sequences = list[tuple[list[int], list[int]]]
"""Prompt and completion of each."""


class Oracle:
    """A model of the folder as transformers loads it, asked for one sequence at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.moving = "dynamic" in str(self._model.config) or "longrope" in str(self._model.config)

    def weights(self) -> set[str]:
        """Names of all parameters."""
        return {name for name, _ in self._model.named_parameters()}

    def fresh(self) -> Any:
        """The model; a copy of it if its rotary positions depend on what it has read before."""
        return copy.deepcopy(self._model) if self.moving else self._model

    def logits(self, ids: list[int]) -> Tensor:
        """[tokens, V] in fp32."""
        return self.fresh()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    @torch.no_grad()
    def logps(self, sequences: Sequences) -> Tensor:
        """Log-probability of every completion token, flat."""
        return torch.cat([_of_completion(self.logits(p + c), p, c) for p, c in sequences])

    @torch.no_grad()
    def logps_when_drawn(self, sequences: Sequences) -> Tensor:
        """The same, each token's by a pass over the text up to it, as a sampler sees it.

        It differs where positions are read otherwise once a text is longer than a limit.
        """
        found = [
            self.logits(prompt + ids[:at])[-1].log_softmax(-1)[word]
            for prompt, ids in sequences
            for at, word in enumerate(ids)
        ]
        return torch.stack(found)

    def gradients(self, sequences: Sequences) -> dict[str, Tensor]:
        """Of the summed log-probabilities, by parameter; zero where none arrives."""
        total: dict[str, Tensor] = {}
        for prompt, completion in sequences:
            model = self.fresh()
            model.zero_grad()
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].float()
            _of_completion(logits, prompt, completion).sum().backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad.clone()
        return total

    @torch.no_grad()
    def greedy(self, prompt: list[int], ends: set[int]) -> tuple[list[int], list[float]]:
        """The likeliest word again and again, each after a pass over the whole text; by how much each was ahead."""
        ids: list[int] = []
        ahead: list[float] = []
        while len(ids) < NEW and not ends.intersection(ids[-1:]):
            best = self.logits(prompt + ids)[-1].topk(2)
            ids.append(int(best.indices[0]))
            ahead.append(float(best.values[0] - best.values[1]))
        return ids, ahead

    @torch.no_grad()
    def generated(self, prompt: list[int], ends: set[int]) -> list[int]:
        """What transformers' own `generate` writes."""
        out = self.fresh().generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=sorted(ends), pad_token_id=PAD
        )
        return out[0, len(prompt) :].tolist()

    @torch.no_grad()
    def last_hidden(self, ids: list[int]) -> Tensor:
        """The backbone's state after the last token, [D]."""
        model = self.fresh()
        base = model.base_model if model.base_model is not model else model.model
        return base(input_ids=torch.tensor([ids]), use_cache=False)[0][0, -1].float()


def _of_completion(logits: Tensor, prompt: list[int], completion: list[int]) -> Tensor:
    before = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1)
    return before[range(len(completion)), completion]
