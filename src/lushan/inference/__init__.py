"""From examples to predictions, for any task, packed and with the shared prompt computed once."""
