"""`gatepass-redirect`: holds the nftables rules that lead local programs to the proxy and nobody past it.

`settings` reads what is configured, `rules` is the text of the two tables, `nft` speaks to the kernel, `tables` puts
them into force and compares, `watch` keeps at it until the service is stopped.
"""
