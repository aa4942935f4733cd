"""Networks that compute with integers only (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018).

    requantization   a real factor as a fixed-point number: multiply, shift, round
    operations       what is computed: products, pools, sums, all from int8 to int8
    description      which operations, in which order: a closed vocabulary, as JSON
    network          a description and its tensors, checked, which runs
    conversion       a float network and its calibration data become one

Needs torch; nothing imports this package unless it is asked to.
"""
