"""The computation of a training step: blocks, kernels, reduced precision, CUDA graphs."""
