"""Features to answers: the pictures that a sentence describes."""
