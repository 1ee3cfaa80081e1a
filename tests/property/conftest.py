"""Hypothesis here has no deadline for one example: it measures how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gatepass", deadline=None, max_examples=60)
settings.load_profile("gatepass")
