// Activation functions and their derivatives.

#pragma once

#include "vectors.hpp"

namespace {

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

} // namespace
