"""Chat templates that drop, move, trim, cut, raise or read the clock: what a row then becomes, and what is said of it.

The oracle for ids and texts is the library's rendering of the whole conversation as a string.
"""

from __future__ import annotations

import datetime
import re

import pytest
import transformers.utils.chat_template_utils as library
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from keel.data.prepare import tokenise
from keel.errors import InputError, RowFault
from keel.records import Demonstration, Origin, Pair, RowCounts
from keel.text.named_templates import NAMED, chat_template
from keel.text.template import DAY, Lost, Template, TemplateFault
from keel.text.tokenisation import Text
from keel.text.tokenizer_facts import facts_of, remarks_on

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", *sorted({token for _, needs in NAMED.values() for token in needs})]


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def s(text):
    return {"role": "system", "content": text}


# --- tokenizers of three kinds


def _trained(model, pre_tokenizer, decoder, alphabet=()):
    core = Tokenizer(model)
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoder
    corpus = ["the bear went home to the cave and read the news", "USER: yes ASSISTANT: no\n### Response:\nI am"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=list(alphabet), show_progress=False
    )
    core.train_from_iterator(corpus, trainer)
    return core


def _bytes(merged):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=merged)
    if merged:
        return _trained(models.BPE(), pre, decoders.ByteLevel(), alphabet)
    core = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate([*SPECIAL, *sorted(alphabet)])}, merges=[]))
    core.pre_tokenizer, core.decoder = pre, decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return core


def _sentencepiece(scheme):
    """As SentencePiece does it: a space before a text that stands alone, bytes for what it does not know."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    letters = [chr(i) for i in range(33, 127)] + ["▁", "é", "\n"]
    words = ["\n\n", "▁b", "ea", "▁bea", "▁bear", "in", "▁r", "ain", "▁rain", "he"]
    merges = [
        ("\n", "\n"),
        ("▁", "b"),
        ("e", "a"),
        ("▁b", "ea"),
        ("▁bea", "r"),
        ("i", "n"),
        ("▁", "r"),
        ("a", "in"),
        ("▁r", "ain"),
    ]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *bytes_, *letters, *words])}
    core = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[*merges, ("h", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIAL)
    return core


def tokenizer_of(core, template=None):
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    made.chat_template = template
    return made


def _prepending():
    """As the first conversions of Llama's tokenizer did it: a space before every text, and before it only."""
    core = _sentencepiece("never")
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


CORES = {
    "bytes": _bytes(False),
    "merged bytes": _bytes(True),
    "sentencepiece": _sentencepiece("first"),
    "older sentencepiece": _sentencepiece("always"),
    "prepending sentencepiece": _prepending(),
}


def text_with(template, core="bytes", control_tokens="text"):
    return Text(tokenizer_of(CORES[core], template), control_tokens=control_tokens)


# --- every template, conversation and tokenizer

FOLDS_SYSTEM = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' not in m.content %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '\n' }}{% endfor %}"
ENDLESS += "{% if add_generation_prompt %}[assistant]{% endif %}"
BARE = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
BARE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {name: template for name, (template, _) in NAMED.items()}
TEMPLATES |= {
    "folds the system turn": FOLDS_SYSTEM,
    "writes empty thoughts": THINKS,
    "has no end": ENDLESS,
    "tokens alone": BARE,
}
TRIMS = ("folds the system turn",)
NO_SYSTEM = ("gemma", "llama2", "mistral")

bits = st.sampled_from(
    ["bear", " ", "rain", "\n", "a", "assistant", "é", "🐻", "<", "|", "</s>", "<s>", "<|im_end|>", "<|eot_id|>",
     "user", "im_end|>", "<end_of_turn>", "\t", "[/INST]", "ASSISTANT:", "  ", ".", "{{ x }}", "<0x0A>", "▁"]
)  # fmt: skip
contents = st.lists(bits, min_size=1, max_size=6).map("".join).filter(str.strip)


@st.composite
def conversations(draw, with_system):
    turns = [s(draw(contents))] if with_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [u(draw(contents)), a(draw(contents))]
    return [*turns, u(draw(contents))]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_is_lost_no_token_is_forged_and_all_comes_back(name, data):
    core = data.draw(st.sampled_from(sorted(CORES)), "tokenizer")
    turns = data.draw(conversations(name not in NO_SYSTEM), "prompt")
    answer = data.draw(contents, "answer")
    text = text_with(TEMPLATES[name], core)
    if core != "bytes" and core != "merged bytes" and any("▁" in t["content"] for t in [*turns, a(answer)]):
        return  # SentencePiece reads its own sign for a space as a space
    prompt, completion = text.prompt_ids(turns), text.completion_ids(turns, answer)
    plain = text.tokenizer.apply_chat_template([*turns, a(answer)], tokenize=False)
    # the two are the rendering, as far as the end that the answer has in it
    decoded = _joined(text, prompt + completion[:-1])
    assert _without_signs(plain, core).startswith(_without_signs(decoded, core))
    assert completion[-1] in text.eos_ids
    assert text.eos_ids.isdisjoint(completion[:-1])
    # so are their ids, unless a merge crosses the boundary
    whole = text.tokenizer(plain, add_special_tokens=False).input_ids
    spelt = any(token in turn["content"] for turn in [*turns, a(answer)] for token in SPECIAL)
    if whole[: len(prompt)] == prompt and not spelt:
        assert whole[: len(prompt) + len(completion) - 1] == prompt + completion[:-1]
    # control tokens are those of the same conversation with harmless texts
    harmless = [{**turn, "content": "x"} for turn in turns]
    specials = set(text.tokenizer.all_special_ids) - {text.tokenizer.unk_token_id}
    seen = [i for i in prompt + completion if i in specials]
    expected = [i for i in text.prompt_ids(harmless) + text.completion_ids(harmless, "x") if i in specials]
    assert seen == expected
    # text -> tokens -> text -> tokens
    back = text.decode(completion, turns)
    whole_answer = answer.strip() if name in TRIMS else answer
    same_ids = core == "older sentencepiece" and answer.startswith(" ")  # with its first space or without
    assert back == whole_answer or (same_ids and back == whole_answer.removeprefix(" "))
    assert text.completion_ids(turns, back) == completion


def _joined(text, ids):
    return text.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _without_signs(text, core):
    """Older SentencePiece tokenizers write a space of their own behind every control token."""
    return re.sub(r" +", "", text) if "sentencepiece" in core else text


def test_an_answer_whose_tokens_do_not_give_it_back_is_said():
    """An older SentencePiece tokenizer reads it with its first space and without as the same tokens."""
    text = text_with(BARE, "older sentencepiece")
    for answer, said in (("bear", False), (" bear", True)):
        text.encode(Demonstration([u("q")], answer), 100, (notes := []).append)
        assert ("decoding an answer's tokens does not give its text back" in notes) == said


def test_what_stands_before_an_answer_decides_how_it_is_cut():
    """A tokenizer that looks behind: in `a:xy` the `x` stands alone, and in `xy` it does not."""
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*SPECIAL, *"axy:", "xy"])}, merges=[("x", "y")]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=:)x"), "isolated")
    text = Text(tokenizer_of(core))
    together = text.tokenizer("a:xy").input_ids
    assert text.prompt_ids("a:") + text.completion_ids("a:", "xy")[:-1] == together
    assert text.tokenizer.convert_ids_to_tokens(together) == ["a", ":", "x", "y"]
    assert text.tokenizer.convert_ids_to_tokens(text.completion_ids("a", "xy")[:-1]) == ["xy"]


# --- what templates do to turns

TWO_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}A: {{ m.content }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)


@pytest.mark.parametrize("role", ["critic", "context", "System", "function"])
def test_a_turn_of_a_role_that_is_passed_over_drops_its_row_by_name(role):
    """Also if its text stands elsewhere in the rendering, or is one letter that any template holds."""
    text = text_with(TWO_ROLES)
    for content in ("Be kind.", "Q", "Name a river."):
        turns = [{"role": role, "content": content}, u("Name a river.")]
        with pytest.raises(Lost, match=f"leaves out the {role} turn"):
            text.prompt_ids(turns)


def test_rows_are_counted_under_what_their_template_does():
    text = text_with(TWO_ROLES.replace("{% endif %}{% endfor %}", "{% else %}{{ raise_exception('who is ' + m.role) }}"
                                       "{% endif %}{% endfor %}"))  # fmt: skip
    rows = [
        Demonstration([u("Name a river.")], "Rhone.", Origin("f", 1)),
        Demonstration([{"role": "bard", "content": "x"}, u("Name a river.")], "Rhone.", Origin("f", 2)),
        Demonstration([{"role": "elf", "content": "x"}, u("Name a river.")], "Rhone.", Origin("f", 3)),
    ]
    counts = RowCounts(read=3, used=3)
    done, first = tokenise(rows, counts, text, 100)
    assert [row for row, _ in done] == rows[:1]
    assert counts.dropped == {
        "the chat template cannot render it: who is bard": (1, [2]),
        "the chat template cannot render it: who is elf": (1, [3]),
    }
    assert "who is bard" in first


@pytest.mark.parametrize(
    "broken", ["{{ messages[0].content.nothing.at_all }}", "{{ 1 / 0 }}", "{{ messages | unheard_of }}", "{% for %}"]
)
def test_whatever_a_template_raises_is_a_reason(broken):
    text = text_with(broken)
    with pytest.raises(TemplateFault, match=r"cannot render it: ."):
        text.prompt_ids([u("Name a river.")])


def test_an_answer_that_is_cut_is_not_trained_on_in_part():
    text = text_with(TWO_ROLES.replace("A: {{ m.content }}", "A: {{ m.content.split('###')[-1] }}"))
    assert text.decode(text.completion_ids([u("q")], "whole")) == "whole"
    with pytest.raises(Lost, match="cuts the answer"):
        text.completion_ids([u("q")], "why ### because")
    with pytest.raises(Lost, match="leaves out or changes the assistant turn"):
        text.prompt_ids([u("q"), a("why ### because"), u("r")])


def test_a_turn_that_is_moved_or_written_twice_is_said_or_found():
    moves = "{% for m in messages if m.role == 'system' %}[{{ m.content }}]{% endfor %}" + TWO_ROLES
    notes = []
    text_with(moves).encode(Demonstration([u("one"), s("be kind"), u("two")], "three"), 100, notes.append)
    assert notes.count("the chat template moves the system turn") >= 1


def test_a_turn_that_is_written_twice_is_said():
    twice = TWO_ROLES.replace("Q: {{ m.content }}", "Q: {{ m.content }} ({{ m.content }})")
    text_with(twice).encode(Demonstration([u("one")], "two"), 100, (notes := []).append)
    assert set(notes) == {"the chat template writes the user turn twice"}


def test_a_name_that_is_left_out_is_said():
    named = {**u("who am I?"), "name": "Alice"}
    text_with(TWO_ROLES).encode(Demonstration([named], "two"), 100, (notes := []).append)
    assert set(notes) == {"the name of a user turn is left out by the chat template"}
    writes = TWO_ROLES.replace("Q: ", "{{ m.name }}: ")
    text_with(writes).encode(Demonstration([named], "two"), 100, (notes := []).append)
    assert notes == []


@pytest.mark.parametrize("name", ["chatml", "gemma", "vicuna"])
def test_a_call_is_lost_although_its_words_stand_elsewhere(name):
    """Neither the question's words nor the answer's are those of the call, of the tool, or of the thinking."""
    text = text_with(TEMPLATES[name])
    call = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Cadiz"}}}
    asked = [u("tide: what is the tide in the port of Cadiz?")]
    for fields in ({"tool_calls": [call]}, {"reasoning_content": "high"}):
        with pytest.raises(Lost, match=r"a call of a tool|thinking"):
            text.completion_ids(asked, "tide port Cadiz: it is high", fields)
    with pytest.raises(Lost, match="a tool"):
        text.prompt_ids([{**asked[0], "tools": [{"type": "function", "function": {"name": "tide"}}]}])


def test_white_space_that_is_trimmed_is_said():
    text, notes = text_with(FOLDS_SYSTEM), []
    text.encode(Demonstration([u("  one ")], "two"), 100, notes.append)
    assert "white space around a turn is trimmed by the chat template" in notes
    text.encode(Demonstration([u("one")], "two"), 100, (quiet := []).append)
    assert quiet == []


def test_a_result_that_a_template_writes_as_json_is_found():
    tool = TWO_ROLES.replace(
        "{% endif %}{% endfor %}", "{% else %}R: {{ m.content | tojson }}\n{% endif %}{% endfor %}"
    )
    turns = [u("q"), a("look"), {"role": "tool", "content": 'the "tide"\nis high'}, u("so?")]
    text = text_with(tool)
    assert r"the \"tide\"\nis high" in text.render(turns)
    text.encode(Demonstration(turns, "yes"), 200, (notes := []).append)
    assert "a turn is written as JSON by the chat template" in notes


def test_a_role_cannot_spell_a_control_token():
    """`<|` + role + `|>` would be one, written by the data."""
    text = text_with("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    for role in ("im_end", "s", "<|im_end|>\n<|im_start|>system", "user\nsystem", ""):
        with pytest.raises(RowFault, match="part of a control token"):
            text.prompt_ids([u("hello"), {"role": role, "content": "x"}])
    assert "<|narrator|>it rains" in text.render([{"role": "narrator", "content": "it rains"}])


def test_names_inside_a_call_are_text_too():
    writes = TWO_ROLES.replace("A: {{ m.content }}", "A: {{ m.content }}{{ m.tool_calls | tojson }}")
    call = {"type": "function", "function": {"name": "f", "arguments": {"</s><s>": "x"}}}
    text = text_with(writes)
    ids = text.completion_ids([u("q")], "", {"tool_calls": [call]})
    assert [i for i in ids if i in text.tokenizer.all_special_ids] == [text.eos_id]


def test_calls_of_tools_are_rendered_or_drop_their_row():
    calls = [{"type": "function", "function": {"name": "tide", "arguments": '{"port": "Cadiz", "days": 3}'}}]
    turns = [u("High tide?"), {**a(""), "tool_calls": calls}, {"role": "tool", "content": "at six"}, u("So?")]
    with pytest.raises(Lost, match="a call of a tool"):
        text_with(TEMPLATES["chatml"].replace("{% else %}", "{% elif m.role == 'tool' %}{{ m.content }}{% else %}")
                  ).prompt_ids(turns)  # fmt: skip
    writes = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = text_with(writes)
    assert 'tide{"port": "Cadiz", "days": 3}' in text.render(turns)
    ids = text.completion_ids(turns[:1], "", {"tool_calls": calls})
    assert text.tokenizer.decode(ids) == 'tide{"port": "Cadiz", "days": 3}<|im_end|>'
    strings = text_with(writes.replace("c.function.arguments | tojson", "'' + c.function.arguments"))
    assert 'tide{"port": "Cadiz", "days": 3}' in strings.render(turns)  # a template that wants them as text


# --- ends


def test_the_end_is_what_the_template_writes_after_an_answer():
    """Not what the tokenizer calls its EOS: a base model's stands in its tokenizer, and no chat ends with it."""
    text = text_with(TEMPLATES["chatml"])
    end = text.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert text.eos_ids == {text.tokenizer.eos_token_id, end}
    assert text.completion_ids([u("q")], "yes")[-1] == end
    assert text.completion_ids("q", "yes")[-1] == text.tokenizer.eos_token_id
    drawn = [*text.completion_ids([u("q")], "yes"), *text.tokenizer("\n").input_ids, text.tokenizer.eos_token_id]
    assert text.decode(drawn, [u("q")]) == "yes"


@pytest.mark.parametrize("name", ["llama2", "has no end", "chatml"])
def test_an_answer_that_was_cut_has_nothing_of_the_template_behind_it(name):
    """Neither an end nor what stands before one, a space or a line break."""
    text = text_with(TEMPLATES[name])
    whole, cut = text.encode(Pair([u("q")], "no rain", "no rain", cut=(False, True)), 100).completions
    assert text.tokenizer.decode(cut.ids).endswith("no rain")
    assert whole.ids[: len(cut.ids)] == cut.ids
    assert len(whole.ids) > len(cut.ids)


def test_a_template_set_later_is_found():
    text = text_with(None)
    with pytest.raises(InputError, match="--chat-template"):
        text.prompt_ids([u("q")])
    text.tokenizer.chat_template = TEMPLATES["gemma"]
    assert text.completion_ids([u("q")], "yes")[-1] == text.tokenizer.convert_tokens_to_ids("<end_of_turn>")


def test_a_prompt_that_opens_the_answer_is_said():
    opens = TWO_ROLES.replace("{% if add_generation_prompt %}A: {% endif %}", "{% if add_generation_prompt %}"
                              "A: <think>\n{% endif %}")  # fmt: skip
    text = text_with(opens)
    rows = [Demonstration([u("q")], "yes")]
    with pytest.raises(RowFault, match="prefix"):
        text.completion_ids([u("q")], "yes")
    bundle = text.encode(rows[0].__class__("plain", "x"), 100)
    assert remarks_on(text, [bundle]) == []  # no chat
    bundle.prompt = [u("q")]
    assert "'<think>\\n'" in remarks_on(text, [bundle])[0]


# --- the clock

DATED = "{{ 'It is ' + strftime_now('%A, %d %B %Y, %H:%M') + '.\n' }}" + TWO_ROLES


def test_a_template_that_reads_the_clock_gets_a_fixed_day(monkeypatch):
    text = text_with(DATED)
    before = text.prompt_ids([u("q")])
    assert text.render([u("q")]).startswith("It is Friday, 26 July 2024, 12:00.\nQ: q")

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    monkeypatch.setattr(library, "datetime", Tomorrow)
    assert "2031" in text.tokenizer.apply_chat_template([u("q")], tokenize=False)  # else nothing is shown
    assert text.prompt_ids([u("q")]) == text_with(DATED).prompt_ids([u("q")]) == before
    assert facts_of(text)["template_day"] == DAY
    assert "template_day" not in facts_of(text_with(TWO_ROLES))


@pytest.mark.parametrize("code", ["%d", "%-d", "%e", "%m", "%b", "%B", "%Y", "%y", "%a", "%A", "%j", "%H", "%I", "%p",
                                  "%M", "%S", "%F", "%D", "%T", "%Y-%m-%dT%H:%M:%S", "%d %b %Y"])  # fmt: skip
def test_the_fixed_day_is_written_as_a_clock_would(code):
    template = Template(tokenizer_of(CORES["bytes"]), "{{ strftime_now(" + repr(code) + ") }}{{ messages[0].content }}")
    assert template.write([u("")], generate=False) == datetime.datetime(2024, 7, 26, 12).strftime(code)


@pytest.mark.parametrize("first", ["", "\n", "\n\n", "  "])
def test_the_fixed_day_changes_nothing_else_of_a_template(first):
    turns = [u("q")]
    plain = text_with(first + TWO_ROLES).tokenizer.apply_chat_template(turns, tokenize=False)
    dated = first + TWO_ROLES + "{{ strftime_now('%Y') }}"
    assert text_with(dated).render(turns, generate=False) == plain + "2024"


# --- templates by name


@pytest.mark.parametrize("name", NAMED)
def test_a_named_template_ends_its_answers_with_a_control_token(name):
    tokenizer = tokenizer_of(CORES["merged bytes"])
    tokenizer.chat_template = chat_template(name, tokenizer)
    text = Text(tokenizer)
    for turns in ([u("q")], [u("q"), a("r"), u("s")]):
        ids = text.completion_ids(turns, "yes")
        assert ids[-1] in text.eos_ids
        assert text.decode(ids, turns) == "yes"
        with pytest.raises(TemplateFault, match="no place for the role oracle"):
            text.prompt_ids([*turns, {"role": "oracle", "content": "x"}])


def test_of_several_templates_the_default_is_taken_and_that_for_tools_where_there_are_some():
    tools = [{"type": "function", "function": {"name": "tide"}}]
    several = {"default": TWO_ROLES, "tool_use": "{{ tools[0].function.name }}\n" + TWO_ROLES, "rag": DATED}
    text = text_with(several)
    assert text.render([u("q")]) == "Q: q\nA: "
    assert text.render([{**u("q"), "tools": tools}]) == "tide\nQ: q\nA: "
    assert text.completion_ids([u("q")], "yes")[-1] == text.eos_id


def test_a_named_template_needs_its_tokens_and_says_which_fit():
    tokenizer = tokenizer_of(Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3}, merges=[])))
    with pytest.raises(
        InputError, match=r"no token <\|im_start\|>, <\|im_end\|>; these fit it: llama2, mistral, vicuna"
    ):
        chat_template("chatml", tokenizer)
    assert chat_template("vicuna", tokenizer) == NAMED["vicuna"][0]


def test_a_template_comes_from_a_file_or_is_refused_in_one_line(tmp_path):
    tokenizer = tokenizer_of(CORES["bytes"])
    (tmp_path / "mine.jinja").write_text(TWO_ROLES)
    assert chat_template(str(tmp_path / "mine.jinja"), tokenizer) == TWO_ROLES
    with pytest.raises(InputError, match=r"nosuch: .*give a file with a template, or one of chatml, llama3"):
        chat_template("nosuch", tokenizer)
    tokenizer.chat_template = {"tools": TWO_ROLES, "rag": DATED}
    assert chat_template("rag", tokenizer) == DATED
    with pytest.raises(InputError, match="name one with --chat-template: rag, tools"):
        Text(tokenizer)
