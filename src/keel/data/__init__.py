"""Data: one tokenisation path (`text`), files into records (`formats`), what bad input gets (`checks`).

A file travels `formats.read_pairs` (its form: fields, types, encoding) -> `checks.check_pairs` (its content:
empty, equal or contradictory answers) -> `checks.split_by_prompt` -> `text.Text.encode`; `prepare` is that
whole way. Every row's fate stands in one `RowCounts`, which `checks.summarise` prints.
"""
