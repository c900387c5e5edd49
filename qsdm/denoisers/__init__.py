"""From ``conf/model/NAME.yaml``, a directory, a single file or a hub id to a diffusers pipeline.

- ``model``: `Model`, which describes what is loaded and how it draws
- ``discovery``: a `Model` for a pipeline that no YAML describes
- ``components``: another part of a pipeline in the denoiser's place, or several parts
- ``classes``: classes and configs, before any weights are loaded
- ``loading``, ``single_file``, ``weights``: pipelines, and the denoiser's parameters one by one
- ``calls``, ``conditioning``, ``videos``: arguments of a pipeline's call; pictures that it starts
  from; whether it draws videos
- ``files``, ``identity``: which files are loaded, and digests of them
- ``faults``: what is wrong with a file, in one sentence
"""

from __future__ import annotations

from qsdm.denoisers.calls import (
    arguments,
    can_be_called,
    check_prompts,
    first_call,
    frames_of,
    prompts_of,
)
from qsdm.denoisers.classes import (
    denoiser_class,
    denoiser_config,
    denoisers_in,
    is_denoiser,
    pipeline_class,
    pipeline_index,
    quiet,
)
from qsdm.denoisers.components import (
    parts_in,
    require_denoiser,
    require_one_part,
    with_component,
)
from qsdm.denoisers.discovery import discover, vae_factor
from qsdm.denoisers.faults import ModelError
from qsdm.denoisers.identity import (
    Digests,
    digests_of,
    pipeline_digest,
    sampler_of,
    source_digest,
    weights_digest,
)
from qsdm.denoisers.loading import (
    computed_in,
    denoiser_of,
    describing_folder,
    existing,
    load_pipeline,
)
from qsdm.denoisers.model import Model
from qsdm.denoisers.weights import denoiser_tensors

__all__ = [
    "Digests",
    "Model",
    "ModelError",
    "arguments",
    "can_be_called",
    "check_prompts",
    "computed_in",
    "denoiser_class",
    "denoiser_config",
    "denoiser_of",
    "denoiser_tensors",
    "denoisers_in",
    "describing_folder",
    "digests_of",
    "discover",
    "existing",
    "first_call",
    "found_model",
    "frames_of",
    "is_denoiser",
    "load_pipeline",
    "parts_in",
    "pipeline_class",
    "pipeline_digest",
    "pipeline_index",
    "prompts_of",
    "quiet",
    "require_denoiser",
    "require_one_part",
    "sampler_of",
    "source_digest",
    "vae_factor",
    "weights_digest",
    "with_component",
]

found_model = discover  # its name in 0.1, which users' YAML files may hold as a _target_
