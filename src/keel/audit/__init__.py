"""Whether data are fit to train on: `keel data check` and its page."""
