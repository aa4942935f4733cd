"""Networks as graphs of operations: what needs to know which layer follows which.

    graph             a module is traced, and each step gets a kind of a small vocabulary
    layers            weights of linear layers and convolutions as matrices by output and by input channel
    folding           a BatchNorm becomes part of the layer before it
    equalization      ranges of channels between two layers are made equal; high biases move on
    bias_correction   the mean change of a layer's outputs goes into its bias

Needs torch; nothing imports this package unless it is asked to.
"""
