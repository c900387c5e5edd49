"""Quantization of weights: every method makes codes and a few numbers that turn a code into a value.

    methods     METHODS, the registry: what each name means
    uniform     uniform affine quantization per channel or per group (kernels: uaq)
    codebook    a codebook per channel (K-Means-C) or per tensor (K-Means-A) (kernels: kmeans)
    nf4, fp8    formats of other engines, for comparison
    full        16 or 32 bits, as they are
    fitting     fit, dequantize and the layout of what is stored, for any method
    quantized   a quantized weight as it is stored
    packing     codes of any bit width without gaps; decoding through tables
    calibration all weights of a denoiser under all methods of a space
    swap        a module's weights change from one configuration to the next
    packed      layers that hold packed weights: the permanent form of a configuration
    kernels     fake quantization on CUDA and CPU from one source, and its reference in plain torch

Importing this package, or `qsdm.quant.methods`, imports neither torch nor numba.
"""
