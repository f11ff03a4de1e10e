"""The server of the annotation page, and the page itself."""
