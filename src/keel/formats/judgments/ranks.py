"""Several answers at once: OpenAssistant's trees and RewardBench 2; and RewardBench 1's pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from keel.files.fields import Neutral, Row, RowError, items, mapping, others, text
from keel.formats.judgments.base import (
    FIRST,
    Judged,
    as_chat,
    as_turns,
    becomes_chat,
    name_in,
    one_text,
    overall,
    ranks,
    read_instruction,
    sides,
    with_extra,
)
from keel.formats.messages import PROMPTER, read_message, role_of, texts_alone, without_fields
from keel.records import Answer, Judgment, Message, Origin, Ranking

# --- OpenAssistant trees

_NAMES = {"user": "prompter", "assistant": "assistant"}


def _nodes(root: Row) -> Iterator[tuple[list[Message], list[Row]]]:
    """Yield (the messages down to here, the replies) for every message with replies, parents first."""
    waiting = [(root, [_message(root)])]
    while waiting:
        node, path = waiting.pop()
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise RowError("replies is not a list of messages")
        if replies:
            yield path, replies
        waiting += [(reply, [*path, _message(reply)]) for reply in reversed(replies)]


def _message(node: Row) -> Message:
    role = role_of(node.get("role", "prompter"), PROMPTER)
    if role not in _NAMES:
        raise RowError("a message has a role that is neither prompter nor assistant")
    return read_message(role, text(node, "text"))


def _rank(reply: Row) -> int | None:
    """Return the rank of an assistant's reply, 0 the best; None if people gave none."""
    rank = reply.get("rank")
    if rank is None or reply.get("role") != "assistant":
        return None
    if isinstance(rank, float) and rank.is_integer():  # a table with gaps holds its whole numbers as floats
        rank = int(rank)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise RowError("a rank is not a whole number from 0")
    return rank


def _read_tree(row: Row, origin: Origin) -> list[Judgment]:
    """Read a ranking of the replies to each message with two or more ranked ones; the prompt is the whole path."""
    found, extra = [], others(row, ("prompt",))
    for path, replies in _nodes(mapping(row, "prompt")):
        ranked = [(rank, reply) for reply in replies if (rank := _rank(reply)) is not None]
        if len(ranked) > 1:
            answers = tuple(Answer(text(reply, "text"), model=name_in(reply, "model_name")) for _, reply in ranked)
            verdict = Ranking(tuple(rank + 1 for rank, _ in ranked))
            found.append(Judgment(path, answers, verdict, kind="person", extra=extra, origin=origin))
    if not found:
        raise Neutral("no two ranked replies")
    return found


def _unranked(row: Row) -> Iterator[str]:
    for _, replies in _nodes(mapping(row, "prompt")):
        ranked = [reply for reply in replies if _rank(reply) is not None]
        if len(ranked) == 1:
            yield "a reply is ranked alone"
        if len(ranked) > 1:
            yield from ("a reply beside ranked ones has no rank" for _ in range(len(replies) - len(ranked)))
        yield from (
            "a person's reply has a rank, left out"
            for reply in replies
            if reply.get("rank") is not None and reply.get("role") != "assistant"
        )


def _tree_prompt(row: Row) -> list[Message]:
    """Return the question at the root."""
    return [_message(mapping(row, "prompt"))]


def _write_tree(group: Sequence[Judgment]) -> list[Row]:
    """Return a tree for each first message, grown along the prompts; unranked messages on the way have no rank."""
    trees: dict[str, Row] = {}
    for judgment in sorted(overall(group), key=lambda j: len(as_turns(j.prompt))):
        places, turns = ranks(judgment), texts_alone(as_turns(judgment.prompt))
        if any(turn["role"] != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)) or len(turns) % 2 == 0:
            raise RowError("a tree alternates between user and assistant, the user first and last in a prompt")
        if turns[0]["content"] not in trees:
            root = {"text": turns[0]["content"], "role": "prompter", "replies": []}
            trees[turns[0]["content"]] = with_extra(judgment, {"prompt": root})
        node = trees[turns[0]["content"]]["prompt"]
        for turn in turns[1:]:
            node = _reply(node, turn)
        for answer, place in zip(judgment.answers, places, strict=True):
            reply = _reply(node, read_message("assistant", without_fields(answer)))
            if "rank" in reply:
                raise RowError("one answer is ranked twice, and a tree holds one ranking of each place")
            reply |= {"rank": place - 1} | ({"model_name": answer.model} if answer.model else {})
    return list(trees.values())


def _reply(node: Row, turn: Message) -> Row:
    """Return the reply with this text; add it if there is none."""
    replies: list[Row] = node["replies"]
    for reply in replies:
        if reply["text"] == turn["content"]:
            return reply
    made: Row = {"text": turn["content"], "role": _NAMES[turn["role"]], "replies": []}
    replies.append(made)
    return made


def _looks_like_a_tree(row: Row) -> bool:
    value = row.get("prompt")
    if isinstance(value, str):  # a CSV cell
        return value.startswith("{") and '"replies"' in value
    return isinstance(value, dict) and "replies" in value


# --- RewardBench 1

BENCH = frozenset(("prompt", "chosen", "chosen_model", "rejected", "rejected_model"))


def _read_bench(row: Row, origin: Origin) -> list[Judgment]:
    answers = (
        Answer(text(row, "chosen"), model=name_in(row, "chosen_model")),
        Answer(text(row, "rejected"), model=name_in(row, "rejected_model")),
    )
    return [Judgment(as_chat(text(row, "prompt")), answers, FIRST, extra=others(row, BENCH), origin=origin)]


def _write_bench(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        better, worse = sides(judgment)
        if not (judgment.extra or {}).get("subset"):
            raise RowError("no subset, by which RewardBench counts")
        row: Row = {"prompt": one_text(judgment.prompt), "chosen": without_fields(better)}
        row |= {"rejected": without_fields(worse)}
        row |= {"chosen_model": better.model, "rejected_model": worse.model}
        rows.append(with_extra(judgment, row))
    return rows


def _looks_like_bench(row: Row) -> bool:
    return all(isinstance(row.get(column), str) for column in ("prompt", "chosen", "rejected"))


# --- RewardBench 2

COUNTED = "num_correct", "num_incorrect", "total_completions"
BENCH2 = frozenset(("prompt", "chosen", "rejected", "models", *COUNTED))


def _read_bench2(row: Row, origin: Origin) -> list[Judgment]:
    """Read the correct answers at rank 1 and the wrong ones at rank 2; `models` names the writers in this order."""
    right, wrong = _texts(row, "chosen"), _texts(row, "rejected")
    models = _texts(row, "models") if row.get("models") else []
    if models and len(models) != len(right) + len(wrong):
        raise RowError("models are not as many as the answers")
    names = models or [""] * len(right + wrong)
    answers = tuple(Answer(answer, model=name) for answer, name in zip(right + wrong, names, strict=True))
    verdict = Ranking((1,) * len(right) + (2,) * len(wrong))
    return [Judgment(as_chat(text(row, "prompt")), answers, verdict, extra=others(row, BENCH2), origin=origin)]


def _texts(row: Row, column: str) -> list[str]:
    found = items(row, column)
    if not found:
        raise RowError(f"{column} is empty")
    return [text({column: item}, column) for item in found]


def _write_bench2(group: Sequence[Judgment]) -> list[Row]:
    rows = []
    for judgment in overall(group):
        places = ranks(judgment)
        if set(places) != {1, 2}:
            raise RowError("the ranks are not 1 for the right and 2 for the wrong answers")
        if not (judgment.extra or {}).get("subset"):
            raise RowError("no subset, by which RewardBench counts")
        placed = sorted(zip(places, judgment.answers, strict=True), key=lambda pair: pair[0])
        right = [without_fields(answer) for place, answer in placed if place == 1]
        wrong = [without_fields(answer) for place, answer in placed if place == 2]
        counts: dict[str, Any] = dict(zip(COUNTED, (len(right), len(wrong), len(placed)), strict=True))
        row = {"prompt": one_text(judgment.prompt), "chosen": right, "rejected": wrong} | counts
        if any(answer.model for _, answer in placed):
            row["models"] = [answer.model for _, answer in placed]
        rows.append(with_extra(judgment, row))
    return rows


def _looks_like_bench2(row: Row) -> bool:
    """Say whether `chosen` is a list of texts, which a CSV cell holds as JSON."""
    chosen = row.get("chosen")
    return isinstance(chosen, list) or (isinstance(chosen, str) and chosen.startswith("["))


RANKS = (
    Judged(
        "rewardbench",
        ("prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset"),
        _read_bench,
        _write_bench,
        read_instruction("prompt"),
        fits=_looks_like_bench,
        becomes=becomes_chat,
    ),
    Judged(
        "rewardbench-2",
        ("prompt", "chosen", "rejected", "num_correct"),
        _read_bench2,
        _write_bench2,
        read_instruction("prompt"),
        fits=_looks_like_bench2,
        becomes=becomes_chat,
    ),
    Judged(
        "oasst",
        ("prompt",),
        _read_tree,
        _write_tree,
        _tree_prompt,
        fits=_looks_like_a_tree,
        becomes=becomes_chat,
        remarks=_unranked,
    ),
)
