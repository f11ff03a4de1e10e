"""Parts that all pages share: drawings, formatted numbers, style."""
