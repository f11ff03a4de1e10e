"""Faults of a checkpoint folder, each reported in one line with its remedy.

A folder is checked before the library loads it: for adapters, quantised weights, Git LFS pointers, missing or broken
files, code, encoders, tokenizers. The library would ignore some of these, ask a question or name another remedy. A hub
name is checked the same way, as far as its small files show. `loaded` finds faults that only the loaded model shows.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from keel.errors import InputError, RowFault, on_one_line
from keel.files.hub import is_pointer
from keel.models.hub import require_hub
from keel.text.tokenisation import Text

__all__ = [
    "TOGETHER",
    "check_folder",
    "check_kind",
    "check_text",
    "check_tokens",
    "config_of",
    "no_folder",
    "no_model",
    "no_tokenizer",
    "quantised",
    "refuse_unmergeable",
    "some",
]

Raw = Mapping[str, Any]
"""Content of a JSON file."""
_SHOWN = 3
"""Number of names shown if there are more."""
SCALAR = "ForSequenceClassification"
ANOTHER = "give a decoder, such as a Llama, Qwen, Gemma or Mistral model"
TOGETHER = "copy config.json and the weights from one and the same checkpoint"

# --- small files ----------------------------------------------------------------------------------


def config_of(folder: str, name: str) -> Raw:
    """Return the content of config.json; {} if there is none."""
    return _read(folder, name, "config.json") or {}


def _read(folder: str, name: str, file: str) -> Raw | None:
    """Return a JSON object of a folder or hub name; None if there is no such file or the hub cannot be asked."""
    if Path(folder).is_dir():
        path = Path(folder) / file
        if not path.is_file():
            return None
    else:
        found = _of_hub(folder, file)
        if found is None:
            return None
        path = Path(found)
    _require_no_pointer(path, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{name}: {file} is not readable ({on_one_line(error)}); copy it anew") from error
    return content


@lru_cache
def _of_hub(name: str, file: str) -> str | None:
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    try:
        require_hub(name)
        found: str | None = cached_file(name, file, **quiet)
    except (OSError, ValueError):  # no such name: the loader will say so
        return None
    return found


def _require_no_pointer(path: Path, name: str) -> None:
    if is_pointer(path):
        raise InputError(f"{name}: {path.name} is a Git LFS pointer in place of the file; fetch it with: git lfs pull")


# --- before loading -------------------------------------------------------------------------------


def no_folder(path: Path, name: str) -> InputError:
    """Return the error that says why a folder without config.json is no checkpoint."""
    if any(path.glob("*.gguf")):
        return InputError(f"{name}: {GGUF}")
    if (path / "params.json").exists():
        return InputError(
            f"{name}: weights in their authors' own layout (params.json, no config.json); give the folder that "
            "transformers reads, which they also publish, or convert it"
        )
    return InputError(f"{name}: no config.json in it; give a checkpoint folder, a run folder or a hub name")


GGUF = "its weights are a GGUF file, which is for inference; give the folder of safetensors that it was made from"


def check_folder(folder: str, name: str, code: bool) -> Raw:
    """Refuse what the library would load wrongly or only after a question; return the content of config.json.

    The folder's own code may run if `code` is true.
    """
    config = config_of(folder, name)
    files = _weight_files(Path(folder), name, config) if Path(folder).is_dir() else None
    adapter = _read(folder, name, "adapter_config.json")
    if adapter is not None:
        refuse_unmergeable(folder, name)
        raise _adapter(name, adapter, whole=files != [])
    _refuse_quantised(folder, name, config)
    if files is not None:
        _check_files(Path(folder), name, files)
    if config:
        _check_type(name, config, code)
    return config


def _adapter(name: str, adapter: Raw, whole: bool) -> InputError:
    base = adapter.get("base_model_name_or_path") or "a model that it does not name"
    also = ", or take adapter_config.json away if it is merged already" if whole else ""
    return InputError(
        f"{name}: an adapter of {base} (adapter_config.json); merge it into its base (peft's merge_and_unload, then "
        f"save_pretrained) and give the merged folder{also}"
    )


def refuse_unmergeable(folder: str, name: str) -> None:
    """Refuse an adapter that changes no weight of its base."""
    adapter = _read(folder, name, "adapter_config.json") or {}
    kind = adapter.get("peft_type")
    if str(kind).upper() in UNMERGEABLE:
        raise InputError(
            f"{name}: an adapter ({kind}) of {adapter.get('base_model_name_or_path')}, which cannot be merged into it; "
            "give a model whose weights hold what was learnt"
        )


UNMERGEABLE = "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"
"""Adapters that add tokens or states and change no weight."""


def _refuse_quantised(folder: str, name: str, config: Raw) -> None:
    """Refuse weights that are quantised by their configs; `loaded.check_loaded` finds those that no config names."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if part.get(key) is not None:
                raise quantised(name, _method(part[key]))
    for file in ("quantize_config.json", "quant_config.json"):
        found = _read(folder, name, file)
        if found is not None:
            raise quantised(name, f"{_method(found)}, by {file}")


def _method(settings: object) -> str:
    """Return the name that a quantisation config gives its method."""
    if not isinstance(settings, dict):
        return "by a method it does not name"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    for key in ("quant_method", "quant_type", "quantization_method", "format", "version"):
        if isinstance(settings.get(key), str):
            return str(settings[key])
    bits = settings.get("bits") or settings.get("w_bit")
    return f"{bits} bits" if bits else "by a method it does not name"


def quantised(name: str, method: str) -> InputError:
    """Return the error for weights that are quantised by this method."""
    return InputError(
        f"{name}: its weights are quantised ({method}), and Keel computes with plain ones; give the unquantised model "
        "that it was made from"
    )


# --- files of weights


def _weight_files(folder: Path, name: str, config: Raw) -> list[str]:
    """Return the files from which the library would read the weights; it takes the first kind it finds."""
    named = config.get("transformers_weights")
    if isinstance(named, str):
        return _shards(folder, name, named) if named.endswith(".index.json") else [named]
    for file in ("model.safetensors", "pytorch_model.bin"):
        if (folder / file).is_file():
            return [file]
        if (folder / f"{file}.index.json").is_file():
            return _shards(folder, name, f"{file}.index.json")
    return []


def _shards(folder: Path, name: str, index: str) -> list[str]:
    found = (_read(str(folder), name, index) or {}).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError(f"{name}: {index} names no weights; copy it anew")
    return sorted(set(map(str, found.values())))


OTHER_WEIGHTS = "*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.ckpt", "*.npz"


def _check_files(folder: Path, name: str, files: list[str]) -> None:
    """Refuse files of weights that are absent, pointers, broken or quantised."""
    if not files:
        others = sorted({path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)})
        if others and all(file.endswith(".gguf") for file in others):
            raise InputError(f"{name}: {GGUF}")
        shards = [file for file in others if re.search(r"-\d+-of-\d+\.", file)]
        if shards:
            raise InputError(
                f"{name}: no weights can be read from {some(shards)} without their index "
                "(model.safetensors.index.json); copy it there"
            )
        beside = f", only {some(others)}, which transformers does not read" if others else ""
        raise InputError(f"{name}: no weights (model.safetensors) beside config.json{beside}; copy them there")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{name}: files of weights are missing ({len(missing)} of {len(files)}): {some(missing)}; copy or download "
            "them, too"
        )
    for file in files:
        _require_no_pointer(folder / file, name)
        try:
            integers = _integers(folder / file)
        except Broken as broken:
            raise InputError(f"{name}: {file} {broken}; copy or download this file anew") from None
        if integers:
            raise quantised(name, f"{some(integers)} holds whole numbers")


class Broken(Exception):  # noqa: N818  (a file is)
    """Fault of a file of weights that its header or its size shows."""


def _integers(path: Path) -> list[str]:
    """Return the names of weights that are whole numbers, by the header; raise Broken if header or size is wrong.

    Only safetensors list their weights in the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:1] == b"<":
            raise Broken("is a web page, not weights")
        if path.suffix != ".safetensors":
            if not start or (start.startswith(b"PK") and not zipfile.is_zipfile(path)):
                raise Broken(f"is cut short ({size:,} bytes)")
            return []
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise Broken(f"is cut short ({size:,} bytes)")
        try:
            header = json.loads(file.read(length))
            kinds = {key: entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
            whole = 8 + length + max((header[key]["data_offsets"][1] for key in kinds), default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Broken("is no safetensors file") from None
    if size != whole:
        raise Broken(f"is {'cut short' if size < whole else 'too long'} ({size:,} of {whole:,} bytes)")
    return [key for key, kind in kinds.items() if key.endswith(".weight") and kind[0] in "IU"]


# --- which kind of model


def _check_type(name: str, config: Raw, code: bool) -> None:
    """Refuse a model type that the library does not know, unless the folder's own code may run."""
    from transformers import CONFIG_MAPPING, __version__

    kind = config.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if "AutoConfig" in _code_of(config):
        if not code:
            raise _needs_code(name, config, f"model type {kind!r}")
        return
    if not kind:
        guess = _type_of(config)
        known = f'add "model_type": "{guess}" to it, or ' if guess else ""
        raise InputError(f"{name}: config.json has no model_type, which tells what it is; {known}copy config.json anew")
    saved = config.get("transformers_version")
    by = f" (it was saved by {saved})" if saved else ""
    raise InputError(
        f"{name}: transformers {__version__}, which is installed, does not know the model type {kind!r}{by}; install a "
        "newer one (pip install -U transformers), or give another model"
    )


def _type_of(config: Raw) -> str | None:
    """Return the model type of the class that a config names; of several, the one that the class is named after."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    classes = config.get("architectures") or []
    kinds = [(str(kind), known) for kind, known in NAMES.items() if known in classes]
    return next((kind for kind, known in kinds if known.lower().startswith(re.sub("[-_]", "", kind))), None)


def _code_of(config: Raw) -> Raw:
    """Return the classes that a folder brings as code."""
    found = config.get("auto_map")
    return found if isinstance(found, dict) else {}


def _needs_code(name: str, config: Raw, what: str) -> InputError:
    references = _flat(_code_of(config).values())
    files = sorted({f"{r.split('--')[-1].split('.')[0]}.py" for r in references})
    of = sorted({r.split("--")[0] for r in references if "--" in r})
    where = f" of {', '.join(of)}" if of else ""
    return InputError(
        f"{name}: its {what} is code of its own ({some(files)}{where}), which Keel does not run unless you say so; "
        "read it, and add --trust-remote-code if you trust it"
    )


def _flat(values: Iterable[Any]) -> list[str]:
    return [one for value in values for one in (value if isinstance(value, list | tuple) else [value]) if one]


def check_kind(config: Any, name: str) -> None:
    """Refuse encoder-decoders and encoders: Keel works only with models that read a text from left to right."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    kind, scores = config.model_type, str((getattr(config, "architectures", None) or [""])[0]).endswith(SCALAR)
    remedy = "give a reward model on a decoder (`keel reward` trains one)" if scores else ANOTHER
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name}: {kind} is an encoder-decoder, and Keel works with decoders alone; {remedy}")
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decodes:
        raise InputError(
            f"{name}: {kind} is an encoder, not a decoder: its output at a token depends on what follows; {remedy}"
        )


def no_model(error: Exception, folder: str, name: str, config: Raw, auto: str, code: bool) -> InputError:
    """Return what the library's own error means. `auto` is the class that was to load the model."""
    from transformers import __version__

    said = on_one_line(error)
    if auto in _code_of(config) and not code and "trust_remote_code" in str(error):
        return _needs_code(name, config, "model class")
    if "Unrecognized configuration class" in said:
        what = "language model" if auto.endswith("CausalLM") else "reward model (sequence classifier)"
        kind = config.get("model_type")
        return InputError(f"{name}: transformers {__version__} has no {what} of the type {kind!r}; {ANOTHER}")
    if "Weights only load failed" in said:
        return InputError(
            f"{name}: its weights (.bin) hold Python objects, which could run code, and are not read; save them as "
            "safetensors where they come from"
        )
    if isinstance(error, ImportError):
        return InputError(f"{name}: it needs a package that is not installed ({said}); install it, or {ANOTHER}")
    if said == _config_fault(folder):
        return InputError(f"{name}: config.json describes no model ({said}); copy it anew")
    return InputError(
        f"{name}: not loadable as a model ({said}); see whether transformers {__version__} loads it by itself, and if "
        "not, copy or download the folder anew"
    )


def some(names: list[str]) -> str:
    """Join the first of many names: `a, b, c, …`."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


# --- tokenizers -----------------------------------------------------------------------------------

TOKENIZER_FILES = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"
_PARTS = "*.model", "vocab.*", "merges.txt", "*.tiktoken"
"""Files that tokenizer.json is made from; read if it is missing."""


def check_text(folder: str, name: str, code: bool) -> None:
    """Refuse an unknown model type, and a tokenizer that is a pointer or needs code that may not run."""
    path = Path(folder)
    model = config_of(folder, name)
    if model.get("model_type"):
        _check_type(name, model, code)
    if path.is_dir():
        files = [path / file for file in TOKENIZER_FILES]
        files += [] if files[1].is_file() else [file for pattern in _PARTS for file in sorted(path.glob(pattern))]
        for file in files:
            _require_no_pointer(file, name)
    config = _read(folder, name, "tokenizer_config.json") or {}
    auto = config.get("auto_map")
    found = auto.get("AutoTokenizer") if isinstance(auto, dict) else auto
    if found and not code and not _known_tokenizer(str(config.get("tokenizer_class") or "")):
        raise _needs_code(name, {"auto_map": {"AutoTokenizer": found}}, "tokenizer")
    _read(folder, name, "generation_config.json")


def _known_tokenizer(kind: str) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return any(tokenizer_class_from_name(name) is not None for name in (kind, f"{kind}Fast") if name)


NO_TOKENIZER = "no tokenizer in it; copy tokenizer.json and tokenizer_config.json there, too"


def no_tokenizer(error: Exception, folder: str, name: str) -> InputError:
    """Return the error that says why no tokenizer could be loaded."""
    said, path = on_one_line(error), Path(folder)
    if said == _config_fault(folder):
        return InputError(f"{name}: config.json describes no model ({said}); copy it anew")
    package = next((one for one in ("sentencepiece", "tiktoken", "protobuf") if one in str(error).lower()), None)
    if path.is_dir() and not any(path.glob("*token*")) and not any(path.glob("vocab*")):
        return InputError(f"{name}: {NO_TOKENIZER}")
    remedy = f"install {package}, or save a tokenizer.json beside the model" if package else "save one beside the model"
    return InputError(f"{name}: no tokenizer could be loaded ({said}); {remedy}")


def _config_fault(folder: str) -> str:
    """Return the fault of config.json, '' if there is none; the library reads it before a tokenizer."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever it is: `no_tokenizer` compares its own error with it
        return on_one_line(error)
    return ""


def check_tokens(text: Text, folder: str, name: str, code: bool) -> None:
    """Refuse a tokenizer with tokens that a text may contain and that have no row in the model's embedding.

    Control tokens that the template does not write are harmless: no text contains them. Examples are padding, which
    Keel never embeds, and image tokens in a model without vision. If files are missing, the library makes an empty
    tokenizer for some kinds of model: it is refused, too. `text.gaps` gets the number of rows.
    """
    tokens = text.tokenizer.get_vocab()
    if set(tokens.values()) <= text.pieces.controls.ids | set(text.tokenizer.all_special_ids):
        raise InputError(f"{name}: {NO_TOKENIZER}")
    rows = _rows(folder, name, code)
    if rows is None:
        return
    text.gaps.rows = rows
    beyond = {i: token for token, i in tokens.items() if i >= rows}
    if not beyond:
        return
    needed = text.eos_ids | {i for i in (text.bos_id, text.tokenizer.unk_token_id) if i is not None}
    needed |= _written(text)
    used = sorted(i for i in beyond if i in needed or i not in text.pieces.controls.ids)
    if used:
        named = some([f"{beyond[i]!r} ({i})" for i in used])
        raise InputError(
            f"{name}: the tokenizer has {len(text.tokenizer)} tokens, the model's embedding {rows} rows, none of them "
            f"for {named}; give it the tokenizer that it was trained with, or resize its embedding and train it"
        )


def _rows(folder: str, name: str, code: bool) -> int | None:
    """Return the number of rows of the embedding by config.json; None if it does not say."""
    from transformers import AutoConfig

    raw = config_of(folder, name)
    try:
        found = AutoConfig.from_pretrained(folder, trust_remote_code=code).get_text_config()
        size: object = getattr(found, "vocab_size", None)
    except Exception:  # whatever is wrong with it is reported when the model is loaded
        size = raw.get("vocab_size")
    return size if isinstance(size, int) else None


def _written(text: Text) -> set[int]:
    """Return the control tokens that the template writes around a question and its answer."""
    if text.template is None:
        return set()
    try:
        whole = text.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], generate=False)
        whole += text.render([{"role": "user", "content": "a"}])
    except RowFault:
        return set()  # such a template is reported with each row
    convert: Callable[[str], int] = text.tokenizer.convert_tokens_to_ids
    return {convert(whole[slice(*place)]) for place in text.pieces.controls.places(whole)}
