"""The meaning of a row: every format of judgments, demonstrations, prompts and answers."""
