"""Safe HTML from the Markdown of prompts, answers and guidelines, whoever wrote it.

Two layers, each safe without the other. Markdown is parsed with raw HTML off, so that a tag in the text is shown as
text. Then only the tags and attributes of the tables below are let through. Nothing is loaded: an image is shown as
words. Nothing is hidden: a link shows its address, and reference definitions stay text.

Left out: colours in code, footnotes, formulas, links made from bare addresses.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

LONGEST = 100_000
"""Characters; longer text is shown unformatted, since parsing it as Markdown would take seconds."""
DEEPEST = 40
"""Levels of lists and quotations; the parser drops deeper levels, so such text is shown unformatted."""
SCHEMES = {"http", "https", "mailto"}

BLOCKS = {"p", "h3", "h4", "h5", "h6", "ul", "ol", "blockquote", "pre", "div"}
TAGS = (
    BLOCKS
    | {"a", "br", "code", "del", "em", "hr", "li", "span", "strong"}
    | {"table", "thead", "tbody", "tr", "th", "td"}
)
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
_SIDES = {"left", "center", "right"}
CLASSES = {"div": {"table"}, "pre": {"plain"}, "span": {"address", "image", "language"}, "th": _SIDES, "td": _SIDES}

_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    allowed_classes=CLASSES,
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    tag_attribute_values={tag: {"dir": {"auto"}} for tag in BLOCKS},
    set_tag_attribute_values={"a": {"target": "_blank"}},
    clean_content_tags={"script", "style"},
    strip_comments=True,
)


def to_html(text: str) -> str:
    """Return safe HTML for `text`; each outer block has its own text direction (`dir="auto"`).

    Inner blocks have none: to find the direction of a list, a browser skips items that have their own.
    Line breaks in a paragraph are kept, headings start at h3 (the page has its own above), links open a new tab.
    """
    text = sound(text)
    if len(text) > LONGEST:
        return _plain(text)
    tokens = _MARKDOWN.parse(text)
    if any(token.level >= DEEPEST - 1 for token in tokens):
        return _plain(text)
    return only_allowed(_markdown(tokens))


def sound(text: str) -> str:
    """Return the text with U+FFFD in place of lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def only_allowed(fragment: str) -> str:
    """Keep the tags and attributes of the tables above (the second layer); other tags go, their text stays."""
    return _CLEANER.clean(fragment)


def _plain(text: str) -> str:
    return f'<pre class="plain" dir="auto">\n{html.escape(text)}</pre>'  # a browser drops the first line break


# --- the first layer


def _markdown(tokens: list[Token]) -> str:
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        if token.level == 0 and token.nesting >= 0 and token.tag != "hr":
            token.attrSet("dir", "auto")
        side = str(token.attrs.pop("style", "")).removeprefix("text-align:")
        if side:  # the page's policy forbids inline styles
            token.attrSet("class", side)
        if token.children:
            token.children = list(_with_addresses(token.children))
    return str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def _with_addresses(inline: Sequence[Token]) -> Iterator[Token]:
    """Yield the parts of a paragraph; after each link and each image comes its address.

    A link without an address, `[words]()`, is shown as words.
    """
    address, said = "", ""
    for token in inline:
        if token.type == "link_open":
            address, said = str(token.attrs["href"]), ""
        said += token.content
        if address or token.type not in ("link_open", "link_close"):
            yield token
        if token.type == "link_close" and said.strip() not in (address, address.removeprefix("mailto:")):
            yield Token("address", "", 0, content=address)
        elif token.type == "image":
            yield Token("address", "", 0, content=str(token.attrs["src"]))


def _image(self: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: MutableMapping[str, Any]) -> str:
    words = self.renderInlineAsText(tokens[at].children or [], options, env)
    return f'<span class="image">[image: {html.escape(words)}]</span>'


def _address(self: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: MutableMapping[str, Any]) -> str:
    return f' <span class="address">({html.escape(tokens[at].content)})</span>'


def _fence(self: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: MutableMapping[str, Any]) -> str:
    info = html.escape(tokens[at].info.strip())
    language = f'<span class="language">{info}</span>' if info else ""
    return f'<pre dir="auto">{language}<code>{html.escape(tokens[at].content)}</code></pre>\n'


def _bracket(state: StateInline, silent: bool) -> bool:
    """Keep a backslash before a bracket: `\\(x\\)` is more often a formula than an escaped bracket."""
    piece = state.src[state.pos : state.pos + 2]
    if len(piece) < 2 or piece[0] != "\\" or piece[1] not in "()[]":
        return False
    if not silent:
        state.pending += piece
    state.pos += 2
    return True


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": DEEPEST})
    reader.enable(["table", "strikethrough"]).disable("reference")
    reader.inline.ruler.before("escape", "bracket", _bracket)
    reader.validateLink = _may_be_linked  # type: ignore[assignment, method-assign]
    for name, rule in {"image": _image, "address": _address, "fence": _fence}.items():
        reader.add_render_rule(name, rule)
    reader.add_render_rule("table_open", lambda *_: '<div class="table" dir="auto"><table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    reader.add_render_rule("s_open", lambda *_: "<del>")
    reader.add_render_rule("s_close", lambda *_: "</del>")
    return reader


def _may_be_linked(address: str) -> bool:
    """Say whether an address is one of the web or of mail; a link to any other stays text, as written."""
    try:
        return urlsplit(address).scheme in SCHEMES
    except ValueError:
        return False


_MARKDOWN = _reader()
