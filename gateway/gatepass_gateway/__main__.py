"""`python -m gatepass_gateway`."""

import sys

from gatepass_gateway.cli import main

sys.exit(main())
