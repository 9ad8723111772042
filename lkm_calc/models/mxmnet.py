"""MXMNet (Zhang, Liu and Xie 2020, arXiv:2011.07457)."""

from jaxtyping import Float
from torch import Tensor, nn

from ..graph import Graph, sum_to
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
    """h = Res(h); h = MLP(h) + r; h = Res(Res(h)), with r the features before the pass."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.residuals = nn.ModuleList(Residual(hidden) for _ in range(3))

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        """Return the new features, of the shape of ``h``."""
        first, second, third = self.residuals
        updated: Tensor = third(second(self.mlp(first(h)) + r))
        return updated


class GlobalPass(nn.Module):
    """Messages over the global graph before and after the update, with the same weights."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.messages = GlobalMessages(hidden)
        self.update = Update(hidden)

    def forward(
        self, h: Float[Tensor, "atoms hidden"], edges: EdgeFeatures
    ) -> Float[Tensor, "atoms hidden"]:
        """Return the atoms' new features."""
        edge_parts = self.messages.of_edges(edges.e)
        r, h = h, self.messages(self.mlp(h), edges, edge_parts)
        passed: Tensor = self.messages(self.update(h, r), edges, edge_parts)
        return passed


class LocalPass(nn.Module):
    """Messages along local edges that depend on two-hop angles, then on one-hop angles.

    m = [h_i ‖ h_j ‖ e];
    m' = MLP(m) + Σ_k (MLP(m) ⊙ W₁ e)_kj ⊙ MLP(sbf) over k → j → i;
    m'' = MLP(m') + Σ_j' (MLP(m') ⊙ W₂ e)_j'i ⊙ MLP(sbf) over j → i ← j';
    h_i = Σ_j (W₃ e) ⊙ m''.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden, hidden)
        self.messages = EdgeLinear(hidden, 2 * hidden)  # MLP(m) to keep and to send
        self.again = MLP(hidden, 2 * hidden)  # MLP(m') to keep and to send
        self.gates = dense(hidden, 3 * hidden, bias=False)  # W₁, W₂ and W₃
        self.two_hop = MLP(hidden, hidden, hidden)
        self.one_hop = MLP(hidden, hidden, hidden)
        self.update = Update(hidden)

    def forward(
        self,
        h: Float[Tensor, "atoms hidden"],
        edges: EdgeFeatures,
        one_hop: AngleFeatures,
        two_hop: AngleFeatures,
    ) -> Float[Tensor, "atoms hidden"]:
        """Return the atoms' new features."""
        r, h = h, self.mlp(h)
        gate_1, gate_2, gate_3 = self.gates(edges.e).chunk(3, dim=1)
        m = edge_messages(self.messages, h, edges)
        kept, sent = m.chunk(2, dim=1)
        m = kept + angle_sum(sent * gate_1, two_hop, self.two_hop(two_hop.features))
        kept, sent = self.again(m).chunk(2, dim=1)
        m = kept + angle_sum(sent * gate_2, one_hop, self.one_hop(one_hop.features))
        updated: Tensor = self.update(sum_to(gate_3 * m, edges.target, len(h)), r)
        return updated


class MXMNet(MultiplexModel):
    """MXMNet as a force field; 3,785,126 parameters.

    Each of ``num_layers`` layers passes messages over the global graph, then over the local graph
    and its angles, and predicts a value for every atom; the energy is the sum of all values.

    Differences from the published network, which has 3,773,862 parameters: embeddings for 94
    elements instead of 5 (+11,520); no bias in the projections of the radial bases (−256), which
    together with a suitable envelope makes every message vanish smoothly at its cut-off; a local
    graph defined by a short cut-off instead of a table of bonds; no angle of an edge with itself;
    and Legendre polynomials of the cosine instead of functions of the angle.

    LKM embeddings by ``lkm_tap``, ``num_layers`` of (atoms, hidden): the features after each local
    pass (``"state"``) or those of the last hidden layer of each head (``"head"``).

    Args:
        hidden: Width of all features.
        num_layers: Number of layers, each with a global and a local pass.
        num_radial: Number of radial basis functions.
        num_spherical: Number of angular functions, l = 0 .. num_spherical-1.
        num_spherical_radial: Number of radial functions per angular function.
        cutoff: Radius in Å of the global graph.
        local_cutoff: Radius in Å of the local graph.
        envelope_exponent: Exponent p of the cut-off functions.
        lkm_tap: Which embeddings to return.
    """

    name = "mxmnet"

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
        lkm_tap: str = "state",
    ) -> None:
        hypers = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(hypers, ("state", "head"))
        self.global_passes = nn.ModuleList(GlobalPass(hidden) for _ in range(num_layers))
        self.local_passes = nn.ModuleList(LocalPass(hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(Head(hidden) for _ in range(num_layers))

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the sum of the values of all layers and the embeddings of the chosen tap."""
        edges = self.basis(graph, self.dtype)
        h = self.embedding(graph.numbers)
        values = h.new_zeros(len(h))
        shares, embeddings = [], []
        for global_pass, local_pass, head in zip(
            self.global_passes, self.local_passes, self.heads, strict=True
        ):
            h = local_pass(global_pass(h, edges.wide), edges.local, edges.one_hop, edges.two_hop)
            layer_values, features = head(h)
            values = values + layer_values
            shares.append(layer_values)
            embeddings.append(h if self.lkm_tap == "state" else features)
        return AtomOutput(values, tuple(embeddings), tuple(shares))
