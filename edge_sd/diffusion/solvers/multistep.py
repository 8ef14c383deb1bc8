"""The known solvers of order 3, which the unified solver compiles: DPM-Solver++(3M) (2211.01095) and UniPC-3 (2302.04867)."""

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.solvers._base import Levels, Row, Solver
from edge_sd.diffusion.unified import known_rows


class DPMSolverPlusPlus3M(Solver):
    """Order 1 and 2 at the start, where there is less to look back on; lower again at the end."""

    name = "dpmpp-3m"
    about = "DPM-Solver++(3M), 3rd order multistep"
    includes_end = False

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        self._no_eta(eta)
        return known_rows(self.name, levels, prediction)


class UniPC3(Solver):
    """Order 1 and 2 at both ends, order 3 between."""

    name = "unipc-3"
    about = "UniPC-3 with its corrector, 3rd order multistep"
    includes_end = False

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        self._no_eta(eta)
        return known_rows(self.name, levels, prediction)
