"""Noise schedules, plans, and the solvers that compile to them."""

from edge_sd.diffusion.choice import PlanChoice as PlanChoice
from edge_sd.diffusion.choice import PlanFile as PlanFile
from edge_sd.diffusion.execute import execute as execute
from edge_sd.diffusion.noise import gaussian as gaussian
from edge_sd.diffusion.noise import gaussian_batch as gaussian_batch
from edge_sd.diffusion.plan import Plan as Plan
from edge_sd.diffusion.plan import Prediction as Prediction
from edge_sd.diffusion.plan import load_plan as load_plan
from edge_sd.diffusion.schedule import SCHEDULES as SCHEDULES
from edge_sd.diffusion.schedule import NoiseSchedule as NoiseSchedule
from edge_sd.diffusion.solvers import compile_plan as compile_plan
from edge_sd.diffusion.solvers import solvers as solvers
from edge_sd.diffusion.spacing import SPACINGS as SPACINGS
