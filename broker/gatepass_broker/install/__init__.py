"""`gatepass-broker install`: gatepass on a machine as services of systemd, in one command, and off again in another.

Deciding and doing are apart. `layout`, `request`, `requirements`, `units`, `configuration` and `manifest` turn values
into values; `observe` and `problems` look; `release`, `files`, `accounts`, `services`, `openclaw`, `carry_out` and
`undo` do, each act as one of `steps`, so that what is done and what `--dry-run` prints are the same list.

Everything that is made is noted in a manifest before it is made. So a run that was interrupted is finished by the next,
or undone, and nothing is ever removed that was there before.
"""
