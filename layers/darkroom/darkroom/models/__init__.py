"""The image models as data, and how a request is fitted to one of them."""
