"""How a network runs: the libraries behind the one contract, restort.runner.Runner."""
