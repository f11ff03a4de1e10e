"""The pages that people work with in a browser."""
