// Matrix products with fused epilogues, and dense layers.

#pragma once

#include "activations.hpp"
#include "memory.hpp"

namespace {

// Epilogue of a product z = a·b: out = [σ](z + bias) ⊙ factor + base, each part if given.
template <class T> struct Tail {
    T *out;
    long ld;
    const T *bias = nullptr;
    T *slope = nullptr; // output for the derivative of the activation; null for no activation
    long slope_ld = 0;
    const T *factor = nullptr;
    long factor_ld = 0;
    const T *base = nullptr;
    long base_ld = 0;
};

// out = z ⊙ factor
template <class T> Tail<T> scaled(T *out, long ld, const T *factor, long factor_ld) {
    return {out, ld, nullptr, nullptr, 0, factor, factor_ld};
}
// out = z + base
template <class T> Tail<T> plus(T *out, long ld, const T *base, long base_ld) {
    return {out, ld, nullptr, nullptr, 0, nullptr, 0, base, base_ld};
}
// out += z
template <class T> Tail<T> added(T *out, long ld) { return plus(out, ld, out, ld); }

template <class T, int M, int N>
__attribute__((noinline)) void block(const T *a, long rs, long cs, const T *b, long ldb, long depth,
                                     const Tail<T> &tail, long row, long column) {
    V<T> sum[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j)
            sum[i][j] = V<T>{};
    for (long k = 0; k < depth; ++k, a += cs, b += ldb) {
        V<T> right[N];
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j)
            right[j] = load(b + j * W<T>);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            V<T> left = all(a[i * rs]);
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j)
                sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) {
            long r = row + i, c = column + j * W<T>;
            V<T> z = sum[i][j];
            if (tail.bias)
                z += load(tail.bias + c);
            if (tail.slope) {
                Activation<T> activated = silu<T>(z);
                z = activated.value;
                store(tail.slope + r * tail.slope_ld + c, activated.slope);
            }
            if (tail.factor)
                z *= load(tail.factor + r * tail.factor_ld + c);
            if (tail.base)
                z += load(tail.base + r * tail.base_ld + c);
            store(tail.out + r * tail.ld + c, z);
        }
    }
}

template <class T, int N>
void blocks(long m, const T *a, long rs, long cs, const T *b, long ldb, long depth,
            const Tail<T> &tail, long column) {
    long i = 0;
    if constexpr (N == 1) // with one vector of columns there are registers for more rows
        for (; i + 2 * ROWS <= m; i += 2 * ROWS)
            block<T, 2 * ROWS, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    for (; i + ROWS <= m; i += ROWS)
        block<T, ROWS, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    switch (m - i) {
    case 5:
        return block<T, 5, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    case 4:
        return block<T, 4, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    case 3:
        return block<T, 3, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    case 2:
        return block<T, 2, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    case 1:
        return block<T, 1, N>(a + i * rs, rs, cs, b, ldb, depth, tail, i, column);
    }
}

// a (m, depth) with strides rs and cs times b (depth, n): in panels of VECTORS vectors of columns,
// rows of a panel are ldb apart, the next panel `step` behind it.
template <class T>
void multiply(long m, long n, long depth, const T *a, long rs, long cs, const T *b, long ldb,
              long step, const Tail<T> &tail) {
    long vectors = n / W<T>;
    for (long v = 0; v < vectors; v += VECTORS, b += step) {
        long column = v * W<T>;
        switch (std::min<long>(VECTORS, vectors - v)) {
        case 4:
            blocks<T, VECTORS>(m, a, rs, cs, b, ldb, depth, tail, column);
            break;
        case 3:
            blocks<T, std::min(3, VECTORS)>(m, a, rs, cs, b, ldb, depth, tail, column);
            break;
        case 2:
            blocks<T, 2>(m, a, rs, cs, b, ldb, depth, tail, column);
            break;
        case 1:
            blocks<T, 1>(m, a, rs, cs, b, ldb, depth, tail, column);
            break;
        }
    }
}

// The same with a row-major b.
template <class T>
void multiply(long m, long n, long depth, const T *a, long rs, long cs, const T *b, long ldb,
              const Tail<T> &tail) {
    multiply<T>(m, n, depth, a, rs, cs, b, ldb, VECTORS * W<T>, tail);
}

// A matrix in panels, as `multiply` reads it.
template <class T> struct Matrix {
    long depth = 0, columns = 0;
    Buffer<T> panels;

    // Memory for (depth, width) elements, with access by index.
    T *room(long depth_, long width) {
        depth = depth_;
        columns = padded<T>(width);
        const long panel = VECTORS * W<T>, count = (columns + panel - 1) / panel;
        return panels.get(count * depth * panel);
    }
    long place(long k, long j) const {
        constexpr long panel = VECTORS * W<T>;
        return (j / panel * depth + k) * panel + j % panel;
    }
    // Fills the matrix with element(k, j), k < depth, j < width.
    template <class F> void pack(long depth_, long width, F element) {
        T *to = room(depth_, width);
        for (long j = 0; j < width; ++j)
            for (long k = 0; k < depth; ++k)
                to[place(k, j)] = element(k, j);
    }
    void times(long m, const T *a, long lda, const Tail<T> &tail) const {
        const long panel = VECTORS * W<T>;
        multiply<T>(m, columns, depth, a, lda, 1, panels(), panel, depth * panel, tail);
    }
};

// y = x Wᵀ + b and its backward pass: x and y may be concatenations of separately padded parts.
template <class T> struct Dense {
    Matrix<T> forth, back;
    Buffer<T> bias;

    void set(long out, long in, const T *weight, const T *b) { set(1, out, 1, in, weight, b); }

    // From a weight of (out_parts · out, in_parts · in), and a bias of out_parts · out or null.
    void set(long out_parts, long out, long in_parts, long in, const T *weight, const T *b) {
        set(out_parts, out, in_parts, in, Rows<const T>{weight, in_parts * in}, b,
            out_parts * out);
    }
    // The same from the rows of the weight; only the first `biased` outputs have a bias.
    void set(long out_parts, long out, long in_parts, long in, const Rows<const T> &weight,
             const T *b, long biased) {
        const long rows = columns(out_parts, out), depth = columns(in_parts, in);
        T *to = forth.room(depth, out_parts * padded<T>(out));
        T *from = back.room(rows, in_parts * padded<T>(in));
        each(out_parts, out, [&](long o, long row) {
            const T *w = weight(row);
            T *own = to + forth.place(0, o);
            each(in_parts, in, [&](long i, long column) {
                own[i * VECTORS * W<T>] = from[back.place(o, i)] = w[column];
            });
        });
        if (!b)
            return;
        T *own = bias.get(out_parts * padded<T>(out));
        each(out_parts, out, [&](long o, long row) { own[o] = row < biased ? b[row] : T(0); });
    }

    // Calls act(column with padding, column without) for all columns of some parts.
    template <class F> static void each(long parts, long width, F act) {
        for (long part = 0; part < parts; ++part)
            for (long k = 0; k < width; ++k)
                act(part * padded<T>(width) + k, part * width + k);
    }
    // Number of columns up to the last one that is not padding.
    static long columns(long parts, long width) { return (parts - 1) * padded<T>(width) + width; }

    // y = σ(x Wᵀ + b) [+ base] and derivatives of σ; rows of all arrays except x are ld apart.
    void activated(long rows, const T *x, long in_ld, T *y, T *slope, long ld,
                   const T *base = nullptr) const {
        forth.times(rows, x, in_ld, {y, ld, bias(), slope, ld, nullptr, 0, base, ld});
    }
};

// Residual of layers.py: two layers, and memory for the derivatives of their activations, starting
// at `row`. With memory for the inputs of the layers, what gradients of the weights need is kept: the
// inputs and, in place of the derivatives, the gradients before the activations.
template <class T> struct Residual {
    const Dense<T> *layers;
    Buffer<T> *slopes;
    long row, ld;
    Buffer<T> *inputs = nullptr;

    // h + σ(W₂ σ(W₁ h)), in place.
    void forth(long rows, T *h, T *u) const {
        if (inputs) {
            std::copy_n(h, rows * ld, inputs[0]() + row * ld);
            u = inputs[1]() + row * ld;
        }
        layers[0].activated(rows, h, ld, u, slope(0), ld);
        layers[1].activated(rows, u, ld, h, slope(1), ld, h);
    }
    // From the gradient of the output to that of h, in place.
    void back(long rows, T *g, T *u, T *v) const {
        if (inputs)
            u = slope(0), v = slope(1);
        product(rows, ld, g, ld, slope(1), ld, v, ld);
        layers[1].back.times(rows, v, ld, scaled<T>(u, ld, slope(0), ld));
        layers[0].back.times(rows, u, ld, added(g, ld));
    }

  private:
    T *slope(int k) const { return slopes[k]() + row * ld; }
};

// Consecutive layers with activations, and memory for the derivatives of the activations, starting
// at `row`. With memory for the outputs of the layers, what gradients of the weights need is kept:
// the outputs and, in place of the derivatives, the gradients before the activations.
template <class T> struct Stack {
    const Dense<T> *layers;
    Buffer<T> *slopes;
    long count, row, ld;
    Buffer<T> *outputs = nullptr;

    // Returns a pointer to the output, which is u or v or kept.
    const T *forth(long rows, const T *x, T *u, T *v) const {
        for (long k = 0; k < count; ++k, std::swap(u, v)) {
            T *y = outputs ? outputs[k]() + row * ld : u;
            layers[k].activated(rows, x, ld, y, slopes[k]() + row * ld, ld);
            x = y;
        }
        return x;
    }
    // From the gradient of the output, in g, to that of x; returns a pointer to the latter, g or u
    // or the output of `last`.
    T *back(long rows, T *g, T *u, const Tail<T> *last = nullptr) const {
        for (long k = count; k-- > 0; std::swap(g, u)) {
            T *slope = slopes[k]() + row * ld, *by = outputs ? slope : g;
            product(rows, ld, g, ld, slope, ld, by, ld);
            layers[k].back.times(rows, by, ld, last && k == 0 ? *last : Tail<T>{u, ld});
        }
        return g;
    }
};

} // namespace
