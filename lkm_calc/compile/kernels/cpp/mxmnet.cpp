// MXMNet, its gradient with respect to the edge vectors, and the gradient of any linear function of
// values and embeddings with respect to the weights: a cache-friendly implementation of
// lkm_calc/models/mxmnet.py with a hand-written backward pass.
//
// Weights of messages and angles depend only on the geometry. They are computed for all layers
// first, and their gradients are propagated to the edge vectors for all layers at the end. Weights
// of messages are computed once per pair of edges, because an edge and its reverse have the same
// length, and the gradient of the length is divided between the two. In the layers, atoms are
// processed in tiles with the edges into them, which are sorted by target. Derivatives of
// activations are stored, except those of messages of the global graph, which are cheaper to
// recompute.
//
// For gradients of the weights, the inputs of all dense layers are kept as well, and gradients before
// activations overwrite the derivatives of the activations. The products of both are the last step;
// nothing is propagated to distances and cosines.

#include "shared/interface.hpp"
#include "shared/multiplex.hpp"
#include "shared/threads.hpp"

namespace {

constexpr long TILE = 96;  // rows of pairs or of angles in a tile
constexpr int HEAD = 3;     // hidden layers of a head
constexpr long ATOMS = 24; // atoms in a tile, fewer where they have more than TILE local edges

struct Sizes {
    int64_t hidden, layers, radial, degrees, spherical_radial, exponent, elements, intervals, head;
};

template <class T> struct Update {
    Dense<T> mlp, residual[6]; // two per residual layer
};
template <class T> struct GlobalPass {
    Dense<T> mlp;
    Dense<T> ends;  // contributions of target and source to a message
    Dense<T> edges; // contribution of the edge, and the gate
    Update<T> update;
};
template <class T> struct LocalPass {
    Dense<T> mlp;
    Dense<T> ends;  // the same for messages to keep and messages to send
    Dense<T> edges; // the same, and three gates
    Dense<T> again;
    Dense<T> hops[2][2]; // of two-hop angles, of one-hop angles
    Update<T> update;
};
template <class T> struct Head {
    Dense<T> dense[HEAD];
    Buffer<T> value;
    T bias;
};
template <class T> struct Layer {
    GlobalPass<T> global;
    LocalPass<T> local;
    Head<T> head;
};

// Derivatives of the activations of an update, (atoms, width) each, and inputs of its layers, for
// gradients of the weights.
template <class T> struct Slopes {
    Buffer<T> mlp, residual[6];
    Buffer<T> to_mlp, to_residual[6];
};
// Weights of one kind of angles, later their gradients, and derivatives of activations.
template <class T> struct Hop {
    Buffer<T> weight, hidden, out;
    Buffer<T> between; // input of the second layer, for gradients of the weights
};
// What a layer stores for the backward pass.
template <class T> struct Kept {
    Buffer<T> edges;                           // per pair, later their gradients
    Buffer<T> mlp, ends[2], local_mlp, to_out; // per atom
    Slopes<T> update, local_update;            // per atom
    Buffer<T> local_edges;                     // per local pair
    Buffer<T> m, m_slope, again, again_slope;  // per local edge: [to keep ‖ to send]
    Buffer<T> to_edges;                        // per local edge
    Hop<T> hops[2];                            // per angle
    // For gradients of the weights, per atom: inputs of layers, and gradients of their outputs. The
    // rows of both global messages follow each other.
    Buffer<T> before, to_ends, by_ends, to_local, to_local_ends, by_local_ends, output;
    Buffer<T> head[HEAD], hidden[HEAD];
};

template <class T> class MXMNet {
  public:
    Sizes s;

    MXMNet(const Sizes &sizes, const double *lengths, const T *const *arrays)
        : s(sizes), cutoff(lengths[0]), local_cutoff(lengths[1]) {
        const long F = s.degrees * s.spherical_radial;
        Hp = padded<T>(s.hidden), Rp = padded<T>(s.radial), Fp = padded<T>(F);
        pieces.set(arrays[2], s.intervals, F, local_cutoff, cutoff, s.exponent);
        layers.resize(s.layers), kept.resize(s.layers);
        update(arrays);
    }

    // Copies new weights.
    void update(const T *const *arrays) {
        std::lock_guard<std::mutex> lock(mutex);
        edge_features.waves.set(arrays[0], s.radial, cutoff, s.exponent);
        local_features.waves.set(arrays[1], s.radial, local_cutoff, s.exponent);
        set_rows(elements, s.elements, s.hidden, arrays[3]);
        edge_features.set(s.hidden, arrays[4]);
        local_features.set(s.hidden, arrays[5]);
        each_layer(arrays + 6);
    }

    // False if edges, local edges or angles are not sorted by their targets. Writes values, edge
    // gradients and embeddings to the outputs of the call, or with `by_values_` (and
    // `by_embeddings_` or null) gradients of Σ by_values · values + Σ by_embeddings · embeddings
    // with respect to the weights to `arrays`.
    bool run(const Call<T> &call, const T *by_values_ = nullptr, const T *by_embeddings_ = nullptr,
             void *const *arrays = nullptr) {
        std::lock_guard<std::mutex> lock(mutex); // buffers are shared by all calls of the model
        learns = arrays, by_values = by_values_, by_embeddings = by_embeddings_;
        N = call.counts[0], E = call.counts[1], L = call.counts[3], A = call.counts[5];
        threads = int(call.counts[2]);
        numbers = call.numbers, source = call.source, target = call.target, reverse = call.reverse;
        vectors = call.vectors, values = call.values, gradient = call.gradient;
        embeddings = call.embeddings;
        auto index = [&](int k) { return static_cast<const int64_t *>(call.indices[k]); };
        local = index(0), local_reverse = index(1), sender = index(2), receiver = index(3);
        if (!std::is_sorted(target, target + E) || !std::is_sorted(local, local + L) ||
            !std::is_sorted(receiver, receiver + A))
            return false;
        starts(first, N, E, [&](long e) { return target[e]; });
        starts(local_first, N, L, [&](long e) { return target[local[e]]; });
        starts(angle_first, L, A, [&](long k) { return receiver[k]; });
        pairs.set(reverse, E);
        local_pairs.set(local_reverse, L);
        tiles.set(local_first, TILE, ATOMS);
        make_room();
        using Step = void (MXMNet::*)(long, long);
        // Runs a step for every tile of a number of rows.
        auto each = [&](long rows, Step step) {
            for_tiles(rows, TILE, threads, [&](long row, long n) { (this->*step)(row, n); });
        };
        // Runs a step of a layer for every tile of atoms.
        auto atoms = [&](long b, Step step) {
            for_each(tiles.count(), threads, [&](long t) { (this->*step)(t, b); });
        };
        auto messages_back = [&](long b, int which) {
            for_tiles(pairs.size(), TILE, threads,
                      [&](long row, long n) { pairs_back(b, which, row, n); });
        };
        each(pairs.size(), &MXMNet::edges_forth);
        each(local_pairs.size(), &MXMNet::local_edges_forth);
        each(A, &MXMNet::angles_forth);
        if (values)
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
        if (learns)
            atoms(0, &MXMNet::embed_back);
        each(pairs.size(), &MXMNet::edges_back);
        each(local_pairs.size(), &MXMNet::local_edges_back);
        each(A, &MXMNet::angles_back);
        if (learns) {
            write_gradients(reinterpret_cast<T *const *>(arrays));
            return true;
        }
        atoms(0, &MXMNet::local_vectors_back);
        return true;
    }

  private:
    double cutoff, local_cutoff;
    long Hp, Rp, Fp; // padded widths
    PairFeatures<T> edge_features, local_features;
    Pieces<T> pieces;
    Legendre<T> legendre;
    Buffer<T> elements;
    Dense<T> to_angle[2]; // of two-hop angles, of one-hop angles
    std::vector<Layer<T>> layers;
    Weights<T> weights;

    // Data of one call.
    std::mutex mutex;
    long N = 0, E = 0, L = 0, A = 0;
    int threads = 1;
    const int64_t *numbers = nullptr, *source = nullptr, *target = nullptr, *reverse = nullptr;
    const int64_t *local = nullptr, *local_reverse = nullptr;
    const int64_t *sender = nullptr, *receiver = nullptr;
    const double *vectors = nullptr;
    T *values = nullptr, *embeddings = nullptr;
    double *gradient = nullptr;
    bool learns = false; // whether gradients of the weights are computed
    const T *by_values = nullptr, *by_embeddings = nullptr;
    Pairs pairs, local_pairs;
    // First edge into each atom, first local edge, first angle to each local edge; and one past
    // the last.
    std::vector<long> first, local_first, angle_first;
    Tiles tiles; // of atoms by their local edges
    std::vector<Kept<T>> kept;
    Buffer<T> to_edges;             // per pair: gradients of the contributions to messages
    Buffer<T> radial, radial_slope; // per local pair
    // Per angle: derivatives of the features, gradients of the length of the sender and the cosine.
    Buffer<T> angle_slope[2], to_sender, to_cosine;
    // Per atom: features before and in a pass, contributions to local messages, gradients.
    Buffer<T> h, x, local_ends, to_h, to_before;
    Buffer<T> to_message; // per edge
    Buffer<T> exchanged;  // per local edge: sums over two-hop angles, or their gradients
    Buffer<T> spherical, to_hops[2]; // per angle: inputs of layers, for gradients of the weights
    struct Scratch {
        Buffer<T> u, v, ends, parts, sent, to_sent, f, sbf, slopes[HEAD];
    };
    std::vector<Scratch> scratch; // one per thread

    // Reads the weights of all dense layers from arrays, or prepares to write their gradients.
    template <class P> void each_layer(P *const *arrays) {
        const long H = s.hidden, F = s.degrees * s.spherical_radial;
        const auto next = [&]() { return *arrays++; };
        const auto dense = [&](Dense<T> &layer, long parts, long in, const Trace<T> &trace) {
            P *weight = next(), *bias = next();
            weights.dense(layer, parts, H, in, Rows<P>{weight, in}, bias, parts * H, trace);
        };
        const auto of_atoms = [&](const Buffer<T> &x, const Buffer<T> &gy) {
            return Trace<T>{N, x(), Hp, gy(), Hp};
        };
        // The columns of the first array are those of target, source and edge.
        const auto messages = [&](Dense<T> &ends, Dense<T> &edges, long parts, long gated,
                                  const Trace<T> &of_ends, const Trace<T> &of_edges) {
            P *weight = next(), *bias = next(), *gates = next();
            const long width = parts * H;
            weights.dense(ends, 2 * parts, H, H,
                          Rows<P>{weight, 3 * H, width, weight + H, 3 * H}, (P *)nullptr, 0,
                          of_ends);
            weights.dense(edges, parts + gated, H, H,
                          Rows<P>{weight + 2 * H, 3 * H, width, gates, H}, bias, width, of_edges);
        };
        const auto update = [&](Update<T> &one, const Slopes<T> &slopes) {
            dense(one.mlp, 1, H, of_atoms(slopes.to_mlp, slopes.mlp));
            for (int k = 0; k < 6; ++k)
                dense(one.residual[k], 1, H, of_atoms(slopes.to_residual[k], slopes.residual[k]));
        };
        for (int kind : {0, 1})
            dense(to_angle[kind], 1, F, {A, spherical(), Fp, angle_slope[kind](), Hp});
        for (long b = 0; b < s.layers; ++b) {
            Layer<T> &one = layers[b];
            Kept<T> &k = kept[b];
            dense(one.global.mlp, 1, H, of_atoms(k.before, k.mlp));
            messages(one.global.ends, one.global.edges, 1, 1,
                     {2 * N, k.to_ends(), Hp, k.by_ends(), 2 * Hp},
                     {pairs.size(), edge_features.kept(), Hp, k.edges(), 2 * Hp});
            update(one.global.update, k.update);
            dense(one.local.mlp, 1, H, of_atoms(k.to_local, k.local_mlp));
            messages(one.local.ends, one.local.edges, 2, 3,
                     {N, k.to_local_ends(), Hp, k.by_local_ends(), 4 * Hp},
                     {local_pairs.size(), local_features.kept(), Hp, k.local_edges(), 5 * Hp});
            dense(one.local.again, 2, H, {L, k.m(), 2 * Hp, k.again_slope(), 2 * Hp});
            for (int kind : {0, 1}) {
                const Hop<T> &hop = k.hops[kind];
                Dense<T> *hops = one.local.hops[kind];
                dense(hops[0], 1, H, {A, to_hops[kind](), Hp, hop.hidden(), Hp});
                dense(hops[1], 1, H, {A, hop.between(), Hp, hop.out(), Hp});
            }
            update(one.local.update, k.local_update);
            for (int h = 0; h < HEAD; ++h)
                dense(one.head.dense[h], 1, H,
                      of_atoms(h ? k.hidden[h - 1] : k.output, k.head[h]));
            P *value = next(), *bias = next();
            weights.function(one.head.value, &one.head.bias, H, value, bias,
                             {N, k.hidden[HEAD - 1](), Hp, by_values, 1});
        }
    }

    void write_gradients(T *const *arrays) {
        each_layer(arrays + 6);
        weights.write(threads);
        table_gradient(s.elements, s.hidden, N, numbers, to_h(), Hp, arrays[3]);
        edge_features.gradients(pairs.size(), s.hidden, weights.memory[0], arrays[4], arrays[0]);
        local_features.gradients(local_pairs.size(), s.hidden, weights.memory[0], arrays[5],
                                 arrays[1]);
    }

    void make_room_for_inputs() {
        spherical.get(A * Fp), to_hops[0].get(A * Hp), to_hops[1].get(A * Hp);
        for (Kept<T> &one : kept) {
            for (Slopes<T> *update : {&one.update, &one.local_update}) {
                update->to_mlp.get(N * Hp);
                for (Buffer<T> &input : update->to_residual)
                    input.get(N * Hp);
            }
            for (Hop<T> &hop : one.hops)
                hop.between.get(A * Hp);
            for (Buffer<T> *input : {&one.before, &one.to_local, &one.to_local_ends, &one.output})
                input->get(N * Hp);
            one.to_ends.get(2 * N * Hp), one.by_ends.get(2 * N * 2 * Hp);
            one.by_local_ends.get(N * 4 * Hp);
            for (int k = 0; k < HEAD; ++k)
                one.head[k].get(N * Hp), one.hidden[k].get(N * Hp);
        }
    }

    void make_room() {
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
        edge_features.room(P, s.hidden, learns), local_features.room(Q, s.hidden, learns);
        if (learns)
            make_room_for_inputs();
        to_edges.get(P * 2 * Hp);
        radial.get(Q * Fp), radial_slope.get(Q * Fp);
        angle_slope[0].get(A * Hp), angle_slope[1].get(A * Hp), to_sender.get(A), to_cosine.get(A);
        for (Buffer<T> *by_atom : {&h, &x, &to_h, &to_before})
            by_atom->get(N * Hp);
        local_ends.get(N * 4 * Hp), to_message.get(E * Hp), exchanged.get(L * Hp);
        if (long(scratch.size()) < threads)
            scratch.resize(threads);
        for (Scratch &own : scratch) {
            for (Buffer<T> *wide : {&own.u, &own.v, &own.f})
                wide->get(TILE * std::max(Hp, Rp));
            own.sbf.get(TILE * Fp);
            for (Buffer<T> &slope : own.slopes)
                slope.get(ATOMS * Hp);
            own.ends.get(ATOMS * 4 * Hp), own.parts.get(std::max(TILE * 5, tiles.rows * 2) * Hp);
            own.sent.get(tiles.rows * Hp), own.to_sent.get(tiles.rows * Hp);
        }
    }

    Line<T> line(long e) const { return Line<T>(vectors + 3 * e); }
    Line<T> local_line(long e) const { return line(local[e]); }

    // ---- functions of the geometry --------------------------------------------------------------

    // Contributions of a tile of pairs to the global messages of every layer.
    void edges_forth(long p0, long rows) {
        Scratch &own = scratch[thread()];
        const auto distance = [&](long p) { return line(pairs.edge[p]).distance; };
        const T *e = edge_features.forth(p0, rows, distance, own.u(), own.v(), Hp);
        for (long b = 0; b < s.layers; ++b) {
            const Dense<T> &edges = layers[b].global.edges;
            edges.forth.times(rows, e, Hp,
                              {kept[b].edges() + p0 * 2 * Hp, 2 * Hp, edges.bias()});
        }
    }

    void edges_back(long p0, long rows) {
        Scratch &own = scratch[thread()];
        T *to_e = own.v();
        std::fill_n(to_e, rows * Hp, T(0));
        for (long b = 0; b < s.layers; ++b)
            layers[b].global.edges.back.times(rows, kept[b].edges() + p0 * 2 * Hp, 2 * Hp,
                                              added(to_e, Hp));
        edge_features.back(p0, rows, to_e, Hp, own.u());
        if (learns)
            return;
        for (long p = p0; p < p0 + rows; ++p) {
            const T along = edge_features.along()[p];
            const long e = pairs.edge[p];
            for (long half : {e, long(reverse[e])})
                line(half).gradient(along / 2, 0, 0, 0, gradient + 3 * half);
        }
    }

    // Contributions of a tile of local pairs to the local messages of every layer, and the radial
    // basis of the angles.
    void local_edges_forth(long q0, long rows) {
        Scratch &own = scratch[thread()];
        const auto distance = [&](long q) { return local_line(local_pairs.edge[q]).distance; };
        const T *e = local_features.forth(q0, rows, distance, own.u(), own.v(), Hp);
        for (long q = q0; q < q0 + rows; ++q)
            pieces.at(distance(q), radial() + q * Fp, radial_slope() + q * Fp);
        for (long b = 0; b < s.layers; ++b) {
            const Dense<T> &edges = layers[b].local.edges;
            edges.forth.times(rows, e, Hp,
                              {kept[b].local_edges() + q0 * 5 * Hp, 5 * Hp, edges.bias()});
        }
    }

    void local_edges_back(long q0, long rows) {
        Scratch &own = scratch[thread()];
        T *to_e = own.v();
        std::fill_n(to_e, rows * Hp, T(0));
        for (long b = 0; b < s.layers; ++b) {
            T *parts = learns ? kept[b].local_edges() + q0 * 5 * Hp : own.parts();
            for (long q = 0; q < rows; ++q) {
                const long e = local_pairs.edge[q0 + q];
                const T *one = kept[b].to_edges() + e * 5 * Hp;
                const T *other = kept[b].to_edges() + local_reverse[e] * 5 * Hp;
                for (long c = 0; c < 5 * Hp; c += W<T>)
                    store(parts + q * 5 * Hp + c, load(one + c) + load(other + c));
            }
            layers[b].local.edges.back.times(rows, parts, 5 * Hp, added(to_e, Hp));
        }
        local_features.back(q0, rows, to_e, Hp, own.u());
    }

    Angle<T> angle(long k) const {
        return {legendre, s.degrees, local_line(sender[k]), local_line(receiver[k])};
    }

    // Weights of a tile of angles in every layer.
    void angles_forth(long k0, long rows) {
        Scratch &own = scratch[thread()];
        T *sbf = learns ? spherical() + k0 * Fp : own.sbf();
        for (long k = 0; k < rows; ++k)
            angle(k0 + k).basis(radial() + local_pairs.of[sender[k0 + k]] * Fp,
                                s.spherical_radial, sbf + k * Fp);
        for (int kind : {0, 1}) {
            T *f = learns ? to_hops[kind]() + k0 * Hp : own.f();
            to_angle[kind].activated(rows, sbf, Fp, f, angle_slope[kind]() + k0 * Hp, Hp);
            for (long b = 0; b < s.layers; ++b) {
                const Dense<T> *dense = layers[b].local.hops[kind];
                Hop<T> &hop = kept[b].hops[kind];
                T *u = learns ? hop.between() + k0 * Hp : own.u();
                dense[0].activated(rows, f, Hp, u, hop.hidden() + k0 * Hp, Hp);
                dense[1].activated(rows, u, Hp, hop.weight() + k0 * Hp, hop.out() + k0 * Hp, Hp);
            }
        }
    }

    void angles_back(long k0, long rows) {
        Scratch &own = scratch[thread()];
        T *f = own.f();
        std::fill_n(own.sbf(), rows * Fp, T(0));
        for (int kind : {0, 1}) {
            std::fill_n(f, rows * Hp, T(0));
            for (long b = 0; b < s.layers; ++b) {
                const Dense<T> *dense = layers[b].local.hops[kind];
                Hop<T> &hop = kept[b].hops[kind];
                T *out = hop.out() + k0 * Hp, *hidden = hop.hidden() + k0 * Hp;
                T *u = learns ? hidden : own.u(), *v = learns ? out : own.v();
                product(rows, Hp, hop.weight() + k0 * Hp, Hp, out, Hp, v, Hp);
                dense[1].back.times(rows, v, Hp, scaled<T>(u, Hp, hidden, Hp));
                dense[0].back.times(rows, u, Hp, added(f, Hp));
            }
            T *slope = angle_slope[kind]() + k0 * Hp;
            product(rows, Hp, f, Hp, slope, Hp, learns ? slope : f, Hp);
            if (!learns)
                to_angle[kind].back.times(rows, f, Hp, added(own.sbf(), Fp));
        }
        if (learns)
            return;
        for (long k = 0; k < rows; ++k) {
            const long q = local_pairs.of[sender[k0 + k]] * Fp;
            T by_length, by_cosine;
            angle(k0 + k).back(own.sbf() + k * Fp, radial() + q, radial_slope() + q,
                               s.spherical_radial, by_length, by_cosine);
            to_sender()[k0 + k] = by_length, to_cosine()[k0 + k] = by_cosine;
        }
    }

    // Adds the gradients with respect to the vectors of local edges.
    void local_vectors_back(long t, long) {
        Scratch &own = scratch[thread()];
        const long e0 = local_first[tiles.atom[t]], e1 = local_first[tiles.atom[t + 1]];
        T *to = own.parts(); // gradients of length and direction
        std::fill_n(to, (e1 - e0) * 4, T(0));
        for (long b = e0; b < e1; ++b) {
            const Line<T> end = local_line(b);
            T *to_end = to + (b - e0) * 4;
            to_end[0] += local_features.along()[local_pairs.of[b]] / 2;
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
        return {&layer.residual[2 * which], &slopes.residual[2 * which], a0, Hp,
                learns ? &slopes.to_residual[2 * which] : nullptr};
    }
    // Keeps an input of a dense layer for the gradient of its weights.
    void keep(const Buffer<T> &to, long row, long rows, const T *x) const {
        if (learns)
            std::copy_n(x, rows * Hp, to() + row * Hp);
    }

    // Update of z with the features before, which may be overwritten by the output; z is destroyed.
    void update(const Update<T> &layer, Slopes<T> &slopes, long a0, long rows, T *z,
                const T *before, T *out) {
        T *u = scratch[thread()].u();
        residual(layer, slopes, 0, a0).forth(rows, z, u);
        keep(slopes.to_mlp, a0, rows, z);
        layer.mlp.activated(rows, z, Hp, out, slopes.mlp() + a0 * Hp, Hp, before);
        residual(layer, slopes, 1, a0).forth(rows, out, u);
        residual(layer, slopes, 2, a0).forth(rows, out, u);
    }
    // From the gradient of the output to that of z, in place, and that of the features before.
    void update_back(const Update<T> &layer, Slopes<T> &slopes, long a0, long rows, T *g) {
        Scratch &own = scratch[thread()];
        T *u = own.u(), *v = own.v();
        residual(layer, slopes, 2, a0).back(rows, g, u, v);
        residual(layer, slopes, 1, a0).back(rows, g, u, v);
        std::copy_n(g, rows * Hp, to_before() + a0 * Hp);
        T *slope = slopes.mlp() + a0 * Hp, *by = learns ? slope : v;
        product(rows, Hp, g, Hp, slope, Hp, by, Hp);
        layer.mlp.back.times(rows, by, Hp, {g, Hp});
        residual(layer, slopes, 0, a0).back(rows, g, u, v);
    }

    // ---- the global graph -----------------------------------------------------------------------

    void embed(long t, long) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        for (long i = a0; i < a1; ++i)
            std::copy_n(elements() + numbers[i] * Hp, Hp, h() + i * Hp);
        start(0, a0, a1 - a0);
    }
    // Gradients of the embeddings of atoms, in to_h.
    void embed_back(long t, long) {
        const long a0 = tiles.atom[t];
        start_back(0, a0, tiles.atom[t + 1] - a0);
    }

    // Contributions of atoms to the first messages of a layer, from h.
    void start(long b, long a0, long rows) {
        const GlobalPass<T> &layer = layers[b].global;
        T *z = x() + a0 * Hp;
        keep(kept[b].before, a0, rows, h() + a0 * Hp);
        layer.mlp.activated(rows, h() + a0 * Hp, Hp, z, kept[b].mlp() + a0 * Hp, Hp);
        keep(kept[b].to_ends, a0, rows, z);
        layer.ends.forth.times(rows, z, Hp, {kept[b].ends[0]() + a0 * 2 * Hp, 2 * Hp});
    }

    // Sums of x and the messages for the atoms of a tile.
    void messages(long b, int which, long a0, long rows, T *sum) {
        const T *ends = kept[b].ends[which](), *edges = kept[b].edges();
        std::copy_n(x() + a0 * Hp, rows * Hp, sum);
        for (long i = a0; i < a0 + rows; ++i, sum += Hp)
            message_sum(first[i], first[i + 1], source, pairs, ends, edges, ends + i * 2 * Hp, Hp,
                        sum);
    }
    // From the gradients of the sums, in to_h, to those of the messages before the activation and
    // of the contributions of pairs, which are overwritten after the first messages.
    void pairs_back(long b, int which, long p0, long rows) {
        const T *ends = kept[b].ends[which](), *g = to_h();
        for (long p = p0; p < p0 + rows; ++p) {
            const long e = pairs.edge[p], i = target[e], j = source[e];
            T *edge = kept[b].edges() + p * 2 * Hp, *second = to_edges() + p * 2 * Hp;
            messages_back(edge, ends + i * 2 * Hp, ends + j * 2 * Hp, g + i * Hp, g + j * Hp, Hp,
                          to_message() + e * Hp, to_message() + reverse[e] * Hp,
                          which == 1 ? second : edge, which == 1 ? nullptr : second);
        }
    }
    // From the gradients of the messages of a tile to those of its atoms, added to to_h.
    void ends_back(long b, int which, long a0, long rows) {
        T *g = to_h() + a0 * Hp, *ends = scratch[thread()].ends();
        if (learns)
            ends = kept[b].by_ends() + (which * N + a0) * 2 * Hp;
        for (long i = a0; i < a0 + rows; ++i)
            both_ends(first[i], first[i + 1], reverse, to_message(), Hp, Hp,
                      ends + (i - a0) * 2 * Hp);
        layers[b].global.ends.back.times(rows, ends, 2 * Hp, added(g, Hp));
    }

    void first_message(long t, long b) {
        const long a0 = tiles.atom[t], rows = tiles.atom[t + 1] - a0;
        const GlobalPass<T> &layer = layers[b].global;
        T *z = x() + a0 * Hp, *v = scratch[thread()].v();
        messages(b, 0, a0, rows, v);
        update(layer.update, kept[b].update, a0, rows, v, h() + a0 * Hp, z);
        keep(kept[b].to_ends, N + a0, rows, z);
        layer.ends.forth.times(rows, z, Hp, {kept[b].ends[1]() + a0 * 2 * Hp, 2 * Hp});
    }

    // The last messages of the global graph, and contributions of atoms to the local ones.
    void second_message(long t, long b) {
        const long a0 = tiles.atom[t], rows = tiles.atom[t + 1] - a0;
        const LocalPass<T> &layer = layers[b].local;
        T *z = h() + a0 * Hp, *u = scratch[thread()].u();
        messages(b, 1, a0, rows, z);
        keep(kept[b].to_local, a0, rows, z);
        layer.mlp.activated(rows, z, Hp, u, kept[b].local_mlp() + a0 * Hp, Hp);
        keep(kept[b].to_local_ends, a0, rows, u);
        layer.ends.forth.times(rows, u, Hp, {local_ends() + a0 * 4 * Hp, 4 * Hp});
    }

    void second_message_back(long t, long b) {
        const long a0 = tiles.atom[t], rows = tiles.atom[t + 1] - a0;
        ends_back(b, 1, a0, rows);
        update_back(layers[b].global.update, kept[b].update, a0, rows, to_h() + a0 * Hp);
    }

    // Gradient of the features before a layer.
    void start_back(long b, long a0, long rows) {
        T *g = to_h() + a0 * Hp, *slope = kept[b].mlp() + a0 * Hp;
        T *v = learns ? slope : scratch[thread()].v();
        ends_back(b, 0, a0, rows);
        product(rows, Hp, g, Hp, slope, Hp, v, Hp);
        layers[b].global.mlp.back.times(rows, v, Hp, plus<T>(g, Hp, to_before() + a0 * Hp, Hp));
    }

    // ---- the local graph ------------------------------------------------------------------------

    // Row of a local edge in gate 0, 1 or 2.
    const T *gate(long b, long e, int which) const {
        return kept[b].local_edges() + (local_pairs.of[e] * 5 + 2 + which) * Hp;
    }

    // Gated messages to send of the edges of a tile.
    void send(long b, const T *parts, int which, long e0, long e1, T *sent) const {
        for (long e = e0; e < e1; ++e)
            product(1, Hp, parts + (2 * e + 1) * Hp, Hp, gate(b, e, which), Hp,
                    sent + (e - e0) * Hp, Hp);
    }
    // Adds Σ_a sent_a ⊙ weight_ab for an edge b.
    void angle_sum(const T *weight, long b, long e0, const T *sent, T *to) const {
        for (long k = angle_first[b]; k < angle_first[b + 1]; ++k)
            product(1, Hp, sent + (sender[k] - e0) * Hp, Hp, weight + k * Hp, Hp, to, Hp, true);
    }
    // From the gradient of this sum to those of the weights, which are overwritten, and of the sent
    // messages, which are accumulated.
    void angle_sum_back(T *weight, long b, long e0, const T *sent, const T *g, T *to_sent) const {
        for (long k = angle_first[b]; k < angle_first[b + 1]; ++k) {
            const long a = (sender[k] - e0) * Hp;
            product(1, Hp, g, Hp, weight + k * Hp, Hp, to_sent + a, Hp, true);
            product(1, Hp, g, Hp, sent + a, Hp, weight + k * Hp, Hp);
        }
    }
    // From the gradients of the sent messages to those of the gate and the messages.
    void send_back(long b, const T *parts, int which, long e0, long e1, const T *to_sent,
                   T *to_parts, long ld) const {
        for (long e = e0; e < e1; ++e) {
            const T *g = to_sent + (e - e0) * Hp;
            product(1, Hp, g, Hp, parts + (2 * e + 1) * Hp, Hp,
                    kept[b].to_edges() + (5 * e + 2 + which) * Hp, Hp);
            product(1, Hp, g, Hp, gate(b, e, which), Hp, to_parts + (e - e0) * ld + Hp, Hp);
        }
    }

    // First messages of the local edges of a tile, and two-hop sums of their reverse edges.
    void two_hop(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        const long e0 = local_first[a0], e1 = local_first[a1];
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

    // Messages that depend on both kinds of angles, their sums, and the output of the layer.
    void one_hop(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        const long e0 = local_first[a0], e1 = local_first[a1];
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        for (long e = e0; e < e1; ++e)
            add(Hp, exchanged() + local_reverse[e] * Hp, k.m() + e * 2 * Hp);
        layer.again.activated(e1 - e0, k.m() + e0 * 2 * Hp, 2 * Hp, k.again() + e0 * 2 * Hp,
                              k.again_slope() + e0 * 2 * Hp, 2 * Hp);
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

    // Values and embeddings of a layer, and gradients of the sum of the values.
    void read(long b, long a0, long rows) {
        if (learns)
            return read_to_learn(b, a0, rows);
        const Head<T> &head = layers[b].head;
        Scratch &own = scratch[thread()];
        T *u = own.u(), *v = own.v();
        const T *z = h() + a0 * Hp;
        const Stack<T> stack{head.dense, own.slopes, HEAD, 0, Hp};
        const T *outcome = stack.forth(rows, z, u, v);
        for (long i = 0; i < rows; ++i) {
            const T *features = outcome + i * Hp;
            values[a0 + i] += inner(s.hidden, features, head.value()) + head.bias;
            std::copy_n(s.head ? features : z + i * Hp, s.hidden,
                        embeddings + (b * N + a0 + i) * s.hidden);
        }
        for (long i = 0; i < rows; ++i)
            std::copy_n(head.value(), Hp, u + i * Hp);
        const Tail<T> to_out{kept[b].to_out() + a0 * Hp, Hp};
        stack.back(rows, u, v, &to_out);
    }

    // The same with gradients of any function of values and embeddings, for gradients of the weights.
    void read_to_learn(long b, long a0, long rows) {
        const Head<T> &head = layers[b].head;
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        T *u = own.u(), *v = own.v(), *out = k.to_out() + a0 * Hp;
        const T *z = h() + a0 * Hp;
        keep(k.output, a0, rows, z);
        const Stack<T> stack{head.dense, k.head, HEAD, a0, Hp, k.hidden};
        stack.forth(rows, z, u, v);
        const auto add_embeddings = [&](T *to) {
            for (long i = 0; by_embeddings && i < rows; ++i)
                for (long c = 0; c < s.hidden; ++c)
                    to[i * Hp + c] += by_embeddings[(b * N + a0 + i) * s.hidden + c];
        };
        for (long i = 0; i < rows; ++i)
            for (long c = 0; c < Hp; c += W<T>)
                store(u + i * Hp + c, by_values[a0 + i] * load(head.value() + c));
        if (s.head)
            add_embeddings(u);
        const Tail<T> to_out{out, Hp};
        stack.back(rows, u, v, &to_out);
        if (!s.head)
            add_embeddings(out);
    }

    // From the gradient of the output of the layer to those of the messages that depend on two-hop
    // angles.
    void one_hop_back(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        const long e0 = local_first[a0], e1 = local_first[a1];
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        Kept<T> &k = kept[b];
        T *g = to_h() + a0 * Hp, *out = k.to_out() + a0 * Hp, *parts = own.parts();
        if (b + 1 < s.layers)
            start_back(b + 1, a0, a1 - a0);
        else
            std::fill_n(g, (a1 - a0) * Hp, T(0));
        add((a1 - a0) * Hp, out, g);
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
        T *slope = k.again_slope() + e0 * 2 * Hp, *by = learns ? slope : parts;
        product(e1 - e0, 2 * Hp, parts, 2 * Hp, slope, 2 * Hp, by, 2 * Hp);
        layer.again.back.times(e1 - e0, by, 2 * Hp, {exchanged() + e0 * Hp, Hp});
    }

    // Gradients of the first messages before the activation.
    void two_hop_back(long t, long b) {
        const long e0 = local_first[tiles.atom[t]], e1 = local_first[tiles.atom[t + 1]];
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

    // Gradient of the features before the local pass.
    void local_ends_back(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1], rows = a1 - a0;
        const LocalPass<T> &layer = layers[b].local;
        Scratch &own = scratch[thread()];
        T *ends = learns ? kept[b].by_local_ends() + a0 * 4 * Hp : own.ends();
        T *slope = kept[b].local_mlp() + a0 * Hp, *by = learns ? slope : own.u();
        for (long i = a0; i < a1; ++i)
            both_ends(local_first[i], local_first[i + 1], local_reverse, kept[b].to_edges(),
                      5 * Hp, 2 * Hp, ends + (i - a0) * 4 * Hp);
        layer.ends.back.times(rows, ends, 4 * Hp, scaled<T>(by, Hp, slope, Hp));
        layer.mlp.back.times(rows, by, Hp,
                             plus<T>(to_h() + a0 * Hp, Hp, to_before() + a0 * Hp, Hp));
    }
};

} // namespace

EXPORT(MXMNet)
EXPORT_TRAINING(MXMNet)
