"""Numbers and pictures to one HTML file."""
