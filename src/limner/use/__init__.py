"""Features to answers: what people do with a model."""
