"""Data: one tokenisation path (`text`), files into records (`formats`), what bad input gets (`checks`).

Below `formats` stand `containers` (files into numbered rows, and back), `rows` (fields of a row), `judged` (one entry
for each format of judgments) and `demonstrations`; above it `convert`, from one format into another.

A file travels `formats.read_pairs` (its form: fields, types, encoding) -> `checks.check_pairs` (its content:
empty, equal or contradictory answers) -> `checks.split_by_prompt` -> `text.Text.encode`; `prepare` is that
whole way. Every row's fate stands in one `RowCounts`, which `checks.summarise` prints.
"""
