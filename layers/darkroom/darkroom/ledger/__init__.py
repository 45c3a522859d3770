"""The states of rows and runs and the moves between them, as pure values."""
