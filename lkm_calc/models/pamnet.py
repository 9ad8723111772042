"""PAMNet (Zhang, Liu and Xie 2023, Sci. Rep. 13:19171, arXiv:2311.12228)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..graph import Graph
from ..nn import (
    LOCAL_CUTOFF,
    MLP,
    AngleFeatures,
    EdgeFeatures,
    EdgeLinear,
    GlobalMessages,
    Head,
    Residual,
    angle_sum,
    dense,
    edge_messages,
)
from .energy import AtomOutput
from .multiplex import MultiplexModel


class Update(nn.Module):
    """x = MLP(x); x = Res(x) + r; x = Res(Res(x)), with r the features before the pass."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.residuals = nn.ModuleList(Residual(hidden) for _ in range(3))

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        """Return the new features, of the shape of ``x``."""
        first, second, third = self.residuals
        updated: Tensor = third(second(first(self.mlp(x)) + r))
        return updated


class GlobalPass(nn.Module):
    """x + Σ_j (W e_ij) ⊙ MLP([x_i ‖ x_j ‖ e_ij]) over the global graph, between dense layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.messages = GlobalMessages(hidden)
        self.update = Update(hidden)

    def forward(
        self, x: Float[Tensor, "atoms hidden"], edges: EdgeFeatures
    ) -> Float[Tensor, "atoms hidden"]:
        """Return the atoms' new features."""
        edge_parts = self.messages.of_edges(edges.e)
        updated: Tensor = self.update(self.messages(self.mlp(x), edges, edge_parts), r=x)
        return updated


class LocalPass(nn.Module):
    """Messages along local edges that depend on the angles to other local edges.

    m = [x_i ‖ x_j ‖ e]; n = MLP_kj(m) ⊙ W e; M = MLP_ji(m) + Σ n ⊙ MLP(sbf) over the angles;
    x = x + Σ_j (W_o e) ⊙ M.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.messages = EdgeLinear(hidden, 2 * hidden)  # MLP_kj and MLP_ji
        self.gates = dense(hidden, 2 * hidden, bias=False)  # W and W_o
        self.angles = MLP(hidden, hidden, hidden)
        self.update = Update(hidden)

    def forward(
        self, x: Float[Tensor, "atoms hidden"], edges: EdgeFeatures, angles: AngleFeatures
    ) -> Float[Tensor, "atoms hidden"]:
        """Return the atoms' new features."""
        r, x = x, self.mlp(x)
        m = edge_messages(self.messages, x, edges)
        m_kj, m_ji = m.chunk(2, dim=1)
        gate, gate_out = self.gates(edges.e).chunk(2, dim=1)
        message = m_ji + angle_sum(m_kj * gate, angles, self.angles(angles.features))
        updated: Tensor = self.update(x.index_add(0, edges.target, gate_out * message), r)
        return updated


class PassOutput(NamedTuple):
    """Per-atom output of a global or local pass."""

    values: Float[Tensor, " atoms"]
    scores: Float[Tensor, " atoms"]
    """Attention score of the value relative to that of the other pass of the layer."""
    features: Float[Tensor, "atoms hidden"]
    """Features of the last hidden layer of the head."""


class ScoredHead(nn.Module):
    """o = MLP[d,d,d,d](x), the value W o + b and the attention score o · w."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.head = Head(hidden)
        self.score = dense(hidden, 1, bias=False)

    def forward(self, x: Float[Tensor, "atoms hidden"]) -> PassOutput:
        """Return the value and the score of each atom."""
        values, features = self.head(x)
        return PassOutput(values, self.score(features).squeeze(-1), features)


def smooth_leaky_relu(x: Tensor) -> Tensor:
    """Return 0.2 x + 0.8 softplus(x): a smooth LeakyReLU(0.2), without the kink at zero."""
    return 0.2 * x + 0.8 * nn.functional.softplus(x)


class PAMNet(MultiplexModel):
    """PAMNet as a force field; 3,590,060 parameters.

    Each of ``num_layers`` layers passes messages over the global graph, then over the local graph
    and its angles. Both passes predict a value for every atom, the two are weighted by a softmax of
    their scores, and the energy is the sum over layers.

    Differences from the published network, which has 3,578,796 parameters: embeddings for 94
    elements instead of 5 (+11,520); no bias in the projections of the radial bases (−256), which
    together with a suitable envelope makes every message vanish smoothly at its cut-off; a local
    graph defined by a short cut-off instead of a table of bonds; no angle of an edge with itself;
    Legendre polynomials of the cosine instead of functions of the angle; and a smooth LeakyReLU of
    the scores, because forces would jump at the kink of LeakyReLU.

    LKM embeddings by ``lkm_tap``, each (atoms, hidden): the features after every global and every
    local pass (``"state"``, 2 · num_layers), after the passes of one kind (``"global"``,
    ``"local"``), or those of the last hidden layer of every head (``"head"``, 2 · num_layers).

    Args:
        hidden: Width of all features.
        num_layers: Number of layers, each with a global and a local pass.
        num_radial: Number of radial basis functions.
        num_spherical: Number of angular functions, l = 0 .. num_spherical-1.
        num_spherical_radial: Number of radial functions per angular function.
        cutoff: Radius in Å of the global graph.
        local_cutoff: Radius in Å of the local graph.
        envelope_exponent: Exponent p of the cut-off functions.
        two_hop: False omits the angles k → j → i: PAMNet-s, with 5,504 parameters fewer.
        lkm_tap: Which embeddings to return.
    """

    name = "pamnet"

    def __init__(
        self,
        hidden: int = 128,
        num_layers: int = 6,
        num_radial: int = 16,
        num_spherical: int = 7,
        num_spherical_radial: int = 6,
        cutoff: float = 5.0,
        local_cutoff: float = LOCAL_CUTOFF,
        envelope_exponent: int = 6,
        two_hop: bool = True,
        lkm_tap: str = "state",
    ) -> None:
        hypers = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(hypers, ("state", "global", "local", "head"))
        self.global_passes = nn.ModuleList(GlobalPass(hidden) for _ in range(num_layers))
        self.local_passes = nn.ModuleList(LocalPass(hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(ScoredHead(hidden) for _ in range(2 * num_layers))

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the fused values of all layers and the embeddings of the chosen tap."""
        edges = self.basis(graph, self.dtype)
        angles = edges.angles()
        x = self.embedding(graph.numbers)
        states = []  # after every pass, alternating between global and local
        for global_pass, local_pass in zip(self.global_passes, self.local_passes, strict=True):
            x = global_pass(x, edges.wide)
            states.append(x)
            x = local_pass(x, edges.local, angles)
            states.append(x)
        outputs = [head(x) for head, x in zip(self.heads, states, strict=True)]

        values = torch.stack([output.values for output in outputs]).unflatten(0, (-1, 2))
        scores = torch.stack([output.scores for output in outputs]).unflatten(0, (-1, 2))
        attention = torch.softmax(smooth_leaky_relu(scores), dim=1)
        shares = attention * values  # (layers, 2, atoms)
        taps = {
            "state": states,
            "global": states[::2],
            "local": states[1::2],
            "head": [output.features for output in outputs],
        }
        embeddings = tuple(taps[self.lkm_tap])
        return AtomOutput(shares.sum((0, 1)), embeddings, tuple(shares.flatten(0, 1)))
