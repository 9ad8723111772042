// Functions called from Python: see interface.py and kernel.py.

#pragma once

#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>

namespace {

// Arguments of a call, in the order of kernel.py.
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

// A model is built from sizes, lengths and arrays in the order of its Python interface; null if out
// of memory. A call returns 1 if out of memory, 2 if the edges are not sorted.
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

// For a model that supports training: `update` copies new weights; `gradients` writes the gradients
// of Σ back[0] · values + Σ back[1] · embeddings (back[1] may be null) with respect to the weights
// to `arrays`.
#define EXPORT_TRAINING_TYPE(MODEL, TYPE)                                                          \
    extern "C" void update_##TYPE(void *model, const void *const *arrays) {                        \
        static_cast<MODEL<TYPE> *>(model)->update(reinterpret_cast<const TYPE *const *>(arrays));  \
    }                                                                                              \
    extern "C" int gradients_##TYPE(void *model, const int64_t *counts, const void *const *inputs, \
                                    const void *const *back, void *const *arrays) {                \
        void *none[3] = {nullptr, nullptr, nullptr};                                               \
        try {                                                                                      \
            return static_cast<MODEL<TYPE> *>(model)->run({counts, inputs, none},                  \
                                                          static_cast<const TYPE *>(back[0]),      \
                                                          static_cast<const TYPE *>(back[1]),      \
                                                          arrays)                                  \
                       ? 0                                                                         \
                       : 2;                                                                        \
        } catch (const std::bad_alloc &) {                                                         \
            return 1;                                                                              \
        }                                                                                          \
    }
#define EXPORT_TRAINING(MODEL)                                                                     \
    EXPORT_TRAINING_TYPE(MODEL, float) EXPORT_TRAINING_TYPE(MODEL, double)
