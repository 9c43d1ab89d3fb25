"""Batches to features: the image encoders, the text encoder, the CLIP that joins them, and models on disk."""
