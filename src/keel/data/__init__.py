"""The way from sources to bundles: read, check, derive pairs, split by prompt, tokenise.

A file passes through `source.Source.pairs` (its form: fields, types, encoding), `checks.check_pairs` (its content:
empty, equal or contradictory answers), `checks.split_by_prompt` and `Text.encode`; `prepare` runs all four. One
`RowCounts` records every row's fate, and `checks.summarise` prints it.
"""
