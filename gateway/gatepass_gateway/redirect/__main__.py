"""`python -m gatepass_gateway.redirect`."""

from gatepass_gateway.redirect.cli import program

program()
