"""Rows in and out of files, folders and data sets of the hub; JSON and JSONL."""
