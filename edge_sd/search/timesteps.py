"""One learnt conditioning time a step: TimeTuner, the timestep aligner (2310.09469), and what works better here.

With few steps a program's direction at (x, t_i) is a poor average of the directions on the way to t_(i+1). The coefficients stay
those of t_i; what the program is told becomes τ_i = r_i·t_i. A plan keeps the two apart already: its rows of time features are
made from the column `timestep`, so that tuned times cost nothing, in any runtime. The weights are frozen, r_i is one number.

* Modes "sequential" and "parallel" are the paper's, one row after the other: ‖ε(x_i, t_i) − ε(x_(i+1), t_(i+1))‖² is made small,
  r_i being what leads to x_(i+1), so that successive noise predictions agree. The last row has no next, and keeps r = 1. x_i
  comes from noise by the rows before, tuned already; or it is a clean sample noised to the level of row i.
* Mode "joint" learns all r at once, by the distance of the loop's end from the end of a trajectory of many steps that starts from
  the same noise. Gradients flow through the whole loop; each row is computed again on the way back, so that memory is of one.

On the shipped model joint times bring DDIM at 10 steps nearer to its fine trajectory, and the paper's do not (docs/PLANS.md).
Any deterministic plan can be tuned. What a multistep row looks back on is in mode "parallel" made of the same sample and the same
noise at the rows before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edge_sd.diffusion.execute import advance
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Float64, Plan, Tuned
from edge_sd.diffusion.solvers._base import Levels, to_epsilon
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models.config import check_label
from edge_sd.models.unet import SpectralUNet
from edge_sd.search.objectives.trajectory import Trajectory
from edge_sd.search.subject import BATCH, Subject
from edge_sd.validation import Record

Mode = Literal["joint", "sequential", "parallel"]
_LOOK = 10  # iterations of mode "joint" between two looks at all samples


class TuneSettings(Record):
    """How timesteps are tuned.

    Attributes:
        mode: see the top of this file.
        iterations: of Adam; for each row, but in mode "joint" for all. 60 if left out, of the paper's modes 500, the paper's.
        learning_rate: of Adam. 5e-3 if left out, falling to 0; of the paper's modes 2e-3, the paper's.
        count: trajectories, or noised samples, that batches are drawn from.
        batch_size: of one iteration.
        fine: steps of the trajectory that mode "joint" follows, of UniPC.
        seed: of noise and batches.
    """

    mode: Mode = "joint"
    iterations: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    count: int = Field(default=64, ge=1)
    batch_size: int = Field(default=16, ge=1)
    fine: int = Field(default=100, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def rounds(self) -> int:
        """`iterations`, resolved."""
        return self.iterations or (60 if self.mode == "joint" else 500)

    @property
    def rate(self) -> float:
        """`learning_rate`, resolved."""
        return self.learning_rate or (5e-3 if self.mode == "joint" else 2e-3)


class Network(Protocol):
    """What is asked of a model: `SpectralUNet`'s two halves."""

    def temporal(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B,) timesteps, and classes where it knows any → (B, F), differentiable in t."""

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, C, H, W) and (B, F) → the prediction, differentiable in both."""


@dataclass(frozen=True)
class Tuning:
    """What came out.

    Attributes:
        plan: with the tuned timesteps.
        ratios: (N,) r.
        before, after: over the samples it was tuned on, with r = 1 and as tuned. Of mode "joint" the root mean square distance
            from the fine trajectory's end, of the others the sum of the rows' losses.
    """

    plan: Plan
    ratios: Float64
    before: float
    after: float


@dataclass
class State:
    """What the loop holds before a row: x, base, and the predictions that it remembers, newest first."""

    x: Tensor
    base: Tensor
    memory: list[Tensor]

    def of(self, chosen: Tensor) -> "State":
        """The same of some of the samples."""
        return State(self.x[chosen], self.base[chosen], [m[chosen] for m in self.memory])


def advanced(plan: Plan, row: int, state: State, e: Tensor) -> State:
    """The state after a row of the plan, through which gradients flow."""
    return State(*advance(plan, row, state.x, state.base, state.memory, e))


def refuse_stochastic(plan: Plan) -> None:
    """Refuse a plan whose steps add noise: where it ends is not a matter of its times alone.

    Raises:
        UsageError: it is one.
    """
    if plan.stochastic:
        raise UsageError(
            f"{plan.header.solver} adds noise at its steps, and timesteps are tuned without", "--eta 0, or --solver ddim"
        )


class Tuner:
    """A network, a plan and the samples it is tuned on.

    Args:
        clean: (n, C, H, W) clean samples; needed in mode "parallel". In mode "sequential" they are noised to the first row's
            level, as the paper does it; without them the loop starts from noise, as it does when it is used.
        labels: (n,) classes, where the network knows any.
        ends: (count, C, H, W) where the fine trajectories end, in mode "joint".
    """

    def __init__(
        self, network: Network, plan: Plan, settings: TuneSettings, shape: tuple[int, ...], clean: Tensor | None = None,
        labels: Tensor | None = None, ends: Tensor | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        refuse_stochastic(plan)
        if clean is None and settings.mode == "parallel":
            raise UsageError("mode parallel noises clean samples, and there are none", "give samples, or mode sequential")
        self.network, self.settings, self.ends = network, settings, ends
        self.labels: Tensor | None = None
        self.times = plan.levels_at
        self.plan = plan.bare()
        self.last = plan.header.noise_schedule.timesteps - 1
        self.levels = Levels.of(plan.header.noise_schedule.alpha_bar(self.times))
        noise = gaussian_batch(settings.seed, range(settings.count), -1, shape)
        self.noise = torch.from_numpy(noise).to(device)
        self.clean: Tensor | None = None
        if clean is not None:
            self.clean = clean[torch.arange(settings.count, device=clean.device) % len(clean)]
            self.noise = self.noise.to(clean)
        if labels is not None:
            self.labels = labels[torch.arange(settings.count, device=labels.device) % len(labels)]

    def tune(self, weights: str, observe: Callable[[int, int, str], None] = lambda done, total, note: None) -> Tuning:
        """See `tune_timesteps`."""
        ratios, before, after = self._joint(observe) if self.settings.mode == "joint" else self._rows(observe)
        times = np.clip(ratios * self.times, 0, self.last)
        tuned = Tuned(mode=self.settings.mode, weights=weights, times=tuple(self.times.tolist()))
        return Tuning(self.plan.with_timesteps(times, tuned), ratios, before, after)

    # One row

    def predict(self, x: Tensor, time: Tensor | float, chosen: Tensor | None = None) -> Tensor:
        """The network's prediction at a conditioning time, a number or a tensor () that gradients flow to."""
        t = torch.as_tensor(time, dtype=x.dtype, device=x.device)
        labels = self.labels if self.labels is None or chosen is None else self.labels[chosen]
        return self.network.denoise(x, self.network.temporal(t.expand(len(x)), labels))

    def time(self, row: int, ratio: Tensor) -> Tensor:
        """τ = r·t, kept inside the schedule."""
        return (ratio * float(self.times[row])).clamp(0, self.last)

    def _parameter(self, count: int) -> Tensor:
        return torch.ones(count, dtype=torch.float64, requires_grad=True)

    @torch.no_grad()
    def _keep_inside(self, ratios: Tensor, times: Float64) -> None:
        highest = np.divide(self.last, times, out=np.ones_like(times), where=times > 0)  # t = 0 is moved by no r
        ratios.clamp_(torch.zeros(len(times), dtype=torch.float64), torch.from_numpy(highest))

    def _batches(self, seed: int) -> Callable[[], Tensor]:
        settings, generator = self.settings, torch.Generator().manual_seed(seed)
        return lambda: torch.randperm(settings.count, generator=generator)[: settings.batch_size].to(self.noise.device)

    def _refuse_lost(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise EdgeSDError(
                f"before anything is tuned, {self.plan.header.solver} leads to values that are not finite",
                "fewer steps? another solver or model?",
            )

    # All rows at once

    def end(self, ratios: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Where the loop ends, differentiable in `ratios`, (N,)."""
        state = self.first() if chosen is None else self.first().of(chosen)
        for row in range(len(self.plan)):

            def step(x: Tensor, ratio: Tensor, row: int = row) -> Tensor:
                return self.predict(x, self.time(row, ratio), chosen)

            state = advanced(self.plan, row, state, checkpoint(step, state.x, ratios[row], use_reentrant=False))
        return state.x

    def distance(self, ratios: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Mean square distance of the loop's end from the fine trajectory's."""
        if self.ends is None:
            raise UsageError("mode joint needs the ends of fine trajectories, and there are none", "give ends, or another mode")
        return (self.end(ratios, chosen) - (self.ends if chosen is None else self.ends[chosen])).square().mean()

    def _joint(self, observe: Callable[[int, int, str], None]) -> tuple[Float64, float, float]:
        rounds, ratios, batch = self.settings.rounds, self._parameter(len(self.plan)), self._batches(self.settings.seed)
        optimiser = torch.optim.Adam([ratios], lr=self.settings.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds)
        with torch.no_grad():
            before = best = float(self.distance(ratios))
        self._refuse_lost(before)
        found = ratios.detach().clone()
        for done in range(1, rounds + 1):
            (ratios.grad,) = torch.autograd.grad(self.distance(ratios, batch()), [ratios])
            optimiser.step()
            falling.step()
            self._keep_inside(ratios, self.times)
            if done % _LOOK == 0 or done == rounds:  # a batch says little: a few samples are much further away than the others
                with torch.no_grad():
                    loss = float(self.distance(ratios))
                if loss < best:
                    best, found = loss, ratios.detach().clone()
            observe(done, rounds, f"distance {math.sqrt(best):.4g}, was {math.sqrt(before):.4g}")
        return found.numpy(), math.sqrt(before), math.sqrt(best)

    # One row after the other

    def epsilon(self, x: Tensor, row: int, e: Tensor) -> Tensor:
        """ε of a prediction at row's own level, whatever time the network was told."""
        p, q = to_epsilon(self.plan.header.prediction, float(self.levels.alpha[row]), float(self.levels.sigma[row]))
        return p * x + q * e

    def alignment(self, row: int, state: State, target: Tensor, ratio: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The paper's loss, summed over a sample and averaged over the batch; differentiable in `ratio`, ().

        Args:
            target: ε at the row itself, told its own time.
        """
        after = advanced(self.plan, row, state, self.predict(state.x, self.time(row, ratio), chosen)).x
        epsilon = self.epsilon(after, row + 1, self.predict(after, float(self.times[row + 1]), chosen))
        return (epsilon - target).square().flatten(1).sum(1).mean()

    def _rows(self, observe: Callable[[int, int, str], None]) -> tuple[Float64, float, float]:
        settings, rows = self.settings, len(self.plan) - 1
        ratios, before, after = np.ones(rows + 1), 0.0, 0.0
        state = self.first()
        for row in range(rows):
            with torch.no_grad():
                if settings.mode == "parallel":
                    state = self.forced(row)
                target = self.epsilon(state.x, row, self.predict(state.x, float(self.times[row])))
                before += float(self.alignment(row, state, target, torch.ones(())))
            self._refuse_lost(before)
            ratio, batch = self._parameter(1), self._batches(settings.seed + row)
            optimiser = torch.optim.Adam([ratio], lr=settings.rate)
            for done in range(1, settings.rounds + 1):
                chosen = batch()
                (ratio.grad,) = torch.autograd.grad(
                    self.alignment(row, state.of(chosen), target[chosen], ratio[0], chosen), [ratio]
                )
                optimiser.step()
                self._keep_inside(ratio, self.times[row : row + 1])
                observe(row * settings.rounds + done, rows * settings.rounds, f"row {row}")
            ratios[row] = float(ratio.detach())
            with torch.no_grad():
                after += float(self.alignment(row, state, target, ratio[0]))
                if settings.mode == "sequential":
                    state = advanced(self.plan, row, state, self.predict(state.x, self.time(row, ratio[0])))
        return ratios, before, after

    # Where a row begins

    def first(self) -> State:
        """Where the loop starts."""
        begins_with_noise = self.clean is None or self.settings.mode == "joint" or self.plan.start_scale != 1
        x = self.plan.start_scale * self.noise if begins_with_noise else self.noised(0)
        return State(x, x, [])

    def noised(self, row: int) -> Tensor:
        """Clean samples at the level of a row."""
        clean = self.noise if self.clean is None else self.clean  # mode "parallel" has some
        return float(self.levels.alpha[row]) * clean + float(self.levels.sigma[row]) * self.noise

    def forced(self, row: int) -> State:
        """The loop's state where x was a noised clean sample at every row so far, as far back as the plan looks."""
        begin = max(0, row - self.plan.header.history)
        state = State(self.noised(begin), self.noised(begin), [])
        for earlier in range(begin, row):
            e = self.predict(state.x, float(self.times[earlier]))
            state = advanced(self.plan, earlier, state, e)
            state.x = self.noised(earlier + 1)
        return state


def tune_timesteps(
    model: SpectralUNet,
    plan: Plan,
    settings: TuneSettings,
    weights: str,
    *,
    clean: NDArray[np.float32] | None = None,
    labels: NDArray[np.int64] | None = None,
    observe: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Tuning:
    """Tune a plan's timesteps for a model; its weights stay as they are.

    Args:
        plan: deterministic. One that was tuned before is tuned anew, from the times that its coefficients are for.
        weights: the model's digest, which the plan will carry.
        clean: (n, C, H, W) clean samples; see `Tuner`. Mode "joint" needs none.
        labels: (n,) their classes; of a model that knows classes all in turn if left out.
        observe: called with (done, in all, what is being done): samples of fine trajectories, then iterations.

    Raises:
        UsageError: a plan that adds noise, mode "parallel" without clean samples, or a model that wants a context.
        EdgeSDError: what the model makes of the plan is not finite.
    """
    refuse_stochastic(plan)
    config = model.config
    check_label(config, None if config.num_classes is None else 0)
    classes = tuple(range(config.num_classes or 0))
    if classes and (labels is None or settings.mode == "joint"):
        if clean is not None and settings.mode != "joint":
            raise UsageError(f"the model knows {len(classes)} classes, and nothing says those of the samples", "give labels")
        labels = np.arange(settings.count) % len(classes)
    device = next(model.parameters()).device
    ends = None
    if settings.mode == "joint":
        subject = Subject(model, plan.header.noise_schedule, plan.header.prediction, labels=classes)
        ends = _ends(subject, settings, observe)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        tuner = Tuner(
            model, plan, settings, config.sample_shape,
            None if clean is None else torch.from_numpy(clean).to(device),
            None if labels is None else torch.from_numpy(labels).to(device),
            None if ends is None else torch.from_numpy(ends).to(device),
            device,
        )  # fmt: skip
        return tuner.tune(weights, observe)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _ends(subject: Subject, settings: TuneSettings, observe: Callable[[int, int, str], None]) -> NDArray[np.float32]:
    """Where fine trajectories end, (count, C, H, W)."""
    fine, found = Trajectory(subject, fine=settings.fine), []
    for start in range(0, settings.count, BATCH):
        observe(start, settings.count, "fine trajectories")
        found.append(fine.ends(settings.seed, start))
    return np.concatenate(found)[: settings.count]
