"""Jobs with mode=batch: rows sent through the providers' batch interfaces, at half price."""
