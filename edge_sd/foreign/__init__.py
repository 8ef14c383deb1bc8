"""Models that others trained: a diffusers folder becomes a checkpoint of ours, weight for weight."""

from edge_sd.foreign.folder import Foreign as Foreign
from edge_sd.foreign.folder import load_foreign as load_foreign
from edge_sd.foreign.folder import open_model as open_model
from edge_sd.foreign.folder import refuse_missing_decoder as refuse_missing_decoder
from edge_sd.foreign.folder import refuse_other_latents as refuse_other_latents
from edge_sd.foreign.folder import refuse_other_teacher as refuse_other_teacher
