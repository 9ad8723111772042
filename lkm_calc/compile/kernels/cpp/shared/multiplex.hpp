// Common parts of MXMNet and PAMNet, as in multiplex.py.

#pragma once

#include "bases.hpp"
#include "edges.hpp"
#include "training.hpp"

namespace {

// Features e = σ(W rbf) of pairs of edges.
template <class T> struct PairFeatures {
    Waves<T> waves;
    Dense<T> dense;
    long radial = 0, ld = 0; // functions, without and with padding
    // Per pair: derivatives of the basis and of the features, gradient of the length.
    Buffer<T> basis_slope, slope, along;
    // For gradients of the weights, per pair: the basis and the features. The derivatives are then
    // those with respect to the frequencies, and the gradients before the activation replace
    // `slope`.
    bool learns = false;
    Buffer<T> basis_kept, kept;

    void set(long hidden, const T *weight) {
        radial = long(waves.frequencies.size()), ld = padded<T>(radial);
        dense.set(hidden, radial, weight, nullptr);
    }
    void room(long pairs, long hidden, bool learns_ = false) {
        learns = learns_;
        basis_slope.get(pairs * ld), slope.get(pairs * padded<T>(hidden)), along.get(pairs);
        if (learns)
            basis_kept.get(pairs * ld), kept.get(pairs * padded<T>(hidden));
    }
    // Returns the features of a tile of pairs, which are kept or in e; basis and e are scratch
    // memory.
    template <class F>
    const T *forth(long p0, long rows, F distance, T *basis, T *e, long e_ld) const {
        if (learns)
            basis = basis_kept() + p0 * ld, e = kept() + p0 * e_ld;
        for (long p = 0; p < rows; ++p) {
            T *f = basis + p * ld, *df = basis_slope() + (p0 + p) * ld;
            if (learns)
                waves.by_frequency(distance(p0 + p), f, df);
            else
                waves.at(distance(p0 + p), f, df);
        }
        dense.forth.times(rows, basis, ld, {e, e_ld, nullptr, slope() + p0 * e_ld, e_ld});
        return e;
    }
    // From the gradients of the features, which are overwritten, to those of the lengths: `along`.
    void back(long p0, long rows, T *to_e, long e_ld, T *to_basis) const {
        if (learns)
            return product(rows, e_ld, to_e, e_ld, slope() + p0 * e_ld, e_ld, slope() + p0 * e_ld,
                           e_ld);
        product(rows, e_ld, to_e, e_ld, slope() + p0 * e_ld, e_ld, to_e, e_ld);
        dense.back.times(rows, to_e, e_ld, {to_basis, ld});
        for (long p = 0; p < rows; ++p)
            along()[p0 + p] = inner(radial, to_basis + p * ld, basis_slope() + (p0 + p) * ld);
    }
    // Writes the gradients of the weight and of the frequencies.
    void gradients(long pairs, long hidden, Buffer<T> &memory, T *weight, T *frequencies) const {
        const long e_ld = padded<T>(hidden);
        Trace<T> trace{pairs, basis_kept(), ld, slope(), e_ld};
        WeightGradient<T>{trace, 1, hidden, radial, {weight, radial}}.write(memory);
        // Σ ∂f ⊙ df/dω, where ∂f = ∂e W.
        trace.x = basis_slope();
        const T *sums = WeightGradient<T>{trace, 1, hidden, radial}.sum(memory);
        std::fill_n(frequencies, radial, T(0));
        for (long h = 0; h < hidden; ++h)
            for (long r = 0; r < radial; ++r)
                frequencies[r] += dense.back.panels()[dense.back.place(h, r)] * sums[h * ld + r];
    }
};

// Y_l0 of the angle between two edges and its derivative with respect to the cosine.
template <class T> struct Angle {
    T y[MAX_DEGREES], slope[MAX_DEGREES];
    long degrees;

    Angle(const Legendre<T> &legendre, long degrees_, const Line<T> &a, const Line<T> &b)
        : degrees(degrees_) {
        legendre.at(a.x * b.x + a.y * b.y + a.z * b.z, degrees, y, slope);
    }
    // The spherical basis: `each` radial functions of every degree, times Y.
    void basis(const T *radial, long each, T *to) const {
        for (long l = 0; l < degrees; ++l)
            for (long r = 0; r < each; ++r)
                *to++ = *radial++ * y[l];
    }
    // From the gradients of the basis to those of the length and the cosine.
    void back(const T *to, const T *radial, const T *radial_slope, long each, T &by_length,
              T &by_cosine) const {
        by_length = by_cosine = 0;
        for (long l = 0; l < degrees; ++l, to += each, radial += each, radial_slope += each) {
            by_length += y[l] * inner(each, to, radial_slope);
            by_cosine += slope[l] * inner(each, to, radial);
        }
    }
};

// Messages of the global graph, Σ_j gate ⊙ σ(edge + to_i + from_j), added to the sum of an atom i:
// `ends` holds [to ‖ from] of all atoms, `edges` [edge ‖ gate] of all pairs.
template <class T, class I>
void message_sum(long e0, long e1, const I *source, const Pairs &pairs, const T *ends,
                 const T *edges, const T *to, long width, T *sum) {
    for (long e = e0; e < e1; ++e) {
        const T *edge = edges + pairs.of[e] * 2 * width;
        const T *from = ends + source[e] * 2 * width + width;
        for (long c = 0; c < width; c += W<T>) {
            V<T> m = silu<T>(load(edge + c) + load(to + c) + load(from + c)).value;
            store(sum + c, load(sum + c) + load(edge + width + c) * m);
        }
    }
}

// Backward pass of the two messages of a pair of atoms i and j, which are recomputed: from the
// gradients g_i and g_j of the sums to those of the messages before the activation, and to those of
// [edge ‖ gate], added to `base` if it is not null.
template <class T>
void messages_back(const T *edge, const T *ends_i, const T *ends_j, const T *g_i, const T *g_j,
                   long width, T *into_i, T *into_j, T *by_edge, const T *base = nullptr) {
    for (long c = 0; c < width; c += W<T>) {
        const V<T> part = load(edge + c), gate = load(edge + width + c);
        const V<T> gi = load(g_i + c), gj = load(g_j + c);
        const Activation<T> to_i = silu<T>(part + load(ends_i + c) + load(ends_j + width + c));
        const Activation<T> to_j = silu<T>(part + load(ends_j + c) + load(ends_i + width + c));
        const V<T> by_i = gi * gate * to_i.slope, by_j = gj * gate * to_j.slope;
        store(into_i + c, by_i);
        store(into_j + c, by_j);
        V<T> by_part = by_i + by_j, by_gate = gi * to_i.value + gj * to_j.value;
        if (base) {
            by_part = load(base + c) + by_part;
            by_gate = load(base + width + c) + by_gate;
        }
        store(by_edge + c, by_part);
        store(by_edge + width + c, by_gate);
    }
}

} // namespace
