"""The pages in a real browser: all by keyboard, nothing lost and nothing doubled, no script of a text ever runs."""

from __future__ import annotations

import re
import time

import pytest
import sqlalchemy as sa
from tests.web.served import PATIENCE

from keel.annotation.tasks import NewTask
from keel.guidelines import Rubric
from keel.records import Answer, Preference, Ranking, Score
from keel.store.schema import turns

pytestmark = pytest.mark.browser

THREE = Rubric(
    (
        ("helpfulness", "Which answer helps more? Weigh what was asked."),
        ("truth", "Which answer says fewer things that are not so? Look up what you doubt."),
        ("style", "Which answer reads better? Clear, short, in order."),
    )
)
CHAT = [
    {"role": "system", "content": "You are a patient teacher."},
    {"role": "user", "content": "What do plants eat?"},
    {"role": "assistant", "content": "They make their own food."},
    {"role": "user", "content": "How does that work? Add a bit of code."},
]
RICH = """Photosynthesis turns light into **chemical** energy.

1. Light reactions split water.
2. The Calvin cycle fixes carbon dioxide.

> Plants are the lungs of the planet.

| Stage | Where | Makes |
|:--|:-:|--:|
| Light | thylakoid | ATP |

```python
def glucose(carbon_dioxide: int, water: int) -> int:  # a line that is much too long for any column of this page
    return min(carbon_dioxide, water) // 6
```

See [the article](https://en.wikipedia.org/wiki/Photosynthesis) and ![a leaf](https://pictures.example/leaf.png).
"""
LONG = "\n\n".join(f"Paragraph {i} of a long answer. " * 6 for i in range(40))


def pairs(count):
    return [NewTask(f"prompt {i}", (Answer(f"alpha {i}"), Answer(f"beta {i}"))) for i in range(count)]


def ranking(count=4):
    return NewTask("Name a good dog.", tuple(Answer(f"dog {i}") for i in range(count)), kind="ranking")


def texts(page):
    """The answers as shown, in order."""
    return [text.strip() for text in page.locator(".answer .body").all_inner_texts()]


def until(page, condition, seconds=PATIENCE):
    """Until the JavaScript condition holds; asked from outside, since the page's policy forbids eval."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def wait_for_other(page, shown):
    """Until another task than the one whose answers are `shown` is there, or none."""
    end = time.monotonic() + PATIENCE
    while page.evaluate("document.body.classList.contains('busy')") or (
        page.is_visible("#task") and texts(page) == shown
    ):
        assert time.monotonic() < end, "the task did not change"
        page.wait_for_timeout(20)


def submit(page, *keys):
    """Press the keys, of which the last one submits; what was shown."""
    shown = texts(page)
    for key in keys:
        page.keyboard.press(key)
    wait_for_other(page, shown)
    return shown


def chosen(page):
    """Keys of the choices that are marked, row by row; "" where none is."""
    return page.locator(".row").evaluate_all("rows => rows.map(row => row.querySelector(':checked')?.value ?? '')")


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


# --- signing in


def test_signing_in_by_the_field(serve, visit, shot):
    page = visit(serve(pairs(1)), None, failures=True)
    assert focused(page) == "token"
    page.keyboard.press("Enter")
    assert page.inner_text("#problem") == "Paste your token first."
    page.keyboard.type("keel-wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('problem').textContent.includes('token is not valid')")
    assert focused(page) == "token"
    assert page.get_attribute("#token", "aria-invalid") == "true"
    shot(page, "sign-in-refused")


def test_signing_in_after_a_wrong_token(serve, visit):
    server = serve(pairs(1))
    page = visit(server, None, failures=True)
    page.fill("#token", "keel-wrong")
    page.click("#go")
    until(page, "document.getElementById('problem').textContent !== ''")
    page.fill("#token", f"  {server.tokens['ana']} ")
    page.click("#go")
    page.wait_for_selector("#task:not([hidden])")


def test_before_its_script_runs_the_page_sends_no_token(serve, visit):
    """A form that the browser sends itself would put the token into the address, and so into logs."""
    server = serve(pairs(1))
    page = visit(server, None, failures=True)
    page.route("**/sign_in.js", lambda route: route.abort())
    page.reload()
    page.fill("#token", server.tokens["ana"])
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert page.url == server.url + "/"
    assert page.input_value("#token") == server.tokens["ana"]


def test_a_token_in_the_fragment_signs_in_and_stays_nowhere(serve, visit):
    server = serve(pairs(1))
    page = visit(server, "ana")
    assert page.url == server.url + "/"
    kept = page.evaluate("JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])")
    assert server.tokens["ana"] not in kept
    page.go_back()
    assert "token" not in page.url


def test_a_wrong_token_in_the_fragment_leaves_the_address(serve, visit):
    server = serve(pairs(1))
    page = visit(server, None, at="/#token=keel-wrong", failures=True)
    until(page, "document.getElementById('problem').textContent !== ''")
    assert page.url == server.url + "/"


def follow(page, server, token, by):
    """Put a personal link into the address bar of an open page, or load it."""
    if by == "bar":
        page.evaluate("hash => { location.hash = hash; }", f"token={token}")
    else:
        page.goto("about:blank")
        page.goto(f"{server.url}/#token={token}")


def words(page, selector):
    """Until something is said there, in sight; what it is."""
    page.wait_for_selector(f"{selector}:not([hidden]):not(:empty)")
    return page.inner_text(selector).strip()


@pytest.mark.parametrize("by", ["bar", "load"])
def test_the_link_of_another_makes_the_page_theirs(serve, visit, shot, by):
    server = serve(pairs(3))
    page = visit(server, "ana")
    submit(page, "2", "Enter")
    page.keyboard.press("6")  # begun by ana: nothing of it is kept for ben
    follow(page, server, server.tokens["ben"], by)
    page.wait_for_selector("body[data-name=ben] #task:not([hidden])")
    assert words(page, "#notice-text") == "You are signed in as ben."
    shot(page, f"link-{by}")
    assert page.evaluate("sessionStorage.length") == 0
    assert page.url == server.url + "/"
    assert chosen(page) == [""]
    submit(page, "6", "Enter")
    assert not page.is_visible("#notice")
    assert [one.verdict for one in server.said("ana")] == [Preference("first", 2)]
    assert [one.verdict for one in server.said("ben")] == [Preference("second", 2)]
    kept = page.evaluate("JSON.stringify([location.href, {...localStorage}, {...sessionStorage}])")
    assert server.tokens["ben"] not in kept
    for _ in range(page.evaluate("history.length") - 1):
        page.go_back()
        assert "token" not in page.url


@pytest.mark.parametrize("by", ["bar", "load"])
def test_a_wrong_link_leaves_who_is_signed_in(serve, visit, by):
    server = serve(pairs(2))
    page = visit(server, "ana", failures=True)
    shown = texts(page)
    page.keyboard.press("2")
    follow(page, server, "keel-wrong", by)
    said = words(page, "#notice-text")
    assert said == "This token is not valid; ask for a new one (keel raters add). You are still ana."
    assert page.url == server.url + "/"
    assert (texts(page), chosen(page)) == (shown, ["2"])
    submit(page, "Enter")
    assert len(server.said()) == 1


def test_a_link_put_into_the_bar_of_the_other_pages(serve, visit):
    """On the page for signing in, and on the team's."""
    server = serve(pairs(2))
    page = visit(server, None, failures=True)
    follow(page, server, "keel-wrong", "bar")
    assert words(page, "#problem").startswith("this token is not valid")
    follow(page, server, server.tokens["eva"], "bar")
    page.wait_for_selector("body[data-name=eva] #task:not([hidden])")
    assert page.url == server.url + "/"
    page.goto(server.url + "/admin")
    page.wait_for_selector("#raters tr")
    follow(page, server, "keel-wrong", "bar")
    assert words(page, "#link-problem").endswith("You are still eva.")
    assert page.url == server.url + "/admin"
    follow(page, server, server.tokens["ana"], "bar")
    page.wait_for_selector("body[data-name=ana] #task:not([hidden])")


def test_the_whole_link_can_be_pasted(serve, visit):
    server = serve(pairs(1))
    page = visit(server, None)
    page.fill("#token", f" {server.url}/#token={server.tokens['ana']} ")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-name=ana] #task:not([hidden])")


def test_signing_out_leaves_nothing_behind(serve, visit):
    page = visit(serve(pairs(1)))
    page.keyboard.press("2")
    assert page.evaluate("sessionStorage.length") == 1
    page.click("#sign-out")
    page.wait_for_selector("#token")
    assert page.evaluate("sessionStorage.length") == 0


# --- verdicts by keyboard


PAIR_KEYS = {
    "1": Preference("first", 3), "2": Preference("first", 2), "3": Preference("first", 1), "4": Preference("tie"),
    "5": Preference("second", 1), "6": Preference("second", 2), "7": Preference("second", 3),
    "0": Preference("both_bad"),
}  # fmt: skip


def test_a_session_of_pairs_by_number_keys(serve, visit, shot):
    """Each key means what it says, of the sides as they are shown; Enter and the key again both submit."""
    server = serve(pairs(8))
    page = visit(server)
    expected = {}
    for at, (key, verdict) in enumerate(PAIR_KEYS.items()):
        shown = submit(page, key, "Enter" if at % 2 else key)
        expected[tuple(shown)] = verdict
    page.wait_for_selector("#nothing:not([hidden])")
    shot(page, "nothing-left")
    assert {tuple(a.text for a in one.answers): one.verdict for one in server.said()} == expected
    assert all(0 < one.seconds < 60 for one in server.said())
    assert page.inner_text("#mine") == "8"
    page.wait_for_timeout(2100)  # the team's count may be two seconds old
    page.click("#again")
    until(page, "document.getElementById('team').value === 8")


def test_one_press_or_a_held_key_submits_nothing(serve, visit):
    server = serve(pairs(2))
    page = visit(server)
    page.keyboard.press("2")
    for _ in range(5):
        page.keyboard.down("6")  # held: the browser repeats it
    page.keyboard.up("6")
    page.wait_for_timeout(300)
    assert chosen(page) == ["6"]
    assert server.said() == []
    page.keyboard.down("Enter")
    for _ in range(8):
        page.keyboard.down("Enter")
        page.wait_for_timeout(80)
    page.keyboard.up("Enter")
    assert len(server.said()) == 1
    assert page.inner_text("#hint") == ""  # nor does a held Enter ask for a choice on the next task


def test_enter_without_a_choice_asks_for_one(serve, visit):
    server = serve(pairs(1))
    page = visit(server)
    page.keyboard.press("Enter")
    assert page.inner_text("#hint") == "Choose first"
    assert page.evaluate("document.activeElement.type") == "radio"
    assert server.said() == []


def test_several_dimensions_by_keyboard(serve, visit, shot):
    """A number acts on the active row and goes on to the next one; arrows go back; Enter waits for all."""
    server = serve(pairs(1), rubric=THREE)
    page = visit(server)
    page.keyboard.press("2")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    assert page.inner_text("#hint") == "Choose for style first"
    shot(page, "dimensions")
    page.keyboard.press("7")
    page.keyboard.press("ArrowUp")  # back to truth
    page.keyboard.press("5")
    assert chosen(page) == ["2", "5", "7"]
    page.keyboard.press("7")  # the same again does not submit where there are several rows
    page.wait_for_timeout(200)
    assert server.said() == []
    submit(page, "Enter")
    assert {one.dimension: one.verdict for one in server.said()} == {
        "helpfulness": Preference("first", 2), "truth": Preference("second", 1), "style": Preference("second", 3),
    }  # fmt: skip


def active(page):
    """The number of the row on which keys act."""
    return page.locator(".row").evaluate_all("rows => rows.findIndex(row => row.classList.contains('active'))")


@pytest.mark.parametrize("kind", ["pair", "score", "ranking"])
def test_up_and_down_go_between_rows_from_anywhere(serve, visit, kind):
    """From where a task begins, from a button and from within the rows; in a text that scrolls they scroll it."""
    server = serve([NewTask("p", tuple(Answer(LONG + c) for c in "ab"[: 1 + (kind != "score")]), kind)], rubric=THREE)
    page = visit(server)
    assert (focused(page), active(page)) == ("title", 0)
    for key, row in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowDown", 2), ("ArrowUp", 1)):
        page.keyboard.press(key)
        assert active(page) == row
    assert not any(chosen(page))
    page.focus("#skip")
    page.keyboard.press("ArrowUp")
    assert active(page) == 0
    page.focus(".answer .body")
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('.answer .body').scrollTop > 20")
    assert active(page) == 0


def test_a_number_goes_on_wherever_the_row_is_not_the_last(serve, visit):
    """So that all rows are answered anew by as many keys, after undo as well."""
    server = serve(pairs(2), rubric=THREE)
    page = visit(server)
    submit(page, *"704", "Enter")
    page.keyboard.press("u")
    until(page, "document.querySelectorAll('.row :checked').length === 3")
    for key in "777":
        page.keyboard.press(key)
    assert chosen(page) == ["7", "7", "7"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    for key, row in (("1", 1), ("4", 2), ("0", 2)):
        page.keyboard.press(key)
        assert active(page) == row
    submit(page, "Enter")
    assert [one.verdict.outcome for one in server.said()] == ["first", "tie", "both_bad"]


def test_the_focus_stands_where_the_choice_is(serve, visit):
    page = visit(serve(pairs(1)))
    page.keyboard.press("Enter")  # choose first: the focus is on a choice
    page.keyboard.press("4")
    assert page.evaluate("document.activeElement.value") == "4"


def test_a_verdict_by_tab_arrows_and_space_alone(serve, visit):
    """With single keys switched off, as those who speak to their computer need it, numbers and letters do nothing."""
    server = serve(pairs(1))
    page = visit(server)
    page.keyboard.press("?")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("s")
    assert chosen(page) == [""]
    assert page.locator("kbd:visible").all_inner_texts() == ["Enter"]  # no key is shown that does nothing
    page.focus(".choice input")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == ["2"]
    submit(page, "Enter")
    assert [one.verdict for one in server.said()] == [Preference("first", 2)]


@pytest.mark.parametrize("rubric", [None, THREE], ids=["one", "three"])
def test_scores_by_keyboard(serve, visit, shot, rubric):
    tasks = [NewTask("Explain plants.", (Answer(RICH),), kind="score")]
    server = serve(tasks, **({"rubric": rubric} if rubric else {}))
    page = visit(server)
    assert page.locator(".choice").count() == (15 if rubric else 5)
    page.keyboard.press("7")  # no such score
    assert not any(chosen(page))
    for key in "154" if rubric else "4":
        page.keyboard.press(key)
    shot(page, f"score-{'three' if rubric else 'one'}")
    submit(page, "Enter")
    said = {one.dimension: one.verdict for one in server.said()}
    assert said == (
        {"helpfulness": Score(1), "truth": Score(5), "style": Score(4)} if rubric else {"overall": Score(4)}
    )


# keys, and the ranks that the moves make: up is out of a tie, or into a tie with those above
RANKINGS = [
    ("wxyz", (1, 2, 3, 4)), ("zyxw", (4, 3, 2, 1)), ("y", (2, 2, 1, 2)), ("yy", (2, 2, 1, 2)), ("yz", (3, 3, 1, 2)),
    ("yzz", (2, 2, 1, 1)), ("W", (2, 1, 1, 1)), ("wW", (1, 1, 1, 1)), ("=", (1, 1, 1, 1)), ("wx=", (1, 1, 1, 1)),
    ("yY", (1, 1, 1, 1)), ("xwW", (2, 1, 2, 2)), ("xwWW", (3, 1, 2, 2)),
]  # fmt: skip


def test_rankings_by_letters(serve, visit):
    """Each sequence of keys makes the ranks that it should; what was made before is no part of it."""
    server = serve([ranking()])
    for keys, expected in RANKINGS:
        page = visit(server)
        assert page.inner_text(".rank >> nth=0") == "–"
        for key in keys:
            page.keyboard.press(f"Shift+{key}" if key.isupper() else key)
        made = tuple(int(text) for text in page.locator(".place .rank").all_inner_texts())
        assert made == expected, keys


def test_a_ranking_is_stored_as_shown(serve, visit, shot):
    server = serve([ranking()])
    page = visit(server)
    page.keyboard.press("Enter")
    assert page.inner_text("#hint") == "Choose first"  # all equal at the start is no verdict
    assert server.said() == []
    for key in "yx":
        page.keyboard.press(key)
    shot(page, "ranking")
    assert [page.inner_text(f".answer.place-{at} .badge") for at in range(4)] == [
        "rank 3",
        "rank 2",
        "rank 1",
        "rank 3",
    ]
    shown = submit(page, "Enter")
    (one,) = server.said()
    assert one.verdict == Ranking((3, 2, 1, 3))
    assert [answer.text for answer in one.answers] == shown


def test_a_ranking_by_buttons(serve, visit):
    server = serve([ranking(3)])
    page = visit(server)
    page.click("button[aria-label='Move Z up']")
    page.click("button[aria-label='Move X down']")
    assert page.inner_text(".order") == "Z › Y › X"
    page.click("#submit")
    page.wait_for_selector("#nothing:not([hidden])")
    assert [one.verdict for one in server.said()] == [Ranking((3, 2, 1))]


def test_enter_submits_from_a_button_of_the_ranking(serve, visit):
    """Space presses the button on which the focus is, as often as it comes; Enter submits, as the legend says."""
    server = serve([ranking(3)])
    page = visit(server)
    page.click("button[aria-label='Move Y up']")
    page.focus("button[aria-label='Move Z down']")
    page.keyboard.press("Space")
    assert page.inner_text(".order") == "Y › X › Z"
    page.keyboard.press("Space")
    page.keyboard.press("Shift+X")
    assert page.inner_text(".order") == "Y › X = Z"
    submit(page, "Enter")
    assert [one.verdict for one in server.said()] == [Ranking((2, 1, 2))]


def test_a_ranking_is_typed_as_the_legend_says(serve, visit, shot):
    server = serve([ranking(3)])
    page = visit(server)
    assert page.inner_text("#hint") == "Type the letters, best first; a letter again ties it with the one before"
    page.keyboard.press("?")
    shot(page, "keys-ranking")
    legend = dict(
        zip(page.locator("#legend dt").all_inner_texts(), page.locator("#legend dd").all_inner_texts(), strict=True)
    )
    legend = {re.sub(r"\s+", "", keys): said for keys, said in legend.items()}
    assert legend["XYZ"] == "type them in your order, the best answer first; those left out share the last place"
    assert legend["ZZ"].startswith("a letter once more ties it with the one before")
    page.keyboard.press("Escape")
    for keys, order in (("yx", "Y › X › Z"), ("x", "X = Y › Z"), ("=", "X = Y = Z"), ("z", "Z › X = Y")):
        for key in keys:
            page.keyboard.press(key)
        assert page.inner_text(".order") == order
    assert page.inner_text("#hint") == ""


def test_a_comment_goes_with_the_verdict(serve, visit, shot):
    """Letters and numbers are text there; Ctrl+Enter submits from there."""
    server = serve(pairs(1))
    page = visit(server)
    for key in ("6", "c"):
        page.keyboard.press(key)
    page.keyboard.type("2 sources, uncited; shows a flaw?")
    page.keyboard.press("Enter")
    page.keyboard.type("so")
    shot(page, "comment")
    submit(page, "Control+Enter")
    (one,) = server.said()
    assert one.comment == "2 sources, uncited; shows a flaw?\nso"
    assert one.verdict == Preference("second", 2)


# --- two at once


def test_two_raters_share_the_work(serve, visit):
    """Each presses keys while the other's verdict is on its way: no task is before both, none is judged twice."""
    server = serve(pairs(9))
    ana, ben = visit(server, "ana"), visit(server, "ben")
    while ana.is_visible("#task") and ben.is_visible("#task"):
        shown = [texts(page) for page in (ana, ben)]
        assert not set(shown[0]) & set(shown[1])
        for page, key in ((ana, "2"), (ben, "6")):
            page.keyboard.press(key)
        for page in (ana, ben):
            page.keyboard.press("Enter")
        for page, before in zip((ana, ben), shown, strict=True):
            wait_for_other(page, before)
    for page in (ana, ben):
        if page.is_visible("#task"):
            submit(page, "2" if page is ana else "6", "Enter")
    said = {who: server.said(who) for who in ("ana", "ben")}
    assert sorted(one.prompt for one in said["ana"] + said["ben"]) == sorted(f"prompt {i}" for i in range(9))
    assert min(len(judged) for judged in said.values()) >= 4
    assert {one.verdict.outcome for one in said["ana"]} == {"first"}
    assert {one.verdict.outcome for one in said["ben"]} == {"second"}


def test_two_raters_of_the_same_tasks_see_nothing_of_each_other(serve, visit):
    """Overlap 2: both judge all, each on sides of their own, and neither page holds a word of the other's."""
    server = serve(pairs(8), overlap=2)
    ana, ben = visit(server, "ana"), visit(server, "ben")
    sides = {"ana": {}, "ben": {}}
    for _ in range(8):
        for who, page in (("ana", ana), ("ben", ben)):
            page.keyboard.press("c")
            page.keyboard.type(f"a remark of {who}")
            page.keyboard.press("Escape")
            shown = submit(page, "1", "Enter")
            sides[who][shown[0].split()[1]] = shown[0].split()[0]
            assert f"a remark of {'ben' if who == 'ana' else 'ana'}" not in page.content()
    assert not ana.is_visible("#task")
    assert not ben.is_visible("#task")
    assert sides["ana"] != sides["ben"]  # the left one is not the same answer for all
    for who, left in sides.items():
        said = server.said(who)
        assert len(said) == 8
        assert {one.comment for one in said} == {f"a remark of {who}"}
        better = {one.prompt.split()[1]: one.answers[one.verdict.outcome == "second"].text for one in said}
        assert better == {number: f"{side} {number}" for number, side in left.items()}


# --- going back, leaving


def test_undo_shows_the_former_verdict_and_replaces_it(serve, visit, shot):
    server = serve(pairs(2), rubric=THREE)
    page = visit(server)
    first = submit(page, "1", "4", "0", "Enter")
    page.keyboard.press("2")  # begun on the next one
    page.keyboard.press("u")
    until(page, "document.querySelectorAll('.row :checked').length === 3")
    assert texts(page) == first
    assert chosen(page) == ["1", "4", "0"]
    assert server.said() == []
    shot(page, "undone")
    page.keyboard.press("5")  # the first row
    submit(page, "Enter")
    assert sorted((one.dimension, one.verdict.outcome) for one in server.said()) == [
        ("helpfulness", "second"), ("style", "both_bad"), ("truth", "tie"),
    ]  # fmt: skip


def test_undo_of_scores_and_rankings(serve, visit):
    server = serve([ranking(3), NewTask("Explain.", (Answer("so"),), kind="score")])
    page = visit(server)
    for _ in range(2):
        submit(page, *("xz" if len(texts(page)) == 3 else "4"), "Enter")
    for _ in range(2):
        shown = texts(page) if page.is_visible("#task") else []
        page.keyboard.press("u")
        wait_for_other(page, shown)
        page.wait_for_selector("#task:not([hidden])")
        if len(texts(page)) == 3:
            assert page.inner_text(".order") == "X › Z › Y"
        else:
            assert chosen(page) == ["4"]
    assert server.said() == []


def states(server, rater="ana"):
    rows = server.store.read(
        sa.select(turns.c.state, turns.c.note).where(turns.c.rater == rater).order_by(turns.c.task)
    )
    return [(row.state, row.note) for row in rows]


def test_skip_and_flag(serve, visit, shot):
    server = serve(pairs(3))
    page = visit(server)
    submit(page, "s")
    page.keyboard.press("f")
    assert focused(page) == "note"
    page.keyboard.press("Control+Enter")
    assert page.inner_text("#note-problem") == "Say in a few words what is wrong."
    page.keyboard.type("cut off, is it?")
    shot(page, "flag")
    submit(page, "Control+Enter")
    assert states(server) == [("skipped", ""), ("flagged", "cut off, is it?"), ("leased", "")]
    page.keyboard.press("f")
    page.keyboard.press("Escape")
    assert not page.is_visible("#flag-dialog")
    assert len(states(server)) == 3


# --- time


def test_a_lease_that_ends_can_be_kept(serve, visit, shot):
    server = serve(pairs(1), lease=8.0)
    page = visit(server)
    assert not page.is_visible("#notice")
    page.wait_for_selector("#notice[data-kind=lease]")
    assert re.fullmatch(r"Your time for this task ends in [12] s\.", page.inner_text("#notice-text"))
    shot(page, "lease")
    page.keyboard.press("6")
    page.keyboard.press("k")
    page.wait_for_selector("#notice", state="hidden")
    page.wait_for_timeout(3500)  # the former end has passed
    assert not page.is_visible("#notice")
    assert chosen(page) == ["6"]
    page.wait_for_selector("#notice[data-kind=lease]")


def test_a_task_that_others_took_is_said_so_and_the_next_one_comes(serve, visit, shot):
    server = serve(pairs(2), lease=2.0)
    page = visit(server, failures=True)
    shown = texts(page)
    page.keyboard.press("2")
    until(page, "document.getElementById('notice-text').textContent.includes('is over')")
    server.queue.judge("ben", server.queue.next("ben").key, {"overall": Preference("tie")})
    page.keyboard.press("Enter")
    wait_for_other(page, shown)
    assert "your time for this task was up and others have taken it" in page.inner_text("#notice").lower()
    assert "Here is your next task." in page.inner_text("#notice")
    shot(page, "gone")
    assert texts(page) != shown
    assert chosen(page) == [""]
    assert server.said() == []


def test_a_task_that_nobody_took_can_still_be_judged(serve, visit):
    server = serve(pairs(1), lease=1.0)
    page = visit(server)
    page.keyboard.press("2")
    until(page, "document.getElementById('notice-text').textContent.includes('is over')")
    submit(page, "Enter")
    assert len(server.said()) == 1


HIDING = """let hidden = false;
Object.defineProperty(document, 'hidden', { get: () => hidden });
window.hide = (now) => { hidden = now; document.dispatchEvent(new Event('visibilitychange')); };"""


def test_time_is_counted_only_while_the_page_is_seen(serve, visit):
    server = serve(pairs(1))
    page = visit(server, script=HIDING)
    page.evaluate("hide(true)")
    page.wait_for_timeout(3000)
    page.evaluate("hide(false)")
    page.wait_for_timeout(500)
    submit(page, "2", "Enter")
    (one,) = server.said()
    assert 0.5 <= one.seconds < 3


# --- a bad network


POST = re.compile(r"/api/task/[0-9a-f]+$")


def test_a_verdict_outlives_a_lost_connection(serve, visit, shot):
    """Refused connections and errors of the server are tried again by itself; nothing else can be done meanwhile."""
    server = serve(pairs(2))
    page = visit(server, failures=True)
    shown, answers = texts(page), iter(["abort", "500", "429", "html", "go"])

    def fail(route):
        match next(answers):
            case "abort":
                route.abort()
            case "500":
                route.fulfill(status=500, json={"error": "no"})
            case "429":
                route.fulfill(status=429, json={"error": "slow down"})
            case "html":
                route.fulfill(status=200, body="<p>a portal of some hotel</p>")
            case "go":
                route.continue_()

    page.route(POST, fail)
    page.keyboard.press("6")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice[data-kind=network]")
    assert re.search(r"Your verdict is kept here\. Trying again in \d+ s", page.inner_text("#notice-text"))
    shot(page, "network")
    page.keyboard.press("1")  # no effect now
    page.keyboard.press("s")
    assert texts(page) == shown
    assert chosen(page) == ["6"]
    page.click("#notice-do")  # now instead of in some seconds
    until(
        page,
        "document.querySelector('#notice:not([hidden]) #notice-do')?.click(), document.body.matches(':not(.busy)')",
    )
    wait_for_other(page, shown)
    assert not page.is_visible("#notice")
    (one,) = server.said()
    assert one.verdict == Preference("second", 2)
    assert next(answers, None) is None


def lose(lost):
    """Lets a request through to the server, and loses the first answer."""

    def handle(route):
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch())
            route.abort()

    return handle


def test_a_lost_answer_gives_no_second_verdict(serve, visit):
    server = serve(pairs(3))
    page = visit(server, failures=True)
    page.route(POST, lose(lost := []))
    shown = submit(page, "2", "Enter")
    assert len(lost) == 1
    (one,) = server.said()
    assert [answer.text for answer in one.answers] == shown
    assert [state for state, _ in states(server)] == ["judged", "leased"]
    assert page.inner_text("#mine") == "1"


def test_a_lost_answer_to_undo_undoes_no_second_verdict(serve, visit):
    server = serve(pairs(3))
    page = visit(server, failures=True)
    submit(page, "1", "Enter")
    second = submit(page, "4", "Enter")
    page.route("**/api/undo", lose(lost := []))
    page.keyboard.press("u")
    until(page, "document.querySelector(':checked')?.value === '4'")
    assert len(lost) == 1
    assert texts(page) == second
    assert [one.verdict for one in server.said()] == [Preference("first", 3)]


def test_an_undo_that_never_came_through_is_said_so(serve, visit):
    server = serve(pairs(2))
    page = visit(server, failures=True)
    submit(page, "1", "Enter")
    page.route("**/api/undo", lambda route: route.abort())
    page.keyboard.press("u")
    until(page, "document.getElementById('notice-text').textContent.startsWith('Nothing was undone')")
    assert len(server.said()) == 1


def test_who_is_signed_out_finds_the_choice_again(serve, visit, shot):
    server = serve(pairs(1), rubric=THREE)
    page = visit(server, failures=True)
    page.keyboard.press("3")
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.keyboard.press("Escape")
    page.keyboard.press("6")
    page.keyboard.press("1")
    page.context.clear_cookies()
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice[data-kind=signed-out]")
    shot(page, "signed-out")
    page.keyboard.press("Enter")  # the focus is on the button
    page.wait_for_selector("#go:enabled")
    page.fill("#token", server.tokens["ana"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#task:not([hidden])")
    assert chosen(page) == ["3", "6", "1"]
    assert page.input_value("#comment") == "half a thought"
    submit(page, "Enter")
    assert len(server.said()) == 3


def test_a_refusal_is_shown_and_the_task_stays(serve, visit):
    server = serve(pairs(1))
    page = visit(server, failures=True)
    page.route(POST, lambda route: route.fulfill(status=422, json={"error": "the comment is too long; shorten it"}))
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice[data-kind=error]")
    assert page.inner_text("#notice-text") == "the comment is too long; shorten it"
    assert chosen(page) == ["2"]


# --- what is shown


def test_a_chat_is_shown_by_turns_and_markdown_as_markdown(serve, visit, shot):
    server = serve([NewTask(CHAT, (Answer(RICH), Answer("plain\nlines")))])
    page = visit(server)
    assert page.locator(".turn").evaluate_all("all => all.map(t => t.ariaLabel)") == [
        "System",
        "User",
        "Assistant",
        "User",
    ]
    assert page.locator(".answer table td.right").inner_text() == "ATP"
    assert page.locator(".answer pre code").count() == 1
    assert "[image: a leaf] (https://pictures.example/leaf.png)" in " ".join(texts(page))
    link = page.locator(".answer a")
    assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer nofollow")
    assert "plain\nlines" in texts(page)
    shot(page, "pair")


def test_answers_stand_side_by_side_and_scroll_on_their_own(serve, visit):
    page = visit(serve([NewTask("p", (Answer(LONG), Answer(LONG + "!")))]))
    left, right = (page.locator(f".answer.place-{at}").bounding_box() for at in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    body = page.locator(".answer.place-0 .body")
    assert body.evaluate("b => b.scrollHeight > 2 * b.clientHeight && b.clientHeight > 250")
    body.focus()
    page.keyboard.press("End")
    until(page, "document.querySelector('.place-0 .body').scrollTop > 500")
    assert page.evaluate("document.querySelector('.place-1 .body').scrollTop") == 0
    submit(page, "2", "2")  # keys act from there, too


def dimensions(count):
    names = ("helpfulness", "truth", "style", "harmlessness", "completeness", "coherence", "verbosity")
    return Rubric(
        tuple((name, f"Which answer is better in {name}? Say why where you doubt.") for name in names[:count])
    )


@pytest.mark.parametrize("kind", ["pair", "score", "ranking"])
@pytest.mark.parametrize("count", [1, 3, 5, 7])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1366, 650), (1920, 1080)])
def test_answers_stay_in_sight_beside_a_long_prompt(serve, visit, shot, kind, count, width, height):
    """220 pixels or a third of the window, however many dimensions, and something of the prompt."""
    answers = tuple(Answer(LONG + c) for c in {"pair": "ab", "score": "a", "ranking": "abcd"}[kind])
    server = serve([NewTask(LONG, answers, kind)], rubric=dimensions(count))
    page = visit(server, width=width, height=height)
    keys = {"pair": "17042", "score": "15", "ranking": "w"}[kind]
    for at in range(count - 1):
        page.keyboard.press(keys[at % len(keys)])
    shot(page, f"dimensions-{kind}-{count}-{height}")
    for body in page.locator(".answer .body").all():
        assert body.evaluate("b => b.clientHeight") >= min(220, height / 3)
    assert page.locator("#prompt").evaluate("p => p.clientHeight") >= 80
    bar = page.locator("#verdict").bounding_box()
    assert bar["y"] + bar["height"] == height
    page.keyboard.press("c")
    assert page.locator(".answer .body").first.evaluate("b => b.clientHeight") >= 150
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_chips_stand_for_the_rows_for_which_there_is_no_room(serve, visit):
    server = serve(pairs(1), rubric=THREE)
    page = visit(server, width=1366, height=650)
    page.keyboard.press("1")
    assert page.locator(".chip").all_inner_texts() == ["helpfulness\nLeft much better", "truth", "style"]
    assert page.locator(".row:visible").count() == 1
    page.click(".chip >> nth=2")
    assert active(page) == 2
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    assert (active(page), page.inner_text("#hint")) == (1, "Choose for truth first")
    page.keyboard.press("7")
    submit(page, "Enter")
    said = {one.dimension: one.verdict.outcome for one in server.said()}
    assert said == {"helpfulness": "first", "truth": "second", "style": "tie"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(serve, visit, shot, scheme):
    """One below the other, the verdict within reach of the thumb, nothing wider than the screen."""
    server = serve([NewTask(CHAT, (Answer(RICH), Answer(LONG)))], rubric=THREE)
    page = visit(server, width=390, height=844, scheme=scheme)
    shot(page, f"phone-{scheme}")
    upper, lower = (page.locator(f".answer.place-{at}").bounding_box() for at in (0, 1))
    assert upper["y"] + upper["height"] <= lower["y"]
    assert page.inner_text(".answer.place-0 h2").startswith("Upper")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    bar = page.locator("#verdict").bounding_box()
    assert bar["y"] + bar["height"] <= 844.5
    assert bar["y"] > 844 / 2
    page.mouse.wheel(0, 500)
    page.wait_for_timeout(200)
    assert page.locator("#verdict").bounding_box() == bar
    for choice in page.locator(".row.active .choice").all():
        box = choice.bounding_box()
        assert box["width"] >= 40
        assert box["height"] >= 36
    for key in "174":
        page.locator(f".row.active .choice[data-key='{key}']").tap()
        if page.locator(".pager button:last-child").is_enabled():
            page.locator(".pager button:last-child").tap()
    page.locator("#submit").tap()
    page.wait_for_selector("#nothing:not([hidden])")
    assert sorted(one.verdict.outcome for one in server.said()) == ["first", "second", "tie"]


def test_a_phone_with_many_dimensions(serve, visit, shot):
    """One row at a time, with its name and the way to the next; no chips, which would fill the screen."""
    page = visit(serve([NewTask(LONG, (Answer(RICH), Answer(LONG)))], rubric=dimensions(7)), width=390, height=844)
    page.locator(".choice[data-key='1']").first.tap()
    page.locator(".pager button:last-child").tap()
    shot(page, "phone-seven")
    assert page.locator(".asked:visible").all_inner_texts() == ["truth\nWhich answer is better?"]
    assert page.locator(".chip:visible").count() == 0
    assert page.locator("#verdict").bounding_box()["height"] < 844 / 3


def test_light_and_dark_follow_the_system(serve, visit):
    server = serve(pairs(1))
    shade = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
    )
    assert visit(server, scheme="light").evaluate(shade) > 600
    assert visit(server, scheme="dark").evaluate(shade) < 150


def test_motion_is_left_out_where_it_is_not_wanted(serve, visit):
    page = visit(serve(pairs(1)))
    moving = "[...document.querySelectorAll('*')].some(e => getComputedStyle(e).transitionDuration !== '0s')"
    assert page.evaluate(moving)
    page.emulate_media(reduced_motion="reduce")
    assert not page.evaluate(moving)


def test_focus_goes_where_work_goes_on(serve, visit):
    server = serve(pairs(2))
    page = visit(server)
    assert focused(page) == "title"
    page.keyboard.press("Shift+Tab")
    page.focus("#open-keys")
    page.keyboard.press("Enter")
    assert page.is_visible("#keys")
    page.keyboard.press("?")
    assert not page.is_visible("#keys")
    assert focused(page) == "open-keys"
    page.locator(".skip-link").focus()
    page.keyboard.press("Enter")
    assert focused(page) == "verdict"
    submit(page, "2", "Enter")
    assert focused(page) == "title"
    assert "Two answers to compare" in page.inner_text("#status")


def test_guidelines_stay_open_beside_the_work(serve, visit, shot):
    server = serve(pairs(2), rubric=THREE)
    page = visit(server)
    page.keyboard.press("g")
    shot(page, "guidelines")
    assert page.inner_text("#guidelines").count("Look up what you doubt.") == 1
    panel, answers = page.locator("#guidelines").bounding_box(), page.locator("#answers").bounding_box()
    assert answers["x"] + answers["width"] <= panel["x"]
    submit(page, "2", "2", "2", "Enter")
    assert page.is_visible("#guidelines")
    assert len(server.said()) == 3
    page.keyboard.press("Escape")
    assert not page.is_visible("#guidelines")


# --- mischief


HOSTILE = [
    "<script>window.__hacked = 1</script>",
    "</script><script>window.__hacked = 1</script>",
    "<img src=x onerror='window.__hacked = 1'><svg onload='window.__hacked = 1'>",
    "[click](javascript:window.__hacked=1) <a href='javascript:window.__hacked=1'>x</a>",
    "![x](https://pictures.example/track.png) <img src='https://pictures.example/track2.png'>",
    "<style>body { display: none }</style><link rel=stylesheet href=https://pictures.example/x.css>",
    "<iframe src='https://pictures.example'></iframe><meta http-equiv=refresh content='0;url=https://pictures.example'>",
    "<base href='https://pictures.example/'><form action='https://pictures.example'><button>go</button></form>",
    "{{7*7}} ${7*7} <%= 7*7 %> \\u003cscript\\u003ewindow.__hacked=1\\u003c/script\\u003e",
    "```\n</code></pre><script>window.__hacked = 1</script>\n``` | a\n|--\n**unclosed `` [ ![ ](",
    "\u202eright to left override\u202c שלום עולם, זו תשובה. مرحبا بالعالم 😀👩‍👩‍👧 \u0000 \u2028 \ufeff",
    "<!-- " + "<div>" * 500 + "&lt;script&gt;alert(1)&lt;/script&gt;",
]


def hostile_everywhere():
    tasks = [NewTask(text, (Answer(text + " a"), Answer("b " + text))) for text in HOSTILE]
    tasks.append(
        NewTask(
            [{"role": "user", "content": text} for text in HOSTILE], tuple(map(Answer, HOSTILE[:5])), kind="ranking"
        )
    )
    return tasks


def test_no_text_ever_runs(serve, visit, shot):
    """In prompts, answers, guidelines, comments and notes; the fixture fails where anything ran or was loaded."""
    rubric = Rubric((("overall", HOSTILE[0] + "? " + "\n\n".join(HOSTILE)),))
    name = "<img src=x onerror=window.__hacked=1>"
    accounts = {name: "rater", "ben": "rater", "eva": "admin"}
    server = serve(hostile_everywhere(), overlap=2, rubric=rubric, team=accounts)
    page = visit(server, name)
    page.keyboard.press("g")
    shot(page, "hostile-guidelines")
    page.keyboard.press("Escape")
    for at in range(len(HOSTILE)):
        if at == 4:
            shot(page, "hostile")
        for link in page.locator(".answer a").all():
            link.evaluate("a => a.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
        page.keyboard.press("c")
        page.keyboard.insert_text(HOSTILE[at].replace("\u0000", ""))
        page.keyboard.press("Escape")
        submit(page, "1", "Enter")
    assert page.locator(".answer").count() == 5
    page.keyboard.press("f")
    page.keyboard.insert_text(HOSTILE[1] + HOSTILE[2])
    submit(page, "Control+Enter")
    for _ in range(len(HOSTILE)):
        turn = server.queue.next("ben")
        server.queue.judge("ben", turn.key, {"overall": Preference("tie")}, comment=HOSTILE[0])
    admin = visit(server, "eva", at="/admin")
    admin.wait_for_selector("details.disagreement")
    for case in admin.locator("details.disagreement > summary").all():
        case.click()
    assert HOSTILE[1] in admin.inner_text("#flags")
    shot(admin, "hostile-team")
    assert admin.locator("img[src=x], script:not([src])").count() == 0


def test_a_megabyte_is_shown_and_scrolls_on_its_own(serve, visit, shot):
    text = ("a line of a very long answer, with <b>tags</b> and שלום\n" * 20_000)[:1_000_000]
    server = serve([NewTask("p", (Answer(text), Answer("short")))])
    began = time.perf_counter()
    page = visit(server)
    assert time.perf_counter() - began < 15
    shot(page, "megabyte")
    shown = page.locator(".answer pre.plain").evaluate("pre => pre.textContent")
    assert shown == text
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    submit(page, "4", "4")
    assert len(server.said()) == 1


def test_an_empty_prompt_or_answer_is_said_to_be_empty(serve, visit):
    page = visit(serve([NewTask("", (Answer(" "), Answer("x")))]))
    assert sorted(texts(page)) == ["(empty)", "x"]
    assert page.inner_text("#turns").strip() == "(empty)"


@pytest.mark.parametrize("width", [320, 390, 720, 760, 820, 1000, 1100, 1280, 1366, 1920])
def test_no_word_leaves_its_button_at_any_width(serve, visit, width):
    """With several rows, and with the guidelines beside them where they stand there."""
    page = visit(serve(pairs(1), rubric=THREE), width=width)
    outside = """[...document.querySelectorAll('.row.active .choice')].filter(choice => {
        const box = choice.getBoundingClientRect();
        return [...choice.querySelectorAll('kbd, .words')].some(part => {
            const own = part.getBoundingClientRect();
            const across = own.left < box.left || own.right > box.right;
            return own.width && (across || own.top < box.top || own.bottom > box.bottom);
        });
    }).map(choice => choice.innerText)"""
    assert page.evaluate(outside) == []
    page.keyboard.press("g")
    assert page.evaluate(outside) == []


def test_raw_texts_are_those_that_were_written(serve, visit, shot):
    """By a key and by a button, for the tasks that follow, too; the focus and what is chosen stay."""
    first, second = "  two\n\n\nlines &\t **bold** <b>tag</b>  ", "\n`x` \\(y\\) \\* end"
    server = serve([NewTask([{"role": "user", "content": "# *why*"}], (Answer(first), Answer(second))), *pairs(1)])
    page = visit(server)
    page.keyboard.press("2")
    assert page.locator(".answer .body strong, #turns em").count() == 2
    page.keyboard.press("r")
    shot(page, "raw")
    assert page.get_attribute("#raw", "aria-pressed") == "true"
    assert sorted(page.locator(".answer .body").evaluate_all("all => all.map(b => b.textContent)")) == sorted(
        [first, second]
    )
    assert page.locator("#turns .prose").evaluate("turn => turn.textContent") == "# *why*"
    assert page.locator(".answer pre").first.evaluate("pre => getComputedStyle(pre).whiteSpace") == "pre-wrap"
    assert chosen(page) == ["2"]
    submit(page, "Enter")
    assert page.locator(".answer pre.raw").count() == 2
    page.click("#raw")
    assert page.locator("pre.raw").count() == 0
    assert page.get_attribute("#raw", "aria-pressed") == "false"


def test_raw_texts_do_not_run_either(serve, visit):
    server = serve(hostile_everywhere())
    page = visit(server)
    page.keyboard.press("r")
    for _ in HOSTILE:
        assert page.locator("#task .prose").evaluate_all("all => all.every(p => p.querySelectorAll('*').length === 1)")
        submit(page, "1", "Enter")


def test_a_prompt_opens_where_it_asks(serve, visit, shot):
    """A single turn at its start, a chat at its last question; either with a whole line on top."""
    chat = [
        {"role": "user", "content": LONG}, {"role": "assistant", "content": LONG},
        {"role": "user", "content": "And now?\n\n" + LONG},
    ]  # fmt: skip
    page = visit(
        serve([NewTask(prompt, (Answer(f"a{at}"), Answer(f"b{at}"))) for at, prompt in enumerate((LONG, chat))])
    )
    seen = set()
    for _ in range(2):
        at = page.locator(".turn").count() - 1
        top = page.locator("#prompt").bounding_box()["y"]
        assert abs(page.locator(".turn").nth(at).bounding_box()["y"] - top) <= 1.5
        shot(page, f"prompt-{at}")
        seen.add(at)
        submit(page, "s")
    assert seen == {0, 2}


def test_what_is_chosen_changes_no_size(serve, visit):
    page = visit(serve(pairs(1)))
    own = "[one.offsetWidth, one.querySelector('.words').offsetWidth, one.querySelector('.words').offsetHeight]"
    sizes = f"[...document.querySelectorAll('.choice')].map(one => {own})"
    before = page.evaluate(sizes)
    for key in "3570":
        page.keyboard.press(key)
        assert chosen(page) == [key]
        assert page.evaluate(sizes) == before


def test_a_dimension_is_named_once(serve, visit):
    page = visit(serve(pairs(1), rubric=THREE))
    assert page.locator(".asked").all_inner_texts()[0] == "helpfulness\nWhich answer is better?"
    assert page.locator(".row").first.evaluate("row => row.innerText.match(/helpfulness/g).length") == 1
    shown = page.locator(".question").evaluate_all("all => all.map(q => q.getBoundingClientRect().height > 5)")
    assert shown == [True, False, False]
    assert page.get_by_role("radiogroup", name="truth Which answer is better?").count() == 1


def test_what_is_wrong_with_a_token_stands_clear_of_the_button(serve, visit):
    page = visit(serve(pairs(1)), None)
    page.keyboard.press("Enter")
    words = "document.createRange(); range.selectNodeContents(problem)"
    end = page.evaluate(f"(() => {{ const range = {words}; return range.getBoundingClientRect().bottom; }})()")
    assert page.locator("#go").bounding_box()["y"] - end >= 8


HEBREW = "# כותרת\n\nשלום עולם\n\n- אחת\n- שתיים\n\n> ציטוט\n\n| א | ב |\n|--|--|\n| 1 | 2 |\n\nhello"


def test_each_block_has_its_own_direction(serve, visit, shot):
    """Those that hold others, too: a list's bullets and a table's columns follow what is written in them."""
    page = visit(serve([NewTask("שאלה", (Answer(HEBREW), Answer("مرحبا\n\n- one\n- two")))]), width=1920)
    shot(page, "right-to-left")
    edge, inner = page.locator("#prompt .turn").bounding_box(), page.locator("#prompt .prose > p").bounding_box()
    assert edge["x"] + edge["width"] - (inner["x"] + inner["width"]) < 20  # on its own side, not amid the prompt
    direction = (
        "all => Object.fromEntries(all.map(e => [e.innerText.trim().slice(0, 3), getComputedStyle(e).direction]))"
    )
    found = page.locator(".answer .body > *").evaluate_all(direction)
    latin = {name for name, value in found.items() if value == "ltr"}
    assert latin == {"hel", "one"}
    assert len(found) == 8
    first, last = (page.locator(".answer td", has_text=text).bounding_box()["x"] for text in "12")
    assert first > last


# --- for everyone


TASKS = {
    "pair": ([NewTask(CHAT, (Answer(RICH), Answer(LONG)))], None),
    "pair-three": ([NewTask(CHAT, (Answer(RICH), Answer(LONG)))], THREE),
    "pair-seven": ([NewTask(CHAT, (Answer(RICH), Answer(LONG)))], dimensions(7)),
    "score": ([NewTask("p", (Answer(RICH),), kind="score")], None),
    "ranking": ([NewTask("p", (Answer(RICH), Answer(LONG), Answer("c"), Answer("d")), kind="ranking")], None),
    "ranking-three": ([NewTask("p", (Answer(RICH), Answer(LONG), Answer("c")), kind="ranking")], THREE),
    "nothing": ([], None),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_grave_in_a_task(serve, visit, shot, violations, kind, width, scheme):
    tasks, rubric = TASKS[kind]
    server = serve(tasks, **({"rubric": rubric} if rubric else {}))
    page = visit(server, width=width, height=800, scheme=scheme)
    assert violations(page) == []
    if kind != "nothing":
        for key in "xz" if "ranking" in kind else "25":
            page.keyboard.press(key)
        page.wait_for_timeout(250)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    shot(page, f"task-{kind}-{width}-{scheme}")


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_grave_in_dialogs_and_at_the_door(serve, visit, shot, violations, width):
    server = serve(pairs(1), rubric=THREE)
    for scheme in ("light", "dark"):
        page = visit(server, None, width=width, scheme=scheme)
        assert violations(page) == []
        shot(page, f"sign-in-{width}-{scheme}")
        page = visit(server, width=width, scheme=scheme)
        for key, name in (("g", "guidelines"), ("?", "keys"), ("f", "flag")):
            page.keyboard.press(key)
            assert page.is_visible(f"dialog[open]#{name}, dialog[open]#{name}-dialog")
            assert violations(page) == [], name
            shot(page, f"{name}-{width}-{scheme}")
            page.keyboard.press("Escape")
            assert page.locator("dialog[open]").count() == 0
        page.keyboard.press("c")
        assert violations(page) == []
        shot(page, f"comment-{width}-{scheme}")


# --- the team's page


@pytest.fixture
def team(serve):
    """Two raters who differ on two of four tasks, one who has flagged."""
    tasks = [NewTask(f"prompt {i}", (Answer(RICH if i == 1 else f"alpha {i}"), Answer(f"beta {i}"))) for i in range(4)]
    server = serve(tasks, overlap=2)
    said = {"ana": ["alpha", "alpha", "tie", "beta"], "ben": ["alpha", "beta", "alpha", "beta"]}
    for rater, verdicts in said.items():
        for _ in range(4):
            turn = server.queue.next(rater)
            wanted = verdicts[int(turn.prompt.split()[1])]
            at = 1 if turn.answers[1].text.startswith("beta") == (wanted == "beta") else 0
            verdict = Preference("tie") if wanted == "tie" else Preference(("first", "second")[at], 2)
            server.queue.judge(rater, turn.key, {"overall": verdict}, seconds=12.0)
    return server


def test_figures_are_those_of_the_server(team, visit, shot):
    page = visit(team, "eva", at="/admin")
    page.wait_for_selector("#raters tr[data-key=ana]")
    shot(page, "team")
    told = page.evaluate("fetch('/api/admin').then(reply => reply.json())")
    (one,) = told["agreement"]
    cells = page.locator("#agreement tr").locator("th, td").all_inner_texts()
    agree = one["agree"]
    assert cells[:2] == ["overall", "4"]
    assert cells[2] == f"{agree['mean']:.2f} [{agree['low']:.2f}, {agree['high']:.2f}]".replace("-", "−")
    assert cells[2].startswith("0.50 [")
    row = page.locator("#raters tr[data-key=ana]").locator("th, td").all_inner_texts()
    assert row[:5] == ["ana", "4", "4", "4", "12 s"]
    assert page.locator("#tiles dd").all_inner_texts()[:2] == ["100 %", "8 of 8"]
    assert page.inner_text("#open-count") == "2"


def test_a_rater_s_comment_stands_beside_the_verdict(team, visit, shot):
    turn = team.queue.undo("ana")  # of prompt 3
    team.queue.judge("ana", turn.key, {"overall": Preference("both_bad")}, comment="neither\n<b>cites</b> a source")
    page = visit(team, "eva", at="/admin")
    case = page.locator("details.disagreement", has_text="prompt 3")
    case.locator("summary").click()
    assert case.locator(".votes li").all_text_contents()[-1].startswith("ana: both bad")
    assert case.locator(".votes li:last-child .comment").inner_text() == "neither\n<b>cites</b> a source"
    assert case.locator(".votes .comment").count() == 1
    shot(page, "team-comment")


def test_a_flagged_task_shows_its_answers(serve, visit, shot):
    server = serve(pairs(1))
    server.queue.flag("ana", server.queue.next("ana").key, "cut off")
    page = visit(server, "eva", at="/admin")
    page.click("#flags summary")
    assert sorted(texts(page)) == ["alpha 0", "beta 0"]
    shot(page, "team-flag")
    page.locator("#flags details").evaluate("node => { node.marked = true; }")
    with page.expect_response("**/api/admin"):
        pass
    until(page, "document.querySelector('#flags details[open]').marked")  # stays open as the figures go on


def test_nothing_is_less_than_zero_by_rounding(team, visit):
    page = visit(team, "eva", at="/admin")

    def change(route):
        reply = route.fetch()
        told = reply.json()
        told["agreement"][0]["alpha"] = {"mean": -0.004, "low": -0.32, "high": 0.004, "n": 4}
        route.fulfill(response=reply, json=told)

    page.route("**/api/admin", change)
    until(page, "document.querySelector('#agreement td:nth-child(4)')?.textContent === '0.00 [−0.32, 0.00]'")


def test_figures_on_a_phone_say_that_they_scroll(team, visit, shot):
    """A shade at the side, and a stop of the Tab key with a name; the first column hides what passes beneath."""
    page = visit(team, "eva", at="/admin", width=390)
    page.wait_for_selector("#raters tr[data-key=ana]")
    page.click("#pairs-of-raters summary")
    tables = page.locator(".figures").all()
    assert len(tables) == 3
    for table in tables:
        assert table.evaluate("t => t.scrollWidth > t.clientWidth")
        assert table.evaluate("t => getComputedStyle(t).backgroundImage").count("linear-gradient") == 2
        assert table.get_attribute("role") == "region"
        assert table.get_attribute("aria-label") or table.get_attribute("aria-labelledby")
        own, first = (
            table.evaluate(f"t => getComputedStyle({it}).backgroundColor") for it in ("t", "t.querySelector('th')")
        )
        assert own == first != "rgba(0, 0, 0, 0)"
    tables[0].focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.figures').scrollLeft > 5")
    page.locator("#raters-title").scroll_into_view_if_needed()
    shot(page, "team-phone")


def test_figures_keep_up_without_a_flicker(team, visit):
    """Rows stay the same elements, and what is typed and focused stays; only texts change."""
    page = visit(team, "eva", at="/admin")
    page.wait_for_selector("details.disagreement")
    page.click("details.disagreement >> nth=0 >> summary")
    page.fill("details.disagreement textarea >> nth=0", "half a reason")
    page.evaluate("document.querySelector('#raters tr[data-key=ana]').marked = true")
    page.evaluate(
        "new MutationObserver(all => { window.__changes = (window.__changes ?? 0) + all.length; })"
        ".observe(document.querySelector('main'), { childList: true, subtree: true, characterData: true })"
    )
    with page.expect_response("**/api/admin"):
        pass
    quiet = page.evaluate("window.__changes ?? 0")
    assert quiet <= 4  # "last seen" goes on; nothing is built anew
    turn = next(t for t in [team.queue.undo("ana")] if t)
    team.queue.judge("ana", turn.key, {"overall": Preference("both_bad")}, seconds=40.0)
    until(page, "document.getElementById('open-count').textContent === '3'")
    assert page.evaluate("document.querySelector('#raters tr[data-key=ana]').marked")
    assert page.evaluate("document.activeElement.value") == "half a reason"


def test_a_disagreement_is_decided_by_keyboard(team, visit, shot):
    page = visit(team, "eva", at="/admin")
    page.wait_for_selector("details.disagreement")
    first = page.locator("details.disagreement").first
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    first.locator(".votes li").first.wait_for()
    votes = first.locator(".votes li").all_inner_texts()
    assert {line.split(":")[0] for line in votes} == {"ana", "ben"}
    left = first.locator(".answer.place-0 .body").inner_text().strip()
    shot(page, "team-case")
    first.locator(".primary").click()
    assert first.locator(".problem").inner_text() == "Choose first."
    page.keyboard.press("7")
    first.locator("textarea").fill("the right one is right")
    first.locator(".primary").click()
    until(page, "document.getElementById('open-count').textContent === '1'")
    assert page.locator("details.disagreement").count() == 1
    assert focused(page) == "SUMMARY"
    (word,) = [one for group in team.store.groups() for _, one in group if one.kind == "adjudicator"]
    assert (word.verdict, word.comment) == (Preference("second", 3), "the right one is right")
    assert word.answers[0].text.strip() == left or left.startswith("Photosynthesis")


def test_votes_are_told_of_the_answers_as_they_stand_there(team, visit):
    """What ana and ben said of prompt 1: she for alpha, he for beta, whichever side they saw it on."""
    page = visit(team, "eva", at="/admin")
    page.wait_for_selector("details.disagreement")
    case = page.locator("details.disagreement", has_text="prompt 1")
    case.locator("summary").click()
    left = "beta" if case.locator(".answer.place-0 .body").inner_text().startswith("beta") else "alpha"
    words = (
        {"alpha": "Left better", "beta": "Right better"}
        if left == "alpha"
        else {"beta": "Left better", "alpha": "Right better"}
    )
    assert sorted(case.locator(".votes li").all_inner_texts()) == [f"ana: {words['alpha']}", f"ben: {words['beta']}"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_grave_in_the_team_s_page(team, visit, shot, violations, width, scheme):
    page = visit(team, "eva", at="/admin", width=width, scheme=scheme)
    page.wait_for_selector("details.disagreement")
    for case in page.locator("details.disagreement > summary, #pairs-of-raters summary").all():
        case.click()
    page.locator(".choice >> nth=1").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.wait_for_timeout(250)
    assert violations(page) == []
    shot(page, f"team-{width}-{scheme}")


def test_a_lost_connection_is_said_and_figures_stay(team, visit):
    page = visit(team, "eva", at="/admin", failures=True)
    page.wait_for_selector("#raters tr[data-key=ana]")
    page.route("**/api/admin", lambda route: route.abort())
    page.wait_for_selector("#fresh.problem")
    assert page.inner_text("#fresh").startswith("No connection; figures of ")
    assert page.locator("#raters tr").count() == 3
