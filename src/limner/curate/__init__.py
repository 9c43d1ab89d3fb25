"""Looking at pairs, and choosing among them."""
