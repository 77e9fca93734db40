"""Which words of a text made the model answer so, and how far that can be trusted."""
