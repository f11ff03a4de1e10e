"""A variant's model and tokenizer: small, random, and yet with numbers that tell words and places apart."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .families import FAMILIES, STARTS, WHOLE, Variant
from .rule import SPECIALS, by_rule

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def config_of(variant: Variant) -> Any:
    """The variant's config."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(variant.kind, **STARTS.get(variant.kind, {}))
    given = merged(by_rule(default), FAMILIES.get(variant.kind, {}), variant.changes)
    return AutoConfig.for_model(variant.kind, **given)


def merged(*all_settings: dict[str, Any]) -> dict[str, Any]:
    """Later settings over earlier ones, part by part."""
    result: dict[str, Any] = {}
    for settings in all_settings:
        for key, value in settings.items():
            inner = result.get(key)
            result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def tokenizer() -> Any:
    """Bytes as GPT-2 spells them, no merges, nothing added, and a template; its end is that of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = CHATML
    return made


def model_of(variant: Variant) -> Any:
    """The variant's model, with random weights that tell words and places apart."""
    import transformers

    torch.manual_seed(0)
    config = config_of(variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if variant.kind in WHOLE:
            model = getattr(transformers, WHOLE[variant.kind])(config)
        else:
            model = transformers.AutoModelForCausalLM.from_config(config)
    model = model.float().eval()
    for parameter in model.parameters():
        enliven(parameter.data)
    words = model.get_input_embeddings().weight.data
    words += SHAKE * torch.randn_like(words) * (words == 0)  # the padding's, which any model may draw
    return model


SPREAD, SHAKE = 0.2, 0.1


def enliven(weights: torch.Tensor) -> None:
    """Spread matrices to a deviation of at least `SPREAD`; shake vectors, and matrices that are all one number.

    Families begin with matrices of 0.02, which make every word alike, and with norms of 1, biases of 0, closed gates.
    """
    if not weights.is_floating_point():
        return
    deviation = float(weights.std()) if weights.dim() > 1 else 0.0
    if not deviation > 0:
        weights += SHAKE * torch.randn_like(weights)
    elif deviation < SPREAD:
        weights *= SPREAD / deviation
