"""Text as tokens, tests of whether two texts are the same, and measures of a text that need no model."""
