// What the kernels share: vectors, matrix products with what follows them, bases of a distance.
//
// Arrays are row-major, rows padded to whole vectors, zeros in the padding of weights.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
constexpr int ROWS = 6, VECTORS = 4;
#elif defined(__AVX__)
#define BYTES 32
constexpr int ROWS = 6, VECTORS = 2;
#elif defined(__aarch64__)
#define BYTES 16
constexpr int ROWS = 6, VECTORS = 4;
#else
#define BYTES 16
constexpr int ROWS = 4, VECTORS = 2;
#endif
// A block of a product is ROWS rows by VECTORS vectors of columns: what the registers hold.

constexpr double PI = 3.14159265358979323846;
constexpr int MAX_DEGREES = 20; // as in models/dimenetpp.py and multiplex.py

namespace {

// ---- vectors ------------------------------------------------------------------------------------

template <class T> struct Lanes;
template <> struct Lanes<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
};
template <> struct Lanes<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
};
template <class T> using V = typename Lanes<T>::V;
template <class T> constexpr int W = BYTES / sizeof(T);

template <class T> inline V<T> load(const T *from) {
    V<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class T> inline void store(T *to, V<T> v) { std::memcpy(to, &v, sizeof v); }
template <class T> inline V<T> all(T x) { return x - V<T>{}; }
template <class T> inline long padded(long n) { return (n + W<T> - 1) / W<T> * W<T>; }

// exp(x) for |x| < 87 (float) or 700: 2^n times a polynomial of the rest (Cody and Waite 1980).
inline V<float> exponential(V<float> x) {
    const float magic = 12582912.0f; // 1.5 · 2^23: adding it rounds to a whole number
    V<float> t = x * 1.44269504f + magic, n = t - magic;
    V<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V<float> p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                    5.0000001201e-1f})
        p = p * r + c;
    p = p * (r * r) + r + 1.0f;
    Lanes<float>::I bits;
    std::memcpy(&bits, &t, sizeof bits);
    bits = (bits + (127 - 0x4B400000)) << 23;
    V<float> power;
    std::memcpy(&power, &bits, sizeof bits);
    return p * power;
}
inline V<double> exponential(V<double> x) {
    const double magic = 6755399441055744.0; // 1.5 · 2^52
    V<double> t = x * 1.4426950408889634 + magic, n = t - magic;
    V<double> r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    V<double> p = all(1.0 / 6227020800.0); // 1/13!
    double factorial = 6227020800.0;
    for (int k = 13; k > 0; --k) {
        factorial /= k;
        p = p * r + 1.0 / factorial;
    }
    Lanes<double>::I bits;
    std::memcpy(&bits, &t, sizeof bits);
    bits = (bits + (1023 - 0x4338000000000000LL)) << 52;
    V<double> power;
    std::memcpy(&power, &bits, sizeof bits);
    return p * power;
}

template <class T> struct Activation {
    V<T> value, slope;
};

// σ(z) = z / (1 + exp(−z)) and its derivative.
template <class T> inline Activation<T> silu(V<T> z) {
    const T most = sizeof(T) == 4 ? T(87) : T(700);
    V<T> x = -z;
    x = x > most ? all(most) : x;
    x = x < -most ? all(-most) : x;
    V<T> s = T(1) / (exponential(x) + T(1));
    V<T> y = z * s;
    return {y, s + y * (T(1) - s)};
}

// ---- products -----------------------------------------------------------------------------------

// What becomes of z = a·b: out = [σ](z + bias) ⊙ factor + base, each part where it is given.
template <class T> struct Tail {
    T *out;
    long ld;
    const T *bias = nullptr;
    T *slope = nullptr; // where the activation's derivative goes; no activation without
    long slope_ld = 0;
    const T *factor = nullptr;
    long factor_ld = 0;
    const T *base = nullptr;
    long base_ld = 0;
};

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
    if constexpr (N == 1) // one vector of columns leaves registers for more rows
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
// a panel's rows ldb apart, the next panel `step` behind it.
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

// The same with an ordinary b.
template <class T>
void multiply(long m, long n, long depth, const T *a, long rs, long cs, const T *b, long ldb,
              const Tail<T> &tail) {
    multiply<T>(m, n, depth, a, rs, cs, b, ldb, VECTORS * W<T>, tail);
}

template <class T> class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer(Buffer &&other) : data(other.data), size(other.size) { other.data = nullptr; }
    ~Buffer() { std::free(data); }
    // Room for n numbers, zero when it is new.
    T *get(long n) {
        if (n > size) {
            std::free(data);
            data = nullptr;
            size = 0;
            n += n / 16; // atoms come closer together now and then
            const long bytes = n * long(sizeof(T)) / 64 * 64 + 128;
            data = static_cast<T *>(std::aligned_alloc(64, bytes));
            if (!data)
                throw std::bad_alloc();
            std::memset(data, 0, bytes);
            size = n;
        }
        return data;
    }
    T *operator()() const { return data; }

  private:
    T *data = nullptr;
    long size = 0;
};

// A matrix in panels, as `multiply` reads it.
template <class T> struct Matrix {
    long depth = 0, columns = 0;
    Buffer<T> panels;

    // Room for (depth, width) elements, each at its place.
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
    // From element(k, j), k < depth, j < width.
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

// y = x Wᵀ + b, and the way back.
template <class T> struct Dense {
    Matrix<T> forth, back;
    Buffer<T> bias;

    void set(long out, long in, const T *weight, const T *b) {
        forth.pack(in, out, [=](long k, long j) { return weight[j * in + k]; });
        back.pack(out, in, [=](long k, long j) { return weight[k * in + j]; });
        if (b)
            std::copy(b, b + out, bias.get(padded<T>(out)));
    }
};

// out = a ⊙ b, or added to it.
template <class T>
void product(long rows, long columns, const T *a, long lda, const T *b, long ldb, T *out, long ld,
             bool add = false) {
    for (long i = 0; i < rows; ++i)
        for (long c = 0; c < columns; c += W<T>) {
            V<T> z = load(a + i * lda + c) * load(b + i * ldb + c);
            if (add)
                z += load(out + i * ld + c);
            store(out + i * ld + c, z);
        }
}

// Residual of layers.py: two layers, and where the slopes of their activations are kept, of the rows
// from `row` on.
template <class T> struct Residual {
    const Dense<T> *layers;
    Buffer<T> *slopes;
    long row, ld;

    // h + σ(W₂ σ(W₁ h)), in place.
    void forth(long rows, T *h, T *u) const {
        layers[0].forth.times(rows, h, ld, {u, ld, layers[0].bias(), slope(0), ld});
        layers[1].forth.times(rows, u, ld,
                              {h, ld, layers[1].bias(), slope(1), ld, nullptr, 0, h, ld});
    }
    // From the gradient by the outcome to that by h, in place.
    void back(long rows, T *g, T *u, T *v) const {
        product(rows, ld, g, ld, slope(1), ld, v, ld);
        layers[1].back.times(rows, v, ld, {u, ld, nullptr, nullptr, 0, slope(0), ld});
        layers[0].back.times(rows, u, ld, {g, ld, nullptr, nullptr, 0, nullptr, 0, g, ld});
    }

  private:
    T *slope(int k) const { return slopes[k]() + row * ld; }
};

// Number of the thread within a parallel region.
inline int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// ---- bases of a distance, as in basis.py --------------------------------------------------------

// Length and direction of an edge's vector.
template <class T> struct Line {
    T distance, x, y, z;

    explicit Line(const double *vector) {
        x = T(vector[0]), y = T(vector[1]), z = T(vector[2]);
        distance = std::sqrt(x * x + y * y + z * z);
        x /= distance, y /= distance, z /= distance;
    }
    // The gradient by the vector, of those by the distance and by the direction, which turns by
    // what of its gradient is across it.
    void gradient(T along, T gx, T gy, T gz, double *to) const {
        const T inside = gx * x + gy * y + gz * z;
        to[0] = along * x + (gx - inside * x) / distance;
        to[1] = along * y + (gy - inside * y) / distance;
        to[2] = along * z + (gz - inside * z) / distance;
    }
};

// u(d / cutoff) and its derivative by d.
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
    // The functions of a distance and their derivatives.
    void at(T d, T *f, T *df) const {
        T u, du;
        envelope.at(d, u, du);
        for (size_t r = 0; r < frequencies.size(); ++r) {
            const T angle = frequencies[r] * (d / envelope.cutoff), wave = std::sin(angle);
            f[r] = u * wave;
            df[r] = du * wave + u * frequencies[r] / envelope.cutoff * std::cos(angle);
        }
    }
};

// SphericalBesselBasis: pieces of fifth degree.
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
    // The functions of a distance and their derivatives, whole vectors of them.
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

// Y_l0 of a cosine and their derivatives, as `legendre` in geometry.py.
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

// ---- what Python calls --------------------------------------------------------------------------

// The arguments of a call, as kernel.py lists them.
template <class T> struct Call {
    const int64_t *counts; // atoms, edges, threads, and the lengths of the indices
    const int64_t *numbers, *source, *target, *reverse;
    const double *vectors;
    const void *const *indices;
    T *values;
    double *gradient;
    T *embeddings;

    Call(const int64_t *counts_, const void *const *in, void *const *out) : counts(counts_) {
        auto whole = [&](int k) { return static_cast<const int64_t *>(in[k]); };
        numbers = whole(0), source = whole(1), target = whole(2), reverse = whole(3);
        vectors = static_cast<const double *>(in[4]), indices = in + 5;
        values = static_cast<T *>(out[0]), gradient = static_cast<double *>(out[1]);
        embeddings = static_cast<T *>(out[2]);
    }
};

} // namespace

// A model is made from sizes, lengths and arrays as its Python interface lists them; null if memory
// is short. A call returns 1 if it is, 2 if the edges are not sorted.
#define EXPORT_TYPE(MODEL, TYPE)                                                                   \
    extern "C" void *make_##TYPE(const int64_t *sizes, const double *lengths,                      \
                                 const void *const *arrays) {                                      \
        try {                                                                                      \
            Sizes s;                                                                               \
            std::memcpy(&s, sizes, sizeof s);                                                      \
            return new MODEL<TYPE>(s, lengths, reinterpret_cast<const TYPE *const *>(arrays));     \
        } catch (const std::bad_alloc &) {                                                         \
            return nullptr;                                                                        \
        }                                                                                          \
    }                                                                                              \
    extern "C" void free_##TYPE(void *model) { delete static_cast<MODEL<TYPE> *>(model); }         \
    extern "C" int run_##TYPE(void *model, const int64_t *counts, const void *const *inputs,       \
                              void *const *outputs) {                                              \
        try {                                                                                      \
            return static_cast<MODEL<TYPE> *>(model)->run({counts, inputs, outputs}) ? 0 : 2;      \
        } catch (const std::bad_alloc &) {                                                         \
            return 1;                                                                              \
        }                                                                                          \
    }
#define EXPORT(MODEL) EXPORT_TYPE(MODEL, float) EXPORT_TYPE(MODEL, double)
