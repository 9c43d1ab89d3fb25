"""Shards to batches: sources, shards, order, decode, tokenizer, loader, and the demo's data."""
