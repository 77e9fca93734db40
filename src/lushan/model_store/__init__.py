"""Run folders: saving a tuned model, certifying it in a fresh process, loading it again."""
