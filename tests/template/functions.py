"""The functions of the template."""

NAMES = ("splitter", "editor", "submitter", "collector", "reporter")
FUNCTIONS = tuple(f"{name.capitalize()}Function" for name in NAMES)  # their logical ids
