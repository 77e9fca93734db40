"""Untrusted Python programs, each in a process of its own with limits. A seat belt, not a jail. Start with run.py."""
