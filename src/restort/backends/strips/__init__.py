"""Exact whole-image Restormer in bounded memory, strip by strip."""
