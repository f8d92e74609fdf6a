"""From files to files: a model with its options, folders, resuming, progress."""
