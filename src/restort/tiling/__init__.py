"""Large arrays through any runner: tiles, halving, padding."""
