"""Batches to features: the image encoders, the text encoder and the CLIP that joins them."""
