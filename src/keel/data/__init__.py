"""From sources to bundles: read, check, derive pairs, split by prompt, tokenise.

A file travels `source.Source.pairs` (its form: fields, types, encoding) -> `checks.check_pairs` (its content: empty,
equal or contradictory answers) -> `checks.split_by_prompt` -> `Text.encode`; `prepare` is that whole way. Every row's
fate stands in one `RowCounts`, which `checks.summarise` prints.
"""
