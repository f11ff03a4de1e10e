"""What a row means: every format of judgments, demonstrations, prompts and answers."""
