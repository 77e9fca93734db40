"""The table of contents: one story per file. Start with tune.py."""
