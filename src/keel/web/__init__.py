"""Pages in a browser: where people judge."""
