"""gatepass: short-lived identity for local callers of a gateway behind an identity-aware proxy."""
