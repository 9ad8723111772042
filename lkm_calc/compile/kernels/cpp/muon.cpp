// Steps of Muon: momentum orthogonalised by Newton-Schulz iteration, see train/state/muon.py.

#include <cmath>
#include <vector>

#include "shared/products.hpp"
#include "shared/threads.hpp"

namespace {

struct Options {
    double momentum, factor, shrink, floor; // shrink: 1 − rate · decay
    double quintic[3];
};

// A weight matrix, row-major; the average of its gradients is updated.
template <class T> struct Weight {
    long rows, columns;
    T *weight;
    const T *gradient;
    T *average;
};

// Memory of a thread.
template <class T> struct Scratch {
    Buffer<T> x, gram, next;
};

template <class T>
void step(const Weight<T> &w, const Options &options, long iterations, Scratch<T> &scratch) {
    // X is at least as high as wide: the matrix or its transpose.
    const bool transposed = w.rows < w.columns;
    const long high = std::max(w.rows, w.columns), wide = std::min(w.rows, w.columns);
    const long ld = padded<T>(wide);
    const long by_row = transposed ? 1 : ld, by_column = transposed ? ld : 1;
    T *x = scratch.x.get(high * ld), *next = scratch.next.get(high * ld);
    T *gram = scratch.gram.get(2 * wide * ld), *square = gram + wide * ld;
    std::fill_n(x, high * ld, T(0));

    const T momentum = T(options.momentum);
    double norm = 0;
    for (long i = 0; i < w.rows; ++i)
        for (long j = 0; j < w.columns; ++j) {
            const long at = i * w.columns + j;
            const T gradient = w.gradient[at];
            w.average[at] += (1 - momentum) * (gradient - w.average[at]);
            const T ahead = gradient + momentum * (w.average[at] - gradient); // Nesterov momentum
            x[i * by_row + j * by_column] = ahead;
            norm += double(ahead) * double(ahead);
        }
    const T inverse = T(1 / std::max(std::sqrt(norm), options.floor));
    for (long k = 0; k < high * ld; ++k)
        x[k] *= inverse;

    // X ← X (a + b A + c A²), A = Xᵀ X
    const T a = T(options.quintic[0]), b = T(options.quintic[1]), c = T(options.quintic[2]);
    for (long k = 0; k < iterations; ++k, std::swap(x, next)) {
        multiply<T>(wide, ld, high, x, 1, ld, x, ld, Tail<T>{gram, ld});
        multiply<T>(wide, ld, wide, gram, ld, 1, gram, ld, Tail<T>{square, ld});
        for (long i = 0; i < wide * ld; ++i)
            square[i] = b * gram[i] + c * square[i];
        for (long i = 0; i < wide; ++i)
            square[i * ld + i] += a;
        multiply<T>(high, ld, wide, x, ld, 1, square, ld, Tail<T>{next, ld});
    }

    const T factor = T(options.factor * std::sqrt(double(high))), shrink = T(options.shrink);
    for (long i = 0; i < w.rows; ++i)
        for (long j = 0; j < w.columns; ++j) {
            T &weight = w.weight[i * w.columns + j];
            weight = shrink * weight + factor * x[i * by_row + j * by_column];
        }
}

// shapes: rows and columns of each matrix; arrays: its weight, gradient and average.
template <class T>
int steps(const int64_t *counts, const int64_t *shapes, void *const *arrays,
          const double *numbers) {
    const long count = counts[0], iterations = counts[1];
    const int threads = int(counts[2]);
    Options options;
    std::memcpy(&options, numbers, sizeof options);
    std::vector<Scratch<T>> scratch;
    std::vector<int> failed(threads, 0);
    scratch.resize(threads);
    for_each(count, threads, [&](long k) {
        auto array = [&](int one) { return static_cast<T *>(arrays[3 * k + one]); };
        try {
            step<T>({shapes[2 * k], shapes[2 * k + 1], array(0), array(1), array(2)}, options,
                    iterations, scratch[thread()]);
        } catch (const std::bad_alloc &) {
            failed[thread()] = 1;
        }
    });
    return *std::max_element(failed.begin(), failed.end());
}

} // namespace

// Returns 1 if out of memory.
extern "C" int steps_float(const int64_t *counts, const int64_t *shapes, void *const *arrays,
                           const double *numbers) {
    return steps<float>(counts, shapes, arrays, numbers);
}
extern "C" int steps_double(const int64_t *counts, const int64_t *shapes, void *const *arrays,
                            const double *numbers) {
    return steps<double>(counts, shapes, arrays, numbers);
}
