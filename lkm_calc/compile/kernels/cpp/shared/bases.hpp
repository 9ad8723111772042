// Bases of distances and angles, as in basis.py and geometry.py.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "memory.hpp"

constexpr double PI = 3.14159265358979323846;
constexpr int MAX_DEGREES = 20; // as in models/dimenetpp.py and multiplex.py

namespace {

// Length and direction of an edge's vector.
template <class T> struct Line {
    T distance, x, y, z;

    explicit Line(const double *vector) {
        x = T(vector[0]), y = T(vector[1]), z = T(vector[2]);
        distance = std::sqrt(x * x + y * y + z * z);
        x /= distance, y /= distance, z /= distance;
    }
    // Gradient of the vector from those of its length and direction; only the perpendicular part of
    // the latter contributes.
    void gradient(T along, T gx, T gy, T gz, double *to) const {
        const T inside = gx * x + gy * y + gz * z;
        to[0] = along * x + (gx - inside * x) / distance;
        to[1] = along * y + (gy - inside * y) / distance;
        to[2] = along * z + (gz - inside * z) / distance;
    }
};

// u(d / cutoff) and its derivative with respect to d.
template <class T> struct Envelope {
    T cutoff;
    long p;

    void at(T d, T &u, T &du) const {
        const T a = T(-(p + 1) * (p + 2) / 2.0), b = T(p * (p + 2)), c = T(-p * (p + 1) / 2.0);
        const T x = d / cutoff;
        u = du = 0;
        if (x >= 1)
            return;
        T power = 1;
        for (long k = 2; k < p; ++k)
            power *= x;
        u = 1 / x + power * x * (a + x * (b + x * c));
        du = (-1 / (x * x) + power * ((p - 1) * a + x * (p * b + x * (p + 1) * c))) / cutoff;
    }
};

// BesselBasis.
template <class T> struct Waves {
    Envelope<T> envelope;
    std::vector<T> frequencies;

    void set(const T *values, long count, double cutoff, long exponent) {
        envelope = {T(cutoff), exponent};
        frequencies.assign(values, values + count);
    }
    // Basis functions of a distance and their derivatives.
    void at(T d, T *f, T *df) const {
        T u, du;
        envelope.at(d, u, du);
        for (size_t r = 0; r < frequencies.size(); ++r) {
            const T angle = frequencies[r] * (d / envelope.cutoff), wave = std::sin(angle);
            f[r] = u * wave;
            df[r] = du * wave + u * frequencies[r] / envelope.cutoff * std::cos(angle);
        }
    }
    // Basis functions of a distance and their derivatives with respect to the frequencies.
    void by_frequency(T d, T *f, T *df) const {
        T u, du;
        envelope.at(d, u, du);
        const T x = d / envelope.cutoff;
        for (size_t r = 0; r < frequencies.size(); ++r) {
            const T angle = frequencies[r] * x;
            f[r] = u * std::sin(angle);
            df[r] = u * x * std::cos(angle);
        }
    }
};

// SphericalBesselBasis: piecewise polynomials of fifth degree.
template <class T> struct Pieces {
    Envelope<T> envelope;
    double span = 0;
    long intervals = 0, functions = 0, ld = 0;
    Buffer<T> table;

    void set(const T *pieces, long intervals_, long functions_, double cutoff, double span_,
             long exponent) {
        envelope = {T(cutoff), exponent};
        span = span_, intervals = intervals_, functions = functions_, ld = padded<T>(functions);
        T *own = table.get(intervals * 6 * ld);
        for (long i = 0; i < intervals * 6; ++i)
            std::copy(pieces + i * functions, pieces + (i + 1) * functions, own + i * ld);
    }
    // Basis functions of a distance and their derivatives, in whole vectors.
    void at(T d, T *f, T *df) const {
        T u, du;
        envelope.at(d, u, du);
        const T steps = T(intervals / span), place = std::min(d * steps, T(intervals));
        const long piece = std::min<long>(long(place), intervals - 1);
        const T q = place - piece;
        const T *k = table() + piece * 6 * ld;
        for (long j = 0; j < functions; j += W<T>) {
            V<T> k0 = load(k + j), k1 = load(k + ld + j), k2 = load(k + 2 * ld + j);
            V<T> k3 = load(k + 3 * ld + j), k4 = load(k + 4 * ld + j), k5 = load(k + 5 * ld + j);
            V<T> y = k0 + q * (k1 + q * (k2 + q * (k3 + q * (k4 + q * k5))));
            V<T> dy = k1 + q * (T(2) * k2 +
                                q * (T(3) * k3 + q * (T(4) * k4 + q * (T(5) * k5))));
            store(f + j, y * u);
            store(df + j, dy * (steps * u) + y * du);
        }
    }
};

// Y_l0 as functions of the cosine and their derivatives, as `legendre` in geometry.py.
template <class T> struct Legendre {
    T rising[MAX_DEGREES], falling[MAX_DEGREES];

    Legendre() {
        const auto norm = [](long l) { return std::sqrt((2 * l + 1) / (4 * PI)); };
        for (long l = 0; l < MAX_DEGREES; ++l) {
            rising[l] = T(l > 0 ? (2 * l - 1.0) / l * norm(l) / norm(l - 1) : norm(0));
            falling[l] = T(l > 1 ? (l - 1.0) / l * norm(l) / norm(l - 2) : 0);
        }
    }
    void at(T x, long degrees, T *y, T *slope) const {
        y[0] = rising[0], slope[0] = 0;
        for (long l = 1; l < degrees; ++l) {
            y[l] = rising[l] * x * y[l - 1];
            slope[l] = rising[l] * (y[l - 1] + x * slope[l - 1]);
            if (l > 1)
                y[l] -= falling[l] * y[l - 2], slope[l] -= falling[l] * slope[l - 2];
        }
    }
};

} // namespace
