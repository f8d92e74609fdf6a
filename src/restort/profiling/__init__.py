"""Speed and numerical error of runners."""
