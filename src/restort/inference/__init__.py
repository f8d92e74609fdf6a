"""The pipeline from files to files: models with their options, folders, resuming, progress."""
