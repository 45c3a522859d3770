"""The image models as data, and a row's request fitted to one of them."""
