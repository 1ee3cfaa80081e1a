"""`python -m gatepass_gateway`."""

from gatepass_gateway.cli import program

program()
