"""Markdown to HTML that can do no harm: whatever the text, only what is allowed comes out, by each of two layers."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keel.web import render
from keel.web.render import only_allowed, to_html

ALLOWED = {
    "a": {"href", "title", "rel", "target"}, "blockquote": {"dir"}, "br": set(), "code": set(), "del": set(),
    "div": {"class", "dir"}, "em": set(), "h3": {"dir"}, "h4": {"dir"}, "h5": {"dir"}, "h6": {"dir"}, "hr": set(),
    "li": set(), "ol": {"dir", "start"}, "p": {"dir"}, "pre": {"class", "dir"}, "span": {"class"}, "strong": set(),
    "table": set(), "tbody": set(), "td": {"class"}, "th": {"class"}, "thead": set(), "tr": set(),
    "ul": {"dir"},
}  # fmt: skip
CLASSES = {"table", "plain", "address", "image", "language", "left", "center", "right"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text, as the standard library reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl):
        raise AssertionError(f"a declaration: {decl!r}")


def harmless(fragment: str) -> Reader:
    """Reads a fragment; fails where it holds a tag, an attribute, a class or an address that is not allowed."""
    read = Reader(fragment)
    for tag, attributes in read.tags:
        assert attributes.get("dir", "auto") == "auto"
        assert tag in ALLOWED, tag
        assert set(attributes) <= ALLOWED[tag], (tag, attributes)
        assert not any(name.startswith("on") or name in ("style", "id", "src") for name in attributes)
        assert set((attributes.get("class") or "").split()) <= CLASSES
        if "href" in attributes:
            address = re.sub(r"[\x00-\x20]", "", attributes["href"] or "").lower()  # browsers skip these
            assert address.startswith(("http:", "https:", "mailto:")), address
    return read


PIECES = st.sampled_from(
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<a href='javascript:alert(1)'>", "<a href='ftp://a.example'>",
        "</pre>", "<!--",
        "-->", "[a](javascript:alert(1))", "[a](JaVaScRiPt:alert(1))", "[a](data:text/html;base64,AAAA)", "<b id=x>",
        "![a](http://a.example/x.png)", "![x](data:image/svg+xml,<svg>)", "[a](<http://a.example/\" onclick=\"x>)",
        "[a](java&#115;cript:alert(1))", "[a](\tjavascript:x)", "<javascript:alert(1)>", "[a](http://b.example 't')",
        "[r]: javascript:alert(1)", "[r]", "| a | b |\n|:-:|--:|\n| 1 | 2 |\n", "```js\n", "```", "`", "# ", "- ",
        "1. ",
        "> ", "\n", "\n\n", "    ", "**", "_", "~~", "&lt;script&gt;", "&#x3c;svg onload=x&#x3e;", "<svg/onload=x>",
        "<style>*{}</style>", "<![CDATA[", "<?php", "<!DOCTYPE html>", "\u202e", "שלום", "😀", "\x00", "\ud800", "\\",
        "[a](//a.example)", "[a](/admin)", "[a](#x)", "[a](http://[)", "<math><mtext><table><mglyph><style><img src=x>",
        "```\" onclick=\"x\n", "[![a](b)](http://c.example)", "</textarea>", "</template>",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=12), max_size=14).map("".join)


@given(TEXTS)
@settings(max_examples=600, deadline=None)
@example('[a](http://b.example "x\\" onclick=\\"y")')
def test_whatever_the_text_only_what_is_allowed_comes_out(text):
    harmless(to_html(text))


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_first_layer_alone_is_safe(text):
    """No tag of the text survives, and no link that is not a web or mail address; rel and dir come later."""
    text = text.encode("utf-8", "replace").decode()
    harmless(render._markdown(render._MARKDOWN.parse(text)))


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_second_layer_alone_is_safe(text):
    """Fed with the text as if it were HTML, and with HTML that Markdown with raw HTML on would make of it."""
    from markdown_it import MarkdownIt

    text = text.encode("utf-8", "replace").decode()
    harmless(only_allowed(text))
    harmless(only_allowed(MarkdownIt("commonmark", {"html": True}).render(text)))


FRAMES = [
    "{}", "# {}", "- {}", "> {}", "`{}`", "```\n{}\n```", "[{}](http://a.example)", "![{}](http://a.example)", "<{}>",
    "| {} |\n|--|\n| x |", "[{}]: http://a.example", "**{}**", "```{}\nx\n```", "<!-- {} -->",
]  # fmt: skip


@given(st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_no_word_is_lost(word):
    """Inside every construct the text itself is there to be read."""
    for frame in FRAMES:
        assert word in harmless(to_html(frame.format(word))).text, frame


# --- what it makes of Markdown


def test_a_paragraph_keeps_its_line_breaks_and_its_own_direction():
    assert to_html("one\ntwo\n\nשלום") == '<p dir="auto">one<br>\ntwo</p>\n<p dir="auto">שלום</p>\n'


def test_headings_begin_below_the_page_s_own():
    assert [tag for tag, _ in Reader(to_html("# a\n\n## b\n\n###### c")).tags] == ["h3", "h4", "h6"]


def test_a_link_is_marked_and_shows_where_it_leads():
    read = harmless(to_html('[the bank](https://evil.example/x?a=1&b=2 "trust me")'))
    (_, link) = next(found for found in read.tags if found[0] == "a")
    assert link["href"] == "https://evil.example/x?a=1&b=2"
    assert link["target"] == "_blank"
    assert set(link["rel"].split()) == {"noopener", "noreferrer", "nofollow"}
    assert "the bank (https://evil.example/x?a=1&b=2)" in read.text
    assert read.text.count("https") == 1
    same = harmless(to_html("<https://a.example/x> <me@a.example>"))
    assert same.text.strip() == "https://a.example/x me@a.example"


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "/admin", "x.html", "//a.example"]
)
def test_other_addresses_stay_text(address):
    read = harmless(to_html(f"[words]({address})"))
    assert [tag for tag, _ in read.tags] == ["p"]
    assert read.text.strip() == f"[words]({address})"


def test_a_link_to_nowhere_is_none():
    assert to_html("[words]()") == '<p dir="auto">words <span class="address">()</span></p>\n'


def test_an_image_is_words():
    read = harmless(to_html("![a *cat*](https://a.example/cat.png)"))
    assert "img" not in [tag for tag, _ in read.tags]
    assert read.text.strip() == "[image: a cat] (https://a.example/cat.png)"


def test_code_is_shown_as_it_stands():
    read = harmless(to_html("```python\n<b>if</b> a & b:\n    pass\n```\n\nand `<i>`"))
    assert "<b>if</b> a & b:\n    pass\n" in read.text
    assert "python" in read.text
    assert "<i>" in read.text


def test_a_table_has_its_cells_and_sides():
    read = harmless(to_html("| a | b |\n|--:|:-:|\n| 1 | 2 |"))
    cells = [(tag, attributes.get("class")) for tag, attributes in read.tags if tag in ("th", "td")]
    assert cells == [("th", "right"), ("th", "center"), ("td", "right"), ("td", "center")]


@pytest.mark.parametrize(
    "text",
    [
        r"so \(y = 2\) holds",
        r"\[ \frac{1}{x_i} \]",
        r"\(",
        r"a \] b \[",
        r"\\(x)",
        r"**\(y\)** \[no](https://a.example)",
    ],
)
def test_a_backslash_before_a_bracket_stays(text):
    shown = harmless(to_html(text))
    assert shown.text.strip() == text.replace("**", "").replace(r"\\(", r"\(")
    assert "a" not in [tag for tag, _ in shown.tags]


def test_other_escapes_and_links_with_brackets_are_markdown_s():
    assert harmless(to_html(r"\*a\* `\(b\)`")).text.strip() == r"*a* \(b\)"
    read = harmless(to_html(r"[a\]b](https://a.example/x\(y\))"))
    assert next(found["href"] for tag, found in read.tags if tag == "a") == "https://a.example/x(y)"


def test_strikethrough_and_numbered_lists():
    assert "<del>a</del>" in to_html("~~a~~")
    assert 'start="7"' in to_html("7. a\n8. b")


# --- what is long or deep


def test_long_text_is_shown_as_it_stands_and_fast():
    text = ("# no *heading* <script>alert(1)</script>\n" * 30_000)[:1_000_000]
    began = time.perf_counter()
    made = to_html(text)
    assert time.perf_counter() - began < 0.1
    read = harmless(made)
    assert [tag for tag, _ in read.tags] == ["pre"]
    assert read.text.removeprefix("\n") == text


def test_text_at_the_limit_is_still_markdown():
    assert to_html("*a*" + " " * (render.LONGEST - 3)).startswith('<p dir="auto"><em>')
    assert to_html("*a*" + " " * (render.LONGEST - 2)).startswith("<pre")


@pytest.mark.parametrize("mark", ["> ", "- ", "1. "])
def test_no_depth_of_nesting_loses_the_words(mark):
    """The reader drops what lies too deep without a word; such text is shown as it stands."""
    for depth in range(1, 60):
        assert "needle" in harmless(to_html(mark * depth + "needle")).text, depth


@pytest.mark.parametrize(
    "piece", ["[", "[a](b", "*a ", "a**bc* ", "![[]()", "a\n", "- a\n", "&", "~~a", "<a ", "|a", "`a``b"]
)
def test_text_made_to_be_slow_is_not(piece):
    began = time.perf_counter()
    harmless(to_html((piece * render.LONGEST)[: render.LONGEST]))
    assert time.perf_counter() - began < 15  # under 3 s where nothing else runs
