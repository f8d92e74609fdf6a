"""1x1 convolution of one array or of two side by side, with weights per image or for all, bias and residual."""
