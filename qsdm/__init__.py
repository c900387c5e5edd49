"""qsdm: which layer of a diffusion model can bear which low-bit quantization, by how much does the picture suffer, and
why?

trace       a denoiser becomes a graph whose nodes carry op, role and block          qsdm.tracing
calibrate   every weight gets several quantizations, with their errors and bytes     qsdm.quant
measure     random configurations generate real pictures and are scored              qsdm.metrics, qsdm.measurement
train       a graph neural network learns the outcomes                               qsdm.predictor
attribute   its attributions are the sensitivity per op type and per block           qsdm.sensitivity
search      an evolutionary algorithm over it selects configurations                 qsdm.strategies
realize     the chosen one is realized by fake quantization and measured again       qsdm.report
"""

__version__ = "0.1.0"
