"""Lushan adapts a pretrained GPT to your task, proves that it got better, serves it, and keeps it good."""

__version__ = "0.1.0"
