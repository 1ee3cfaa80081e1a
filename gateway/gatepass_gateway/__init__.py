"""The gateway's side: verifies tokens, and stands in front of a gateway that runs in trusted-proxy mode."""
