"""Reports on a tokenizer: its difference from another, its facts for the manifest, remarks on its template."""

from __future__ import annotations

from collections.abc import Sequence

from keel.errors import RowFault
from keel.records import Bundle, Prompt, PromptRow
from keel.text.template import DAY
from keel.text.tokenisation import Text


def difference_between(text: Text, other: Text, prompts: Sequence[Prompt]) -> str:
    """Return the difference in how two tokenizers read these prompts, as a noun phrase; empty if there is none.

    Padding is no difference. Templates matter only if a prompt is a chat.
    """
    if text.spelling != other.spelling:
        return "tokenizer"
    chats = any(not isinstance(prompt, str) for prompt in prompts)
    if chats and text.tokenizer.chat_template != other.tokenizer.chat_template:
        return "chat template"
    if text.eos_ids != other.eos_ids:
        return f"end of an answer ({', '.join(other.ends())}, not {', '.join(text.ends())})"
    differs = any(_reads_differently(text, other, prompt) for prompt in prompts)
    return "way to read these prompts" if differs else ""


def _reads_differently(text: Text, other: Text, prompt: Prompt) -> bool:
    try:
        return text.prompt_ids(prompt) != other.prompt_ids(prompt)
    except RowFault:
        return False  # the row is counted when it is used


def facts_of(text: Text) -> dict[str, object]:
    """Return a tokenizer's facts for the manifest: its fingerprint, and the day if its template asks for one."""
    clock = text.template is not None and text.template.reads_clock
    return {"tokenizer": text.fingerprint(), **({"template_day": DAY} if clock else {})}


def remarks_on(text: Text, rows: Sequence[Bundle | PromptRow]) -> list[str]:
    """Return remarks on the template for the user, if any of these prompts is a chat."""
    if text.template is None or all(isinstance(row.prompt, str) for row in rows):
        return []
    found = []
    if text.template.reads_clock:
        found.append(f"the chat template writes the day: it is always given {DAY}")
    if opened := text.template.opened():
        found.append(
            f"the chat template's prompt ends in {opened!r}: answers begin after that, also for rules and raters"
        )
    return found
