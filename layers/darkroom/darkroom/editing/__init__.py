"""A row's way through the editor, from its message to its outcome."""
