"""Pairs on disk to batches: sources, order, decoding, the tokenizer, the loader; and writing pairs as shards."""
