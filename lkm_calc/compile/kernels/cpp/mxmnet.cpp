// Values of MXMNet and their gradient by the edge vectors: what lkm_calc/models/mxmnet.py computes
// and torch's autograd derives, written out for the caches of a processor.
//
// What the geometry alone determines, weights of messages and of angles, is made for all layers at
// once before them, and the gradients by it are led to the vectors at once after them. An edge has
// the length of its reverse: the weights of messages are made once a pair of edges, and the
// gradient by the length is shared by the two. Between, atoms are taken in tiles with the edges
// into them, which are sorted by target. The way back is derived by hand. It follows the gradient
// by the activations alone: what each activation's slope was is kept, but for the messages of the
// global graph, which are cheaper to make again than to keep.

#include "tools.hpp"

namespace {

constexpr long TILE = 96;  // rows of pairs or of angles in a tile
constexpr long ATOMS = 24; // atoms in a tile, fewer where they have more than TILE local edges

struct Sizes {
    int64_t hidden, layers, radial, degrees, spherical_radial, exponent, elements, intervals, head;
};

template <class T> struct Update {
    Dense<T> mlp, residual[6]; // two for each residual layer
};
template <class T> struct GlobalPass {
    Dense<T> mlp;
    Dense<T> ends;  // what target and source give a message
    Dense<T> edges; // what the edge gives it, and the gate
    Update<T> update;
};
template <class T> struct LocalPass {
    Dense<T> mlp;
    Dense<T> ends;  // likewise for messages to keep and messages to send
    Dense<T> edges; // likewise, and three gates
    Dense<T> again;
    Dense<T> hops[2][2]; // of two-hop angles, of one-hop angles
    Update<T> update;
};
template <class T> struct Head {
    Dense<T> dense[3];
    Buffer<T> value;
    T bias;
};
template <class T> struct Layer {
    GlobalPass<T> global;
    LocalPass<T> local;
    Head<T> head;
};

// Slopes of an update, (atoms, width) each.
template <class T> struct Slopes {
    Buffer<T> mlp, residual[6];
};
// Of angles of a kind the weights, later the gradients by them, and slopes.
template <class T> struct Hop {
    Buffer<T> weight, hidden, out;
};
// What a layer leaves for the way back.
template <class T> struct Kept {
    Buffer<T> edges;                           // by pair, later the gradients by them
    Buffer<T> mlp, ends[2], local_mlp, to_out; // by atom
    Slopes<T> update, local_update;            // by atom
    Buffer<T> local_edges;                     // by local pair
    Buffer<T> m, m_slope, again, again_slope;  // by local edge: [to keep ‖ to send]
    Buffer<T> to_edges;                        // by local edge
    Hop<T> hops[2];                            // by angle
};

// Edges with their reverses.
struct Pairs {
    std::vector<long> edge; // the first edge of each pair
    std::vector<long> of;   // the pair of each edge

    void set(const int64_t *reverse, long edges) {
        edge.clear();
        of.resize(edges);
        for (long e = 0; e < edges; ++e)
            if (e < reverse[e]) {
                of[e] = of[reverse[e]] = long(edge.size());
                edge.push_back(e);
            }
    }
    long size() const { return long(edge.size()); }
};

template <class T> class MXMNet {
  public:
    Sizes s;

    MXMNet(const Sizes &sizes, const double *lengths, const T *const *arrays) : s(sizes) {
        const long H = s.hidden, R = s.radial, F = s.degrees * s.spherical_radial;
        const double cutoff = lengths[0], local_cutoff = lengths[1];
        Hp = padded<T>(H), Rp = padded<T>(R), Fp = padded<T>(F);
        auto next = [&]() { return *arrays++; };
        // Parts of the output stand side by side, each padded.
        auto dense = [&](Dense<T> &layer, long parts, long in, bool bias) {
            const T *weight = next();
            const long width = Hp;
            auto element = [=](long row, long column) {
                const long part = row / width, within = row % width;
                return within < H ? weight[(part * H + within) * in + column] : T(0);
            };
            layer.forth.pack(in, parts * Hp, [=](long k, long j) { return element(j, k); });
            layer.back.pack((parts - 1) * Hp + H, in, element);
            if (!bias)
                return;
            const T *b = next();
            T *to = layer.bias.get(parts * Hp);
            for (long part = 0; part < parts; ++part)
                std::copy(b + part * H, b + (part + 1) * H, to + part * Hp);
        };
        auto update = [&](Update<T> &one) {
            dense(one.mlp, 1, H, true);
            for (Dense<T> &layer : one.residual)
                dense(layer, 1, H, true);
        };
        waves.set(next(), R, cutoff, s.exponent);
        local_waves.set(next(), R, local_cutoff, s.exponent);
        pieces.set(next(), s.intervals, F, local_cutoff, cutoff, s.exponent);
        const T *rows = next();
        T *to = elements.get(s.elements * Hp);
        for (long z = 0; z < s.elements; ++z)
            std::copy(rows + z * H, rows + (z + 1) * H, to + z * Hp);
        dense(to_edge, 1, R, false);
        dense(to_local_edge, 1, R, false);
        for (Dense<T> &one : to_angle)
            dense(one, 1, F, true);
        layers.resize(s.layers);
        for (Layer<T> &one : layers) {
            dense(one.global.mlp, 1, H, true);
            dense(one.global.ends, 2, H, false);
            dense(one.global.edges, 2, H, true);
            update(one.global.update);
            dense(one.local.mlp, 1, H, true);
            dense(one.local.ends, 4, H, false);
            dense(one.local.edges, 5, H, true);
            dense(one.local.again, 2, H, true);
            for (auto &hop : one.local.hops)
                for (Dense<T> &layer : hop)
                    dense(layer, 1, H, true);
            update(one.local.update);
            for (Dense<T> &layer : one.head.dense)
                dense(layer, 1, H, true);
            const T *value = next();
            std::copy(value, value + H, one.head.value.get(Hp));
            one.head.bias = *next();
        }
        kept.resize(s.layers);
    }

    // False if edges, local edges or angles are not sorted by where they lead.
    bool run(const Call<T> &call) {
        std::lock_guard<std::mutex> lock(mutex); // the buffers are the model's
        N = call.counts[0], E = call.counts[1], L = call.counts[3], A = call.counts[5];
        const int threads = int(call.counts[2]);
        numbers = call.numbers, source = call.source, target = call.target, reverse = call.reverse;
        vectors = call.vectors, values = call.values, gradient = call.gradient;
        embeddings = call.embeddings;
        auto index = [&](int k) { return static_cast<const int64_t *>(call.indices[k]); };
        local = index(0), local_reverse = index(1), sender = index(2), receiver = index(3);
        if (!std::is_sorted(target, target + E) || !std::is_sorted(local, local + L) ||
            !std::is_sorted(receiver, receiver + A))
            return false;
        make_tiles();
        make_room(threads);
        using Step = void (MXMNet::*)(long, long);
        // A step for every tile of so many rows.
        auto each = [&](long rows, Step step) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
            for (long row = 0; row < rows; row += TILE)
                (this->*step)(row, std::min(TILE, rows - row));
        };
        // A step of a layer for every tile of atoms.
        auto atoms = [&](long b, Step step) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
            for (long t = 0; t < long(tiles.size()) - 1; ++t)
                (this->*step)(t, b);
        };
        auto messages_back = [&](long b, int which) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
            for (long row = 0; row < pairs.size(); row += TILE)
                pairs_back(b, which, row, std::min(TILE, pairs.size() - row));
        };
        each(pairs.size(), &MXMNet::edges_forth);
        each(local_pairs.size(), &MXMNet::local_edges_forth);
        each(A, &MXMNet::angles_forth);
        std::fill(values, values + N, T(0));
        atoms(0, &MXMNet::embed);
        for (long b = 0; b < s.layers; ++b) {
            atoms(b, &MXMNet::first_message);
            atoms(b, &MXMNet::second_message);
            atoms(b, &MXMNet::two_hop);
            atoms(b, &MXMNet::one_hop);
        }
        for (long b = s.layers - 1; b >= 0; --b) {
            atoms(b, &MXMNet::one_hop_back);
            atoms(b, &MXMNet::two_hop_back);
            atoms(b, &MXMNet::local_ends_back);
            messages_back(b, 1);
            atoms(b, &MXMNet::second_message_back);
            messages_back(b, 0);
        }
        each(pairs.size(), &MXMNet::edges_back);
        each(local_pairs.size(), &MXMNet::local_edges_back);
        each(A, &MXMNet::angles_back);
        atoms(0, &MXMNet::local_vectors_back);
        return true;
    }

  private:
    long Hp, Rp, Fp; // padded widths
    Waves<T> waves, local_waves;
    Pieces<T> pieces;
    Legendre<T> legendre;
    Buffer<T> elements;
    Dense<T> to_edge, to_local_edge, to_angle[2]; // of two-hop angles, of one-hop angles
    std::vector<Layer<T>> layers;

    // What follows belongs to one call.
    std::mutex mutex;
    long N = 0, E = 0, L = 0, A = 0;
    const int64_t *numbers = nullptr, *source = nullptr, *target = nullptr, *reverse = nullptr;
    const int64_t *local = nullptr, *local_reverse = nullptr;
    const int64_t *sender = nullptr, *receiver = nullptr;
    const double *vectors = nullptr;
    T *values = nullptr, *embeddings = nullptr;
    double *gradient = nullptr;
    Pairs pairs, local_pairs;
    // First edge into each atom, first local edge, first angle to each local edge; and one past
    // the last.
    std::vector<long> first, local_first, angle_first;
    std::vector<long> tiles; // first atom of each tile, and one past the last
    long tile_rows = 0;
    std::vector<Kept<T>> kept;
    // By pair: derivatives of the basis, slope of the features, gradient by the messages' parts.
    Buffer<T> rbf_slope, edge_slope, to_edges;
    // By local pair, likewise, and the gradient by the length.
    Buffer<T> local_rbf_slope, local_edge_slope, radial, radial_slope, to_length;
    // By angle: slopes of the features, gradients by the sender's length and by the cosine.
    Buffer<T> angle_slope[2], to_sender, to_cosine;
    // By atom: features before and in a pass, what the ends give local messages, gradients.
    Buffer<T> h, x, local_ends, to_h, to_before;
    Buffer<T> to_message; // by edge
    Buffer<T> exchanged;  // by local edge: sums over two-hop angles, or gradients by them
    struct Scratch {
        Buffer<T> u, v, w, ends, parts, sent, to_sent, f, sbf;
    };
    std::vector<Scratch> scratch; // a thread each

    // First row of each group of sorted ones, and one past the last.
    template <class F> static void starts(std::vector<long> &to, long groups, long rows, F group) {
        to.assign(groups + 1, 0);
        for (long row = 0; row < rows; ++row)
            ++to[group(row) + 1];
        for (long i = 0; i < groups; ++i)
            to[i + 1] += to[i];
    }

    void make_tiles() {
        starts(first, N, E, [&](long e) { return target[e]; });
        starts(local_first, N, L, [&](long e) { return target[local[e]]; });
        starts(angle_first, L, A, [&](long k) { return receiver[k]; });
        pairs.set(reverse, E);
        local_pairs.set(local_reverse, L);
        tiles.assign(1, 0);
        tile_rows = 0;
        for (long i = 0; i < N; ++i) {
            const long a0 = tiles.back(), rows = local_first[i + 1] - local_first[a0];
            if (i > a0 && (rows > TILE || i - a0 == ATOMS))
                tiles.push_back(i);
            tile_rows = std::max(tile_rows, local_first[i + 1] - local_first[tiles.back()]);
        }
        tiles.push_back(N);
    }

    void make_room(int threads) {
        const long P = pairs.size(), Q = local_pairs.size();
        auto slopes = [&](Slopes<T> &one) {
            one.mlp.get(N * Hp);
            for (Buffer<T> &slope : one.residual)
                slope.get(N * Hp);
        };
        for (Kept<T> &one : kept) {
            one.edges.get(P * 2 * Hp);
            for (Buffer<T> *by_atom : {&one.mlp, &one.local_mlp, &one.to_out})
                by_atom->get(N * Hp);
            one.ends[0].get(N * 2 * Hp), one.ends[1].get(N * 2 * Hp);
            slopes(one.update), slopes(one.local_update);
            one.local_edges.get(Q * 5 * Hp);
            for (Buffer<T> *by_edge : {&one.m, &one.m_slope, &one.again, &one.again_slope})
                by_edge->get(L * 2 * Hp);
            one.to_edges.get(L * 5 * Hp);
            for (Hop<T> &hop : one.hops)
                hop.weight.get(A * Hp), hop.hidden.get(A * Hp), hop.out.get(A * Hp);
        }
        rbf_slope.get(P * Rp), edge_slope.get(P * Hp), to_edges.get(P * 2 * Hp);
        local_rbf_slope.get(Q * Rp), local_edge_slope.get(Q * Hp), to_length.get(Q);
        radial.get(Q * Fp), radial_slope.get(Q * Fp);
        angle_slope[0].get(A * Hp), angle_slope[1].get(A * Hp), to_sender.get(A), to_cosine.get(A);
        for (Buffer<T> *by_atom : {&h, &x, &to_h, &to_before})
            by_atom->get(N * Hp);
        local_ends.get(N * 4 * Hp), to_message.get(E * Hp), exchanged.get(L * Hp);
        if (long(scratch.size()) < threads)
            scratch.resize(threads);
        for (Scratch &own : scratch) {
            for (Buffer<T> *wide : {&own.u, &own.v, &own.w, &own.f})
                wide->get(TILE * std::max(Hp, Rp));
            own.sbf.get(TILE * Fp);
            own.ends.get(ATOMS * 4 * Hp), own.parts.get(std::max(TILE * 5, tile_rows * 2) * Hp);
            own.sent.get(tile_rows * Hp), own.to_sent.get(tile_rows * Hp);
        }
    }

    Line<T> line(long e) const { return Line<T>(vectors + 3 * e); }
    Line<T> local_line(long e) const { return line(local[e]); }

    // ---- what the geometry determines -----------------------------------------------------------

    // Of a tile of pairs what it gives the global messages of every layer.
    void edges_forth(long p0, long rows) {
        Scratch &own = scratch[thread()];
        T *rbf = own.u(), *e = own.v();
        for (long p = 0; p < rows; ++p)
            waves.at(line(pairs.edge[p0 + p]).distance, rbf + p * Rp, rbf_slope() + (p0 + p) * Rp);
        to_edge.forth.times(rows, rbf, Rp, {e, Hp, nullptr, edge_slope() + p0 * Hp, Hp});
        for (long b = 0; b < s.layers; ++b) {
            const Dense<T> &edges = layers[b].global.edges;
            edges.forth.times(rows, e, Hp,
                              {kept[b].edges() + p0 * 2 * Hp, 2 * Hp, edges.bias()});
        }
    }

    void edges_back(long p0, long rows) {
        Scratch &own = scratch[thread()];
        T *to_rbf = own.u(), *to_e = own.v();
        std::fill_n(to_e, rows * Hp, T(0));
        for (long b = 0; b < s.layers; ++b)
            layers[b].global.edges.back.times(
                rows, kept[b].edges() + p0 * 2 * Hp, 2 * Hp,
                {to_e, Hp, nullptr, nullptr, 0, nullptr, 0, to_e, Hp});
        product(rows, Hp, to_e, Hp, edge_slope() + p0 * Hp, Hp, to_e, Hp);
        to_edge.back.times(rows, to_e, Hp, {to_rbf, Rp});
        for (long p = 0; p < rows; ++p) {
            const T along = inner(s.radial, to_rbf + p * Rp, rbf_slope() + (p0 + p) * Rp);
            const long e = pairs.edge[p0 + p];
            for (long half : {e, long(reverse[e])})
                line(half).gradient(along / 2, 0, 0, 0, gradient + 3 * half);
        }
    }

    static T inner(long n, const T *a, const T *b) {
        T sum = 0;
        for (long k = 0; k < n; ++k)
            sum += a[k] * b[k];
        return sum;
    }

    // Of a tile of local pairs what it gives the local messages of every layer, and the radial
    // basis of the angles.
    void local_edges_forth(long q0, long rows) {
        Scratch &own = scratch[thread()];
        T *rbf = own.u(), *e = own.v();
        for (long q = 0; q < rows; ++q) {
            const T d = local_line(local_pairs.edge[q0 + q]).distance;
            local_waves.at(d, rbf + q * Rp, local_rbf_slope() + (q0 + q) * Rp);
            pieces.at(d, radial() + (q0 + q) * Fp, radial_slope() + (q0 + q) * Fp);
        }
        to_local_edge.forth.times(rows, rbf, Rp,
                                  {e, Hp, nullptr, local_edge_slope() + q0 * Hp, Hp});
        for (long b = 0; b < s.layers; ++b) {
            const Dense<T> &edges = layers[b].local.edges;
            edges.forth.times(rows, e, Hp,
                              {kept[b].local_edges() + q0 * 5 * Hp, 5 * Hp, edges.bias()});
        }
    }

    void local_edges_back(long q0, long rows) {
        Scratch &own = scratch[thread()];
        T *to_rbf = own.u(), *to_e = own.v(), *parts = own.parts();
        std::fill_n(to_e, rows * Hp, T(0));
        for (long b = 0; b < s.layers; ++b) {
            for (long q = 0; q < rows; ++q) {
                const long e = local_pairs.edge[q0 + q];
                const T *one = kept[b].to_edges() + e * 5 * Hp;
                const T *other = kept[b].to_edges() + local_reverse[e] * 5 * Hp;
                for (long c = 0; c < 5 * Hp; c += W<T>)
                    store(parts + q * 5 * Hp + c, load(one + c) + load(other + c));
            }
            layers[b].local.edges.back.times(
                rows, parts, 5 * Hp, {to_e, Hp, nullptr, nullptr, 0, nullptr, 0, to_e, Hp});
        }
        product(rows, Hp, to_e, Hp, local_edge_slope() + q0 * Hp, Hp, to_e, Hp);
        to_local_edge.back.times(rows, to_e, Hp, {to_rbf, Rp});
        for (long q = 0; q < rows; ++q)
            to_length()[q0 + q] =
                inner(s.radial, to_rbf + q * Rp, local_rbf_slope() + (q0 + q) * Rp);
    }

    // Y_l0 of an angle and its derivative by the cosine.
    struct Angle {
        T y[MAX_DEGREES], slope[MAX_DEGREES];

        Angle(const MXMNet &of, long k) {
            const Line<T> a = of.local_line(of.sender[k]), b = of.local_line(of.receiver[k]);
            of.legendre.at(a.x * b.x + a.y * b.y + a.z * b.z, of.s.degrees, y, slope);
        }
    };

    // Weights of a tile of angles in every layer.
    void angles_forth(long k0, long rows) {
        Scratch &own = scratch[thread()];
        T *f = own.f(), *u = own.u();
        for (long k = 0; k < rows; ++k) {
            const Angle angular(*this, k0 + k);
            const T *of = radial() + local_pairs.of[sender[k0 + k]] * Fp;
            T *sbf = own.sbf() + k * Fp;
            for (long l = 0; l < s.degrees; ++l)
                for (long r = 0; r < s.spherical_radial; ++r)
                    *sbf++ = *of++ * angular.y[l];
        }
        for (int kind : {0, 1}) {
            to_angle[kind].forth.times(
                rows, own.sbf(), Fp,
                {f, Hp, to_angle[kind].bias(), angle_slope[kind]() + k0 * Hp, Hp});
            for (long b = 0; b < s.layers; ++b) {
                const Dense<T> *dense = layers[b].local.hops[kind];
                Hop<T> &hop = kept[b].hops[kind];
                dense[0].forth.times(rows, f, Hp,
                                     {u, Hp, dense[0].bias(), hop.hidden() + k0 * Hp, Hp});
                dense[1].forth.times(
                    rows, u, Hp,
                    {hop.weight() + k0 * Hp, Hp, dense[1].bias(), hop.out() + k0 * Hp, Hp});
            }
        }
    }

    void angles_back(long k0, long rows) {
        Scratch &own = scratch[thread()];
        T *f = own.f(), *u = own.u(), *v = own.v();
        std::fill_n(own.sbf(), rows * Fp, T(0));
        for (int kind : {0, 1}) {
            std::fill_n(f, rows * Hp, T(0));
            for (long b = 0; b < s.layers; ++b) {
                const Dense<T> *dense = layers[b].local.hops[kind];
                Hop<T> &hop = kept[b].hops[kind];
                product(rows, Hp, hop.weight() + k0 * Hp, Hp, hop.out() + k0 * Hp, Hp, v, Hp);
                dense[1].back.times(rows, v, Hp,
                                    {u, Hp, nullptr, nullptr, 0, hop.hidden() + k0 * Hp, Hp});
                dense[0].back.times(rows, u, Hp, {f, Hp, nullptr, nullptr, 0, nullptr, 0, f, Hp});
            }
            product(rows, Hp, f, Hp, angle_slope[kind]() + k0 * Hp, Hp, f, Hp);
            to_angle[kind].back.times(
                rows, f, Hp, {own.sbf(), Fp, nullptr, nullptr, 0, nullptr, 0, own.sbf(), Fp});
        }
        for (long k = 0; k < rows; ++k) {
            const Angle angular(*this, k0 + k);
            const long q = local_pairs.of[sender[k0 + k]], R = s.spherical_radial;
            T by_length = 0, by_cosine = 0;
            for (long l = 0; l < s.degrees; ++l) {
                const T *to = own.sbf() + k * Fp + l * R;
                by_length += angular.y[l] * inner(R, to, radial_slope() + q * Fp + l * R);
                by_cosine += angular.slope[l] * inner(R, to, radial() + q * Fp + l * R);
            }
            to_sender()[k0 + k] = by_length;
            to_cosine()[k0 + k] = by_cosine;
        }
    }

    // The gradients by the local edges' vectors, added.
    void local_vectors_back(long t, long) {
        Scratch &own = scratch[thread()];
        const long e0 = local_first[tiles[t]], e1 = local_first[tiles[t + 1]];
        T *to = own.parts(); // by length and direction
        std::fill_n(to, (e1 - e0) * 4, T(0));
        for (long b = e0; b < e1; ++b) {
            const Line<T> end = local_line(b);
            T *to_end = to + (b - e0) * 4;
            to_end[0] += to_length()[local_pairs.of[b]] / 2;
            for (long k = angle_first[b]; k < angle_first[b + 1]; ++k) {
                const Line<T> from = local_line(sender[k]);
                T *to_from = to + (sender[k] - e0) * 4;
                const T by_cosine = to_cosine()[k];
                to_from[0] += to_sender()[k];
                to_from[1] += by_cosine * end.x, to_end[1] += by_cosine * from.x;
                to_from[2] += by_cosine * end.y, to_end[2] += by_cosine * from.y;
                to_from[3] += by_cosine * end.z, to_end[3] += by_cosine * from.z;
            }
        }
        for (long e = e0; e < e1; ++e, to += 4) {
            double by_vector[3];
            local_line(e).gradient(to[0], to[1], to[2], to[3], by_vector);
            for (int k : {0, 1, 2})
                gradient[3 * local[e] + k] += by_vector[k];
        }
    }

    // ---- blocks of atoms ------------------------------------------------------------------------

    Residual<T> residual(const Update<T> &layer, Slopes<T> &slopes, int which, long a0) const {
        return {&layer.residual[2 * which], &slopes.residual[2 * which], a0, Hp};
    }

    // Update of z with the features before, whose place may be that of the outcome; z is used up.
    void update(const Update<T> &layer, Slopes<T> &slopes, long a0, long rows, T *z,
                const T *before, T *out) {
        T *u = scratch[thread()].u();
        residual(layer, slopes, 0, a0).forth(rows, z, u);
        layer.mlp.forth.times(
            rows, z, Hp,
            {out, Hp, layer.mlp.bias(), slopes.mlp() + a0 * Hp, Hp, nullptr, 0, before, Hp});
        residual(layer, slopes, 1, a0).forth(rows, out, u);
        residual(layer, slopes, 2, a0).forth(rows, out, u);
    }
    // From the gradient by the outcome to that by z, in place, and that by the features before.
    void update_back(const Update<T> &layer, Slopes<T> &slopes, long a0, long rows, T *g) {
        Scratch &own = scratch[thread()];
        T *u = own.u(), *v = own.v();
        residual(layer, slopes, 2, a0).back(rows, g, u, v);
        residual(layer, slopes, 1, a0).back(rows, g, u, v);
        std::copy_n(g, rows * Hp, to_before() + a0 * Hp);
        product(rows, Hp, g, Hp, slopes.mlp() + a0 * Hp, Hp, v, Hp);
        layer.mlp.back.times(rows, v, Hp, {g, Hp});
        residual(layer, slopes, 0, a0).back(rows, g, u, v);
    }

    // ---- the global graph -----------------------------------------------------------------------

    void embed(long t, long) {
        const long a0 = tiles[t], a1 = tiles[t + 1];
        for (long i = a0; i < a1; ++i)
            std::copy_n(elements() + numbers[i] * Hp, Hp, h() + i * Hp);
        start(0, a0, a1 - a0);
    }

    // What the first messages of a layer are made of, from h.
    void start(long b, long a0, long rows) {
        const GlobalPass<T> &layer = layers[b].global;
        T *z = x() + a0 * Hp;
        layer.mlp.forth.times(rows, h() + a0 * Hp, Hp,
                              {z, Hp, layer.mlp.bias(), kept[b].mlp() + a0 * Hp, Hp});
        layer.ends.forth.times(rows, z, Hp, {kept[b].ends[0]() + a0 * 2 * Hp, 2 * Hp});
    }

    // The sums of x and the messages of a tile's atoms.
    void messages(long b, int which, long a0, long rows, T *sum) {
        const T *ends = kept[b].ends[which](), *edges = kept[b].edges();
        std::copy_n(x() + a0 * Hp, rows * Hp, sum);
        for (long i = a0; i < a0 + rows; ++i, sum += Hp) {
            const T *to = ends + i * 2 * Hp;
            for (long e = first[i]; e < first[i + 1]; ++e) {
                const T *from = ends + source[e] * 2 * Hp + Hp;
                const T *edge = edges + pairs.of[e] * 2 * Hp;
                for (long c = 0; c < Hp; c += W<T>) {
                    V<T> m = silu<T>(load(edge + c) + load(to + c) + load(from + c)).value;
                    store(sum + c, load(sum + c) + load(edge + Hp + c) * m);
                }
            }
        }
    }
    // Given the gradients by the atoms' sums, in to_h, those by the messages before the activation,
    // and those by what the pairs give them, which replace it after the first messages.
    void pairs_back(long b, int which, long p0, long rows) {
        const T *ends = kept[b].ends[which](), *g = to_h();
        for (long p = p0; p < p0 + rows; ++p) {
            const long e = pairs.edge[p], i = target[e], j = source[e];
            const T *to_i = ends + i * 2 * Hp, *to_j = ends + j * 2 * Hp;
            const T *from_i = to_i + Hp, *from_j = to_j + Hp;
            T *edge = kept[b].edges() + p * 2 * Hp, *second = to_edges() + p * 2 * Hp;
            T *one = to_message() + e * Hp, *other = to_message() + reverse[e] * Hp;
            for (long c = 0; c < Hp; c += W<T>) {
                const V<T> part = load(edge + c), weight = load(edge + Hp + c);
                const V<T> g_i = load(g + i * Hp + c), g_j = load(g + j * Hp + c);
                const Activation<T> m = silu<T>(part + load(to_i + c) + load(from_j + c));
                const Activation<T> back = silu<T>(part + load(to_j + c) + load(from_i + c));
                const V<T> to_one = g_i * weight * m.slope, to_other = g_j * weight * back.slope;
                store(one + c, to_one);
                store(other + c, to_other);
                const V<T> to_part = to_one + to_other, to_gate = g_i * m.value + g_j * back.value;
                if (which == 1) {
                    store(second + c, to_part);
                    store(second + Hp + c, to_gate);
                } else {
                    store(edge + c, load(second + c) + to_part);
                    store(edge + Hp + c, load(second + Hp + c) + to_gate);
                }
            }
        }
    }
    // From the gradients by a tile's messages to those by its atoms' features, added to to_h.
    void ends_back(long b, long a0, long rows) {
        T *ends = scratch[thread()].ends(), *g = to_h() + a0 * Hp;
        for (long i = a0; i < a0 + rows; ++i)
            both_ends(first[i], first[i + 1], reverse, to_message(), Hp, Hp,
                      ends + (i - a0) * 2 * Hp);
        layers[b].global.ends.back.times(rows, ends, 2 * Hp,
                                         {g, Hp, nullptr, nullptr, 0, nullptr, 0, g, Hp});
    }
    // Sums over an atom's edges, and over those out of it.
    static void both_ends(long e0, long e1, const int64_t *reverse, const T *rows, long ld,
                          long width, T *to) {
        std::fill_n(to, 2 * width, T(0));
        for (long e = e0; e < e1; ++e) {
            const T *in = rows + e * ld, *out = rows + reverse[e] * ld;
            for (long c = 0; c < width; c += W<T>) {
                store(to + c, load(to + c) + load(in + c));
                store(to + width + c, load(to + width + c) + load(out + c));
            }
        }
    }

    void first_message(long t, long b) {
        const long a0 = tiles[t], rows = tiles[t + 1] - a0;
        const GlobalPass<T> &layer = layers[b].global;
        T *z = x() + a0 * Hp, *v = scratch[thread()].v();
        messages(b, 0, a0, rows, v);
        update(layer.update, kept[b].update, a0, rows, v, h() + a0 * Hp, z);
        layer.ends.forth.times(rows, z, Hp, {kept[b].ends[1]() + a0 * 2 * Hp, 2 * Hp});
    }

    // The last messages of the global graph, and what the ends give the local ones.
    void second_message(long t, long b) {
        const long a0 = tiles[t], rows = tiles[t + 1] - a0;
        const LocalPass<T> &layer = layers[b].local;
        T *z = h() + a0 * Hp, *u = scratch[thread()].u();
        messages(b, 1, a0, rows, z);
        layer.mlp.forth.times(rows, z, Hp,
                              {u, Hp, layer.mlp.bias(), kept[b].local_mlp() + a0 * Hp, Hp});
        layer.ends.forth.times(rows, u, Hp, {local_ends() + a0 * 4 * Hp, 4 * Hp});
    }

    void second_message_back(long t, long b) {
        const long a0 = tiles[t], rows = tiles[t + 1] - a0;
        ends_back(b, a0, rows);
        update_back(layers[b].global.update, kept[b].update, a0, rows, to_h() + a0 * Hp);
    }

    // To the gradient by the features before a layer.
    void start_back(long b, long a0, long rows) {
        T *g = to_h() + a0 * Hp, *v = scratch[thread()].v();
        ends_back(b, a0, rows);
        product(rows, Hp, g, Hp, kept[b].mlp() + a0 * Hp, Hp, v, Hp);
        layers[b].global.mlp.back.times(
            rows, v, Hp, {g, Hp, nullptr, nullptr, 0, nullptr, 0, to_before() + a0 * Hp, Hp});
    }

    // ---- the local graph ------------------------------------------------------------------------

    // Of gate 0, 1 or 2 the row of a local edge.
    const T *gate(long b, long e, int which) const {
        return kept[b].local_edges() + (local_pairs.of[e] * 5 + 2 + which) * Hp;
    }

    // What a tile's edges send through a gate.
    void send(long b, const T *parts, int which, long e0, long e1, T *sent) const {
        for (long e = e0; e < e1; ++e)
            product(1, Hp, parts + (2 * e + 1) * Hp, Hp, gate(b, e, which), Hp,
                    sent + (e - e0) * Hp, Hp);
    }
    // Σ_a sent_a ⊙ weight_ab for an edge b, added.
    void angle_sum(const T *weight, long b, long e0, const T *sent, T *to) const {
        for (long k = angle_first[b]; k < angle_first[b + 1]; ++k)
            product(1, Hp, sent + (sender[k] - e0) * Hp, Hp, weight + k * Hp, Hp, to, Hp, true);
    }
    // Given the gradient by that sum, those by the weights, in their place, and what it adds to
    // those by what is sent.
    void angle_sum_back(T *weight, long b, long e0, const T *sent, const T *g, T *to_sent) const {
        for (long k = angle_first[b]; k < angle_first[b + 1]; ++k) {
            const long a = (sender[k] - e0) * Hp;
            product(1, Hp, g, Hp, weight + k * Hp, Hp, to_sent + a, Hp, true);
            product(1, Hp, g, Hp, sent + a, Hp, weight + k * Hp, Hp);
        }
    }
    // From the gradients by what is sent to those by the gate and by the messages.
    void send_back(long b, const T *parts, int which, long e0, long e1, const T *to_sent,
                   T *to_parts, long ld) const {
        for (long e = e0; e < e1; ++e) {
            const T *g = to_sent + (e - e0) * Hp;
            product(1, Hp, g, Hp, parts + (2 * e + 1) * Hp, Hp,
                    kept[b].to_edges() + (5 * e + 2 + which) * Hp, Hp);
            product(1, Hp, g, Hp, gate(b, e, which), Hp, to_parts + (e - e0) * ld + Hp, Hp);
        }
    }

    // First messages of a tile's local edges, and what angles at their atom give the reverses.
    void two_hop(long t, long b) {
        const long a0 = tiles[t], a1 = tiles[t + 1], e0 = local_first[a0], e1 = local_first[a1];
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        for (long e = e0; e < e1; ++e) {
            const T *edge = k.local_edges() + local_pairs.of[e] * 5 * Hp;
            const T *to = local_ends() + target[local[e]] * 4 * Hp;
            const T *from = local_ends() + source[local[e]] * 4 * Hp + 2 * Hp;
            for (long c = 0; c < 2 * Hp; c += W<T>) {
                Activation<T> m = silu<T>(load(edge + c) + load(to + c) + load(from + c));
                store(k.m() + e * 2 * Hp + c, m.value);
                store(k.m_slope() + e * 2 * Hp + c, m.slope);
            }
        }
        send(b, k.m(), 0, e0, e1, own.sent());
        std::fill_n(exchanged() + e0 * Hp, (e1 - e0) * Hp, T(0));
        for (long e = e0; e < e1; ++e)
            angle_sum(k.hops[0].weight(), e, e0, own.sent(), exchanged() + e * Hp);
    }

    // The messages that hear of both kinds of angle, their sums, and the layer's outcome.
    void one_hop(long t, long b) {
        const long a0 = tiles[t], a1 = tiles[t + 1], e0 = local_first[a0], e1 = local_first[a1];
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        for (long e = e0; e < e1; ++e) {
            const T *heard = exchanged() + local_reverse[e] * Hp;
            T *m = k.m() + e * 2 * Hp;
            for (long c = 0; c < Hp; c += W<T>)
                store(m + c, load(m + c) + load(heard + c));
        }
        layer.again.forth.times(e1 - e0, k.m() + e0 * 2 * Hp, 2 * Hp,
                                {k.again() + e0 * 2 * Hp, 2 * Hp, layer.again.bias(),
                                 k.again_slope() + e0 * 2 * Hp, 2 * Hp});
        send(b, k.again(), 1, e0, e1, own.sent());
        T *sums = own.v();
        std::fill_n(sums, (a1 - a0) * Hp, T(0));
        for (long i = a0; i < a1; ++i)
            for (long e = local_first[i]; e < local_first[i + 1]; ++e) {
                T *m = k.again() + e * 2 * Hp;
                angle_sum(k.hops[1].weight(), e, e0, own.sent(), m);
                product(1, Hp, m, Hp, gate(b, e, 2), Hp, sums + (i - a0) * Hp, Hp, true);
            }
        T *z = h() + a0 * Hp;
        update(layer.update, k.local_update, a0, a1 - a0, sums, z, z);
        read(b, a0, a1 - a0);
        if (b + 1 < s.layers)
            start(b + 1, a0, a1 - a0);
    }

    // A layer's values, embeddings, and the gradients of the values' sum by the features.
    void read(long b, long a0, long rows) {
        const Head<T> &head = layers[b].head;
        Scratch &own = scratch[thread()];
        T *slopes[] = {own.ends(), own.ends() + rows * Hp, own.ends() + 2 * rows * Hp};
        T *u = own.u(), *v = own.v();
        const T *z = h() + a0 * Hp;
        head.dense[0].forth.times(rows, z, Hp, {u, Hp, head.dense[0].bias(), slopes[0], Hp});
        head.dense[1].forth.times(rows, u, Hp, {v, Hp, head.dense[1].bias(), slopes[1], Hp});
        head.dense[2].forth.times(rows, v, Hp, {u, Hp, head.dense[2].bias(), slopes[2], Hp});
        for (long i = 0; i < rows; ++i) {
            const T *features = u + i * Hp;
            values[a0 + i] += inner(s.hidden, features, head.value()) + head.bias;
            std::copy_n(s.head ? features : z + i * Hp, s.hidden,
                        embeddings + (b * N + a0 + i) * s.hidden);
        }
        for (long i = 0; i < rows; ++i)
            product(1, Hp, head.value(), Hp, slopes[2] + i * Hp, Hp, u + i * Hp, Hp);
        head.dense[2].back.times(rows, u, Hp, {v, Hp, nullptr, nullptr, 0, slopes[1], Hp});
        head.dense[1].back.times(rows, v, Hp, {u, Hp, nullptr, nullptr, 0, slopes[0], Hp});
        head.dense[0].back.times(rows, u, Hp, {kept[b].to_out() + a0 * Hp, Hp});
    }

    // From the gradient by the layer's outcome to those by the messages that hear of two-hop
    // angles.
    void one_hop_back(long t, long b) {
        const long a0 = tiles[t], a1 = tiles[t + 1], e0 = local_first[a0], e1 = local_first[a1];
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        T *g = to_h() + a0 * Hp, *out = k.to_out() + a0 * Hp, *parts = own.parts();
        if (b + 1 < s.layers)
            start_back(b + 1, a0, a1 - a0);
        else
            std::fill_n(g, (a1 - a0) * Hp, T(0));
        for (long c = 0; c < (a1 - a0) * Hp; c += W<T>)
            store(g + c, load(g + c) + load(out + c));
        update_back(layer.update, k.local_update, a0, a1 - a0, g);
        send(b, k.again(), 1, e0, e1, own.sent());
        std::fill_n(own.to_sent(), (e1 - e0) * Hp, T(0));
        for (long i = a0; i < a1; ++i)
            for (long e = local_first[i]; e < local_first[i + 1]; ++e) {
                const T *to_sum = g + (i - a0) * Hp;
                T *to_m = parts + (e - e0) * 2 * Hp;
                product(1, Hp, to_sum, Hp, k.again() + e * 2 * Hp, Hp,
                        k.to_edges() + (5 * e + 4) * Hp, Hp);
                product(1, Hp, to_sum, Hp, gate(b, e, 2), Hp, to_m, Hp);
                angle_sum_back(k.hops[1].weight(), e, e0, own.sent(), to_m, own.to_sent());
            }
        send_back(b, k.again(), 1, e0, e1, own.to_sent(), parts, 2 * Hp);
        product(e1 - e0, 2 * Hp, parts, 2 * Hp, k.again_slope() + e0 * 2 * Hp, 2 * Hp, parts,
                2 * Hp);
        layer.again.back.times(e1 - e0, parts, 2 * Hp, {exchanged() + e0 * Hp, Hp});
    }

    // To the gradients by the first messages before the activation.
    void two_hop_back(long t, long b) {
        const long e0 = local_first[tiles[t]], e1 = local_first[tiles[t + 1]];
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        T *to_m = k.to_edges() + e0 * 5 * Hp;
        send(b, k.m(), 0, e0, e1, own.sent());
        std::fill_n(own.to_sent(), (e1 - e0) * Hp, T(0));
        for (long e = e0; e < e1; ++e) {
            std::copy_n(exchanged() + e * Hp, Hp, to_m + (e - e0) * 5 * Hp);
            angle_sum_back(k.hops[0].weight(), e, e0, own.sent(),
                           exchanged() + local_reverse[e] * Hp, own.to_sent());
        }
        send_back(b, k.m(), 0, e0, e1, own.to_sent(), to_m, 5 * Hp);
        product(e1 - e0, 2 * Hp, to_m, 5 * Hp, k.m_slope() + e0 * 2 * Hp, 2 * Hp, to_m, 5 * Hp);
    }

    // To the gradient by the features before the local pass.
    void local_ends_back(long t, long b) {
        const long a0 = tiles[t], a1 = tiles[t + 1], rows = a1 - a0;
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        for (long i = a0; i < a1; ++i)
            both_ends(local_first[i], local_first[i + 1], local_reverse, kept[b].to_edges(),
                      5 * Hp, 2 * Hp, own.ends() + (i - a0) * 4 * Hp);
        layer.ends.back.times(
            rows, own.ends(), 4 * Hp,
            {own.u(), Hp, nullptr, nullptr, 0, kept[b].local_mlp() + a0 * Hp, Hp});
        layer.mlp.back.times(rows, own.u(), Hp,
                             {to_h() + a0 * Hp, Hp, nullptr, nullptr, 0, nullptr, 0,
                              to_before() + a0 * Hp, Hp});
    }
};

} // namespace

EXPORT(MXMNet)
