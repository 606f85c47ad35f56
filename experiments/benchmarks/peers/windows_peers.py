"""Adam on p equal tanh networks with second derivatives, as a competent user writes it: peers of `windows.py`.

    python experiments/benchmarks/peers/windows_peers.py FILE.npz    (JAX, started by windows.py)

The residual is ``frozen + sum over networks of coefficients (p, 3, m) times (u, u', u'')`` at places, and the loss the
mean of its squares. Derivatives are propagated forwards, all networks in one batched product; the gradient is that of
the framework. Torch steps by its fused Adam; JAX compiles one step, or a scan of many.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE = 1e-3
Arrays = dict[str, Any]


def residuals(xp: Any, parameters: list[Any], points: Any, coefficients: Any) -> Any:
    """Return what the networks add to the residuals, shape (p, m); xp is torch or jax.numpy."""
    (w, b), *inner, (last_w, last_b) = zip(parameters[::2], parameters[1::2], strict=True)
    m = points.shape[1]
    t = xp.tanh(w * points.swapaxes(1, 2) + b[..., None])
    first = (1 - t * t) * w
    second = -2 * t * first * w
    for w, b in inner:
        z = w @ xp.concatenate([t, first, second], -1)
        t = xp.tanh(z[..., :m] + b[..., None])
        d, slope = 1 - t * t, z[..., m : 2 * m]
        first = d * slope
        second = d * z[..., 2 * m :] - 2 * t * first * slope
    out = (last_w @ xp.concatenate([t, first, second], -1)).reshape(len(points), 3, m)
    return (coefficients * out).sum(1) + coefficients[:, 0] * last_b


def torch_steps(arrays: Arrays) -> Callable[[int], float]:
    """Return a function that does some steps and returns the last loss."""
    import torch

    given = {key: torch.from_numpy(a) for key, a in arrays.items()}
    count = sum(key.startswith("tensor") for key in arrays)
    parameters = [given[f"tensor{k}"].clone().requires_grad_() for k in range(count)]
    adam = torch.optim.Adam(parameters, lr=RATE, fused=True)

    def steps(number: int) -> float:
        for _ in range(number):
            added = residuals(torch, parameters, given["points"], given["coefficients"])
            r = given["frozen"].index_add(0, given["places"], added.reshape(-1))
            loss = r.square().mean()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
        return float(loss.detach())

    return steps


def jax_steps(arrays: Arrays) -> dict[str, Callable[[int], float]]:
    """Return the same in JAX: one compiled step in a loop, and scans."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    given = {key: jnp.asarray(a) for key, a in arrays.items()}
    count = sum(key.startswith("tensor") for key in arrays)

    def loss(parameters: list[Any]) -> Any:
        added = residuals(jnp, parameters, given["points"], given["coefficients"])
        return jnp.square(given["frozen"].at[given["places"]].add(added.reshape(-1))).mean()

    def step(state: Any, _: Any = None) -> Any:
        x, mean, square, k = state
        value, g = jax.value_and_grad(loss)(x)
        k = k + 1
        mean = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, mean, g)
        square = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, square, g)

        def moved(a: Any, m: Any, v: Any) -> Any:
            ends = (1 - 0.9**k).astype(a.dtype), (1 - 0.999**k).astype(a.dtype)
            return a - RATE * (m / ends[0]) / (jnp.sqrt(v / ends[1]) + 1e-8)

        return (jax.tree.map(moved, x, mean, square), mean, square, k), value

    start = [given[f"tensor{k}"] for k in range(count)]
    zeros = jax.tree.map(jnp.zeros_like, start)
    held = {way: (start, zeros, zeros, jnp.asarray(0)) for way in ("loop", "scan")}
    compiled, scans = jax.jit(step), {}

    def loop(number: int) -> float:
        for _ in range(number):
            held["loop"], value = compiled(held["loop"])
        return float(value)

    def scan(number: int) -> float:
        if number not in scans:
            scans[number] = jax.jit(lambda state: jax.lax.scan(step, state, None, length=number))
        held["scan"], values = scans[number](held["scan"])
        return float(values[-1])

    return {"loop": loop, "scan": scan}


class Jax:
    """JAX in a process of its own, perhaps of another Python, that steps when it is told to."""

    def __init__(self, python: str, arrays: Arrays) -> None:
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "given.npz"
        np.savez(file, **arrays)
        command = [python, __file__, str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ms(self, way: str, number: int) -> tuple[float, float]:
        """Return CPU milliseconds per step, and the last loss."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{way} {number}\n")
        self._process.stdin.flush()
        ms, loss = self._process.stdout.readline().split()
        return float(ms), float(loss)

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def serve(file: str) -> None:
    """Step when told to, and say what it took."""
    with np.load(file) as given:
        steps = jax_steps(dict(given))
    for line in sys.stdin:
        way, number = line.split()
        begin = time.process_time()
        loss = steps[way](int(number))
        print(1e3 * (time.process_time() - begin) / int(number), loss, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
