"""How text becomes tokens, when two texts are the same, and what can be measured of one without a model."""
