"""Images to learn from and to show."""

from edge_sd.data.augment import window_offsets as window_offsets
from edge_sd.data.augment import windows as windows
from edge_sd.data.config import DataConfig as DataConfig
from edge_sd.data.dead_leaves import dead_leaves as dead_leaves
from edge_sd.data.images import grid as grid
from edge_sd.data.images import png_bytes as png_bytes
from edge_sd.data.images import rgb as rgb
from edge_sd.data.images import save_png as save_png
from edge_sd.data.images import to_uint8 as to_uint8
from edge_sd.data.items import Skipped as Skipped
from edge_sd.data.sources import ImageData as ImageData
from edge_sd.data.sources import open_data as open_data
from edge_sd.data.sources import source_key as source_key
