"""Solvers: frozen hyper-parameters with `init` and `step`, one file per method.

A new method is one file here. What several methods are made of stands in `mldd.solvers.parts`, all that speaks PETSc in
`mldd.solvers.petsc`; problems may not be imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

REGISTERED = {
    "adagrad": "mldd.solvers.adagrad:AdaGrad",
    "ml-adagrad": "mldd.solvers.multilevel_adagrad:MultilevelAdaGrad",
    "dd-adagrad": "mldd.solvers.schwarz_adagrad:SchwarzAdaGrad",
    "schwarz": "mldd.solvers.schwarz:NonlinearSchwarz",
    "aspin": "mldd.solvers.aspin:Aspin",
    "raspen": "mldd.solvers.aspin:Raspen",
    "aspqn": "mldd.solvers.schwarz_lbfgs:SchwarzLBFGS?order=additive",
    "mspqn": "mldd.solvers.schwarz_lbfgs:SchwarzLBFGS?order=multiplicative",
    "apts": "mldd.solvers.apts:Apts",
    "mofftr": "mldd.solvers.mofftr:Mofftr",
    "localsgd": "mldd.solvers.local_sgd:LocalSgd",
    "local-adam": "mldd.solvers.local_sgd:LocalAdam",
    "diloco": "mldd.solvers.local_sgd:DiLoCo",
    "adam": "mldd.solvers.baselines:Adam",
    "sgd": "mldd.solvers.baselines:Sgd",
    "torch-adagrad": "mldd.solvers.baselines:TorchAdaGrad",
    "lbfgs": "mldd.solvers.lbfgs:LBFGS",
    "ml-lbfgs": "mldd.solvers.multilevel_lbfgs:MultilevelLBFGS",
    "whitened": "mldd.solvers.whitened:Whitened",
    "newton": "mldd.solvers.newton:NewtonCG",
    "trust-region": "mldd.solvers.trust_region:TrustRegion",
}
