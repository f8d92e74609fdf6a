"""Quality of pictures on test sets."""
