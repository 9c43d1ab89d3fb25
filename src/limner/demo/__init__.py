"""`limner demo`."""
