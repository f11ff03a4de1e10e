"""What all pages share: drawings, numbers in words, style."""
