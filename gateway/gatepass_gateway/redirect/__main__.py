"""`python -m gatepass_gateway.redirect`."""

import sys

from gatepass_gateway.redirect.cli import main

sys.exit(main())
