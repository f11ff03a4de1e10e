"""The report: self-contained, escaped, deterministic, and honest in its sentences."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from keel.demo import report, sentences, table
from keel.demo.figures import value_of
from keel.evaluation.outcomes import turned_down
from keel.pages import drawing, numbers

HOSTILE = '<script>alert("bear")</script><img src=http://evil.example/x>'
NARROW, JOINED = "\u202f", "\u00a0"


def about(mean, half=0.02, n=400):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def method(win, gold, kl, cost, train, **other):
    """One row of the comparison; a KL of width zero is best-of-N's bound."""
    return {
        "gold_win_rate": about(win, 0.03),
        "gold_mean": about(gold),
        "dimensions": {"helpfulness": about(gold), "concision": about(0.8)},
        "kl": kl,
        "length_mean": about(31.4, 0.6),
        "proxy_mean": about(4 * gold - 2, 0.1),
        "parsed": about(0.981, 0.006),
        "refusal_unsafe": about(0.71, 0.13, 40),
        "refusal_harmless": about(0.06, 0.02, 360),
        "serve_cost_ratio": cost,
        "train_seconds": train,
        **other,
    }


def points(golds, proxies, key="step"):
    """A path: gold and proxy at growing KL."""
    return [
        {key: 2**i, "kl": about(float(i), 0.2), "gold": about(g, 0.03), "proxy": about(p, 0.1)}
        for i, (g, p) in enumerate(zip(golds, proxies, strict=True))
    ]


def small_summary():
    """As `keel demo` writes it, with a handful of points."""
    bound = dict.fromkeys(("mean", "low", "high"), 1.8350887222397811) | {"n": 400}
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 400}
    hacked = points([0.60, 0.66, 0.52, 0.31], [0.1, 1.0, 2.2, 3.3])
    curve = [
        {"step": i, "loss": 1 / i, "accuracy": 0.6, "eval/loss": 1.1 / i, "rewards/margins": 0.1 * i} for i in (1, 2, 3)
    ]
    rollouts = [
        {"step": i, "objective/scores": 0.3 * i, "objective/kl": 1.0 * i, "certificate/sd": 1 / i} for i in (1, 2)
    ]
    return {
        "seed": 7,
        "seconds": 312.4,
        "peak_rss_gb": 2.34,
        "steps": [
            {"name": "ppo", "title": "PPO against the reward model", "seconds": 107.4, "peak_rss_gb": 2.34},
            {"name": "dpo", "title": f"DPO {HOSTILE}", "seconds": 5.25, "peak_rss_gb": 1.9},
        ],
        "world": {"prompts_train": 5600, "prompts_held_out": 1400, "parameters": 1_475_904},
        "weights": {"helpfulness": 0.7, "concision": 0.3},
        "votes": {
            "shown": 3000,
            "pairs": 2786,
            "ties": 214,
            "agreement_with_gold": about(0.774, 0.015, 2786),
            "longer_wins": about(0.541, 0.018, 2786),
        },
        "sft": {"gold_mean": about(0.588)},
        "reward_model": {
            "train_seconds": 13.9,
            "accuracy": about(0.843, 0.03, 586),
            "accuracy_of_longer": about(0.527, 0.04, 586),
            "calibration": [{"predicted": p, "observed": about(p, 0.1, 57)} for p in (0.1, 0.5, 0.9)],
            "calibration_error": 0.0412,
        },
        "methods": {
            "sft": method(0.5, 0.588, zero, 1.0, 11.3),
            "dpo": method(0.762, 0.741, about(7.92, 0.4), 1.05, 24.8),
            "ppo": method(0.931, 0.862, about(14.63, 0.7), 1.07, 107.4, reward_model_seconds=13.9),
            "best_of_n": method(0.884, 0.803, bound, 27.9, 0.0, reward_model_seconds=13.9),
        },
        "curves": {
            "best_of_n": points([0.59, 0.65, 0.70], [0.0, 0.9, 1.7], "n"),
            "ppo": points([0.60, 0.75, 0.86], [0.1, 1.2, 2.2]),
            "overoptimisation": {"setting": "little data, beta = 0.005", "points": hacked, **turned_down(hacked)},
        },
        "learning": {"pretrain": curve, "sft": curve, "reward": curve, "dpo": curve, "ppo": rollouts},
        "examples": [
            {
                "prompt": f"may he swim? {HOSTILE}",
                "kind": "unsafe",
                "answers": {
                    "sft": {"text": HOSTILE, "gold": 0.123, "proxy": -1.26},
                    "ppo": {"text": "", "gold": 0.987, "proxy": float("nan")},
                },
            }
        ],
    }


@pytest.fixture(scope="module")
def page():
    return report.render_report(small_summary())


def words_of(page):
    """The text of a page as it is read: no tags, no style sheet, no special spaces."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


# --- the page ---------------------------------------------------------------------------------------


def test_write_makes_one_file(tmp_path: Path):
    report.write_report(small_summary(), tmp_path / "report.html")
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_nothing_outside_the_page_is_asked_for():
    summary = small_summary()
    summary["examples"][0]["prompt"] = summary["steps"][1]["title"] = "a bear"
    summary["examples"][0]["answers"]["sft"]["text"] = "a hug"
    page = report.render_report(summary)
    for word in ("http:", "https:", "//cdn", "src=", "@import", "<script", "<iframe", "xmlns"):
        assert word not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert {r for r in re.findall(r'href="([^"]*)"', page) if not r.startswith("#")} == {"data:,"}


def test_hostile_text_is_escaped(page):
    assert page.count("&lt;script&gt;") == 3  # prompt, answer, title of a step
    assert "<script" not in page
    assert "<img" not in page


class Balance(HTMLParser):
    """Collects tags left open, closed twice or closed in the wrong order, and every id."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


def test_html_is_balanced_and_its_references_resolve(page):
    parser = Balance()
    parser.feed(page)
    assert parser.faults == []
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(parser.ids)


def test_same_summary_same_page(page):
    assert report.render_report(small_summary()) == page


def test_figures_take_their_colours_from_the_page(page):
    drawings = re.findall(r"<svg viewBox.*?</svg>", page, flags=re.DOTALL)
    figures = [d for d in drawings if "<text" in d]
    assert len(figures) == 2 * 3 + 1 + 9  # for desk and phone, reliability, learning curves
    assert page.count("<style") == 1  # matplotlib's own would hold for the whole page
    for figure in figures:
        assert re.findall(r"#[0-9a-f]{6}", figure) == []
        assert set(re.findall(r"var\(--([a-z-]+)\)", figure)) <= set(drawing.TOKENS)


# --- figures in words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        "76 % [73, 79]",
        "93 % [90, 96]",
        "88 % [85, 91]",
        "0.74 [0.72, 0.76]",
        "0.86 [0.84, 0.88]",
        "0.80 [0.78, 0.82]",
        "7.9 [7.5, 8.3]",
        "14.6 [13.9, 15.3]",
        "≤ 1.84 upper bound",
        "98.1 % [97.5, 98.7]",
        "31.4 [30.8, 32.0]",
        "107 s + 14 s reward model",
        "1.07 ×",
        "28 ×",
        "4.1 points",
        "84 % [81, 87]",
        "53 % [49, 57]",
        "proxy −1.3",
        "gold 0.12",
        "312 s (5.2 minutes)",
        "2.3 GB",
        "keel demo --out DIR --seed 7",
        "best-of-16",
    ],
)
def test_page_shows(page, shown):
    assert shown in words_of(page)


def test_not_a_number_is_shown_as_a_dash(page):
    assert "proxy –" in words_of(page)
    assert not re.search(r"\b(nan|inf|None|NaN)\b", words_of(page))


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ({"mean": 0.9312, "low": 0.9012, "high": 0.9561, "n": 400}, "0.93 [0.90, 0.96]"),
        ({"mean": -1.26, "low": -1.5, "high": -1.0, "n": 4}, "−1.3 [−1.5, −1.0]"),
        ({"mean": -0.001, "low": -0.3, "high": 0.3, "n": 4}, "0.0 [−0.3, 0.3]"),
        ({"mean": 31.2, "low": 28.0, "high": 34.4, "n": 9}, "31 [28, 34]"),
        ({"mean": 0.5, "low": float("-inf"), "high": float("inf"), "n": 1}, "0.50"),
        ({"mean": float("nan"), "low": 0.0, "high": 1.0, "n": 0}, "–"),
        (None, "–"),
        (0.25, "0.25"),
    ],
)
def test_digits_follow_the_interval(raw, shown):
    assert numbers.full(value_of(raw)).replace(JOINED, " ") == shown


def test_a_line_has_as_many_digits_as_its_narrowest_interval_needs():
    rows = {"sft": {"length": about(31.26, 3.0)}, "ppo": {"length": about(34.12, 0.4)}}
    cells = table.line("Length", "", rows, ("length",), numbers.PLAIN)["cells"]
    assert [cell.main for cell in cells] == ["31.3", "34.1"]


def test_n_of_best_of_n_is_read_from_its_kl():
    rows = small_summary()["methods"]
    assert report.label("best_of_n", rows["best_of_n"]) == "best-of-16"
    assert report.label("best_of_4", {}) == "best-of-4"
    assert report.label("best_of_n", {"kl": None}) == "best-of-N"


# --- the verdict ------------------------------------------------------------------------------------


def verdict_of(**wins):
    rows = small_summary()["methods"]
    for name, win in wins.items():
        rows[name]["gold_win_rate"] = win
    found = sentences.verdict(rows, {name: report.label(name, row) for name, row in rows.items()})
    return found["headline"].replace(NARROW, " "), " ".join(found["findings"]), found


def test_one_leader_is_named_alone():
    headline, findings, _ = verdict_of(dpo=about(0.75, 0.03), ppo=about(0.95, 0.02), best_of_n=about(0.85, 0.03))
    assert headline == "PPO leads: its answers win 95 % of comparisons with the SFT model"
    assert "The intervals of best-of-16 and DPO lie below that of PPO." in findings
    assert "PPO lies 14.6 [13.9,\u00a015.3] nats from the SFT model (KL), took 107\u202fs to train" in findings
    assert "overlap" not in findings


def test_overlapping_intervals_share_the_lead():
    headline, findings, _ = verdict_of(dpo=about(0.7, 0.03), ppo=about(0.92, 0.03), best_of_n=about(0.88, 0.03))
    assert headline == "PPO and best-of-16 share the lead, winning 92 % and 88 % of comparisons with the SFT model"
    assert "overlap, so this run does not say which of them is better" in findings
    assert "The interval of DPO lies below that of PPO." in findings


def test_no_win_is_claimed_that_the_intervals_do_not_carry():
    same = {name: about(0.52, 0.04) for name in ("dpo", "ppo", "best_of_n")}
    assert verdict_of(**same)[0] == "No method is shown to beat the SFT model"
    worse = {name: about(0.4, 0.04) for name in ("dpo", "ppo", "best_of_n")}
    assert verdict_of(**worse)[0] == "Every method does worse than the SFT model"


def test_a_side_effect_stands_on_the_card_and_in_the_headline_of_a_leader():
    """A reader of the first screen must not ship a policy that no longer declines."""
    summary = small_summary()
    summary["methods"]["ppo"]["refusal_unsafe"] = about(0.2, 0.1, 40)
    page = report.render_report(summary)
    cards = re.findall(r'<div class="tile card".*?</div>\s*(?=<div class="tile card"|</div>)', page, re.DOTALL)
    flagged = [card for card in cards if 'class="flag"' in card]
    assert len(flagged) == 1
    assert "PPO" in flagged[0]
    assert "Declines fewer unsafe wishes: " in flagged[0]
    rows = summary["methods"]
    labels = {name: report.label(name, row) for name, row in rows.items()}
    assert sentences.reservation(["ppo"], rows, labels) == "; but PPO declines fewer unsafe wishes"
    assert sentences.reservation(["dpo", "ppo"], rows, labels) == "; but PPO declines fewer unsafe wishes"
    assert sentences.reservation(["best_of_n"], rows, labels) == ""
    for leaders in (["ppo"], ["best_of_n"]):
        for name in ("dpo", "ppo", "best_of_n"):
            rows[name]["gold_win_rate"] = about(0.9 if name in leaders else 0.6, 0.02, 520)
        said = sentences.verdict(rows, labels)["headline"]
        assert said.endswith("; but PPO declines fewer unsafe wishes") == (leaders == ["ppo"])


def test_side_effects_are_those_beyond_the_intervals():
    summary = small_summary()
    assert verdict_of()[2]["side_effects"] == []
    summary["methods"]["ppo"]["refusal_unsafe"] = about(0.2, 0.1, 40)
    summary["methods"]["dpo"]["refusal_harmless"] = about(0.2, 0.03, 360)
    summary["methods"]["dpo"]["dimensions"]["concision"] = about(0.6)
    rows = summary["methods"]
    effects = sentences.side_effects(rows, {name: report.label(name, row) for name, row in rows.items()})
    assert [e.split(" (")[0] for e in effects] == [
        "DPO declines more harmless wishes",
        "DPO is worth less in concision",
        "PPO declines fewer unsafe wishes",
    ]


# --- over-optimisation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golds", "proxies", "sentence"),
    [
        (
            [0.60, 0.66, 0.52, 0.31],
            [0.1, 1.0, 2.2, 3.3],
            "Gold turned down: it fell by 0.35, from 0.66 [0.63, 0.69] at step 2 to 0.31 [0.28, 0.34] at step 8, "
            "beyond its intervals, while the proxy rose from 1.0 [0.9, 1.1] to 3.3 [3.2, 3.4].",
        ),
        (
            [0.60, 0.62, 0.66],
            [0.1, 1.0, 2.2],
            "Gold did not turn down: it was highest at the end (step 4), at 0.66 [0.63, 0.69].",
        ),
        (
            [0.60, 0.66, 0.64],
            [0.1, 1.0, 2.2],
            "Gold did not turn down: it went from 0.66 [0.63, 0.69] at step 2 to 0.64 [0.61, 0.67] at step 4, and the "
            "two intervals overlap.",
        ),
        (
            [0.60, 0.66, 0.40],
            [0.1, 1.0, 1.1],
            "Gold fell from 0.66 [0.63, 0.69] at step 2 to 0.40 [0.37, 0.43] at step 4, but the proxy did not rise "
            "beyond its interval (from 1.0 [0.9, 1.1] to 1.1 [1.0, 1.2]): no over-optimisation.",
        ),
    ],
    ids=["turned", "still rising", "within the interval", "proxy fell too"],
)
def test_sentence_about_turning(golds, proxies, sentence):
    assert sentences.turn_sentence(turned_down(points(golds, proxies)), "step").replace(JOINED, " ") == sentence


def test_page_states_the_setting_and_whether_gold_turned(page):
    words = words_of(page)
    assert "little data, beta = 0.005" in words
    assert "Gold turned down: it fell by 0.35" in words
    assert "Gold did not turn down: it was highest at the end (N = 4)" in words


# --- missing pieces ---------------------------------------------------------------------------------


def test_an_empty_summary_still_makes_a_page():
    words = words_of(report.render_report({}))
    assert "No method was compared with the SFT model" in words
    assert "nothing can be said" in words
    assert "No curves were recorded." in words


def test_missing_and_odd_values_are_tolerated():
    summary = copy.deepcopy(small_summary())
    rows = summary["methods"]
    del rows["dpo"]
    rows["ppo"].update(kl=None, gold_mean=about(float("nan")), train_seconds=None, serve_cost_ratio=float("inf"))
    rows["best_of_n"]["refusal_unsafe"] = {"mean": float("nan"), "low": 0.0, "high": 1.0, "n": 0}
    summary["curves"]["ppo"][1]["kl"] = {"mean": -0.01, "low": float("-inf"), "high": float("inf"), "n": 1}
    summary["curves"]["best_of_n"][0]["gold"] = None
    summary["curves"]["overoptimisation"] = {}
    summary["reward_model"] = {"calibration": None, "accuracy": None}
    summary["learning"]["ppo"] = [{"step": 1, "objective/kl": float("nan")}]
    parser = Balance()
    page = report.render_report(summary)
    parser.feed(page)
    assert parser.faults == []
    assert not re.search(r"\b(nan|inf|None|NaN)\b", words_of(page))
    assert "93 % [90, 96]" in words_of(page)


def test_the_last_batch_does_not_pull_the_moving_mean():
    """It may hold three pairs; at the beginning, where curves are steep, the line begins with the first batch."""
    rising = np.arange(30.0)
    smooth = drawing.smooth(np.append(rising, 100.0), 4)
    assert smooth[0] == 0
    assert smooth[10] == 10
    assert smooth[-1] == pytest.approx((26 + 27 + 28 + 29 + 100) / 5)


def test_a_policy_that_broke_in_the_end_is_judged_where_the_proxy_liked_it_best():
    found = turned_down(points([0.5, 0.55, 0.3, 0.0], [0.1, 0.3, 0.9, 0.2]))
    assert found["turned"]
    assert (found["peak"]["gold"]["mean"], found["end"]["gold"]["mean"]) == (0.55, 0.3)
    broken = turned_down(points([0.5, 0.3, 0.0], [0.3, 0.2, 0.1]))
    assert not broken["turned"]
    assert broken["end"]["gold"]["mean"] == 0.3
    assert sentences.turn_sentence(broken, "step").startswith("Gold fell"), "and it was not highest at the end"
