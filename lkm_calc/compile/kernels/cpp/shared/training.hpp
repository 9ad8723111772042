// Gradients of weights.

#pragma once

#include <algorithm>
#include <vector>

#include "products.hpp"
#include "threads.hpp"

namespace {

// The input of a layer y = x Wᵀ + b, and the gradient of its output; rows are ld apart.
template <class T> struct Trace {
    long rows;
    const T *x;
    long x_ld;
    const T *gy;
    long gy_ld;
};

// Adds the gradients of the weight, gyᵀ x, in rows of `in` columns, and of the bias, the sum of gy
// over rows; `in` is a number of whole vectors.
template <class T>
void learn(const Trace<T> &of, long out, long in, T *by_weight, T *by_bias) {
    multiply<T>(out, in, of.rows, of.gy, 1, of.gy_ld, of.x, of.x_ld, added(by_weight, in));
    if (by_bias)
        for (long r = 0; r < of.rows; ++r)
            for (long o = 0; o < out; ++o)
                by_bias[o] += of.gy[r * of.gy_ld + o];
}

// The gradients of the weight and the bias of a dense layer, whose output may consist of separately
// padded parts, and where they are written to.
template <class T> struct WeightGradient {
    static constexpr long TILE = 192; // rows whose x and gy are in the cache together

    Trace<T> trace;
    long parts, out, in; // without padding
    Rows<T> weight{};
    T *bias = nullptr;
    long biased = 0; // outputs that have a bias

    // Memory for the gradient of the weight with padding, followed by that of the bias, all zero.
    T *start(Buffer<T> &memory) const {
        const long count = Dense<T>::columns(parts, out) * (padded<T>(in) + 1);
        T *by_weight = memory.get(count);
        std::fill_n(by_weight, count, T(0));
        return by_weight;
    }
    // Adds the products of all rows to it.
    const T *add(T *by_weight) const {
        const long rows = Dense<T>::columns(parts, out), columns = padded<T>(in);
        for (long r = 0; r < trace.rows; r += TILE) {
            Trace<T> tile = trace;
            tile.rows = std::min(TILE, trace.rows - r);
            tile.x += r * trace.x_ld, tile.gy += r * trace.gy_ld;
            learn(tile, rows, columns, by_weight, bias ? by_weight + rows * columns : nullptr);
        }
        return by_weight;
    }
    const T *sum(Buffer<T> &memory) const { return add(start(memory)); }
    void write(const T *by_weight) const {
        const long columns = padded<T>(in);
        const T *by_bias = by_weight + Dense<T>::columns(parts, out) * columns;
        Dense<T>::each(parts, out, [&](long o, long row) {
            std::copy_n(by_weight + o * columns, in, weight(row));
            if (bias && row < biased)
                bias[row] = by_bias[o];
        });
    }
    void write(Buffer<T> &memory) const { write(sum(memory)); }
};

// The layers of a model, one after another: their weights are read from arrays, or gradients are
// prepared that are written to such arrays.
template <class T> struct Weights {
    std::vector<WeightGradient<T>> gradients;
    std::vector<Buffer<T>> memory; // one per thread
    std::vector<Buffer<T>> sums;   // one per layer, for rows in several chunks

    // A dense layer.
    void dense(Dense<T> &layer, long parts, long out, long in, const Rows<const T> &weight,
               const T *bias, long biased, const Trace<T> &) const {
        layer.set(parts, out, 1, in, weight, bias, biased);
    }
    void dense(Dense<T> &, long parts, long out, long in, const Rows<T> &weight, T *bias,
               long biased, const Trace<T> &trace) {
        gradients.push_back({trace, parts, out, in, weight, bias, biased});
    }
    // A linear function with one output; its bias, if any, is a number.
    void function(Buffer<T> &to, T *to_bias, long in, const T *weight, const T *bias,
                  const Trace<T> &) const {
        set_rows(to, 1, in, weight);
        if (bias)
            *to_bias = *bias;
    }
    void function(Buffer<T> &, T *, long in, T *weight, T *bias, const Trace<T> &trace) {
        gradients.push_back({trace, 1, 1, in, {weight, in}, bias, 1});
    }

    // Writes all gradients. Each is summed by one thread in the order of the rows, so that sums do
    // not depend on the number of threads.
    void write(int threads) {
        memory.resize(std::max<size_t>(memory.size(), threads));
        for_each(long(gradients.size()), threads,
                 [&](long k) { gradients[k].write(memory[thread()]); });
        gradients.clear();
    }
    // The same for rows in several chunks: the layers are prepared again for each chunk, and the
    // gradients are written after the last.
    void write(int threads, bool is_first, bool is_last) {
        sums.resize(gradients.size());
        for_each(long(gradients.size()), threads, [&](long k) {
            const WeightGradient<T> &one = gradients[k];
            const T *sum = one.add(is_first ? one.start(sums[k]) : sums[k]());
            if (is_last)
                one.write(sum);
        });
        gradients.clear();
    }
};

// Gradients of a table of rows, one for each element, from those of the rows of atoms.
template <class T, class I>
void table_gradient(long rows, long width, long atoms, const I *numbers, const T *gradients,
                    long ld, T *to) {
    std::fill_n(to, rows * width, T(0));
    for (long i = 0; i < atoms; ++i)
        for (long k = 0; k < width; ++k)
            to[numbers[i] * width + k] += gradients[i * ld + k];
}

} // namespace
