"""Images: which references may be followed, file types, decoding and encoding."""
