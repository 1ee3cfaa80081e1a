"""The broker: issues tokens to callers that the kernel vouches for."""
