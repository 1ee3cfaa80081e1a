"""`python -m gatepass_broker`."""

import sys

from gatepass_broker.cli import main

sys.exit(main())
