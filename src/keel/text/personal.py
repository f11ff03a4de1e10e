"""Personal data in text: e-mail addresses, phone and card numbers, IBANs, IP addresses; found, counted and masked.

Patterns and checksums, no model: names, postal addresses and spelled-out addresses ("john at example dot com") are not
found. Nothing here needs an optional package, so that the same text is masked alike everywhere.

- E-mail: a name, @ or (at), a domain with a top level. Not `git@host`.
- Card: 13 to 19 digits that begin with 2 to 6, grouped as on a card or not at all, valid by Luhn.
- IBAN: the length of its country, valid by its checksum (mod 97).
- IP: version 4 or 6, public; private and local addresses identify nobody. Not after a word such as
  "version".
- Phone: + and a country code; forms that only phone numbers have (an area code in parentheses, groups of 3-3-4, groups
  with a leading 0); any 7 to 12 digits after a word such as "phone" or "call". Not dates, prices, versions or decimals.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Literal

_Kind = Literal["email", "iban", "card", "ip", "phone"]
_Span = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """Personal data of one kind at `text[start:end]`."""

    start: int
    end: int
    kind: _Kind


def find(text: str) -> list[Found]:
    """Return all personal data from left to right, without overlaps.

    Each finding is blanked and the text searched again until nothing is found, so that masking once is enough. A
    hundred rounds suffice, unless a hundred numbers are glued together by dashes or slashes.
    """
    found: list[Found] = []
    for _ in range(100):
        before = len(found)
        for kind, finder in _FINDERS:
            spans = list(finder(text))
            found += [Found(start, end, kind) for start, end in spans]
            text = _blank(text, spans)
        if len(found) == before:
            break
    return sorted(found)


def mask(text: str) -> tuple[str, Counter[str]]:
    """Return the text with `[email]`, `[phone]` … in place of personal data, and the count of each kind.

    Masking a masked text changes nothing.
    """
    parts, last = [], 0
    found = find(text)
    for item in found:
        parts += [text[last : item.start], f"[{item.kind}]"]
        last = item.end
    return "".join([*parts, text[last:]]), Counter(item.kind for item in found)


def texts_in(value: Any, name: str = "") -> Iterator[str]:
    """Yield every text and whole number in a JSON value, each after its key, which may say what the number is.

    A JSON text of an object, such as a call's arguments, is read as that object. Keys are names, not data.
    """
    value = _parsed(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_in(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner, name)
    elif _is_leaf(value):
        yield _head(name) + str(value)


def mask_in(value: Any, name: str = "") -> tuple[Any, Counter[str]]:
    """Return the value with its `texts_in` masked, and the count of each kind."""
    inside = _parsed(value)
    kinds: Counter[str] = Counter()
    masked: Any
    if isinstance(inside, dict):
        masked = {}
        for key, inner in inside.items():
            masked[key], found = mask_in(inner, key)
            kinds += found
        masked = json.dumps(masked, ensure_ascii=False) if isinstance(value, str) else masked
    elif isinstance(inside, list):
        masked = []
        for inner in inside:
            one, found = mask_in(inner, name)
            masked.append(one)
            kinds += found
    elif _is_leaf(inside):
        whole, kinds = mask(_head(name) + str(inside))
        masked = whole.removeprefix(_head(name))
    return (masked, kinds) if kinds else (value, kinds)


def _parsed(value: Any) -> Any:
    """Return the object that a JSON text holds; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _is_leaf(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _head(name: str) -> str:
    """Return a key as it is put before a text; empty if personal data, or what looks so, is found in the key itself."""
    return f"{name}: " if name and not find(f"{name}: ") else ""


def _blank(text: str, spans: list[_Span]) -> str:
    """Return a text of the same length with letters in brackets at `spans`: finders read these like a placeholder."""
    parts, last = [], 0
    for start, end in spans:
        parts += [text[last:start], "[", "x" * (end - start - 2), "]"]
        last = end
    return "".join([*parts, text[last:]])


# --- e-mail ---------------------------------------------------------------------------------------

_L = "A-Za-z0-9À-ɏ"  # Latin letters and digits only: in Chinese text, addresses have no spaces around them
_DOMAIN = re.compile(
    rf"@(?:[{_L}](?:[{_L}-]{{0,61}}[{_L}])?\.)+(?:xn--[a-z0-9-]{{2,59}}|[A-Za-z]{{2,24}})(?![{_L}_@]|-[{_L}])"
)
_NAME = re.compile(rf"(?<![{_L}_.%+'-])[.%+'-]*((?:[{_L}_%+'-]|\.(?!\.))+)(?<![.'])\Z")


_SPELT = re.compile(
    rf"(?<![{_L}_.%+-])[{_L}][{_L}_.%+-]* ?[\[(]at[\])] ?(?:[{_L}-]+ ?(?:\.|[\[(]dot[\])]) ?)+[A-Za-z]{{2,24}}\b"
)


def _emails(text: str) -> Iterator[_Span]:
    last = 0
    for domain in _DOMAIN.finditer(text) if "@" in text else ():
        name = _NAME.search(text, max(last, domain.start() - 65), domain.start())
        if name and name[1] != "git":
            last = domain.end()
            yield name.start(1), last


def _spelt_emails(text: str) -> Iterator[_Span]:
    if "at]" in text or "at)" in text:
        yield from (match.span() for match in _SPELT.finditer(text))


# --- IBANs and card numbers -----------------------------------------------------------------------

_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27"
        "GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22"
        "MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28"
        "TL23TN24TR26UA29VA22VG24XK20YE30",
    )
}
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ \xa0-]?[A-Za-z0-9])")
_SAME = r"[ \xa0-]"
_CARD = re.compile(
    rf"(?<![\w.,+-])(?:[2-6]\d{{12,18}}"
    rf"|[2-6]\d{{3}}(?P<s>{_SAME})\d{{4}}(?P=s)\d{{4}}(?P=s)\d{{1,4}}(?:(?P=s)\d{{1,3}})?"
    rf"|3\d{{3}}(?P<t>{_SAME})\d{{6}}(?P=t)\d{{4,5}})(?![\w-]|[.,]\d)",
    re.ASCII,
)


def _ibans(text: str) -> Iterator[_Span]:
    """Yield the IBANs. Words and numbers may follow one, so the country's length decides its end."""
    place = 0
    while start := _IBAN.search(text, place):
        place = start.end()
        whole = _of_length(_IBAN_LENGTHS.get(start[0][:2].upper(), 0)).match(text, start.start())
        if whole and _mod97(re.sub(_SAME, "", whole[0])) == 1:
            place = whole.end()
            yield whole.span()


@cache
def _of_length(count: int) -> re.Pattern[str]:
    """Return a pattern of `count` letters and digits, grouped or not; for 0 it matches nothing."""
    return re.compile(rf"[A-Za-z0-9](?:{_SAME}?[A-Za-z0-9]){{{count - 1}}}(?![A-Za-z0-9])" if count else r"(?!)")


def _mod97(iban: str) -> int:
    """Return the checksum of ISO 13616: first four characters moved to the end, letters as 10 to 35, modulo 97."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97


def _cards(text: str) -> Iterator[_Span]:
    for card in _CARD.finditer(text):
        digits = [int(c) for c in card[0] if c.isdigit()]
        if 13 <= len(digits) <= 19 and _luhn(digits) and len(set(digits)) > 1:
            yield card.span()


def _luhn(digits: list[int]) -> bool:
    """Say whether digits pass Luhn: double every second one from the right; the sum of all digits must end in 0."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# --- IP addresses ---------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")  # 2000::/3
_VERSION = re.compile(r"\b(?:v|version|release|section|chapter|build|firmware)[\s.:]*\Z", re.IGNORECASE)


def _ipv6s(text: str) -> Iterator[_Span]:
    return (match.span() for match in _IPV6.finditer(text) if _public(IPv6Address, match[0]))


def _ipv4s(text: str) -> Iterator[_Span]:
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if _public(IPv4Address, match[0]) and not _VERSION.search(before):
            yield match.span()


def _public(kind: type[IPv4Address] | type[IPv6Address], written: str) -> bool:
    try:
        return kind(written).is_global
    except AddressValueError:
        return False


# --- phone numbers --------------------------------------------------------------------------------

_COUNTRY = (
    r"(?:7|2(?:[07]|[1-69]\d)|3(?:[0-469]|[578]\d)|4(?:[013-9]|2[013])|5(?:[1-8]|[09]\d)|6(?:[0-6]|[7-9]\d)"
    r"|8(?:[1246]|[0578]\d)|9(?:[0-58]|[679]\d))"
)
"""Codes of all countries, except 1 (North America)."""
_S = r"[ \xa0.\-‐‑–]"
_P = r"(?:[ \xa0.\-‐‑–/]|[ \xa0]?\(|\)[ \xa0\-]?)?"
_FORMS = (
    rf"(?P<abroad>(?:\+|00) ?\(?(?:1{_P}[2-9]\d\d{_P}[2-9]\d\d{_P}\d{{4}}|{_COUNTRY}(?:{_P}\d){{5,13}}))",
    rf"(?P<area>(?:[18]{_S}?)?\(\d{{2,5}}\) ?(?:\d{_S}?){{4,8}}\d)",  # (030) 123456, 8 (912) 345-67-89
    rf"(?P<north_america>(?:1{_S})?[2-9]\d\d{_S}[1-9]\d\d{_S}\d{{4}})",
    rf"(?P<trunk>0[1-9]\d{{0,4}}(?: ?/ ?|{_S})(?:\d{_S}?){{3,9}}\d|0[1-9]\d{{8,9}})",  # 01632 960983, 0171/1234567
    rf"(?P<grouped>[89]\d \d{{3}} \d\d \d\d|[6-9]\d\d \d\d \d\d \d\d|1[3-9]\d{_S}\d{{4}}{_S}\d{{4}}"  # Spain, China
    rf"|8{_S}\d{{3}}{_S}\d{{3}}{_S}\d\d{_S}\d\d|555-\d{{4}})",  # Russia, films
    rf"(?P<called>(?:\d{_S}?){{6,11}}\d(?!,\d))",
)
_PHONE = re.compile(
    r"(?<![\w#$€£¥=/@+\\])(?<!\d[.:\-–])"
    rf"(?:{'|'.join(_FORMS)})(?:,? ?(?:ext\.?|x) ?\d{{1,5}})?"
    r"(?!\w|[.:/\-–]\d| ?[%°€£$¥])",
    re.ASCII,
)
_DIGITS = re.compile(r"[+(]{0,2}[0-9](?:[ \xa0().\-‐‑–/]{0,3}[0-9]){6,}")
_DATE = re.compile(
    r"(?:\d{1,2}([./-])\d{1,2}\1(?:\d\d)?\d\d|\d{4}([./-])\d{1,2}\2\d{1,2}|[12]\d{3}\D+[12]\d{3})(?![\d./-])"
)
_CALLED = re.compile(
    r"(?:(?<!\w)(?:tel|phone|telephone|cellphone|cell|mobile|landline|fax|whatsapp|sms|call|ring|dial|text me"
    r"|reach me|telefon|handy|mobil|rufe?|anruf|t[ée]l[ée]phone|portable|appel\w*|tel[ée]fono|m[óo]vil|celular"
    r"|ll[áa]ma\w*|cellulare|telefone|chiama\w*|тел|телефон|звон\w*)\b|电话|手机|電話)[^\[\]\d]{0,25}\Z",
    re.IGNORECASE,
)
_RUN = "01234567890123456789"


def _phones(text: str) -> Iterator[_Span]:
    place = last = 0
    for digits in _DIGITS.finditer(text):
        place, end = max(place, digits.start()), digits.end() + 14  # an extension may follow
        while (match := _PHONE.search(text, place, end)) and match.start() < digits.end():
            place = match.start() + 1
            if _is_phone(match, text[max(last, match.start() - 48) : match.start()]):
                place = last = match.end()
                yield match.span()


def _is_phone(match: re.Match[str], before: str) -> bool:
    """Say whether a match of a phone number's form can be one; `before` is the text back to the last one found."""
    form = str(match.lastgroup)
    written = match[form]
    digits = re.sub(r"\D", "", written)
    counting = digits == written and (digits in _RUN or digits in _RUN[::-1])
    if counting or len(set(digits)) == 1 or _DATE.match(written):
        return False
    if form == "abroad":
        return 8 <= len(digits.removeprefix("00")) <= 15
    if re.fullmatch(r"[\d ]+", written) and re.search(r"\d \Z", before):
        return False  # the tail of a longer sequence of numbers
    row_of_pairs = len(digits) != 10 and re.fullmatch(r"(\d\d\W)+\d\d", written) is not None
    sure = 9 <= len(digits) <= 12 and not row_of_pairs if form == "trunk" else form != "called"
    return sure or _CALLED.search(before) is not None


_FINDERS: tuple[tuple[_Kind, Callable[[str], Iterator[_Span]]], ...] = (
    ("email", _emails),
    ("email", _spelt_emails),
    ("iban", _ibans),
    ("card", _cards),
    ("ip", _ipv6s),
    ("ip", _ipv4s),
    ("phone", _phones),
)
"""Finders in the order in which they run: a card number must not become a phone number."""
