"""Quantization of weights: methods that turn values into codes, and codes into values.

    method      the contract of a method
    methods     METHODS, the registry: what each name means
    uniform     uniform affine quantization per channel or per group (kernels: uaq)
    codebook    a codebook per channel (K-Means-C) or per tensor (K-Means-A) (kernels: kmeans)
    nf4, fp8    formats of other engines, for comparison
    full        full precision, in 16 or 32 bits
    fitting     codes and errors of a weight, for any method
    decoding    from codes to values on any device, and the stored layout
    placement   which codes stay on a GPU
    quantized   a quantized weight as it is stored
    packing     codes of any bit width without gaps; decoding through tables
    calibration all weights of a denoiser under all methods of a space
    calibrated  what calibration wrote: the table of methods, and packed weights read on demand
    swap        changes a module's weights from one configuration to the next
    packed      layers that hold packed weights: the permanent form of a configuration
    kernels     fake quantization on CUDA and CPU from one source, and its reference in plain torch

Importing this package, or `qsdm.quant.methods`, imports neither torch nor numba.
"""
