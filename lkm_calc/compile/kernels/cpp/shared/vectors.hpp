// SIMD vectors of the native width.
//
// Arrays are row-major, rows padded to whole vectors, zeros in the padding of weights.

#pragma once

#include <cstdint>
#include <cstring>

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
// A block of a product is ROWS rows by VECTORS vectors of columns, which fit into the registers.


namespace {

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

// Sum of the elements of a vector of N numbers: its halves are added, and so on.
template <class T, int N> struct Sum {
    typedef T Whole __attribute__((vector_size(N * sizeof(T))));
    static T of(Whole v) {
        typename Sum<T, N / 2>::Whole low, high;
        std::memcpy(&low, &v, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char *>(&v) + sizeof low, sizeof high);
        return Sum<T, N / 2>::of(low + high);
    }
};
template <class T> struct Sum<T, 2> {
    typedef T Whole __attribute__((vector_size(2 * sizeof(T))));
    static T of(Whole v) { return v[0] + v[1]; }
};
template <class T> inline T total(V<T> v) { return Sum<T, W<T>>::of(v); }

// Σ a_k b_k over whole vectors.
template <class T> inline T dot(const T *a, const T *b, long columns) {
    V<T> sum{};
    for (long c = 0; c < columns; c += W<T>)
        sum += load(a + c) * load(b + c);
    return total<T>(sum);
}

// start + Σ a_k b_k, summed sequentially.
template <class T> inline T inner(long n, const T *a, const T *b, T start = 0) {
    for (long k = 0; k < n; ++k)
        start += a[k] * b[k];
    return start;
}

// to += from, for whole vectors.
template <class T> inline void add(long n, const T *from, T *to) {
    for (long i = 0; i < n; i += W<T>)
        store(to + i, load(to + i) + load(from + i));
}

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

} // namespace
