"""Physics-informed networks: equations, derivatives by Taylor sweeps, networks of space windows.

Here stand residuals, their reference solutions, and the models that are fitted to them. Grids may not stand here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    name: f"mldd.problems.pinns.pinn:PhysicsInformed?name={name}"
    for name in ("poisson1d", "burgers", "diffusion-advection", "klein-gordon", "allen-cahn")
}
MODELS = {"solutions": "mldd.problems.pinns.solution_model:SolutionModel"}
