"""Encoders of one modality each, and the models that join them."""
