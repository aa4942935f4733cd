"""Deep Compression reproduced: the LeNets on MNIST, networks that others trained, AlexNet and VGG-16 at codec level, and
what pruning and quantization do alone and together."""
