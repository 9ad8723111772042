// DimeNet++, its gradient with respect to the edge vectors, and the gradient of any linear function
// of values and embeddings with respect to the weights: a cache-friendly implementation of
// lkm_calc/models/dimenetpp.py with a hand-written backward pass.
//
// Edges are sorted by target. They are processed in tiles of a few dozen rows of whole atoms, and
// a tile passes through a whole interaction while it is in the cache; tiles only exchange the
// angular sums of an edge and its reverse. For the backward pass, only the derivatives of the
// activations are stored.
//
// For gradients of the weights, structures are processed in chunks of a few hundred edges. The inputs
// of all dense layers are kept as well, and gradients before activations overwrite the derivatives of
// the activations. The products of both are the last step of a chunk; of the bases only the gradients
// of the frequencies are computed.

#include "shared/bases.hpp"
#include "shared/edges.hpp"
#include "shared/interface.hpp"
#include "shared/products.hpp"
#include "shared/threads.hpp"
#include "shared/training.hpp"

namespace {

constexpr long TILE = 96;   // rows of edges in a tile, more where one atom has more
constexpr long CHUNK = 2048; // edges of a chunk, more where one structure has more

struct Sizes {
    int64_t hidden, blocks, triplet, basis, output, degrees, radial, exponent, before, after, dense,
        elements, intervals, head;
};

// Two linear functions without biases, one after another, and their product or its gradient.
template <class T> struct TwoMaps {
    long out = 0, middle = 0, in = 0;
    std::vector<T> first, second; // (middle, in) and (out, middle)
    std::vector<T> product;       // (out, in)
    T *by_first = nullptr, *by_second = nullptr;

    void set(long out_, long middle_, long in_) {
        out = out_, middle = middle_, in = in_;
        product.resize(out * in);
    }
    // Reads the weights of both and returns their product.
    const T *weight(const T *first_, const T *second_) {
        first.assign(first_, first_ + middle * in), second.assign(second_, second_ + out * middle);
        product.assign(out * in, T(0));
        for (long o = 0; o < out; ++o)
            for (long k = 0; k < middle; ++k)
                for (long i = 0; i < in; ++i)
                    product[o * in + i] += second[o * middle + k] * first[k * in + i];
        return product.data();
    }
    // Returns memory for the gradient of the product, from which `write` computes those of both.
    T *weight(T *first_, T *second_) {
        by_first = first_, by_second = second_;
        return product.data();
    }
    void write() const {
        std::fill_n(by_first, middle * in, T(0));
        for (long o = 0; o < out; ++o)
            for (long k = 0; k < middle; ++k) {
                by_second[o * middle + k] = inner(in, &product[o * in], &first[k * in]);
                for (long i = 0; i < in; ++i)
                    by_first[k * in + i] += second[o * middle + k] * product[o * in + i];
            }
    }
};

template <class T> struct Interaction {
    TwoMaps<T> radial_maps, angular_maps;
    Dense<T> gate, from_ji, from_kj, down, up, dense;
    std::vector<Dense<T>> residual; // two for each residual layer
    Buffer<T> angular;              // (degrees, radial, channels), see `angular_sums`
    Buffer<T> angular_back;         // (degrees, channels, a vector)
};

template <class T> struct Output {
    Dense<T> gate, up;
    std::vector<Dense<T>> dense;
    Buffer<T> value;
};

// What an interaction stores for the backward pass, (edges, width) each.
template <class T> struct Kept {
    Buffer<T> m, a, x, ji, kj, down, up, dense, sums;
    std::vector<Buffer<T>> residual;
    // For gradients of the weights: inputs of layers; those of the gates replace `a`.
    Buffer<T> to_down, to_up, to_dense;
    std::vector<Buffer<T>> to_residual;
    Buffer<T> by_angular; // gradients of the weight, summed over each tile
    std::vector<T> angular_sum;
};

// What an output block stores for gradients of the weights, (atoms, width) each except `by_gate`.
template <class T> struct KeptOutput {
    Buffer<T> t, up, by_up, by_gate;
    std::vector<Buffer<T>> hidden, slopes;
};

template <class T> class DimeNet {
  public:
    Sizes s;
    double cutoff;

    DimeNet(const Sizes &sizes, const double *lengths, const T *const *arrays)
        : s(sizes), cutoff(lengths[0]) {
        const long H = s.hidden, C = s.triplet, O = s.output, R = s.radial, L = s.degrees;
        Hp = padded<T>(H), Cp = padded<T>(C), Op = padded<T>(O), Rp = padded<T>(R);
        // Wide enough for a whole vector starting at the first column of the last degree.
        LRp = padded<T>((L - 1) * R + Rp);
        LMp = padded<T>((L - 1) * (L - 1) + padded<T>(2 * L - 1));
        pieces.set(arrays[1], s.intervals, L * R, cutoff, cutoff, s.exponent);
        interactions.resize(s.blocks), outputs.resize(s.blocks + 1);
        kept.resize(s.blocks + 1), kept_outputs.resize(s.blocks + 1);
        for (Interaction<T> &one : interactions) {
            one.radial_maps.set(H, s.basis, R), one.angular_maps.set(C, s.basis, L * R);
            one.residual.resize(2 * (s.before + s.after));
        }
        for (Kept<T> &one : kept)
            for (std::vector<Buffer<T>> *layers : {&one.residual, &one.to_residual})
                layers->resize(2 * (s.before + s.after));
        for (Output<T> &one : outputs)
            one.dense.resize(s.dense);
        for (KeptOutput<T> &one : kept_outputs)
            one.hidden.resize(s.dense), one.slopes.resize(s.dense);
        set_products(update(arrays));
        set_recurrences();
    }

    // Copies new weights and returns the arrays after them.
    const T *const *update(const T *const *arrays) {
        std::lock_guard<std::mutex> lock(mutex); // the buffers are the model's
        waves.set(arrays[0], s.radial, cutoff, s.exponent);
        set_rows(embedding, s.elements, s.hidden, arrays[2]);
        arrays = each_layer(arrays + 3, false);
        for (Interaction<T> &one : interactions)
            set_angular(one);
        ends.forth.times(s.elements, embedding(), Hp, {at_ends.get(s.elements * 2 * Hp), 2 * Hp});
        return arrays;
    }

    // False if the edges are not sorted by target. With `by_values_` (and `by_embeddings_` or null),
    // writes gradients of Σ by_values · values + Σ by_embeddings · embeddings with respect to the
    // weights to `arrays`; otherwise values, edge gradients and embeddings to the outputs of the
    // call.
    bool run(const Call<T> &call, const T *by_values_ = nullptr, const T *by_embeddings_ = nullptr,
             void *const *arrays = nullptr) {
        std::lock_guard<std::mutex> lock(mutex);
        total_atoms = N = call.counts[0], E = call.counts[1], threads = int(call.counts[2]);
        numbers = call.numbers, source = call.source, target = call.target, reverse = call.reverse;
        vectors = call.vectors, values = call.values, gradient = call.gradient;
        embeddings = call.embeddings;
        learns = arrays, by_values = by_values_, by_embeddings = by_embeddings_;
        first_atom = 0;
        if (!std::is_sorted(target, target + E))
            return false;
        if (learns)
            gradients(call, reinterpret_cast<T *const *>(arrays));
        else
            pass();
        return true;
    }

  private:
    long Hp, Cp, Op, Rp, LRp, LMp; // padded widths
    Waves<T> waves;
    Pieces<T> pieces;
    Buffer<T> embedding;
    Dense<T> embed_radial, embed;
    Dense<T> ends;     // contributions of target atoms to the first messages, then of source atoms
    Buffer<T> at_ends; // these of each element
    Weights<T> weights;
    std::vector<Interaction<T>> interactions;
    std::vector<Output<T>> outputs;
    T tops[MAX_DEGREES], rising[MAX_DEGREES][MAX_DEGREES], falling[MAX_DEGREES][MAX_DEGREES];

    // Data of one call.
    std::mutex mutex;
    long N = 0, E = 0; // of a chunk, if gradients of the weights are computed
    long total_atoms = 0, first_atom = 0; // atoms of the call, and the first of the chunk
    int threads = 1;
    const int64_t *numbers = nullptr, *source = nullptr, *target = nullptr, *reverse = nullptr;
    const double *vectors = nullptr;
    T *values = nullptr, *embeddings = nullptr;
    double *gradient = nullptr;
    bool learns = false; // whether gradients of the weights are computed
    const T *by_values = nullptr, *by_embeddings = nullptr;
    std::vector<Chunk> chunks;
    std::vector<int64_t> own_source, own_target, own_reverse; // counted from the first of a chunk
    std::vector<long> first; // first edge into each atom, and one past the last
    Tiles tiles;
    long neighbours = 0; // the most edges into an atom
    std::vector<Kept<T>> kept;
    // Per edge: bases, their derivatives with respect to distance, gradients with respect to them.
    Buffer<T> rbf, rbf_slope, radial, radial_slope, harmonics, to_rbf, to_radial, to_harmonics;
    Buffer<T> embed_slope, message_slope, to_m;
    Buffer<T> exchanged[2]; // angular sums or their gradients, exchanged between reverse edges
    std::vector<Buffer<T>> to_t; // gradients with respect to the sums of messages, per atom
    Buffer<T> t_sums;
    // For gradients of the weights.
    std::vector<KeptOutput<T>> kept_outputs;
    Buffer<T> to_embed, by_ends;        // per edge and per element
    Buffer<T> ends_sums, by_embedding;  // per atom and per element
    std::vector<T> by_frequency;
    struct Scratch {
        Buffer<T> h, u, v, s, x, terms, sums, turned, by_parts, part, a, b;
        std::vector<Buffer<T>> slopes;
    };
    std::vector<Scratch> scratch; // one per thread

    // ---- weights --------------------------------------------------------------------------------

    // Reads the weights of all dense layers from arrays, or prepares to write their gradients; those
    // of elements are complete after the last chunk. Returns the arrays after those of the layers.
    template <class P> P *const *each_layer(P *const *arrays, bool is_last) {
        const long H = s.hidden, C = s.triplet, O = s.output, R = s.radial;
        const auto next = [&]() { return *arrays++; };
        const auto dense = [&](Dense<T> &layer, long out, long in, bool biased, Trace<T> trace) {
            P *weight = next(), *bias = biased ? next() : nullptr;
            weights.dense(layer, 1, out, in, Rows<P>{weight, in}, bias, out, trace);
        };
        const auto hidden = [&](Dense<T> &layer, const Buffer<T> &x, const Buffer<T> &gy) {
            dense(layer, H, H, true, {E, x(), Hp, gy(), Hp});
        };
        const auto of_bases = [&](const Buffer<T> &gy) {
            return Trace<T>{E, rbf(), Rp, gy(), Hp};
        };
        dense(embed_radial, H, R, true, of_bases(embed_slope));
        // The columns of this array are those of target, source and edge.
        P *weight = next(), *bias = next();
        weights.dense(ends, 2, H, H, Rows<P>{weight, 3 * H, H, weight + H, 3 * H}, (P *)nullptr, 0,
                      {is_last ? s.elements : 0, embedding(), Hp, by_ends(), 2 * Hp});
        weights.dense(embed, 1, H, H, Rows<P>{weight + 2 * H, 3 * H}, bias, H,
                      {E, to_embed(), Hp, message_slope(), Hp});
        for (long b = 0; b < s.blocks; ++b) {
            Interaction<T> &one = interactions[b];
            Kept<T> &k = kept[b];
            P *radial_in = next(), *radial_out = next();
            weights.dense(one.gate, 1, H, R, Rows<P>{one.radial_maps.weight(radial_in, radial_out), R},
                          (P *)nullptr, 0, of_bases(k.a));
            P *angular_in = next(), *angular_out = next();
            one.angular_maps.weight(angular_in, angular_out);
            hidden(one.from_kj, k.m, k.kj);
            hidden(one.from_ji, k.m, k.ji);
            dense(one.down, C, H, false, {E, k.to_down(), Hp, k.down(), Cp});
            dense(one.up, H, C, false, {E, k.to_up(), Cp, k.up(), Hp});
            for (long r = 0; r < 2 * s.before; ++r)
                hidden(one.residual[r], k.to_residual[r], k.residual[r]);
            hidden(one.dense, k.to_dense, k.dense);
            for (long r = 2 * s.before; r < 2 * (s.before + s.after); ++r)
                hidden(one.residual[r], k.to_residual[r], k.residual[r]);
        }
        for (long b = 0; b <= s.blocks; ++b) {
            Output<T> &one = outputs[b];
            KeptOutput<T> &k = kept_outputs[b];
            dense(one.gate, H, R, false, of_bases(k.by_gate));
            dense(one.up, O, H, false, {N, k.t(), Hp, k.by_up(), Op});
            const T *x = k.up();
            for (long d = 0; d < s.dense; x = k.hidden[d++]())
                dense(one.dense[d], O, O, true, {N, x, Op, k.slopes[d](), Op});
            weights.function(one.value, nullptr, O, next(), (P *)nullptr,
                             {N, x, Op, by_values + first_atom, 1});
        }
        return arrays;
    }

    // Replaces the products of weights in `update` by those of torch, which may differ in the last
    // bit, so that forces have the same bits as without training.
    void set_products(const T *const *arrays) {
        const long H = s.hidden, C = s.triplet, R = s.radial, L = s.degrees;
        for (long part = 0; part < 2; ++part, ++arrays)
            for (long z = 0; z < s.elements; ++z)
                std::copy_n(*arrays + z * H, H, at_ends() + (2 * z + part) * Hp);
        for (Interaction<T> &one : interactions) {
            one.gate.set(H, R, *arrays++, nullptr);
            const T *angular = *arrays++;
            for (long k = 0; k < L * R; ++k)
                for (long c = 0; c < C; ++c)
                    one.angular_maps.product[c * L * R + k] = angular[k * C + c];
            set_angular(one);
        }
    }

    // Gradients of the weights.
    void gradients(const Call<T> &call, T *const *arrays) {
        make_chunks(chunks, N, E, source, target, CHUNK);
        for (size_t c = 0; c < chunks.size(); ++c) {
            const bool is_first = c == 0, is_last = c + 1 == chunks.size();
            enter(call, chunks[c]);
            pass();
            add_tables(is_first);
            each_layer(arrays + 3, is_last);
            weights.write(threads, is_first, is_last);
        }
        std::copy(by_frequency.begin(), by_frequency.end(), arrays[0]);
        ends.back.times(s.elements, by_ends(), 2 * Hp,
                        {by_embedding.get(s.elements * Hp), Hp});
        for (long z = 0; z < s.elements; ++z)
            std::copy_n(by_embedding() + z * Hp, s.hidden, arrays[2] + z * s.hidden);
        const long C = s.triplet, R = s.radial, L = s.degrees;
        for (long b = 0; b < s.blocks; ++b) {
            Interaction<T> &one = interactions[b];
            for (long l = 0; l < L; ++l)
                for (long r = 0; r < R; ++r)
                    for (long c = 0; c < C; ++c)
                        one.angular_maps.product[(c * L + l) * R + r] =
                            T(factor(l) * kept[b].angular_sum[(l * R + r) * Cp + c]);
            one.angular_maps.write();
            one.radial_maps.write();
        }
    }
    // Makes a chunk the structures that `pass` computes.
    void enter(const Call<T> &call, const Chunk &chunk) {
        N = chunk.atoms, E = chunk.edges, first_atom = chunk.atom;
        const auto own = [&](std::vector<int64_t> &to, const int64_t *from, long first_one) {
            to.resize(E);
            for (long e = 0; e < E; ++e)
                to[e] = from[chunk.edge + e] - first_one;
            return to.data();
        };
        source = own(own_source, call.source, chunk.atom);
        target = own(own_target, call.target, chunk.atom);
        reverse = own(own_reverse, call.reverse, chunk.edge);
        numbers = call.numbers + chunk.atom, vectors = call.vectors + 3 * chunk.edge;
    }
    // Adds gradients of the frequencies, the angular weights and the elements in a chunk.
    void add_tables(bool is_first) {
        const long count = s.degrees * s.radial * Cp;
        if (is_first) {
            by_frequency.assign(s.radial, T(0));
            std::fill_n(by_ends.get(s.elements * 2 * Hp), s.elements * 2 * Hp, T(0));
            for (Kept<T> &one : kept)
                one.angular_sum.assign(count, T(0));
        }
        for (long e = 0; e < E; ++e)
            for (long r = 0; r < s.radial; ++r)
                by_frequency[r] += to_rbf()[e * Rp + r] * rbf_slope()[e * Rp + r];
        for (long b = 0; b < s.blocks; ++b)
            for (long t = 0; t < tiles.count(); ++t)
                add(count, kept[b].by_angular() + t * count, kept[b].angular_sum.data());
        T *sums = ends_sums.get(2 * Hp);
        for (long i = 0; i < N; ++i) {
            both_ends(first[i], first[i + 1], reverse, message_slope(), Hp, Hp, sums);
            add(2 * Hp, sums, by_ends() + numbers[i] * 2 * Hp);
        }
    }

    // The addition theorem Y_l0(α) = √(4π/(2l+1)) Σ_m Y_lm(û_kj) Y_lm(û_ji), its factor and that of
    // û_ji = −(direction of the edge i → j) included in the weights.
    void set_angular(Interaction<T> &one) {
        const long C = s.triplet, R = s.radial, L = s.degrees;
        T *forth = one.angular.get(L * R * Cp), *back = one.angular_back.get(L * C * Rp);
        for (long l = 0; l < L; ++l)
            for (long r = 0; r < R; ++r)
                for (long c = 0; c < C; ++c) {
                    T w = T(factor(l) * one.angular_maps.product[(c * L + l) * R + r]);
                    forth[(l * R + r) * Cp + c] = w;
                    back[(l * C + c) * Rp + r] = w;
                }
    }
    static double factor(long l) { return (l % 2 ? -1 : 1) / std::sqrt(opposite(l)); }
    // Σ_m Y_lm(û)², used to remove the self-term of the edge (k = i) from the sum.
    static double opposite(long l) { return (2 * l + 1) / (4 * PI); }

    // Coefficients of normalised associated Legendre functions, as SphericalHarmonics in basis.py.
    void set_recurrences() {
        double top = std::sqrt(1 / (4 * PI));
        for (int l = 0; l < s.degrees; ++l) {
            if (l > 0)
                top *= std::sqrt((2.0 * l + 1) / (2.0 * l)) * (l == 1 ? std::sqrt(2.0) : 1);
            tops[l] = T(top);
            for (int m = 0; m < l; ++m) {
                const double ll = double(l) * l, mm = double(m) * m, one = double(l - 1) * (l - 1);
                rising[l][m] = T(std::sqrt((4 * ll - 1) / (ll - mm)));
                falling[l][m] =
                    l > 1 ? T(std::sqrt((one - mm) * (2 * l + 1) / ((2 * l - 3) * (ll - mm)))) : 0;
            }
        }
    }

    // ---- one pass -------------------------------------------------------------------------------

    void pass() {
        starts(first, N, E, [&](long e) { return target[e]; });
        neighbours = most(first);
        tiles.set(first, TILE, N);
        make_room();
        if (learns)
            make_room_for_inputs();
        const long last = s.blocks;
        if (values)
            std::fill(values, values + N, T(0));
        for (long b = 0; b <= last; ++b) {
            for_each(tiles.count(), threads, [&](long t) { forth(t, b); });
            for_tiles(N, TILE, threads, [&](long i, long rows) { energy(b, i, rows); });
        }
        for (long b = last; b >= 0; --b)
            for_each(tiles.count(), threads, [&](long t) { back(t, b); });
    }

    void make_room() {
        const long L = s.degrees, O = std::max(Op, Hp);
        for (Kept<T> &one : kept) {
            one.m.get(E * Hp);
            if (&one == &kept.back())
                break; // there is one more output block than interactions
            for (Buffer<T> *wide : {&one.a, &one.ji, &one.kj, &one.up, &one.dense})
                wide->get(E * Hp);
            for (Buffer<T> &wide : one.residual)
                wide.get(E * Hp);
            one.x.get(E * Cp), one.down.get(E * Cp);
            one.sums.get(N * L * L * Cp);
        }
        for (Buffer<T> *basis : {&rbf, &rbf_slope, &to_rbf})
            basis->get(E * Rp);
        for (Buffer<T> *basis : {&radial, &radial_slope, &to_radial})
            basis->get(E * LRp);
        for (Buffer<T> *basis : {&harmonics, &to_harmonics})
            basis->get(E * LMp);
        for (Buffer<T> *wide : {&embed_slope, &message_slope, &to_m})
            wide->get(E * Hp);
        exchanged[0].get(E * Cp), exchanged[1].get(E * Cp);
        to_t.resize(s.blocks + 1);
        for (Buffer<T> &one : to_t)
            one.get(N * Hp);
        t_sums.get(N * Hp);
        if (long(scratch.size()) < threads)
            scratch.resize(threads);
        for (Scratch &own : scratch) {
            own.h.get(tiles.rows * Hp), own.u.get(tiles.rows * Hp), own.v.get(tiles.rows * Hp);
            own.s.get(tiles.rows * Cp), own.x.get(tiles.rows * Cp);
            own.terms.get(L * neighbours * Cp), own.part.get(neighbours * Cp);
            own.sums.get(L * L * Cp), own.turned.get(Cp * LMp);
            own.by_parts.get(neighbours * LMp);
            own.a.get(TILE * O), own.b.get(TILE * O);
            own.slopes.resize(s.dense);
            for (Buffer<T> &one : own.slopes)
                one.get(TILE * Op);
        }
    }

    void make_room_for_inputs() {
        for (Kept<T> &one : kept) {
            if (&one == &kept.back())
                break;
            for (Buffer<T> *wide : {&one.to_down, &one.to_dense})
                wide->get(E * Hp);
            for (Buffer<T> &wide : one.to_residual)
                wide.get(E * Hp);
            one.to_up.get(E * Cp);
            one.by_angular.get(tiles.count() * s.degrees * s.radial * Cp);
        }
        for (KeptOutput<T> &one : kept_outputs) {
            one.t.get(N * Hp), one.up.get(N * Op), one.by_up.get(N * Op), one.by_gate.get(E * Hp);
            for (std::vector<Buffer<T>> *layers : {&one.hidden, &one.slopes})
                for (Buffer<T> &layer : *layers)
                    layer.get(N * Op);
        }
        to_embed.get(E * Hp);
    }

    Residual<T> residual(const Interaction<T> &layer, Kept<T> &k, long which, long e0) const {
        return {&layer.residual[2 * which], &k.residual[2 * which], e0, Hp,
                learns ? &k.to_residual[2 * which] : nullptr};
    }
    T *sums_of_messages(long b) { return learns ? kept_outputs[b].t() : t_sums(); }
    // Place of the embedding of an atom in a layer.
    long tapped(long b, long i) const {
        return (b * total_atoms + first_atom + i) * (s.head ? s.output : s.hidden);
    }

    // Messages m_b of a tile, their sums t_b over its atoms and, except for the last, the angular
    // sums for the next interaction.
    void forth(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        const long e0 = first[a0], rows = first[a1] - e0;
        Scratch &own = scratch[thread()];
        T *h = own.h(), *u = own.u(), *v = own.v(), *m = kept[b].m() + e0 * Hp;
        const T *bases = rbf() + e0 * Rp;
        if (b == 0) {
            geometry(e0, rows);
            T *x = learns ? to_embed() + e0 * Hp : u;
            embed_radial.activated(rows, bases, Rp, x, embed_slope() + e0 * Hp, Hp);
            embed.forth.times(rows, x, Hp, {v, Hp, embed.bias()});
            for (long i = 0; i < rows; ++i) {
                const T *to = at_ends() + numbers[target[e0 + i]] * 2 * Hp;
                const T *from = at_ends() + numbers[source[e0 + i]] * 2 * Hp + Hp;
                for (long c = 0; c < Hp; c += W<T>) {
                    Activation<T> z = silu<T>(load(v + i * Hp + c) + load(to + c) + load(from + c));
                    store(m + i * Hp + c, z.value);
                    store(message_slope() + (e0 + i) * Hp + c, z.slope);
                }
            }
        } else {
            const Interaction<T> &layer = interactions[b - 1];
            Kept<T> &k = kept[b - 1];
            const T *before = k.m() + e0 * Hp;
            T *sums = learns ? k.to_up() + e0 * Cp : own.s();
            if (learns)
                h = k.to_dense() + e0 * Hp;
            layer.from_ji.activated(rows, before, Hp, h, k.ji() + e0 * Hp, Hp);
            take(exchanged[(b - 1) & 1](), e0, rows, sums);
            layer.up.activated(rows, sums, Cp, h, k.up() + e0 * Hp, Hp, h);
            for (long r = 0; r < s.before; ++r)
                residual(layer, k, r, e0).forth(rows, h, u);
            layer.dense.activated(rows, h, Hp, m, k.dense() + e0 * Hp, Hp, before);
            for (long r = s.before; r < s.before + s.after; ++r)
                residual(layer, k, r, e0).forth(rows, m, u);
        }
        outputs[b].gate.forth.times(rows, bases, Rp, scaled(u, Hp, m, Hp));
        for (long i = a0; i < a1; ++i)
            for (long c = 0; c < Hp; c += W<T>) {
                V<T> sum{};
                for (long e = first[i]; e < first[i + 1]; ++e)
                    sum += load(u + (e - e0) * Hp + c);
                store(sums_of_messages(b) + i * Hp + c, sum);
            }
        if (b == s.blocks)
            return;
        const Interaction<T> &layer = interactions[b];
        Kept<T> &k = kept[b];
        T *a = k.a() + e0 * Hp, *gated = learns ? k.to_down() + e0 * Hp : u;
        layer.from_kj.activated(rows, m, Hp, a, k.kj() + e0 * Hp, Hp);
        layer.gate.forth.times(rows, bases, Rp, scaled<T>(gated, Hp, a, Hp));
        layer.down.activated(rows, gated, Hp, k.x() + e0 * Cp, k.down() + e0 * Cp, Cp);
        for (long i = a0; i < a1; ++i)
            angular_sums(layer, k, i, own, exchanged[b & 1]());
    }

    // Rows of the reverse edges.
    void take(const T *from, long e0, long rows, T *to) const {
        for (long i = 0; i < rows; ++i)
            std::copy_n(from + reverse[e0 + i] * Cp, Cp, to + i * Cp);
    }

    // For every edge j → i at an atom j: Σ_k Y_l0(α_kj,ji) T_l[kj], k ≠ i, in the row of i → j.
    void angular_sums(const Interaction<T> &layer, Kept<T> &k, long atom, Scratch &own, T *out) {
        const long e = first[atom], n = first[atom + 1] - e, L = s.degrees;
        const T *y = harmonics() + e * LMp, *x = k.x() + e * Cp;
        T *sums = k.sums() + atom * L * L * Cp;
        out += e * Cp;
        for (long l = 0; l < L; ++l) {
            T *terms = own.terms() + l * n * Cp;
            multiply<T>(n, Cp, s.radial, radial() + e * LRp + l * s.radial, LRp, 1,
                        layer.angular() + l * s.radial * Cp, Cp, scaled(terms, Cp, x, Cp));
            multiply<T>(2 * l + 1, Cp, n, y + l * l, 1, LMp, terms, Cp, {sums + l * l * Cp, Cp});
        }
        multiply<T>(n, Cp, L * L, y, LMp, 1, sums, Cp, {out, Cp});
        for (long l = 0; l < L; ++l) {
            const T *terms = own.terms() + l * n * Cp, own_term = T(opposite(l));
            for (long c = 0; c < n * Cp; c += W<T>)
                store(out + c, load(out + c) - own_term * load(terms + c));
        }
    }

    // Backward pass of these sums: writes the gradient of x to own.x, adds gradients of the bases or,
    // if `by_weight` is not null, of the weight.
    void angular_back(const Interaction<T> &layer, Kept<T> &k, long atom, Scratch &own,
                      const T *to_sums, T *to_x, T *by_weight) {
        const long e = first[atom], n = first[atom + 1] - e, L = s.degrees, C = s.triplet;
        const T *y = harmonics() + e * LMp, *x = k.x() + e * Cp;
        const T *sums = k.sums() + atom * L * L * Cp;
        T *to_y = to_harmonics() + e * LMp, *to_parts = own.sums();
        multiply<T>(L * L, Cp, n, y, 1, LMp, to_sums, Cp, {to_parts, Cp});
        T *turned = own.turned(), *by_parts = own.by_parts();
        if (!by_weight) {
            for (long j = 0; j < L * L; ++j)
                for (long c = 0; c < C; ++c)
                    turned[c * LMp + j] = sums[j * Cp + c];
            multiply<T>(n, padded<T>(L * L), C, to_sums, Cp, 1, turned, LMp,
                        plus<T>(by_parts, LMp, to_y, LMp));
            multiply<T>(C, padded<T>(L * L), n, to_sums, 1, Cp, y, LMp, {turned, LMp});
        }
        std::fill_n(to_x, n * Cp, T(0));
        T *terms = own.terms(), *q = terms, *to_terms = own.part();
        for (long l = 0; l < L; ++l) {
            multiply<T>(n, Cp, s.radial, radial() + e * LRp + l * s.radial, LRp, 1,
                        layer.angular() + l * s.radial * Cp, Cp, {q, Cp});
            multiply<T>(n, Cp, 2 * l + 1, y + l * l, LMp, 1, to_parts + l * l * Cp, Cp,
                        {to_terms, Cp});
            const T own_term = T(opposite(l));
            for (long c = 0; c < n * Cp; c += W<T>) {
                V<T> to_term = load(to_terms + c) - own_term * load(to_sums + c);
                V<T> weight = load(q + c), value = load(x + c);
                store(to_x + c, load(to_x + c) + to_term * weight);
                store(to_terms + c, to_term * value);
                store(q + c, weight * value);
            }
            if (by_weight) {
                multiply<T>(s.radial, Cp, n, radial() + e * LRp + l * s.radial, 1, LRp, to_terms, Cp,
                            added(by_weight + l * s.radial * Cp, Cp));
                continue;
            }
            T *to_r = to_radial() + e * LRp + l * s.radial;
            multiply<T>(n, Rp, C, to_terms, Cp, 1, layer.angular_back() + l * C * Rp, Rp,
                        added(to_r, LRp));
            // Whole vectors also write to the columns of the next degrees, which overwrite them.
            multiply<T>(n, padded<T>(2 * l + 1), C, q, Cp, 1, turned + l * l, LMp,
                        plus<T>(to_y + l * l, LMp, by_parts + l * l, LMp));
        }
    }

    // Values of output block b for some atoms, and gradients with respect to t: of their sum, or of
    // the function whose gradients of the weights are computed.
    void energy(long b, long i, long rows) {
        const Output<T> &block = outputs[b];
        KeptOutput<T> &k = kept_outputs[b];
        Scratch &own = scratch[thread()];
        T *g = own.a(), *u = own.b(), *x = learns ? k.up() + i * Op : g;
        const T *t = sums_of_messages(b) + i * Hp;
        block.up.forth.times(rows, t, Hp, {x, Op});
        const Stack<T> stack =
            learns ? Stack<T>{block.dense.data(), k.slopes.data(), s.dense, i, Op, k.hidden.data()}
                   : Stack<T>{block.dense.data(), own.slopes.data(), s.dense, 0, Op};
        const T *outcome = stack.forth(rows, x, u, g);
        for (long r = 0; r < rows && values; ++r) {
            const T *features = outcome + r * Op;
            values[i + r] += inner(s.output, features, block.value());
            std::copy_n(s.head ? features : t + r * Hp, s.head ? s.output : s.hidden,
                        embeddings + tapped(b, i + r));
        }
        for (long r = 0; r < rows; ++r)
            for (long c = 0; c < Op; c += W<T>) {
                const V<T> v = load(block.value() + c);
                store(g + r * Op + c, learns ? by_values[first_atom + i + r] * v : v);
            }
        T *to = to_t[b]() + i * Hp;
        if (by_embeddings && s.head)
            add_cotangents(b, i, rows, g, Op);
        const T *by_up = stack.back(rows, g, u);
        block.up.back.times(rows, by_up, Op, {to, Hp});
        if (by_embeddings && !s.head)
            add_cotangents(b, i, rows, to, Hp);
        if (learns)
            std::copy_n(by_up, rows * Op, k.by_up() + i * Op);
    }
    void add_cotangents(long b, long i, long rows, T *to, long ld) const {
        for (long r = 0; r < rows; ++r)
            for (long c = 0; c < (s.head ? s.output : s.hidden); ++c)
                to[r * ld + c] += by_embeddings[tapped(b, i + r) + c];
    }

    // From the gradient of m_(b+1) to that of m_b: back through the first half of interaction b,
    // output block b and the second half of interaction b − 1, including its angular sums.
    void back(long t, long b) {
        const long a0 = tiles.atom[t], a1 = tiles.atom[t + 1];
        const long e0 = first[a0], rows = first[a1] - e0;
        Scratch &own = scratch[thread()];
        T *h = own.h(), *u = own.u(), *v = own.v(), *g = to_m() + e0 * Hp;
        T *to_bases = to_rbf() + e0 * Rp;
        const T *m = kept[b].m() + e0 * Hp, *bases = rbf() + e0 * Rp;
        const Tail<T> add_to_bases = added(to_bases, Rp), add_to_g = added(g, Hp);
        // Memory for a gradient before an activation, which is kept in place of the derivative.
        const auto by = [&](Buffer<T> &slope, T *scratch_memory, long ld) {
            return learns ? slope() + e0 * ld : scratch_memory;
        };
        if (b == s.blocks) {
            std::fill_n(g, rows * Hp, T(0));
            std::fill_n(to_bases, rows * Rp, T(0));
            if (!learns) {
                std::fill_n(to_radial() + e0 * LRp, rows * LRp, T(0));
                std::fill_n(to_harmonics() + e0 * LMp, rows * LMp, T(0));
            }
        } else {
            const Interaction<T> &layer = interactions[b];
            Kept<T> &k = kept[b];
            take(exchanged[b & 1](), e0, rows, own.s());
            const long count = s.degrees * s.radial * Cp;
            T *by_weight = learns ? k.by_angular() + t * count : nullptr;
            if (learns)
                std::fill_n(by_weight, count, T(0));
            for (long i = a0; i < a1; ++i)
                angular_back(layer, k, i, own, own.s() + (first[i] - e0) * Cp,
                             own.x() + (first[i] - e0) * Cp, by_weight);
            T *by_down = by(k.down, own.x(), Cp), *by_gate = by(k.a, v, Hp), *by_kj = by(k.kj, v, Hp);
            product(rows, Cp, own.x(), Cp, k.down() + e0 * Cp, Cp, by_down, Cp);
            layer.down.back.times(rows, by_down, Cp, {u, Hp});
            product(rows, Hp, u, Hp, k.a() + e0 * Hp, Hp, by_gate, Hp);
            layer.gate.back.times(rows, by_gate, Hp, add_to_bases);
            layer.gate.forth.times(rows, bases, Rp, scaled<T>(v, Hp, u, Hp));
            product(rows, Hp, v, Hp, k.kj() + e0 * Hp, Hp, by_kj, Hp);
            layer.from_kj.back.times(rows, by_kj, Hp, add_to_g);
        }
        T *by_output = by(kept_outputs[b].by_gate, v, Hp);
        for (long i = a0; i < a1; ++i)
            for (long e = first[i]; e < first[i + 1]; ++e)
                std::copy_n(to_t[b]() + i * Hp, Hp, u + (e - e0) * Hp);
        product(rows, Hp, u, Hp, m, Hp, by_output, Hp);
        outputs[b].gate.back.times(rows, by_output, Hp, add_to_bases);
        outputs[b].gate.forth.times(rows, bases, Rp, {g, Hp, nullptr, nullptr, 0, u, Hp, g, Hp});
        if (b == 0) {
            T *by_message = by(message_slope, v, Hp), *by_embed = by(embed_slope, u, Hp);
            product(rows, Hp, g, Hp, message_slope() + e0 * Hp, Hp, by_message, Hp);
            embed.back.times(rows, by_message, Hp,
                             scaled<T>(by_embed, Hp, embed_slope() + e0 * Hp, Hp));
            embed_radial.back.times(rows, by_embed, Hp, add_to_bases);
            if (!learns)
                geometry_back(e0, rows);
            return;
        }
        const Interaction<T> &layer = interactions[b - 1];
        Kept<T> &k = kept[b - 1];
        for (long r = s.before + s.after; r-- > s.before;)
            residual(layer, k, r, e0).back(rows, g, u, v);
        T *by_dense = by(k.dense, v, Hp), *by_ji = by(k.ji, v, Hp), *by_up = by(k.up, v, Hp);
        product(rows, Hp, g, Hp, k.dense() + e0 * Hp, Hp, by_dense, Hp);
        layer.dense.back.times(rows, by_dense, Hp, {h, Hp});
        for (long r = s.before; r-- > 0;)
            residual(layer, k, r, e0).back(rows, h, u, v);
        product(rows, Hp, h, Hp, k.ji() + e0 * Hp, Hp, by_ji, Hp);
        layer.from_ji.back.times(rows, by_ji, Hp, add_to_g);
        product(rows, Hp, h, Hp, k.up() + e0 * Hp, Hp, by_up, Hp);
        layer.up.back.times(rows, by_up, Hp, {exchanged[(b - 1) & 1]() + e0 * Cp, Cp});
    }

    Line<T> line(long e) const { return Line<T>(vectors + 3 * e); }

    // Bases for the edges of a tile and derivatives with respect to distance, as in basis.py.
    void geometry(long e0, long rows) {
        for (long e = e0; e < e0 + rows; ++e) {
            const T d = line(e).distance;
            if (learns)
                waves.by_frequency(d, rbf() + e * Rp, rbf_slope() + e * Rp);
            else
                waves.at(d, rbf() + e * Rp, rbf_slope() + e * Rp);
            pieces.at(d, radial() + e * LRp, radial_slope() + e * LRp);
        }
        for (long e = e0; e < e0 + rows; e += W<T>) {
            Harmonics y(*this, e, std::min<long>(W<T>, e0 + rows - e));
            for (long l = 0; l < s.degrees; ++l)
                for (long m = 0; m <= l; ++m) {
                    y.put(harmonics(), l * l + m, y.q[l][m] * y.c[m]);
                    if (m > 0)
                        y.put(harmonics(), l * l + l + m, y.q[l][m] * y.s[m]);
                }
        }
    }

    // Y_lm = q[l][m] c[m] and q[l][m] s[m] of several edges at once, as in basis.py: polynomials
    // in z, and the real and imaginary parts of (x + iy)^m.
    struct Harmonics {
        const long e, lanes, LMp;
        V<T> x{}, y{}, z{}, q[MAX_DEGREES][MAX_DEGREES], slope[MAX_DEGREES][MAX_DEGREES];
        V<T> c[MAX_DEGREES], s[MAX_DEGREES];

        Harmonics(const DimeNet &of, long e_, long lanes_) : e(e_), lanes(lanes_), LMp(of.LMp) {
            for (long i = 0; i < lanes; ++i) {
                const Line<T> edge = of.line(e + i);
                x[i] = edge.x, y[i] = edge.y, z[i] = edge.z;
            }
            c[0] = all(T(1)), s[0] = V<T>{};
            for (long l = 0; l < of.s.degrees; ++l) {
                q[l][l] = all(of.tops[l]), slope[l][l] = V<T>{};
                for (long m = 0; m < l; ++m) {
                    q[l][m] = of.rising[l][m] * z * q[l - 1][m];
                    slope[l][m] = of.rising[l][m] * (q[l - 1][m] + z * slope[l - 1][m]);
                    if (m < l - 1) {
                        q[l][m] -= of.falling[l][m] * q[l - 2][m];
                        slope[l][m] -= of.falling[l][m] * slope[l - 2][m];
                    }
                }
                if (l > 0) {
                    c[l] = x * c[l - 1] - y * s[l - 1];
                    s[l] = x * s[l - 1] + y * c[l - 1];
                }
            }
        }
        void put(T *to, long column, V<T> v) const {
            for (long i = 0; i < lanes; ++i)
                to[(e + i) * LMp + column] = v[i];
        }
        V<T> get(const T *from, long column) const {
            V<T> v{};
            for (long i = 0; i < lanes; ++i)
                v[i] = from[(e + i) * LMp + column];
            return v;
        }
    };

    // From gradients with respect to the bases to those with respect to the edge vectors.
    void geometry_back(long e0, long rows) {
        const T *to_y = to_harmonics();
        for (long e = e0; e < e0 + rows; e += W<T>) {
            Harmonics y(*this, e, std::min<long>(W<T>, e0 + rows - e));
            V<T> gx{}, gy{}, gz{};
            for (long l = 0; l < s.degrees; ++l)
                for (long m = 0; m <= l; ++m) {
                    V<T> by_c = y.get(to_y, l * l + m), by_s{};
                    if (m > 0) {
                        by_s = y.get(to_y, l * l + l + m);
                        V<T> f = y.q[l][m] * T(m);
                        gx += f * (by_c * y.c[m - 1] + by_s * y.s[m - 1]);
                        gy += f * (by_s * y.c[m - 1] - by_c * y.s[m - 1]);
                    }
                    gz += y.slope[l][m] * (by_c * y.c[m] + by_s * y.s[m]);
                }
            for (long i = 0; i < y.lanes; ++i) {
                const long rbf_row = (e + i) * Rp, radial_row = (e + i) * LRp;
                T along = inner(s.radial, to_rbf() + rbf_row, rbf_slope() + rbf_row);
                along = inner(s.degrees * s.radial, to_radial() + radial_row,
                              radial_slope() + radial_row, along);
                line(e + i).gradient(along, gx[i], gy[i], gz[i], gradient + 3 * (e + i));
            }
        }
    }
};

} // namespace

EXPORT(DimeNet)
EXPORT_TRAINING(DimeNet)
