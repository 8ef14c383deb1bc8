"""One learnt conditioning time a step: TimeTuner, the timestep aligner (2310.09469).

With few steps a program's direction at (x, t_i) is a poor average of the directions on the way to t_(i+1). The coefficients stay
those of t_i; what the program is told becomes τ_i = r_i·t_i. A plan keeps the two apart already: its rows of time features are
made from the column `timestep`, so that tuned times cost nothing, in any runtime. The weights are frozen, r_i is one number.

* loss "alignment", the paper's: ‖ε(x_i, t_i) − ε(x_(i+1), t_(i+1))‖², in which r_i is what leads to x_(i+1): successive
  noise predictions are to agree. The last row has no next, and keeps r = 1.
* loss "trajectory": ‖x_(i+1) − x*‖², x* where DDIM with many small steps gets from the same x_i: what the step is off by.
* mode "sequential", the paper's first: x_i comes from noise by the rows before, tuned already. Mode "parallel": x_i is a clean
  sample noised to the level of row i, so that rows know nothing of each other.

Any deterministic plan can be tuned. What a multistep row looks back on is in mode "parallel" made of the same sample and the same
noise at the rows before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Float64, Plan, Tuned
from edge_sd.diffusion.solvers._base import Levels, to_epsilon
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models.config import check_label
from edge_sd.models.unet import SpectralUNet
from edge_sd.validation import Record


class TuneSettings(Record):
    """How timesteps are tuned.

    Attributes:
        mode, loss: see the top of this file.
        iterations: of Adam, for each row; the paper's are 500.
        learning_rate: of Adam; the paper's.
        count: trajectories, or noised samples, that batches are drawn from.
        batch_size: of one iteration.
        substeps: small steps of DDIM in place of one of the plan's, of the loss "trajectory".
        seed: of noise and batches.
    """

    mode: Literal["sequential", "parallel"] = "sequential"
    loss: Literal["alignment", "trajectory"] = "trajectory"
    iterations: int = Field(default=60, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0, allow_inf_nan=False)
    count: int = Field(default=64, ge=1)
    batch_size: int = Field(default=16, ge=1)
    substeps: int = Field(default=20, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)


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
        before, after: (N,) the loss of each row over all states, with r = 1 and as tuned; a row without a loss has NaN.
    """

    plan: Plan
    ratios: Float64
    before: Float64
    after: Float64


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
    """A row of the plan: `execute`'s arithmetic, through which gradients flow."""
    p, q, u, a, a_next = (float(plan.columns[name][row]) for name in ("p", "q", "u", "a", "a_next"))
    memory = [p * state.x + q * e, *state.memory][: plan.header.history]
    base = u * state.x + a * state.base
    for weight, m in zip(plan.b[row].tolist(), memory, strict=False):
        base = base + weight * m
    x = a_next * base
    for weight, m in zip(plan.b_next[row].tolist(), memory, strict=False):
        x = x + weight * m
    return State(x, base, memory)


def refuse_stochastic(plan: Plan) -> None:
    """Refuse a plan whose steps add noise: then x after a step says nothing of its direction alone.

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
    """

    def __init__(
        self, network: Network, plan: Plan, settings: TuneSettings, shape: tuple[int, ...],
        clean: Tensor | None = None, labels: Tensor | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        refuse_stochastic(plan)
        if clean is None and settings.mode == "parallel":
            raise UsageError("mode parallel noises clean samples, and there are none", "give samples, or mode sequential")
        self.network, self.settings = network, settings
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

    # One row

    def predict(self, x: Tensor, time: Tensor | float, chosen: Tensor | None = None) -> Tensor:
        """The network's prediction at a conditioning time, a number or a tensor () that gradients flow to."""
        t = torch.as_tensor(time, dtype=x.dtype, device=x.device)
        labels = self.labels if self.labels is None or chosen is None else self.labels[chosen]
        return self.network.denoise(x, self.network.temporal(t.expand(len(x)), labels))

    def epsilon(self, x: Tensor, row: int, e: Tensor) -> Tensor:
        """ε of a prediction at row's own level, whatever time the network was told."""
        p, q = to_epsilon(self.plan.header.prediction, float(self.levels.alpha[row]), float(self.levels.sigma[row]))
        return p * x + q * e

    def loss(self, row: int, state: State, target: Tensor, ratio: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The row's loss, summed over a sample and averaged over the batch; differentiable in `ratio`, ()."""
        after = advanced(self.plan, row, state, self.predict(state.x, self.time(row, ratio), chosen)).x
        if self.settings.loss == "alignment":
            after = self.epsilon(after, row + 1, self.predict(after, float(self.times[row + 1]), chosen))
        return (after - target).square().flatten(1).sum(1).mean()

    def time(self, row: int, ratio: Tensor) -> Tensor:
        """τ = r·t, kept inside the schedule."""
        return (ratio * float(self.times[row])).clamp(0, self.last)

    def target(self, row: int, state: State) -> Tensor:
        """What the loss compares with; no gradient flows through it."""
        if self.settings.loss == "alignment":
            return self.epsilon(state.x, row, self.predict(state.x, float(self.times[row])))
        return self.fine(row, state.x)

    def fine(self, row: int, x: Tensor) -> Tensor:
        """From x at this row's level to the next row's (or the clean image) in small steps of DDIM (2010.02502, equation 12)."""
        header, count = self.plan.header, self.settings.substeps
        if row + 1 < len(self.plan):
            times = np.linspace(self.times[row], self.times[row + 1], count + 1)
        else:
            times = np.linspace(self.times[row], 0, count)
        levels = Levels.of(header.noise_schedule.alpha_bar(times))
        for i in range(count):
            alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
            p, q = to_epsilon(header.prediction, alpha, sigma)
            epsilon = p * x + q * self.predict(x, float(times[i]))
            x = float(levels.alpha[i + 1]) * ((x - sigma * epsilon) / alpha) + float(levels.sigma[i + 1]) * epsilon
        return x

    # Where a row begins

    def noised(self, row: int) -> Tensor:
        """Clean samples at the level of a row."""
        clean = self.noise if self.clean is None else self.clean  # mode "parallel" has some
        return float(self.levels.alpha[row]) * clean + float(self.levels.sigma[row]) * self.noise

    def first(self) -> State:
        """Where the loop starts."""
        x = self.plan.start_scale * self.noise if self.clean is None or self.plan.start_scale != 1 else self.noised(0)
        return State(x, x, [])

    def forced(self, row: int) -> State:
        """The loop's state where x was a noised clean sample at every row so far, as far back as the plan looks."""
        begin = max(0, row - self.plan.header.history)
        state = State(self.noised(begin), self.noised(begin), [])
        for earlier in range(begin, row):
            e = self.predict(state.x, float(self.times[earlier]))
            state = advanced(self.plan, earlier, state, e)
            state.x = self.noised(earlier + 1)
        return state

    # All rows

    def tune(self, weights: str, observe: Callable[[int, int, str], None] = lambda done, total, note: None) -> Tuning:
        """Tune the rows in turn; see `tune_timesteps`."""
        count = len(self.plan)
        ratios, before, after = np.ones(count), np.full(count, np.nan), np.full(count, np.nan)
        state = self.first()
        for row in range(count):
            with torch.no_grad():
                if self.settings.mode == "parallel":
                    state = self.forced(row)
                if row + 1 < count or self.settings.loss == "trajectory":
                    target = self.target(row, state)
                    before[row] = self._whole(row, state, target, 1.0)
                    self._refuse_lost(row, before[row])
            if not np.isnan(before[row]):
                ratios[row] = self._tuned(row, state, target, lambda done, row=row: observe(  # type: ignore[misc]
                    row * self.settings.iterations + done, count * self.settings.iterations, f"row {row}"
                ))  # fmt: skip
            with torch.no_grad():
                if not np.isnan(before[row]):
                    after[row] = self._whole(row, state, target, float(ratios[row]))
                if self.settings.mode == "sequential":
                    time = self.time(row, torch.tensor(ratios[row]))
                    state = advanced(self.plan, row, state, self.predict(state.x, time))
        times = np.clip(ratios * self.times, 0, self.last)
        tuned = Tuned(mode=self.settings.mode, loss=self.settings.loss, weights=weights, times=tuple(self.times.tolist()))
        return Tuning(self.plan.with_timesteps(times, tuned), ratios, before, after)

    def _tuned(self, row: int, state: State, target: Tensor, observe: Callable[[int], None]) -> float:
        """r of one row, by Adam; it stays where r·t is inside the schedule."""
        settings, time = self.settings, float(self.times[row])
        if time == 0:  # no r moves it
            return 1.0
        ratio = torch.ones((), dtype=torch.float64, device=state.x.device, requires_grad=True)
        optimiser = torch.optim.Adam([ratio], lr=settings.learning_rate, betas=(0.9, 0.999))
        generator = torch.Generator().manual_seed(settings.seed + row)
        for iteration in range(settings.iterations):
            chosen = torch.randperm(settings.count, generator=generator)[: settings.batch_size].to(state.x.device)
            loss = self.loss(row, state.of(chosen), target[chosen], ratio, chosen)
            (ratio.grad,) = torch.autograd.grad(loss, [ratio])
            optimiser.step()
            with torch.no_grad():
                ratio.clamp_(0, self.last / time)
            observe(iteration + 1)
        return float(ratio.detach())

    def _whole(self, row: int, state: State, target: Tensor, ratio: float) -> float:
        return float(self.loss(row, state, target, torch.tensor(ratio, dtype=torch.float64)))

    def _refuse_lost(self, row: int, loss: float) -> None:
        if not np.isfinite(loss):
            raise EdgeSDError(
                f"row {row} leads to values that are not finite before anything is tuned", "fewer steps? another solver or model?"
            )


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
        clean: (n, C, H, W) clean samples; see `Tuner`.
        labels: (n,) their classes; of a model that knows classes all in turn if left out.
        observe: called with (iterations done, iterations in all, the row).

    Raises:
        UsageError: a plan that adds noise, mode "parallel" without clean samples, or a model that wants a context.
        EdgeSDError: what the model makes of the plan is not finite.
    """
    config = model.config
    check_label(config, None if config.num_classes is None else 0)
    if config.num_classes is not None and labels is None:
        if clean is not None:
            raise UsageError(
                f"the model knows {config.num_classes} classes, and nothing says those of the samples", "give labels"
            )
        labels = np.arange(settings.count) % config.num_classes
    device = next(model.parameters()).device
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        tuner = Tuner(
            model, plan, settings, config.sample_shape,
            None if clean is None else torch.from_numpy(clean).to(device),
            None if labels is None else torch.from_numpy(labels).to(device),
            device,
        )  # fmt: skip
        return tuner.tune(weights, observe)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
