"""Chat templates by name, for models without one: the usual formats, each rewritten as briefly as possible.

A format that uses control tokens fits only a tokenizer that has them; the others fit every tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keel.errors import InputError
from keel.files.hub import is_pointer

__all__ = ["NAMED", "chat_template"]

_NO_SYSTEM = "{{ raise_exception('this template has no place for a system turn') }}"


def _each(user: str, assistant: str, system: str, begin: str = "", prompt: str = "") -> str:
    """Return a template that writes every turn by its role, and `prompt` when the assistant is to speak next."""
    return (
        begin
        + "{% for m in messages %}{% if m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% elif m.role == 'system' %}"
        + (system or _NO_SYSTEM)
        + "{% else %}{{ raise_exception('this template has no place for the role ' + m.role) }}{% endif %}{% endfor %}"
        + ("{% if add_generation_prompt %}" + prompt + "{% endif %}" if prompt else "")
    )


_CHATML = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_LLAMA3 = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}"
_PHI3 = "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}"
_ZEPHYR = "{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"

NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (
        _each(_CHATML, _CHATML, _CHATML, prompt="{{ '<|im_start|>assistant\\n' }}"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": (
        _each(
            _LLAMA3,
            _LLAMA3,
            _LLAMA3,
            "{{ bos_token }}",
            "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
        ),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": (
        _each(
            "{{ '<start_of_turn>user\\n' + m.content + '<end_of_turn>\\n' }}",
            "{{ '<start_of_turn>model\\n' + m.content + '<end_of_turn>\\n' }}",
            "",
            "{{ bos_token }}",
            "{{ '<start_of_turn>model\\n' }}",
        ),
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi3": (
        _each(_PHI3, _PHI3, _PHI3, prompt="{{ '<|assistant|>\\n' }}"),
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "llama2": (
        _each(
            "{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}",
            "{{ ' ' + m.content + ' ' + eos_token }}",
            "",
        ),
        (),
    ),
    "mistral": (
        _each(
            "{{ '[INST] ' + m.content + ' [/INST]' }}",
            "{{ ' ' + m.content + eos_token }}",
            "",
            "{{ bos_token }}",
        ),
        (),
    ),
    "vicuna": (
        _each(
            "{{ 'USER: ' + m.content + '\\n' }}",
            "{{ 'ASSISTANT: ' + m.content + eos_token + '\\n' }}",
            "{{ m.content + '\\n\\n' }}",
            "{{ bos_token }}",
            "{{ 'ASSISTANT:' }}",
        ),
        (),
    ),
    "zephyr": (_each(_ZEPHYR, _ZEPHYR, _ZEPHYR, prompt="{{ '<|assistant|>\\n' }}"), ()),
    "alpaca": (
        _each(
            "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}",
            "{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}",
            "{{ m.content + '\\n\\n' }}",
            "{{ bos_token }}",
            "{{ '### Response:\\n' }}",
        ),
        (),
    ),
}
"""Template and the control tokens that it needs, by name."""


def chat_template(wanted: str, tokenizer: Any) -> str:
    """Return the template that `--chat-template` names: one of the tokenizer's own, one of `NAMED`, or a file's.

    Raises `InputError` if there is no such template, it cannot be read, or the tokenizer lacks its control tokens.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict) and wanted in own:
        return str(own[wanted])
    if wanted in NAMED:
        template, needs = NAMED[wanted]
        missing = [token for token in needs if token not in tokenizer.get_added_vocab()]
        if missing:
            fits = [name for name, (_, tokens) in NAMED.items() if not set(tokens) - set(tokenizer.get_added_vocab())]
            raise InputError(
                f"--chat-template {wanted}: the tokenizer has no token {', '.join(missing)}; "
                f"these fit it: {', '.join(fits)}"
            )
        return template
    if is_pointer(Path(wanted)):
        raise InputError(
            f"--chat-template {wanted}: a Git LFS pointer in place of the file; fetch it with: git lfs pull"
        )
    try:
        return Path(wanted).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join([*(own if isinstance(own, dict) else ()), *NAMED])
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"--chat-template {wanted}: {why}; give a file with a template, or one of {names}") from error
