"""What every module of a model puts out in one call, in the order in which they finish."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def observed(root: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that calls of `root` fill: name of a module below it → its output.

    A module that is called several times keeps its first output. Modules that return no tensor are left out, and of several that
    hand the same tensor on, the innermost is kept.
    """
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not any(output is other for other in found.values()):
                found.setdefault(name, output)

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in root.named_modules()
        if name and not isinstance(module, nn.Identity)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
