"""What `gatepass openclaw setup` and `gatepass openclaw check` know about OpenClaw's configuration.

Deciding and doing are apart. `json5`, `json5_edit`, `foreign`, `desired`, `proxy_file`, `versions` and `findings` turn
values into values; `executable`, `listeners`, `environment`, `files` and `observe` look and write.

OpenClaw finds and checks its configuration for us (`openclaw config file`, `openclaw config validate`), but we read and
write the file ourselves. Seen with openclaw 2026.9.6: `config get` hides the exec provider as if it were a secret;
`config patch` takes `gateway.auth.password` out again when the same patch sets the mode to `trusted-proxy`; and any
write through it makes plain JSON of the whole file, without its comments.
"""
