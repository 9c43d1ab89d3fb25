"""Features to loss."""
