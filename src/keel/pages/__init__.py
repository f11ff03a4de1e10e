"""What every page that Keel writes stands on: figures, numbers in words, style."""
