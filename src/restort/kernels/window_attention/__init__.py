"""softmax(q q^T) v in windows of 4, 8 and 16 pixels, the output projection and the residual sum, in one kernel.

Zhang et al., ECCV 2022, section 3.3: a third of the channels for each window size, scores not scaled, windows moved
cyclically by half their size in every second group. Scores are made where they are used and never stored.
"""
