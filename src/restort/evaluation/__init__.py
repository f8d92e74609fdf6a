"""Quality of restored pictures, measured on test sets."""
