"""The outside world behind the ports: AWS, the providers' SDKs, HTTP."""
