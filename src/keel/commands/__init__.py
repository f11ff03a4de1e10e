"""The verbs beside training, a file each."""
