"""Pretrained models: where they come from, conversion, tokenizer, packed attention, heads, adapters, precision. Start with load.py."""
