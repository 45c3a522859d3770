"""Reads an uploaded CSV: its text, its rows, and the request in each row."""
