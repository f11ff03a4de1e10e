"""Checks of data before training: `keel data check` and its page."""
