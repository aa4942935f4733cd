"""Training aids of Deep Compression, for any torch.nn.Module: pruning with masks that hold, shared weights that learn.

Needs torch; nothing imports this package unless it is asked to train.
"""
