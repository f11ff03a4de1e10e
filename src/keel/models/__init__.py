"""Models in and out of folders, and the ways in which each is computed rightly."""
