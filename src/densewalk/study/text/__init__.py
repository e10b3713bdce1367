"""A study as text for people."""
