"""Plain arithmetic and statistics on answers, without torch."""
