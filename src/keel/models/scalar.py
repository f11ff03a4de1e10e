"""A scalar head on every causal backbone: transformers' sequence classifier if it has a fitting one, else our own.

A scalar model is a causal language model's backbone and a linear layer that turns the last token's hidden state into
one number. transformers has such a class for half of its causal families. Some of its other classifiers compute
something else: BERT's pools the first token, BART's runs an encoder. For all these we take the causal model's own class
and replace its language-model head. The files look the same either way: the backbone's keys as in the language model's
checkpoint, `score.weight`, and a config that names a `…ForSequenceClassification`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from keel.errors import InputError, on_one_line
from keel.models.attempt import attempt
from keel.models.heads import device_of_model, scalar_head, scalars, trunk
from keel.models.limits import vocabulary_of

ENDING = "ForSequenceClassification"
"""Ending of every sequence classifier's class name."""

LANGUAGE_MODEL = re.compile(r"(ForCausalLM|ForConditionalGeneration|(Model)?(With)?LMHead(Model)?)$")
"""Endings of causal language models' class names."""


# --- our own class --------------------------------------------------------------------------------


class ScalarHead(nn.Module):
    """Mix-in for a causal language model's class that replaces the language-model head by `score`.

    The backbone is the causal model's own, so its weights load, convert and save as they do there.
    """

    config: Any
    backbone_name: str
    """Name of the attribute that holds the backbone."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        heads = [name for name, _ in self.named_children() if name != self.backbone_name]
        width = _width([getattr(self, name) for name in heads], config)
        for name in heads:
            delattr(self, name)
        self._forget(heads)
        self.num_labels = config.num_labels
        self.score = nn.Linear(width, config.num_labels, bias=False)

    def _forget(self, heads: list[str]) -> None:
        """Make the library neither tie nor expect the weights of heads that are gone."""
        gone = tuple(f"{name}." for name in heads)
        for ties in ("_tied_weights_keys", "all_tied_weights_keys"):
            pairs = dict(getattr(self, ties, None) or {})
            setattr(self, ties, {target: source for target, source in pairs.items() if not target.startswith(gone)})
        ignored = set(getattr(self, "_keys_to_ignore_on_load_unexpected", None) or [])
        self._keys_to_ignore_on_load_unexpected = ignored | {rf"^{re.escape(start)}" for start in gone}

    def _init_weights(self, module: nn.Module) -> None:
        """Draw new weights as the family does, except the model's own: ModernBERT's decoder would look for its head."""
        if module is not self:
            super()._init_weights(module)  # type: ignore[misc]

    @property
    def base_model(self) -> nn.Module:
        """Return the backbone. The family's own property may miss it: Llama 4's is the model itself."""
        backbone: nn.Module = getattr(self, self.backbone_name)
        return backbone

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: there is no language-model head."""
        return False

    def get_output_embeddings(self) -> None:
        """Return None: there is no language-model head."""
        return

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """Return the score of each row's last token that is not padding: ids [B, T] -> `.logits` [B, 1]."""
        from transformers.modeling_outputs import SequenceClassifierOutputWithPast

        hidden = self.base_model(input_ids=input_ids, **inputs).last_hidden_state
        pad = getattr(self.config.get_text_config(), "pad_token_id", None)
        seen = torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()
        last = (torch.arange(input_ids.shape[1], device=seen.device) * seen).argmax(-1)
        rows = torch.arange(len(hidden), device=hidden.device)
        state = hidden[rows, last].to(self.score.weight.dtype)  # Mamba's backbones return fp32, whatever their weights
        return SequenceClassifierOutputWithPast(logits=self.score(state))


def _width(heads: list[nn.Module], config: Any) -> int:
    """Return the width of the hidden states: the input width of the language-model head's first linear layer.

    It differs from a config's `hidden_size` if the backbone projects (OPT) or joins two streams (Reformer).
    """
    linear = [module for head in heads for module in head.modules() if isinstance(module, nn.Linear)]
    return linear[0].in_features if linear else int(config.get_text_config().hidden_size)


def is_own(model: nn.Module) -> bool:
    """Say whether a scalar model is of a class that only Keel can load."""
    return isinstance(model, ScalarHead)


def notice(model: nn.Module) -> str:
    """Return a notice for users on what can load the folder of a model of our own class."""
    config: Any = model.config
    others = "cannot" if _library_class(config) is None else "would make another model of it"
    return (
        f"transformers has no sequence classifier on the causal backbone of {config.model_type}: the scalar model is "
        f"Keel's own {type(model).__name__}; `keel` loads it, AutoModelForSequenceClassification {others}"
    )


# --- which class ----------------------------------------------------------------------------------


class AutoScalarModel:
    """Loader of any scalar model on a causal backbone; `AutoModelForSequenceClassification` loads transformers' own."""

    @staticmethod
    def from_pretrained(folder: str, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        """Load a scalar model, or a language model under a new head; `kwargs` are the library's."""
        return _class_of(folder, trust_remote_code).from_pretrained(
            folder, trust_remote_code=trust_remote_code, **kwargs
        )


class OwnScalarModel:
    """Loader for models that transformers' own class has turned out not to fit."""

    @staticmethod
    def from_pretrained(folder: str, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        """Load a language model under a new head of our own class."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return own_class(config, trust_remote_code).from_pretrained(
            folder, trust_remote_code=trust_remote_code, **kwargs
        )


def sharing(model: Any, trust_remote_code: bool = False) -> Any:
    """Make a scalar model whose backbone is a causal language model's own, under a new head of zeros."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    fitting = _library_class(config) is not None and fits(config)
    from transformers import AutoModelForSequenceClassification

    if fitting:
        made = _skeleton(AutoModelForSequenceClassification, config, trust_remote_code)
    else:
        with torch.device("meta"):
            made = own_class(config, trust_remote_code)(config)
    backbone, theirs = _backbone_name(made), _backbone_name(model)
    setattr(made, backbone, getattr(model, theirs))
    head, weight = scalar_head(made), next(model.parameters())
    name = next(n for n, module in made.named_children() if module is head)
    new = nn.Linear(head.in_features, 1, bias=head.bias is not None, device=weight.device, dtype=weight.dtype)
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    setattr(made, name, new)
    return made.eval()


def _class_of(folder: str, trust_remote_code: bool) -> Any:
    """Return the class that loads a folder: transformers' auto class, or one of our own."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    named = str((config.architectures or [""])[0])
    known = _library_class(config)
    if (known is not None and named == known.__name__) or not is_causal(config, trust_remote_code):
        return AutoModelForSequenceClassification
    own = own_class(config, trust_remote_code)
    if known is not None and named != own.__name__ and (named.endswith(ENDING) or fits(config)):
        return AutoModelForSequenceClassification
    return own


def own_class(config: Any, trust_remote_code: bool = False) -> Any:
    """Return our own scalar class for the causal family of a config.

    It has the name that transformers would give it, unless transformers has another class of that name.
    """
    from transformers import AutoModelForCausalLM

    model = _skeleton(AutoModelForCausalLM, config, trust_remote_code)
    require_causal(model.config, config, trust_remote_code)
    causal: Any = type(model)
    config_class: Any = type(model.config)
    kind = "" if _library_class(config) is None else "Causal"
    name = LANGUAGE_MODEL.sub("", causal.__name__) + kind + ENDING
    return _own_class(causal, config_class, name, _backbone_name(model))


@cache
def _own_class(causal: Any, config_class: Any, name: str, backbone_name: str) -> Any:
    """Make the class, as one of the causal class's module: the library converts only its own classes' weights.

    Several families share a causal class and differ only in their configs. Code that came with a folder is saved with
    the model, under another auto class than the language model's.
    """
    own = {"config_class": config_class, "backbone_name": backbone_name, "__module__": causal.__module__}
    if causal._auto_class is not None:
        own["_auto_class"] = "AutoModelForSequenceClassification"
    return type(name, (ScalarHead, causal), own)


def fits(config: Any) -> bool:
    """Say whether transformers' classifier for a config is one linear layer on the causal language model's backbone."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classifier = _skeleton(AutoModelForSequenceClassification, config)
    parts = {name for name, part in classifier.named_children() if any(True for _ in part.parameters())}
    try:
        head, backbone = scalar_head(classifier), _backbone_name(classifier)
    except InputError:
        return False
    if len(parts) != 2 or getattr(classifier, (parts - {backbone}).pop()) is not head:
        return False
    ours, theirs = (_innermost(m) for m in (_skeleton(AutoModelForCausalLM, config), classifier))
    return type(ours) is type(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


@torch.no_grad()
def fault(model: nn.Module) -> str | None:
    """Return what is wrong with a scalar model, tried on a few tokens; None if nothing is.

    Its score must be its linear head on the backbone's last hidden state. For the trial the head gets random weights,
    because those of a new model are zero.
    """
    config: Any = model.config
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    ids = [i % vocabulary_of(model) for i in range(1, 8) if i % vocabulary_of(model) != pad][:6]
    text = torch.tensor([ids], device=device_of_model(model))

    def said() -> tuple[Tensor, Tensor]:
        with _drawn(scalar_head(model).weight):
            state = trunk(model)(input_ids=text).last_hidden_state[:, -1]
            return scalars(model, state)[:, None], model(input_ids=text).logits.float()

    try:
        found = attempt(said)
    except InputError as error:
        return str(error)
    if isinstance(found, Exception):  # the library's own code fails
        return f"it fails on a few tokens ({on_one_line(found)})"
    ours, theirs = found
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=0.02, atol=0.02):
        return f"{type(model).__name__} does more than a linear layer on the last token's hidden state"
    return None


@contextmanager
def _drawn(weight: Tensor) -> Iterator[None]:
    """Put random numbers into a weight within the context, the same ones each time."""
    own = weight.data
    weight.data = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    try:
        yield
    finally:
        weight.data = own


def _library_class(config: Any) -> type | None:
    """Return transformers' sequence classifier for a config; None if there is none."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KNOWN

    found: type | None = KNOWN.get(type(config), None)
    return found


def is_causal(config: Any, trust_remote_code: bool) -> bool:
    """Say whether a causal language model can be made from a config, and so loaded from a folder saved with it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return type(config) in CAUSAL or (trust_remote_code and remote)


def require_causal(own: Any, config: Any, trust_remote_code: bool) -> None:
    """Refuse a model whose own config makes no language model (Llama 3.2's text part): it could not be read back."""
    if not is_causal(own, trust_remote_code):
        raise InputError(f"the text part of {config.model_type} could not be read back once saved; give a text model")


def _skeleton(auto: Any, config: Any, trust_remote_code: bool = False) -> Any:
    """Make a model without weights."""
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=trust_remote_code)


def _backbone_name(model: Any) -> str:
    """Return the name of the attribute that holds a model's backbone: the part with the input embeddings."""
    embeddings = model.get_input_embeddings()
    found = [name for name, part in model.named_children() if any(m is embeddings for m in part.modules())]
    if not found:
        raise InputError(f"{type(model).__name__} keeps its embeddings outside its backbone; Keel knows no head for it")
    return str(found[0])


def _innermost(model: Any) -> Any:
    """Return the innermost model that holds the input embeddings: the text part if the model also reads images."""
    from transformers import PreTrainedModel

    embeddings = model.get_input_embeddings()
    for part in model.children():
        if isinstance(part, PreTrainedModel) and any(m is embeddings for m in part.modules()):
            return _innermost(part)
    return model
