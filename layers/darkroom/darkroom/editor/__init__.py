"""The editor function: processes a row from its queue message to its outcome."""
