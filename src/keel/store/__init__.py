"""The store: prompts, answers and judgments in a database, and what they say together."""
