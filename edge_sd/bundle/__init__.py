"""The bundle: manifest, plan, programs, golden trajectories, card."""

from edge_sd.bundle.bundle import Bundle as Bundle
from edge_sd.bundle.bundle import file_entries as file_entries
from edge_sd.bundle.bundle import open_bundle as open_bundle
from edge_sd.bundle.bundle import write_bundle as write_bundle
from edge_sd.bundle.golden import Golden as Golden
from edge_sd.bundle.golden import GoldenHeader as GoldenHeader
from edge_sd.bundle.golden import Trajectory as Trajectory
from edge_sd.bundle.golden import trace as trace
from edge_sd.bundle.manifest import Manifest as Manifest
