"""The image providers: one adapter per API, and the HTTP client they share."""
