"""Seeds by name: each use of randomness has its own, derived from the run's."""

import hashlib


def seed_for(name: str, seed: int) -> int:
    """A 63-bit seed for one use of randomness, such as "init" or "crop", derived from the run's seed by name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
