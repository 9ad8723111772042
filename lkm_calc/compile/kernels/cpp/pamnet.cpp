// PAMNet, its gradient with respect to the edge vectors, and the gradient of any linear function of
// values and embeddings with respect to the weights: a cache-friendly implementation of
// lkm_calc/models/pamnet.py with a hand-written backward pass.
//
// Edge and angle features depend only on distances and cosines. They are computed first, for all
// passes, in tiles of a few dozen rows, and once per pair, because an edge and its reverse have the
// same length. The passes then consist of dense layers on atoms and sums over edges and angles. In
// the backward pass, gradients overwrite the edge and angle features and are finally propagated to
// distances and cosines. Derivatives of activations are stored, except those of messages, which are
// recomputed.
//
// For gradients of the weights, the inputs of all dense layers are kept as well, and gradients before
// activations overwrite the derivatives of the activations. The products of both are the last step;
// nothing is propagated to distances and cosines.

#include "shared/interface.hpp"
#include "shared/multiplex.hpp"
#include "shared/threads.hpp"

namespace {

constexpr long TILE = 96;  // rows of pairs or angles in a tile
constexpr long ATOMS = 48; // rows of atoms in a tile
constexpr int UPDATE = 7;  // dense layers after the sum of messages
constexpr int HEAD = 3;    // hidden layers of a head

enum Tap { STATE, GLOBAL, LOCAL, FEATURES };

struct Sizes {
    int64_t hidden, layers, radial, degrees, spherical_radial, exponent, two_hop, tap, elements,
        intervals;
};

// The weights of a global or local pass.
template <class T> struct Pass {
    Dense<T> mlp;
    Dense<T> ends;  // contributions of target atoms to messages, then of source atoms
    Dense<T> edges; // contributions of edges to messages, then the gates
    Dense<T> angles[2];
    Dense<T> update[UPDATE], head[HEAD];
    Buffer<T> value, score;
    T bias = 0;
};

// What a pass stores for the backward pass: derivatives of activations and summands.
template <class T> struct Kept {
    Buffer<T> mlp, update[UPDATE], head[HEAD], ends;
    Buffer<T> edges;   // per pair; later their gradients
    Buffer<T> weights; // per angle; later their gradients before the activation
    Buffer<T> inner, outer, messages;
    Buffer<T> values, scores; // later their gradients
    // For gradients of the weights: inputs of layers, and the output of the pass.
    Buffer<T> to_ends, to_update[UPDATE], hidden[HEAD], by_angle, output;
};

// The edges of one of the two graphs, sorted by target.
template <class T> struct Edges {
    std::vector<long> row, source, target, reverse; // row: index among all edges
    std::vector<long> first;                        // first edge into each atom, and the end
    Pairs pairs;
    PairFeatures<T> features;

    long count() const { return long(row.size()); }
};

template <class T> class PAMNet {
  public:
    Sizes s;
    double cutoff, local_cutoff;

    PAMNet(const Sizes &sizes, const double *lengths, const T *const *arrays)
        : s(sizes), cutoff(lengths[0]), local_cutoff(lengths[1]) {
        const long S = s.degrees * s.spherical_radial;
        Hp = padded<T>(s.hidden), Rp = padded<T>(s.radial), Sp = padded<T>(S);
        kinds = s.two_hop ? 2 : 1;
        pieces.set(arrays[2], s.intervals, S, local_cutoff, cutoff, s.exponent);
        passes.resize(2 * s.layers), kept.resize(passes.size());
        update(arrays);
    }

    // Copies new weights.
    void update(const T *const *arrays) {
        std::lock_guard<std::mutex> lock(mutex);
        wide.features.waves.set(arrays[0], s.radial, cutoff, s.exponent);
        local.features.waves.set(arrays[1], s.radial, local_cutoff, s.exponent);
        set_rows(embedding, s.elements, s.hidden, arrays[3]);
        wide.features.set(s.hidden, arrays[4]);
        local.features.set(s.hidden, arrays[5]);
        each_layer(arrays + 6);
    }

    // False if the edges are not sorted by target. With `by_values_` (and `by_embeddings_` or null),
    // writes gradients of Σ by_values · values + Σ by_embeddings · embeddings with respect to the
    // weights to `arrays`; otherwise values, edge gradients and embeddings to the outputs of the
    // call.
    bool run(const Call<T> &call, const T *by_values_ = nullptr, const T *by_embeddings_ = nullptr,
             void *const *arrays = nullptr) {
        std::lock_guard<std::mutex> lock(mutex); // buffers are shared by all calls of the model
        N = call.counts[0], E = call.counts[1], threads = int(call.counts[2]);
        learns = arrays, by_values = by_values_, by_embeddings = by_embeddings_;
        vectors = call.vectors, values = call.values, gradient = call.gradient;
        embeddings = call.embeddings;
        if (!std::is_sorted(call.target, call.target + E))
            return false;
        make_graphs(call);
        make_room();
        for (long g = 0; g < 2; ++g)
            tiles(graph(g).pairs.size(), TILE, [&](long p, long rows) { pairs_forth(g, p, rows); });
        tiles(angles, TILE / kinds, [&](long q, long rows) { angles_forth(q, rows); });
        for (long i = 0; i < N; ++i)
            std::copy_n(embedding() + call.numbers[i] * Hp, Hp, state(0) + i * Hp);
        if (values)
            std::fill(values, values + N, T(0));
        std::fill_n(to_state(), N * Hp, T(0));
        const long last = long(passes.size()) - 1;
        tiles(N, ATOMS, [&](long i, long rows) { begin(0, i, rows); });
        for (long p = 0; p <= last; ++p) {
            if (is_local(p))
                tiles(N, ATOMS, [&](long i, long rows) { local_messages(p, i, rows); });
            tiles(N, ATOMS, [&](long i, long rows) {
                finish(p, i, rows);
                if (p < last)
                    begin(p + 1, i, rows);
            });
        }
        tiles(N, ATOMS, [&](long i, long rows) { finish_back(last, i, rows); });
        for (long p = last; p >= 0; --p) {
            if (is_local(p))
                tiles(N, ATOMS, [&](long i, long rows) { local_back(p, i, rows); });
            else
                tiles(wide.pairs.size(), TILE, [&](long q, long rows) { global_back(p, q, rows); });
            if (p > 0)
                tiles(N, ATOMS, [&](long i, long rows) {
                    begin_back(p, i, rows);
                    finish_back(p - 1, i, rows);
                });
        }
        if (learns)
            tiles(N, ATOMS, [&](long i, long rows) { begin_back(0, i, rows); });
        tiles(angles, TILE / kinds, [&](long q, long rows) { angles_back(q, rows); });
        for (long g = 0; g < 2; ++g)
            tiles(graph(g).pairs.size(), TILE, [&](long p, long rows) { pairs_back(g, p, rows); });
        if (learns) {
            write_gradients(call.numbers, reinterpret_cast<T *const *>(arrays));
            return true;
        }
        tiles(N, ATOMS, [&](long i, long rows) { vectors_back(i, rows); });
        return true;
    }

  private:
    long Hp, Rp, Sp; // padded widths
    long kinds;      // of angles: one-hop, and two-hop if the model has them
    Edges<T> wide, local;
    Pieces<T> pieces;
    Buffer<T> embedding;
    Dense<T> features[2];
    std::vector<Pass<T>> passes;
    Weights<T> weights;
    Legendre<T> legendre;

    // Data of one call.
    std::mutex mutex;
    long N = 0, E = 0, angles = 0, neighbours = 0; // the most local edges into an atom
    int threads = 1;
    const double *vectors = nullptr;
    T *values = nullptr, *embeddings = nullptr;
    double *gradient = nullptr;
    bool learns = false; // whether gradients of the weights are computed
    const T *by_values = nullptr, *by_embeddings = nullptr;
    std::vector<long> first_angle;      // first angle at each atom
    std::vector<long> sender, receiver; // the two local edges of an angle
    std::vector<Kept<T>> kept;
    Buffer<T> radial, radial_slope;                // per local pair
    Buffer<T> feature_slope, to_length, to_cosine; // per angle; to_length is for its sender
    Buffer<T> two_hop_sums;                        // per local edge
    Buffer<T> to_messages, to_gates; // per edge; gradients of messages before the activation
    Buffer<T> first_state, shared_middle, to_state, to_middle; // per atom
    Buffer<T> spherical, by_angle; // per angle: inputs of layers, for gradients of the weights
    struct Scratch {
        Buffer<T> h, u, v, basis, ends, carried, to_carried, to_sums;
    };
    std::vector<Scratch> scratch; // one per thread

    static bool is_local(long p) { return p % 2; }
    // A local edge has one message for other edges and one for its target.
    static long messages(long p) { return is_local(p) ? 2 : 1; }
    Edges<T> &graph(long g) { return g ? local : wide; }
    // Features of atoms before a pass, which are kept for gradients of the weights.
    T *state(long p) { return learns && p > 0 ? kept[p - 1].output() : first_state(); }
    // Features in a pass, first without and then with messages.
    T *middle(long p) { return learns ? kept[p].to_update[0]() : shared_middle(); }

    Scratch &own() { return scratch[thread()]; }

    // Calls work(first row, rows) for every tile.
    template <class F> void tiles(long rows, long tile, F work) {
        for_tiles(rows, tile, threads, work);
    }

    // ---- weights --------------------------------------------------------------------------------

    // Reads the weights of all dense layers from arrays, or prepares to write their gradients.
    template <class P> void each_layer(P *const *arrays) {
        const long H = s.hidden;
        const auto next = [&]() { return *arrays++; };
        const auto dense = [&](Dense<T> &layer, long in, const Trace<T> &trace) {
            P *weight = next(), *bias = next();
            weights.dense(layer, 1, H, in, Rows<P>{weight, in}, bias, H, trace);
        };
        const long S = s.degrees * s.spherical_radial;
        for (long k = 0; k < kinds; ++k)
            dense(features[k], S,
                  {angles, spherical(), Sp, feature_slope() + k * Hp, kinds * Hp});
        for (size_t p = 0; p < passes.size(); ++p) {
            Pass<T> &one = passes[p];
            Kept<T> &k = kept[p];
            const auto of_atoms = [&](const T *x, const Buffer<T> &gy) {
                return Trace<T>{N, x, Hp, gy(), Hp};
            };
            dense(one.mlp, H, of_atoms(state(p), k.mlp));
            // The columns of the first array are those of target, source and edge.
            const long width = messages(p) * H, ld = 2 * messages(p) * Hp;
            P *weight = next(), *bias = next(), *gates = next();
            weights.dense(one.ends, 2 * messages(p), H, H,
                          Rows<P>{weight, 3 * H, width, weight + H, 3 * H}, (P *)nullptr, 0,
                          {N, k.to_ends(), Hp, k.ends(), ld});
            const Edges<T> &g = graph(is_local(p));
            weights.dense(one.edges, 2 * messages(p), H, H,
                          Rows<P>{weight + 2 * H, 3 * H, width, gates, H}, bias, width,
                          {g.pairs.size(), g.features.kept(), Hp, k.edges(), ld});
            if (is_local(p)) {
                const long rows = angles * kinds;
                dense(one.angles[0], H, {rows, by_angle(), Hp, k.inner(), Hp});
                dense(one.angles[1], H, {rows, k.by_angle(), Hp, k.weights(), Hp});
            }
            for (int u = 0; u < UPDATE; ++u)
                dense(one.update[u], H, of_atoms(k.to_update[u](), k.update[u]));
            for (int h = 0; h < HEAD; ++h)
                dense(one.head[h], H,
                      of_atoms(h ? k.hidden[h - 1]() : state(p + 1), k.head[h]));
            const T *x = k.hidden[HEAD - 1]();
            P *value = next(), *to = next();
            weights.function(one.value, &one.bias, H, value, to, {N, x, Hp, k.values(), 1});
            weights.function(one.score, nullptr, H, next(), (P *)nullptr,
                             {N, x, Hp, k.scores(), 1});
        }
    }

    void write_gradients(const int64_t *numbers, T *const *arrays) {
        each_layer(arrays + 6);
        weights.write(threads);
        table_gradient(s.elements, s.hidden, N, numbers, to_state(), Hp, arrays[3]);
        for (long g : {0, 1})
            graph(g).features.gradients(graph(g).pairs.size(), s.hidden, weights.memory[0],
                                        arrays[4 + g], arrays[g]);
    }

    // ---- the graphs -----------------------------------------------------------------------------

    void make_graphs(const Call<T> &call) {
        std::vector<long> place(E);
        for (Edges<T> *g : {&wide, &local}) {
            g->row.clear();
            for (long e = 0; e < E; ++e)
                if (g == &wide || is_short(e, call.reverse[e])) {
                    place[e] = g->count();
                    g->row.push_back(e);
                }
            const long count = g->count();
            for (std::vector<long> *index : {&g->source, &g->target, &g->reverse})
                index->resize(count);
            for (long k = 0; k < count; ++k) {
                const long e = g->row[k];
                g->source[k] = call.source[e], g->target[k] = call.target[e];
                g->reverse[k] = place[call.reverse[e]];
            }
            starts(g->first, N, count, [&](long k) { return g->target[k]; });
            g->pairs.set(g->reverse.data(), count);
        }
        neighbours = most(local.first);
        first_angle.resize(N);
        sender.clear(), receiver.clear();
        for (long i = 0; i < N; ++i) {
            first_angle[i] = long(sender.size());
            for (long b = local.first[i]; b < local.first[i + 1]; ++b)
                for (long a = local.first[i]; a < local.first[i + 1]; ++a)
                    if (a != b)
                        sender.push_back(a), receiver.push_back(b);
        }
        angles = long(sender.size());
    }
    // Includes both edges of a pair or neither, even if their lengths differ in the last bit.
    bool is_short(long e, long back) const {
        const auto square = [this](long k) {
            const double *v = vectors + 3 * k;
            return v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        };
        return std::max(square(e), square(back)) < local_cutoff * local_cutoff;
    }
    // The angle at an atom between two of its local edges, counted from 0.
    long angle(long i, long from, long to) const {
        const long others = local.first[i + 1] - local.first[i] - 1;
        return first_angle[i] + to * others + from - (from > to);
    }

    void make_room() {
        const long L = local.count();
        for (size_t p = 0; p < passes.size(); ++p) {
            Kept<T> &one = kept[p];
            const long parts = 2 * messages(p);
            one.mlp.get(N * Hp), one.ends.get(N * parts * Hp);
            for (Buffer<T> &slope : one.update)
                slope.get(N * Hp);
            for (Buffer<T> &slope : one.head)
                slope.get(N * Hp);
            one.values.get(N), one.scores.get(N);
            one.edges.get(graph(is_local(p)).pairs.size() * parts * Hp);
            if (!is_local(p))
                continue;
            for (Buffer<T> *by_angle : {&one.weights, &one.inner, &one.outer})
                by_angle->get(angles * kinds * Hp);
            one.messages.get(L * Hp);
        }
        for (Edges<T> *g : {&wide, &local})
            g->features.room(g->pairs.size(), s.hidden, learns);
        radial.get(local.pairs.size() * Sp), radial_slope.get(local.pairs.size() * Sp);
        feature_slope.get(angles * kinds * Hp), to_length.get(angles), to_cosine.get(angles);
        two_hop_sums.get(L * Hp);
        to_messages.get(std::max(E, 2 * L) * Hp), to_gates.get(2 * L * Hp);
        for (Buffer<T> *by_atom : {&first_state, &shared_middle, &to_state, &to_middle})
            by_atom->get(N * Hp);
        if (learns)
            make_room_for_inputs();
        if (long(scratch.size()) < threads)
            scratch.resize(threads);
        for (Scratch &one : scratch) {
            for (Buffer<T> *tile : {&one.h, &one.u, &one.v})
                tile->get(std::max(TILE, ATOMS) * Hp);
            one.basis.get(TILE * std::max(Rp, Sp)), one.ends.get(ATOMS * 4 * Hp);
            one.carried.get(neighbours * Hp), one.to_carried.get(neighbours * Hp);
            one.to_sums.get(2 * Hp);
        }
    }

    void make_room_for_inputs() {
        spherical.get(angles * Sp), by_angle.get(angles * kinds * Hp);
        for (size_t p = 0; p < passes.size(); ++p) {
            Kept<T> &one = kept[p];
            for (Buffer<T> *by_atom : {&one.to_ends, &one.output})
                by_atom->get(N * Hp);
            for (Buffer<T> &input : one.to_update)
                input.get(N * Hp);
            for (Buffer<T> &output : one.hidden)
                output.get(N * Hp);
            if (is_local(p))
                one.by_angle.get(angles * kinds * Hp);
        }
    }

    Line<T> line(const Edges<T> &g, long k) const { return Line<T>(vectors + 3 * g.row[k]); }

    // ---- edge and angle features ----------------------------------------------------------------

    void pairs_forth(long which, long p0, long rows) {
        Edges<T> &g = graph(which);
        const auto distance = [&](long p) { return line(g, g.pairs.edge[p]).distance; };
        const T *e = g.features.forth(p0, rows, distance, own().basis(), own().h(), Hp);
        if (which)
            for (long p = p0; p < p0 + rows; ++p)
                pieces.at(distance(p), radial() + p * Sp, radial_slope() + p * Sp);
        for (size_t p = which; p < passes.size(); p += 2) {
            const long ld = 2 * messages(p) * Hp;
            const Dense<T> &layer = passes[p].edges;
            layer.forth.times(rows, e, Hp, {kept[p].edges() + p0 * ld, ld, layer.bias()});
        }
    }
    void pairs_back(long which, long p0, long rows) {
        Edges<T> &g = graph(which);
        T *to_e = own().h();
        std::fill_n(to_e, rows * Hp, T(0));
        for (size_t p = which; p < passes.size(); p += 2) {
            const long ld = 2 * messages(p) * Hp;
            passes[p].edges.back.times(rows, kept[p].edges() + p0 * ld, ld, added(to_e, Hp));
        }
        g.features.back(p0, rows, to_e, Hp, own().basis());
    }

    Angle<T> angle_of(long q) const {
        return {legendre, s.degrees, line(local, sender[q]), line(local, receiver[q])};
    }

    // Rows of one-hop and two-hop angles alternate.
    void angles_forth(long q0, long rows) {
        const long ld = kinds * Hp;
        T *sbf = learns ? spherical() + q0 * Sp : own().basis();
        T *h = learns ? by_angle() + q0 * ld : own().h();
        for (long q = q0; q < q0 + rows; ++q)
            angle_of(q).basis(radial() + local.pairs.of[sender[q]] * Sp, s.spherical_radial,
                              sbf + (q - q0) * Sp);
        for (long k = 0; k < kinds; ++k)
            features[k].forth.times(rows, sbf, Sp,
                                    {h + k * Hp, ld, features[k].bias(),
                                     feature_slope() + q0 * ld + k * Hp, ld});
        for (size_t p = 1; p < passes.size(); p += 2) {
            const Dense<T> *layer = passes[p].angles;
            Kept<T> &k = kept[p];
            T *u = learns ? k.by_angle() + q0 * ld : own().u();
            layer[0].activated(rows * kinds, h, Hp, u, k.inner() + q0 * ld, Hp);
            layer[1].activated(rows * kinds, u, Hp, k.weights() + q0 * ld, k.outer() + q0 * ld, Hp);
        }
    }
    void angles_back(long q0, long rows) {
        T *to_sbf = own().basis(), *h = own().h();
        const long ld = kinds * Hp;
        std::fill_n(h, rows * ld, T(0));
        for (size_t p = 1; p < passes.size(); p += 2) {
            const Dense<T> *layer = passes[p].angles;
            T *slope = kept[p].inner() + q0 * ld, *u = learns ? slope : own().u();
            layer[1].back.times(rows * kinds, kept[p].weights() + q0 * ld, Hp,
                                scaled<T>(u, Hp, slope, Hp));
            layer[0].back.times(rows * kinds, u, Hp, added(h, Hp));
        }
        T *slope = feature_slope() + q0 * ld;
        if (learns)
            return product(rows, ld, h, ld, slope, ld, slope, ld);
        product(rows, ld, h, ld, slope, ld, h, ld);
        for (long k = 0; k < kinds; ++k)
            features[k].back.times(rows, h + k * Hp, ld,
                                   k ? added(to_sbf, Sp) : Tail<T>{to_sbf, Sp});
        for (long q = q0; q < q0 + rows; ++q) {
            const long p = local.pairs.of[sender[q]] * Sp;
            angle_of(q).back(to_sbf + (q - q0) * Sp, radial() + p, radial_slope() + p,
                             s.spherical_radial, to_length()[q], to_cosine()[q]);
        }
    }

    // From gradients of distances and cosines to those of the vectors of edges into some atoms.
    // The gradient of quantities common to a pair is divided between its two edges.
    void vectors_back(long a0, long rows) {
        const auto shared = [](const Edges<T> &g, long e) {
            return g.features.along()[g.pairs.of[e]];
        };
        for (long e = wide.first[a0]; e < wide.first[a0 + rows]; ++e)
            line(wide, e).gradient(shared(wide, e) / 2, 0, 0, 0, gradient + 3 * e);
        for (long i = a0; i < a0 + rows; ++i) {
            const long first = local.first[i], n = local.first[i + 1] - first;
            for (long a = 0; a < n; ++a) {
                const long k = first + a, e = local.row[k];
                T along = (shared(wide, e) + shared(local, k)) / 2;
                T x = 0, y = 0, z = 0;
                for (long b = 0; b < n; ++b) {
                    if (a == b)
                        continue;
                    const Line<T> other = line(local, first + b);
                    const T to = to_cosine()[angle(i, a, b)] + to_cosine()[angle(i, b, a)];
                    along += to_length()[angle(i, a, b)];
                    x += to * other.x, y += to * other.y, z += to * other.z;
                }
                line(local, k).gradient(along, x, y, z, gradient + 3 * e);
            }
        }
    }

    // ---- atoms ----------------------------------------------------------------------------------

    Residual<T> residual(long p, long which, long a0) {
        Kept<T> &k = kept[p];
        return {&passes[p].update[which], &k.update[which], a0, Hp,
                learns ? &k.to_update[which] : nullptr};
    }
    Stack<T> head(long p, long a0) {
        Kept<T> &k = kept[p];
        return {passes[p].head, k.head, HEAD, a0, Hp, learns ? k.hidden : nullptr};
    }

    // Contributions of atoms to the messages of a pass.
    void begin(long p, long a0, long rows) {
        const Pass<T> &pass = passes[p];
        const long ld = 2 * messages(p) * Hp;
        T *x = middle(p) + a0 * Hp;
        pass.mlp.activated(rows, state(p) + a0 * Hp, Hp, x, kept[p].mlp() + a0 * Hp, Hp);
        if (learns)
            std::copy_n(x, rows * Hp, kept[p].to_ends() + a0 * Hp);
        pass.ends.forth.times(rows, x, Hp, {kept[p].ends() + a0 * ld, ld});
    }
    void begin_back(long p, long a0, long rows) {
        const Pass<T> &pass = passes[p];
        const Edges<T> &g = graph(is_local(p));
        const long half = messages(p) * Hp, ld = 2 * half;
        T *slope = kept[p].mlp() + a0 * Hp, *u = own().u(), *by = learns ? slope : u;
        T *ends = learns ? kept[p].ends() + a0 * ld : own().ends();
        for (long i = a0; i < a0 + rows; ++i) {
            both_ends(g.first[i], g.first[i + 1], g.reverse.data(), to_messages(), half, half,
                      ends + (i - a0) * ld);
            if (is_local(p))
                for (long e = g.first[i]; e < g.first[i + 1]; ++e)
                    if (e < g.reverse[e])
                        local_pair_back(p, e);
        }
        pass.ends.back.times(rows, ends, ld, plus<T>(u, Hp, to_middle() + a0 * Hp, Hp));
        product(rows, Hp, u, Hp, slope, Hp, by, Hp);
        pass.mlp.back.times(rows, by, Hp, added(to_state() + a0 * Hp, Hp));
    }

    // Sums of messages, the update, and the head.
    void finish(long p, long a0, long rows) {
        const Pass<T> &pass = passes[p];
        Kept<T> &k = kept[p];
        T *x = state(p + 1) + a0 * Hp, *h = own().h(), *u = own().u();
        for (long i = a0; i < a0 + rows; ++i) {
            if (is_local(p))
                local_sum(p, i);
            else
                global_sum(p, i);
        }
        pass.update[0].activated(rows, middle(p) + a0 * Hp, Hp, h, k.update[0]() + a0 * Hp, Hp);
        residual(p, 1, a0).forth(rows, h, u);
        if (learns)
            std::copy_n(state(p) + a0 * Hp, rows * Hp, x);
        add(rows * Hp, h, x);
        residual(p, 3, a0).forth(rows, x, u);
        residual(p, 5, a0).forth(rows, x, u);
        const T *in = head(p, a0).forth(rows, x, h, u);
        for (long r = 0; r < rows; ++r) {
            k.values()[a0 + r] = dot(in + r * Hp, pass.value(), Hp) + pass.bias;
            k.scores()[a0 + r] = dot(in + r * Hp, pass.score(), Hp);
        }
        if (embeddings && is_tapped(p))
            for (long r = 0; r < rows; ++r)
                std::copy_n((s.tap == FEATURES ? in : x) + r * Hp, s.hidden,
                            embeddings + tapped(p, a0 + r));
        if (is_local(p))
            for (long i = a0; i < a0 + rows; ++i)
                weigh(p, i);
    }
    void finish_back(long p, long a0, long rows) {
        const Pass<T> &pass = passes[p];
        Kept<T> &k = kept[p];
        T *g = to_state() + a0 * Hp, *h = own().h(), *u = own().u(), *v = own().v();
        T *slope = k.update[0]() + a0 * Hp;
        for (long r = 0; r < rows; ++r)
            for (long c = 0; c < Hp; c += W<T>)
                store(h + r * Hp + c, k.values()[a0 + r] * load(pass.value() + c) +
                                          k.scores()[a0 + r] * load(pass.score() + c));
        if (by_embeddings && is_tapped(p))
            for (long r = 0; r < rows; ++r) {
                const T *from = by_embeddings + tapped(p, a0 + r);
                T *to = (s.tap == FEATURES ? h : g) + r * Hp;
                for (long c = 0; c < s.hidden; ++c)
                    to[c] += from[c];
            }
        const Tail<T> added_to_g = added(g, Hp);
        head(p, a0).back(rows, h, u, &added_to_g);
        residual(p, 5, a0).back(rows, g, u, v);
        residual(p, 3, a0).back(rows, g, u, v);
        std::copy_n(g, rows * Hp, h);
        residual(p, 1, a0).back(rows, h, u, v);
        T *by = learns ? slope : h;
        product(rows, Hp, h, Hp, slope, Hp, by, Hp);
        pass.update[0].back.times(rows, by, Hp, {to_middle() + a0 * Hp, Hp});
    }

    // Whether embeddings are taken from a pass, and the place of that of an atom.
    bool is_tapped(long p) const { return s.tap != (is_local(p) ? GLOBAL : LOCAL); }
    long tapped(long p, long i) const {
        return ((s.tap == GLOBAL || s.tap == LOCAL ? p / 2 : p) * N + i) * s.hidden;
    }

    // Values of atoms in a layer: those of its two passes, weighted by the softmax of their scores.
    void weigh(long p, long i) {
        T *value[2], *score[2], weight[2], slope[2];
        for (long k = 0; k < 2; ++k) {
            value[k] = kept[p - 1 + k].values() + i, score[k] = kept[p - 1 + k].scores() + i;
            // Smooth LeakyReLU; linear far above zero, like torch's softplus.
            const T x = *score[k], power = std::exp(std::min(x, T(20)));
            weight[k] = T(0.2) * x + T(0.8) * (x > 20 ? x : std::log1p(power));
            slope[k] = T(0.2) + T(0.8) * (x > 20 ? T(1) : power / (power + 1));
        }
        const T most = std::max(weight[0], weight[1]);
        for (T &one : weight)
            one = std::exp(one - most);
        const T sum = weight[0] + weight[1];
        for (T &one : weight)
            one /= sum;
        const T turned = weight[0] * weight[1] * (*value[0] - *value[1]);
        if (values)
            values[i] += weight[0] * *value[0] + weight[1] * *value[1];
        for (long k = 0; k < 2; ++k)
            *value[k] = weight[k], *score[k] = (k ? -turned : turned) * slope[k];
        if (by_values)
            for (long k = 0; k < 2; ++k)
                *value[k] *= by_values[i], *score[k] *= by_values[i];
    }

    // ---- messages of the global graph -----------------------------------------------------------

    // x_i + Σ_j gate ⊙ σ(edge + x_i + x_j).
    void global_sum(long p, long i) {
        const T *ends = kept[p].ends();
        message_sum(wide.first[i], wide.first[i + 1], wide.source.data(), wide.pairs, ends,
                    kept[p].edges(), ends + i * 2 * Hp, Hp, middle(p) + i * Hp);
    }
    // Gradients of the messages of both edges of a pair, and of the features of the pair.
    void global_back(long p, long p0, long rows) {
        const T *ends = kept[p].ends(), *g = to_middle();
        for (long q = p0; q < p0 + rows; ++q) {
            const long e = wide.pairs.edge[q], i = wide.target[e], j = wide.source[e];
            T *edge = kept[p].edges() + q * 2 * Hp;
            messages_back(edge, ends + i * 2 * Hp, ends + j * 2 * Hp, g + i * Hp, g + j * Hp, Hp,
                          to_messages() + e * Hp, to_messages() + wide.reverse[e] * Hp, edge);
        }
    }

    // ---- messages of the local graph ------------------------------------------------------------

    struct Messages {
        Activation<T> kj, ji;
        V<T> gate, gate_out;
    };
    // Messages of a local edge j → i, some columns.
    Messages local_message(long p, long k, long c) const {
        const T *edge = kept[p].edges() + local.pairs.of[k] * 4 * Hp + c;
        const T *to = kept[p].ends() + local.target[k] * 4 * Hp + c;
        const T *from = kept[p].ends() + local.source[k] * 4 * Hp + 2 * Hp + c;
        return {silu<T>(load(edge) + load(to) + load(from)),
                silu<T>(load(edge + Hp) + load(to + Hp) + load(from + Hp)), load(edge + 2 * Hp),
                load(edge + 3 * Hp)};
    }

    // For the local edges of some atoms, messages with one-hop sums, and two-hop sums of their
    // reverse edges.
    void local_messages(long p, long a0, long rows) {
        T *carried = own().carried();
        for (long i = a0; i < a0 + rows; ++i) {
            const long first = local.first[i], n = local.first[i + 1] - first;
            const T *w = kept[p].weights() + first_angle[i] * kinds * Hp;
            for (long a = 0; a < n; ++a)
                for (long c = 0; c < Hp; c += W<T>) {
                    const Messages m = local_message(p, first + a, c);
                    store(carried + a * Hp + c, m.kj.value * m.gate);
                    store(kept[p].messages() + (first + a) * Hp + c, m.ji.value);
                }
            for (long b = 0; b < n; ++b) {
                T *one = kept[p].messages() + (first + b) * Hp;
                T *two = two_hop_sums() + (first + b) * Hp;
                std::fill_n(two, Hp, T(0));
                for (long a = 0; a < n; ++a) {
                    if (a == b)
                        continue;
                    for (long c = 0; c < Hp; c += W<T>) {
                        V<T> m = load(carried + a * Hp + c);
                        store(one + c, load(one + c) + m * load(w + c));
                        if (kinds > 1)
                            store(two + c, load(two + c) + m * load(w + Hp + c));
                    }
                    w += kinds * Hp;
                }
            }
        }
    }
    // x_i + Σ_j gate_out ⊙ message.
    void local_sum(long p, long i) {
        T *sum = middle(p) + i * Hp;
        for (long k = local.first[i]; k < local.first[i + 1]; ++k) {
            const T *gate = kept[p].edges() + local.pairs.of[k] * 4 * Hp + 3 * Hp;
            const T *two = two_hop_sums() + local.reverse[k] * Hp;
            T *message = kept[p].messages() + k * Hp;
            for (long c = 0; c < Hp; c += W<T>) {
                V<T> m = load(message + c) + load(two + c);
                store(message + c, m);
                store(sum + c, load(sum + c) + load(gate + c) * m);
            }
        }
    }

    // Gradients of messages and gates of local edges into some atoms, and of weights of angles.
    void local_back(long p, long a0, long rows) {
        T *carried = own().carried(), *to_carried = own().to_carried();
        T *to_one = own().to_sums(), *to_two = to_one + Hp;
        for (long i = a0; i < a0 + rows; ++i) {
            const long first = local.first[i], n = local.first[i + 1] - first;
            const T *gi = to_middle() + i * Hp;
            T *w = kept[p].weights() + first_angle[i] * kinds * Hp;
            const T *slope = kept[p].outer() + first_angle[i] * kinds * Hp;
            T *by_message = to_messages() + first * 2 * Hp, *by_gate = to_gates() + first * 2 * Hp;
            for (long a = 0; a < n; ++a) {
                const T *message = kept[p].messages() + (first + a) * Hp;
                for (long c = 0; c < Hp; c += W<T>) {
                    const Messages m = local_message(p, first + a, c);
                    V<T> g = load(gi + c);
                    store(carried + a * Hp + c, m.kj.value * m.gate);
                    // These two are multiplied by the gradient of the carried message, see below.
                    store(by_message + a * 2 * Hp + c, m.gate * m.kj.slope);
                    store(by_gate + a * 2 * Hp + c, m.kj.value);
                    store(by_message + a * 2 * Hp + Hp + c, g * m.gate_out * m.ji.slope);
                    store(by_gate + a * 2 * Hp + Hp + c, g * load(message + c));
                }
            }
            std::fill_n(to_carried, n * Hp, T(0));
            for (long b = 0; b < n; ++b) {
                const T *gate = kept[p].edges() + local.pairs.of[first + b] * 4 * Hp + 3 * Hp;
                const T *gj = to_middle() + local.source[first + b] * Hp;
                product(1, Hp, gi, Hp, gate, Hp, to_one, Hp);
                product(1, Hp, gj, Hp, gate, Hp, to_two, Hp);
                for (long a = 0; a < n; ++a) {
                    if (a == b)
                        continue;
                    for (long k = 0; k < kinds; ++k, w += Hp, slope += Hp)
                        for (long c = 0; c < Hp; c += W<T>) {
                            V<T> g = load((k ? to_two : to_one) + c);
                            T *to = to_carried + a * Hp + c;
                            store(to, load(to) + g * load(w + c));
                            store(w + c, g * load(carried + a * Hp + c) * load(slope + c));
                        }
                }
            }
            product(n, Hp, by_message, 2 * Hp, to_carried, Hp, by_message, 2 * Hp);
            product(n, Hp, by_gate, 2 * Hp, to_carried, Hp, by_gate, 2 * Hp);
        }
    }
    // Gradients of the features of a pair of local edges, of which k is one.
    void local_pair_back(long p, long k) {
        const long back = local.reverse[k];
        T *edge = kept[p].edges() + local.pairs.of[k] * 4 * Hp;
        for (const Buffer<T> *by : {&to_messages, &to_gates}) {
            const T *one = (*by)() + k * 2 * Hp, *other = (*by)() + back * 2 * Hp;
            for (long c = 0; c < 2 * Hp; c += W<T>)
                store(edge + c, load(one + c) + load(other + c));
            edge += 2 * Hp;
        }
    }
};

} // namespace

EXPORT(PAMNet)
EXPORT_TRAINING(PAMNet)
