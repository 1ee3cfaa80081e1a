"""What the two daemons share: files that can be relied on, configuration in TOML, logs, and their own process.

Needs the extra `broker` or `gateway`; the client never imports it.
"""
