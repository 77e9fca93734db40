"""The loop on one page (loop.py), optimizers, schedules, checkpoints."""
