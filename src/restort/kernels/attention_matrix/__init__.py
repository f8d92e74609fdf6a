"""From the partial sums of q and k to one matrix per image: cosine scores, temperature, softmax, output projection."""
