"""The parts of report.py: what was recorded, its tables and its charts."""
