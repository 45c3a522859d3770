"""Edits images in bulk with AI models: from the rows of a CSV to images, manifest and gallery."""
