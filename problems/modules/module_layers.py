"""The layers of any torch module as subdomains of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from mldd.algebra import Build, Decomposition, Layout, Subdomain, contiguous, local_restrictions
from mldd.ranks import SERIAL, Communicator

Group = str | Sequence[str]


@dataclass(frozen=True)
class ModuleLayers:
    """The layers of a module: runs of its trainable parameters, in the order in which they are defined.

    Parameters
    ----------
    names : tuple of str
        Of the layers: that of the module which holds the parameters, or of the group.
    layout : Layout
        Where parameters and layers lie in the flat vector of a `ModuleObjective`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> layers = ModuleLayers.of(net)
    >>> layers.names, layers.layout.blocks
    (('0', '2'), (9, 4))
    >>> [subdomain.indices.tolist() for subdomain in layers.subdomains(2)]
    [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]]
    """

    names: tuple[str, ...]
    layout: Layout

    @staticmethod
    def of(module: nn.Module, groups: Sequence[Group] = ()) -> ModuleLayers:
        """Return the layers of a module: one per module inside that holds parameters directly, or one per group.

        A parameter that several modules share belongs to the first of them.

        Parameters
        ----------
        module : nn.Module
            Any module with a trainable parameter.
        groups : sequence of str, or of sequences of str
            Names of modules or parameters inside, as ``named_modules`` spells them; all below a name belongs to its
            group, and to the group of the longest name where several fit. Empty for a layer per module.

        Raises
        ------
        ValueError
            No trainable parameter, a group without any, a parameter in no group, or a group in several pieces.
        """
        named = [(name, tuple(p.shape)) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(f"`module` must have a trainable parameter, got none in {type(module).__name__}")
        owners = [name.rpartition(".")[0] for name, _ in named]
        if groups:
            owners = _grouped([name for name, _ in named], groups)
        names = [name for name, _ in groupby(owners)]
        numbers = [k for k, (_, run) in enumerate(groupby(owners)) for _ in run]
        return ModuleLayers(tuple(names), Layout(tuple(shape for _, shape in named), tuple(numbers)))

    def subdomains(self, parts: int, overlap: int = 0) -> list[Subdomain]:
        """Return runs of layers with about equally many parameters, each widened by neighbouring layers.

        Parameters
        ----------
        parts : int
            Number of subdomains.
        overlap : int
            Layers that are added to every subdomain on both sides.

        Raises
        ------
        ValueError
            More parts than layers, or a negative overlap.
        """
        if not 1 <= parts <= len(self.names):
            listed = ", ".join(name or "the module itself" for name in self.names[:8])
            more = ", ..." if len(self.names) > 8 else ""
            raise ValueError(f"`parts` must be in 1..{len(self.names)} (the layers {listed}{more}), got {parts}")
        return contiguous(self.layout.blocks, parts, overlap)

    def decomposition(
        self, parts: int, overlap: int = 0, comm: Communicator = SERIAL, build: Build = local_restrictions
    ) -> Decomposition:
        """Return the decomposition of the parameters into runs of layers.

        Parameters
        ----------
        parts : int
            Number of subdomains.
        overlap : int
            Layers that are added to every subdomain on both sides.
        comm : Communicator
            Its ranks share the subdomains.
        build : callable
            Makes the local objectives, as for `Decomposition`. By default they are restrictions of the objective
            itself, which then may not speak to other ranks.

        Raises
        ------
        ValueError
            More parts than layers, fewer than ranks, or a negative overlap.
        """
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")
        subdomains = self.subdomains(parts, overlap)
        return Decomposition(self.layout.size, subdomains, build, comm.share(parts), blocks=self.layout.slices)


def _grouped(names: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Return the group of every parameter, refusing groups that do not divide the parameters into runs."""
    members = [(group,) if isinstance(group, str) else tuple(group) for group in groups]
    titles = {prefix: "+".join(prefixes) for prefixes in members for prefix in prefixes}
    found = []
    for name in names:
        fitting = [prefix for prefix in titles if name == prefix or name.startswith(f"{prefix}.") or not prefix]
        if not fitting:
            raise ValueError(
                f"`groups` must have a group for every parameter, got {', '.join(titles)} without one for {name}; add "
                f"{name.partition('.')[0]!r} to one of them"
            )
        found.append(titles[max(fitting, key=len)])
    runs = [title for title, _ in groupby(found)]
    for title in titles.values():
        if title not in runs:
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ValueError(
                f"every group must have a trainable parameter, got none for {title!r}; the module has {tops}"
            )
        if runs.count(title) > 1:
            raise ValueError(
                f"the parameters of a group must stand together in the module, got {title!r} with others in between; "
                "make two groups of it"
            )
    return found
