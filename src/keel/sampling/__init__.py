"""Completions of prompts: from a model in this process, or from a server."""
