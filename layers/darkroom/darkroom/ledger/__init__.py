"""The states of rows and runs and the transitions between them, as pure values."""
