"""`python -m gatepass_broker`."""

from gatepass_broker.cli import program

program()
