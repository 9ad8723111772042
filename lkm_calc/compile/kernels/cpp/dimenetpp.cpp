// DimeNet++ and its gradient with respect to the edge vectors: a cache-friendly implementation of
// lkm_calc/models/dimenetpp.py with a hand-written backward pass.
//
// Edges are sorted by target. They are processed in tiles of a few dozen rows of whole atoms, and
// a tile passes through a whole interaction while it is in the cache; tiles only exchange the
// angular sums of an edge and its reverse. For the backward pass, only the derivatives of the
// activations are stored.

#include "shared/bases.hpp"
#include "shared/edges.hpp"
#include "shared/interface.hpp"
#include "shared/products.hpp"
#include "shared/threads.hpp"

namespace {

constexpr long TILE = 96; // rows of edges in a tile, more where one atom has more

struct Sizes {
    int64_t hidden, blocks, triplet, output, degrees, radial, exponent, before, after, dense,
        elements, intervals, head;
};

template <class T> struct Interaction {
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
        auto next = [&]() { return *arrays++; };
        auto dense = [&](Dense<T> &layer, long out, long in, bool bias) {
            const T *weight = next();
            layer.set(out, in, weight, bias ? next() : nullptr);
        };
        waves.set(next(), R, cutoff, s.exponent);
        pieces.set(next(), s.intervals, L * R, cutoff, cutoff, s.exponent);
        for (Buffer<T> *part : {&at_target, &at_source})
            set_rows(*part, s.elements, H, next());
        dense(embed_radial, H, R, true);
        dense(embed, H, H, true);
        interactions.resize(s.blocks);
        for (Interaction<T> &one : interactions) {
            dense(one.gate, H, R, false);
            set_angular(one, next());
            dense(one.from_kj, H, H, true);
            dense(one.from_ji, H, H, true);
            dense(one.down, C, H, false);
            dense(one.up, H, C, false);
            dense(one.dense, H, H, true);
            one.residual.resize(2 * (s.before + s.after));
            for (Dense<T> &layer : one.residual)
                dense(layer, H, H, true);
        }
        outputs.resize(s.blocks + 1);
        for (Output<T> &one : outputs) {
            dense(one.gate, H, R, false);
            dense(one.up, O, H, false);
            one.dense.resize(s.dense);
            for (Dense<T> &layer : one.dense)
                dense(layer, O, O, true);
            set_rows(one.value, 1, O, next());
        }
        kept.resize(s.blocks + 1);
        for (Kept<T> &one : kept)
            one.residual.resize(2 * (s.before + s.after));
        set_recurrences();
    }

    // False if the edges are not sorted by target.
    bool run(const Call<T> &call) {
        std::lock_guard<std::mutex> lock(mutex); // the buffers are the model's
        N = call.counts[0], E = call.counts[1], threads = int(call.counts[2]);
        numbers = call.numbers, source = call.source, target = call.target, reverse = call.reverse;
        vectors = call.vectors, values = call.values, gradient = call.gradient;
        embeddings = call.embeddings;
        if (!std::is_sorted(target, target + E))
            return false;
        starts(first, N, E, [&](long e) { return target[e]; });
        neighbours = most(first);
        tiles.set(first, TILE, N);
        make_room();
        const long last = s.blocks;
        std::fill(values, values + N, T(0));
        for (long b = 0; b <= last; ++b) {
            for_each(tiles.count(), threads, [&](long t) { forth(t, b); });
            for_tiles(N, TILE, threads, [&](long i, long rows) { energy(b, i, rows); });
        }
        for (long b = last; b >= 0; --b)
            for_each(tiles.count(), threads, [&](long t) { back(t, b); });
        return true;
    }

  private:
    long Hp, Cp, Op, Rp, LRp, LMp; // padded widths
    Waves<T> waves;
    Pieces<T> pieces;
    Buffer<T> at_target, at_source;
    Dense<T> embed_radial, embed;
    std::vector<Interaction<T>> interactions;
    std::vector<Output<T>> outputs;
    T tops[MAX_DEGREES], rising[MAX_DEGREES][MAX_DEGREES], falling[MAX_DEGREES][MAX_DEGREES];

    // Data of one call.
    std::mutex mutex;
    long N = 0, E = 0;
    int threads = 1;
    const int64_t *numbers = nullptr, *source = nullptr, *target = nullptr, *reverse = nullptr;
    const double *vectors = nullptr;
    T *values = nullptr, *embeddings = nullptr;
    double *gradient = nullptr;
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
    struct Scratch {
        Buffer<T> h, u, v, s, x, terms, sums, turned, by_parts, part, a, b;
        std::vector<Buffer<T>> slopes;
    };
    std::vector<Scratch> scratch; // one per thread

    // The addition theorem Y_l0(α) = √(4π/(2l+1)) Σ_m Y_lm(û_kj) Y_lm(û_ji), its factor and that of
    // û_ji = −(direction of the edge i → j) included in the weights.
    void set_angular(Interaction<T> &one, const T *weight) {
        const long C = s.triplet, R = s.radial, L = s.degrees;
        T *forth = one.angular.get(L * R * Cp), *back = one.angular_back.get(L * C * Rp);
        for (long l = 0; l < L; ++l) {
            const double factor = (l % 2 ? -1 : 1) / std::sqrt(opposite(l));
            for (long r = 0; r < R; ++r)
                for (long c = 0; c < C; ++c) {
                    T w = T(factor * weight[(l * R + r) * C + c]);
                    forth[(l * R + r) * Cp + c] = w;
                    back[(l * C + c) * Rp + r] = w;
                }
        }
    }
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

    Residual<T> residual(const Interaction<T> &layer, Kept<T> &k, long which, long e0) const {
        return {&layer.residual[2 * which], &k.residual[2 * which], e0, Hp};
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
            embed_radial.activated(rows, bases, Rp, u, embed_slope() + e0 * Hp, Hp);
            embed.forth.times(rows, u, Hp, {v, Hp, embed.bias()});
            for (long i = 0; i < rows; ++i) {
                const T *to = at_target() + numbers[target[e0 + i]] * Hp;
                const T *from = at_source() + numbers[source[e0 + i]] * Hp;
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
            layer.from_ji.activated(rows, before, Hp, h, k.ji() + e0 * Hp, Hp);
            take(exchanged[(b - 1) & 1](), e0, rows, own.s());
            layer.up.activated(rows, own.s(), Cp, h, k.up() + e0 * Hp, Hp, h);
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
                store(t_sums() + i * Hp + c, sum);
            }
        if (b == s.blocks)
            return;
        const Interaction<T> &layer = interactions[b];
        Kept<T> &k = kept[b];
        T *a = k.a() + e0 * Hp;
        layer.from_kj.activated(rows, m, Hp, a, k.kj() + e0 * Hp, Hp);
        layer.gate.forth.times(rows, bases, Rp, scaled<T>(u, Hp, a, Hp));
        layer.down.activated(rows, u, Hp, k.x() + e0 * Cp, k.down() + e0 * Cp, Cp);
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

    // Backward pass of these sums: writes the gradient of x to own.x, adds gradients of the bases.
    void angular_back(const Interaction<T> &layer, Kept<T> &k, long atom, Scratch &own,
                      const T *to_sums, T *to_x) {
        const long e = first[atom], n = first[atom + 1] - e, L = s.degrees, C = s.triplet;
        const T *y = harmonics() + e * LMp, *x = k.x() + e * Cp;
        const T *sums = k.sums() + atom * L * L * Cp;
        T *to_y = to_harmonics() + e * LMp, *to_parts = own.sums();
        multiply<T>(L * L, Cp, n, y, 1, LMp, to_sums, Cp, {to_parts, Cp});
        T *turned = own.turned(), *by_parts = own.by_parts();
        for (long j = 0; j < L * L; ++j)
            for (long c = 0; c < C; ++c)
                turned[c * LMp + j] = sums[j * Cp + c];
        multiply<T>(n, padded<T>(L * L), C, to_sums, Cp, 1, turned, LMp,
                    plus<T>(by_parts, LMp, to_y, LMp));
        multiply<T>(C, padded<T>(L * L), n, to_sums, 1, Cp, y, LMp, {turned, LMp});
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
            T *to_r = to_radial() + e * LRp + l * s.radial;
            multiply<T>(n, Rp, C, to_terms, Cp, 1, layer.angular_back() + l * C * Rp, Rp,
                        added(to_r, LRp));
            // Whole vectors also write to the columns of the next degrees, which overwrite them.
            multiply<T>(n, padded<T>(2 * l + 1), C, q, Cp, 1, turned + l * l, LMp,
                        plus<T>(to_y + l * l, LMp, by_parts + l * l, LMp));
        }
    }

    // Values of output block b for some atoms, and gradients of their sum with respect to t.
    void energy(long b, long i, long rows) {
        const Output<T> &block = outputs[b];
        Scratch &own = scratch[thread()];
        T *x = own.a(), *y = own.b();
        const T *t = t_sums() + i * Hp;
        block.up.forth.times(rows, t, Hp, {x, Op});
        const Stack<T> stack{block.dense.data(), own.slopes.data(), s.dense, 0, Op};
        const T *outcome = stack.forth(rows, x, y, x);
        for (long r = 0; r < rows; ++r) {
            const T *features = outcome + r * Op;
            values[i + r] += inner(s.output, features, block.value());
            const long width = s.head ? s.output : s.hidden;
            std::copy_n(s.head ? features : t + r * Hp, width,
                        embeddings + (b * N + i + r) * width);
        }
        for (long r = 0; r < rows; ++r)
            std::copy_n(block.value(), Op, x + r * Op);
        block.up.back.times(rows, stack.back(rows, x, y), Op, {to_t[b]() + i * Hp, Hp});
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
        if (b == s.blocks) {
            std::fill_n(g, rows * Hp, T(0));
            std::fill_n(to_bases, rows * Rp, T(0));
            std::fill_n(to_radial() + e0 * LRp, rows * LRp, T(0));
            std::fill_n(to_harmonics() + e0 * LMp, rows * LMp, T(0));
        } else {
            const Interaction<T> &layer = interactions[b];
            Kept<T> &k = kept[b];
            take(exchanged[b & 1](), e0, rows, own.s());
            for (long i = a0; i < a1; ++i)
                angular_back(layer, k, i, own, own.s() + (first[i] - e0) * Cp,
                             own.x() + (first[i] - e0) * Cp);
            product(rows, Cp, own.x(), Cp, k.down() + e0 * Cp, Cp, own.x(), Cp);
            layer.down.back.times(rows, own.x(), Cp, {u, Hp});
            product(rows, Hp, u, Hp, k.a() + e0 * Hp, Hp, v, Hp);
            layer.gate.back.times(rows, v, Hp, add_to_bases);
            layer.gate.forth.times(rows, bases, Rp, scaled<T>(v, Hp, u, Hp));
            product(rows, Hp, v, Hp, k.kj() + e0 * Hp, Hp, v, Hp);
            layer.from_kj.back.times(rows, v, Hp, add_to_g);
        }
        for (long i = a0; i < a1; ++i)
            for (long e = first[i]; e < first[i + 1]; ++e)
                std::copy_n(to_t[b]() + i * Hp, Hp, u + (e - e0) * Hp);
        product(rows, Hp, u, Hp, m, Hp, v, Hp);
        outputs[b].gate.back.times(rows, v, Hp, add_to_bases);
        outputs[b].gate.forth.times(rows, bases, Rp, {g, Hp, nullptr, nullptr, 0, u, Hp, g, Hp});
        if (b == 0) {
            product(rows, Hp, g, Hp, message_slope() + e0 * Hp, Hp, v, Hp);
            embed.back.times(rows, v, Hp, scaled<T>(u, Hp, embed_slope() + e0 * Hp, Hp));
            embed_radial.back.times(rows, u, Hp, add_to_bases);
            geometry_back(e0, rows);
            return;
        }
        const Interaction<T> &layer = interactions[b - 1];
        Kept<T> &k = kept[b - 1];
        for (long r = s.before + s.after; r-- > s.before;)
            residual(layer, k, r, e0).back(rows, g, u, v);
        product(rows, Hp, g, Hp, k.dense() + e0 * Hp, Hp, v, Hp);
        layer.dense.back.times(rows, v, Hp, {h, Hp});
        for (long r = s.before; r-- > 0;)
            residual(layer, k, r, e0).back(rows, h, u, v);
        product(rows, Hp, h, Hp, k.ji() + e0 * Hp, Hp, v, Hp);
        layer.from_ji.back.times(rows, v, Hp, add_to_g);
        product(rows, Hp, h, Hp, k.up() + e0 * Hp, Hp, v, Hp);
        layer.up.back.times(rows, v, Hp, {exchanged[(b - 1) & 1]() + e0 * Cp, Cp});
    }

    Line<T> line(long e) const { return Line<T>(vectors + 3 * e); }

    // Bases for the edges of a tile and derivatives with respect to distance, as in basis.py.
    void geometry(long e0, long rows) {
        for (long e = e0; e < e0 + rows; ++e) {
            const T d = line(e).distance;
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
