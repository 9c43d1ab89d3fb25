"""The `limner` command."""
