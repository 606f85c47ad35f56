from .petsc import petsc_types as petsc_types
