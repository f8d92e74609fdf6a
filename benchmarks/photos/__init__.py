"""The parts of evaluate_photos.py: inputs, sets and scores."""
