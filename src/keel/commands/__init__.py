"""What is done by hand beside training: a command each, built on the rooms below."""
