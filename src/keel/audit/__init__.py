"""Are these data fit to train on? What `keel data check` finds, and its page."""
