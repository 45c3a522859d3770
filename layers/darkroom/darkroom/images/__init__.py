"""Pictures: which references may be followed, what bytes are, decoding and encoding."""
