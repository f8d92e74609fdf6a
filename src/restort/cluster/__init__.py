"""One folder of pictures on many machines: a driver lists and deals out shards, workers of Ray restore them."""
