"""Loading and saving of models: plain Hugging Face checkpoints, which other tools read, too.

A *policy* or *reference* is an `AutoModelForCausalLM`; a *reward* or *value* model an
`AutoModelForSequenceClassification` with one label. Every model stays in eval mode, even in training, so that
dropout is off in every pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from keel.config import Machine, Spelling
from keel.errors import InputError, RunFailed
from keel.models import adapters, folders, loaded, scalar, trials
from keel.models.heads import scalar_head
from keel.models.machine import choose_product, device_of, dtype_of, prepare
from keel.records import Bundle
from keel.says import quiet_library, say
from keel.text.named_templates import chat_template
from keel.text.tokenisation import PAD_TOKEN, Text
from keel.text.tokenizer_facts import difference_between

# --- folders and hub names ------------------------------------------------------------------------


def resolve(name: str) -> str:
    """Return the checkpoint folder for `name`: the folder itself, a run folder's `final/`, or a hub name as it is."""
    path = Path(name)
    if not path.exists():
        if name.count("/") > 1 or name.startswith((".", "/")):
            raise InputError(f"{name}: no such model folder; give a checkpoint folder, a run folder or a hub name")
        if "/" not in name:
            raise InputError(f"{name}: no such model folder; a hub name is OWNER/NAME, such as openai-community/gpt2")
        return name
    if path.is_file():
        raise InputError(f"{name} is a file; give the folder that holds config.json")
    for folder in (path, path / "final"):
        if (folder / "config.json").exists() or adapters.is_adapter(folder):
            return str(folder)
    if (path / "config.yaml").exists():
        raise InputError(f"{name}: this run has no final/ yet; finish it with --resume")
    raise folders.no_folder(path, name)


# --- loading --------------------------------------------------------------------------------------


def load_text(name: str, spelling: Spelling | None = None) -> Text:
    """Load the tokenizer of a model folder as `spelling` says, with every EOS id that its generation config names."""
    spelling = spelling or Spelling()
    folder = resolve(name)
    base = resolve(adapters.base_of(folder)) if adapters.is_adapter(folder) else folder
    if base != folder and not any(Path(folder).glob("tokenizer*")):
        return load_text(base, spelling)
    folders.check_text(folder, name, spelling.trust_remote_code)
    return _text(folder, name, spelling, base)


def _text(folder: str, name: str, spelling: Spelling, model: str | None = None) -> Text:
    """Load a folder's tokenizer; `model` is the folder of the whole model if this one is an adapter."""
    from transformers import AutoTokenizer, GenerationConfig

    code = spelling.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code)
    except Exception as error:
        raise folders.no_tokenizer(error, folder, name) from error
    eos: Any = None
    for place in dict.fromkeys([folder, model or folder]):  # a folder of PEFT has no generation config of its own
        try:
            eos = GenerationConfig.from_pretrained(place).eos_token_id
            break
        except OSError:
            continue
    extra = eos if isinstance(eos, list) else [eos]
    if spelling.chat_template is not None:
        tokenizer.chat_template = chat_template(spelling.chat_template, tokenizer)
    tokenizer.chat_template = _with_line_breaks(tokenizer.chat_template)
    text = Text(tokenizer, [i for i in extra if i is not None], spelling.control_tokens)
    folders.check_tokens(text, model or folder, name, code)
    return text


def _with_line_breaks(template: Any) -> Any:
    """Return a template, or several by name, with the line breaks that it has once saved and read back."""
    if isinstance(template, dict):
        return {name: _with_line_breaks(one) for name, one in template.items()}
    return template.replace("\r\n", "\n").replace("\r", "\n") if isinstance(template, str) else template


def load_policy(name: str, machine: Machine) -> nn.Module:
    """Load a causal language model and check it: weights present, head understood by Keel's scaled logits."""
    from transformers import AutoModelForCausalLM

    require_language_model(name)
    folder = resolve(name)
    if adapters.is_adapter(folder):
        return _merged(load_policy, folder, name, machine)
    return _load(AutoModelForCausalLM, name, machine)


def _merged(load: Callable[[str, Machine], nn.Module], folder: str, name: str, machine: Machine) -> nn.Module:
    """Load an adapter's base, and add the adapter to its weights, which must be finite."""
    folders.refuse_unmergeable(folder, name)
    try:
        base = load(adapters.base_of(folder), machine)
    except InputError as error:
        raise InputError(f"{name}: its base model: {error}") from error
    adapters.require_base(folder, name, adapters.trunk_hash(base))
    model: nn.Module = adapters.merged(base, folder, name)
    loaded.refuse_not_finite(model, name)
    trials.drop_ways(model)
    trials.ways_of(model.eval(), name)
    return model


def load_reward(name: str, machine: Machine) -> nn.Module:
    """Load a trained reward model. Refuse a plain language model: its head would be random."""
    if Path(resolve(name)).exists() and not is_reward_folder(name):
        raise InputError(
            f"{name} is not a reward model but a plain language model; train one with `keel reward --model {name}`"
        )
    folder = resolve(name)
    model: Any
    if adapters.is_adapter(folder):
        model = _merged(partial(new_scalar_model, pad_id=None), folder, name, machine)
    else:
        model = _load(scalar.AutoScalarModel, name, machine)
    if model.config.num_labels != 1:
        raise InputError(
            f"{name}: a classifier of {model.config.num_labels} labels, none of which is a score; "
            "give a reward model with one label (`keel reward` trains one)"
        )
    if fault := scalar.fault(model):
        raise InputError(f"{name}: {fault}; give a reward model on a decoder (`keel reward` trains one)")
    return model  # type: ignore[no-any-return]


def new_scalar_model(name: str, machine: Machine, pad_id: int | None) -> nn.Module:
    """Make a scalar model on a language model's backbone. Its head is zero, so at first every score is 0.

    With a padding id the model can be read by others in padded rows; the embeddings get a row for it if they lack one.
    """
    fresh = ("score.", "classifier.")
    model: Any
    if adapters.is_adapter(resolve(name)):
        policy = load_policy(name, machine)
        model = scalar.sharing(policy, machine.trust_remote_code)
        trials.take_over(model, policy)
    else:
        model = _load(scalar.AutoScalarModel, name, machine, fresh=fresh, num_labels=1)
    fault = scalar.fault(model)
    if fault and not scalar.is_own(model):
        model = _load(scalar.OwnScalarModel, name, machine, fresh=fresh, num_labels=1)
        fault = scalar.fault(model)
    if fault:
        remedy = "give a decoder" if model.dtype == torch.float32 else "try --precision fp32, or give a decoder"
        raise InputError(f"{name}: no reward or value model can be made of it: {fault}; {remedy}")
    if scalar.is_own(model):
        say(scalar.notice(model))
    if pad_id is not None:
        set_pad(model, pad_id)
    for parameter in scalar_head(model).parameters():
        nn.init.zeros_(parameter)
    whole: nn.Module = model
    return whole


def set_pad(model: Any, pad_id: int) -> None:
    """Give a scalar model its padding id, and the embeddings a row for it."""
    if pad_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(pad_id + 1, mean_resizing=False)
    model.config.get_text_config().pad_token_id = pad_id


def require_language_model(name: str) -> None:
    """Refuse a reward model in the place of a language model."""
    if is_reward_folder(name):
        raise InputError(f"{name} is a reward model, not a language model: give the one that it was trained from")


def is_reward_folder(name: str) -> bool:
    """Say whether a folder holds a scalar model (a sequence classifier) rather than a language model."""
    folder = resolve(name)
    if adapters.is_adapter(folder):
        return adapters.is_scalar(folder)
    architectures = folders.config_of(folder, name).get("architectures") or []
    return any(str(a).endswith("ForSequenceClassification") for a in architectures)


def ensure_pad(text: Text) -> int:
    """Return a padding id that is no EOS: the tokenizer's own, or that of a new token added to it.

    A sequence classifier reads the last token that is not padding: with an EOS as padding it would miss the end.
    """
    tokenizer = text.tokenizer
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in text.eos_ids:
        return int(tokenizer.pad_token_id)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    text.pieces.learn_tokens()  # a text may spell it out
    return int(tokenizer.pad_token_id)


def borrow_pad(text: Text) -> None:
    """Make another special token the padding if the tokenizer has none but an EOS: an adapter adds no embedding."""
    tokenizer = text.tokenizer
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in text.eos_ids:
        return
    for token in (tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in text.eos_ids:
            tokenizer.pad_token = token
            return
    say("the tokenizer has no token for padding but its EOS: others must read this adapter's texts one by one")


def _load(auto: Any, name: str, machine: Machine, fresh: tuple[str, ...] = (), **kwargs: Any) -> nn.Module:
    """Load a model with all its weights from the folder, except those whose names begin as in `fresh`."""
    from transformers import AutoConfig

    folder, code = resolve(name), machine.trust_remote_code
    device = device_of(machine)
    raw = folders.check_folder(folder, name, code)
    prepare()
    explained = partial(_explained, folder, name, raw, auto.__name__, code)
    with explained():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code)
    folders.check_kind(config, name)
    width = getattr(config.get_text_config(), "hidden_size", 0)
    choose_product(width)
    kwargs["dtype"] = dtype_of(machine, width)
    with explained():
        model, info = auto.from_pretrained(
            folder,
            trust_remote_code=code,
            ignore_mismatched_sizes=True,  # `loaded` refuses them by name
            output_loading_info=True,
            **kwargs,
        )
        scalar.require_causal(model.config, config, code)
    loaded.check_loaded(model, info, name, raw, fresh)
    if type(model).__module__.startswith("transformers."):  # a saved config must not point to code that is not saved
        model.config.__dict__.pop("auto_map", None)
    model.config.use_cache = False
    module: nn.Module = model.to(device).eval()
    trials.ways_of(module, name)
    return module


@contextmanager
def _explained(folder: str, name: str, raw: folders.Raw, auto: str, code: bool) -> Iterator[None]:
    """Load in silence; turn the library's errors into an InputError that says what is wrong with the folder."""
    try:
        with quiet_library():
            yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:  # the library's own, safetensors', pickle's: a file that is no model
        raise folders.no_model(error, folder, name, raw, auto, code) from error


# --- saving and identity --------------------------------------------------------------------------


def save(model: Any, text: Text, folder: Path) -> None:
    """Write a checkpoint that others can read: config, safetensors, tokenizer with its template, and all EOS ids."""
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    ends = sorted(text.eos_ids)
    eos = ends if len(ends) > 1 else ends[0]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = eos
    use_cache, model.config.use_cache = model.config.use_cache, True
    with quiet_library():
        model.save_pretrained(folder)
        if not (folder / "generation_config.json").exists():  # a sequence classifier has none: the ids would be lost
            GenerationConfig(eos_token_id=eos, bos_token_id=text.bos_id).save_pretrained(folder)
    model.config.use_cache = use_cache
    _save_tokenizer(text, folder)


def save_text(text: Text, folder: Path) -> None:
    """Write what goes with an adapter: the tokenizer with its template, and all EOS ids."""
    from transformers import GenerationConfig

    ends = sorted(text.eos_ids)
    eos = ends if len(ends) > 1 else ends[0]
    with quiet_library():
        GenerationConfig(eos_token_id=eos, bos_token_id=text.bos_id).save_pretrained(folder)
    _save_tokenizer(text, folder)


_SAVED_AS_IS: WeakKeyDictionary[Text, bool] = WeakKeyDictionary()
"""Per saved tokenizer: True if it reads texts as before once the library has written it."""


def _save_tokenizer(text: Text, folder: Path) -> None:
    """Write a tokenizer that reads back as the one in memory.

    The library's classes for single families leave out settings (Llama 2's omits `legacy`). If that changes how texts
    are read, the tokenizer is written as one of the general class, which takes tokenizer.json as it is.
    """
    text.tokenizer.save_pretrained(folder)
    _point_to_code(folder / "tokenizer_config.json")
    if text not in _SAVED_AS_IS:
        _SAVED_AS_IS[text] = _reads_back(text, folder)
    if _SAVED_AS_IS[text]:
        return
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    text.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    if not _reads_back(text, folder):
        raise RunFailed(f"{folder}: the tokenizer reads texts differently once it is saved; save it by hand")


def _point_to_code(file: Path) -> None:
    """Name a tokenizer's own code as the library reads it, [slow class, fast class]; it writes the class alone."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    auto = settings.get("auto_map")
    if isinstance(auto, dict) and isinstance(auto.get("AutoTokenizer"), str):
        auto["AutoTokenizer"] = [None, auto["AutoTokenizer"]]
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def _reads_back(text: Text, folder: Path) -> bool:
    own = not type(text.tokenizer).__module__.startswith("transformers.")  # made by trusted code
    with quiet_library():
        return not difference_between(text, _text(str(folder), str(folder), Spelling(trust_remote_code=own)), [])


def reload(model: Any, folder: Path) -> nn.Module:
    """Load a second model of the same kind from a folder that `save` wrote."""
    with quiet_library():
        stored: nn.Module = type(model).from_pretrained(folder, dtype=next(model.parameters()).dtype)
    return stored


def require_reload(model: nn.Module, folder: Path) -> None:
    """Raise RunFailed if a checkpoint does not give back the model in memory, bit for bit."""
    live, stored = model.state_dict(), reload(model, folder).state_dict()
    wrong = sorted(k for k in live if k not in stored or not torch.equal(bytes_of(live[k]), bytes_of(stored[k])))
    if wrong:
        raise RunFailed(f"{folder}: reads back with other weights than were saved: {', '.join(wrong[:3])}")


def weights_hash(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers that a checkpoint holds: equal hashes, equal models."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(bytes_of(tensor).numpy().tobytes())
    return digest.hexdigest()[:16]


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of any type and shape as bytes, uint8 on the CPU: [...] -> [bytes]."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


TRIED = 8
"""Number of a run's prompts on which two tokenizers are compared, beside their templates and EOS ids."""


def require_same_tokens(text: Text, other: Text, bundles: Sequence[Bundle], name: str) -> None:
    """Refuse a model that reads a run's prompts as other ids: its numbers would be about other texts."""
    if what := difference_between(text, other, [bundle.prompt for bundle in bundles[:TRIED]]):
        raise InputError(
            f"{name}: its {what} differs from the policy's; train it from the same base model, or anew if an earlier "
            "version saved it"
        )


def same_vocabulary(left: nn.Module, right: nn.Module, what: str) -> None:
    """Refuse two models that cannot read the same ids."""
    a, b = left.get_input_embeddings(), right.get_input_embeddings()  # type: ignore[operator]
    if a.weight.shape[0] > b.weight.shape[0]:
        raise InputError(
            f"{what} has {b.weight.shape[0]} token ids, the policy {a.weight.shape[0]}: they do not share a tokenizer"
        )
