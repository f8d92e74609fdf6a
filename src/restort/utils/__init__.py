"""Files, cache folders, probes of GPU, CPU and memory, text."""
