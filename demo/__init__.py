"""`make demo`: real requests at a real gateway, and a table of who gets in and as whom."""
