// Message-passing ACE, its gradient with respect to the edge vectors, and the gradient of any
// linear function of values and embeddings with respect to the weights: a cache-friendly
// implementation of lkm_calc/models/ace.py with a hand-written backward pass.
//
// Structures are processed in chunks of a few hundred edges, each by one thread, which stores
// everything that the backward pass needs. Tensors are (components, atoms, channels), so that the
// linear map of a degree is one matrix product. Names are those of ace.py; the prefix g denotes the
// gradient with respect to a quantity.

#include <atomic>

#include "shared/bases.hpp"
#include "shared/edges.hpp"
#include "shared/interface.hpp"
#include "shared/products.hpp"
#include "shared/threads.hpp"
#include "shared/training.hpp"

namespace {

constexpr long CHUNK = 256; // edges of a chunk, more where one structure has more
constexpr int MOST_ELL = 3, MOST = (MOST_ELL + 1) * (MOST_ELL + 1);

struct Sizes {
    int64_t channels, interactions, ell, correlation, radial, hidden, exponent, elements,
        node_dependent, runtime, gated, normalised, linear_readouts, norms;
};

// ---- linear maps of blocks of channels -------------------------------------------------------

// y = x Wᵀ + b between rows of blocks, each block padded to whole vectors, with its gradient.
template <class T> struct Map {
    Dense<T> dense;
    long in = 0, out = 0;                              // padded
    long in_blocks, in_width, out_blocks, out_width;   // without padding
    long offset = 0, bias_offset = -1;                 // of its gradient, (out, in) and (out)

    void shape(long out_blocks_, long out_width_, long in_blocks_, long in_width_, bool bias,
               long &total) {
        out_blocks = out_blocks_, out_width = out_width_;
        in_blocks = in_blocks_, in_width = in_width_;
        in = in_blocks * padded<T>(in_width), out = out_blocks * padded<T>(out_width);
        offset = total, total += in * out;
        if (bias)
            bias_offset = total, total += out;
    }
    void set(const T *const *&arrays) {
        const T *w = *arrays++, *b = bias_offset >= 0 ? *arrays++ : nullptr;
        dense.set(out_blocks, out_width, in_blocks, in_width, w, b);
    }
    // The gradients in the shapes of the weights.
    void write(const T *gradients, void *const *&arrays) const {
        T *w = static_cast<T *>(*arrays++);
        const long columns = in_blocks * in_width;
        const T *from = gradients + offset;
        Dense<T>::each(out_blocks, out_width, [&](long o, long r) {
            Dense<T>::each(in_blocks, in_width,
                           [&](long i, long c) { w[r * columns + c] = from[o * in + i]; });
        });
        if (bias_offset >= 0) {
            T *b = static_cast<T *>(*arrays++);
            Dense<T>::each(out_blocks, out_width,
                           [&](long o, long r) { b[r] = gradients[bias_offset + o]; });
        }
    }
    // y (rows, out) = x (rows, in) Wᵀ + b [+ base].
    void forth(long rows, const T *x, T *y, const T *base = nullptr) const {
        Tail<T> tail{y, out, dense.bias()};
        tail.base = base, tail.base_ld = out;
        dense.forth.times(rows, x, in, tail);
    }
    // y = σ(x Wᵀ + b), and the derivative of σ.
    void activated(long rows, const T *x, T *y, T *slope) const {
        dense.activated(rows, x, in, y, slope, out);
    }
    // gx = gy W [⊙ factor] [+ gx].
    void back(long rows, const T *gy, T *gx, bool add, const T *factor = nullptr) const {
        Tail<T> tail{gx, in};
        tail.factor = factor, tail.factor_ld = in;
        tail.base = add ? gx : nullptr, tail.base_ld = in;
        dense.back.times(rows, gy, out, tail);
    }
    // Adds xᵀ gy and the sum of gy over rows, if gradients are requested.
    void learn(long rows, const T *x, const T *gy, T *gradients) const {
        if (!gradients)
            return;
        ::learn<T>({rows, x, in, gy, out}, Dense<T>::columns(out_blocks, out_width), in,
                   gradients + offset, bias_offset >= 0 ? gradients + bias_offset : nullptr);
    }
};

// ---- spherical harmonics, as FlatHarmonics in equivariant.py ------------------------------------

const double R3 = std::sqrt(3.0), R5 = std::sqrt(5.0), R7 = std::sqrt(7.0), R15 = std::sqrt(15.0),
             R42 = std::sqrt(42.0), R70 = std::sqrt(70.0), R105 = std::sqrt(105.0);

template <class T> void harmonics(long ell, T x, T y, T z, T *to) {
    to[0] = 1;
    to[1] = T(R3) * z, to[2] = T(R3) * x, to[3] = T(R3) * y;
    if (ell < 2)
        return;
    to[4] = T(R5 / 2) * (3 * z * z - 1);
    to[5] = T(R15) * x * z, to[6] = T(R15 / 2) * (x * x - y * y);
    to[7] = T(R15) * y * z, to[8] = T(R15) * x * y;
    if (ell < 3)
        return;
    to[9] = T(R7 / 2) * z * (5 * z * z - 3);
    to[10] = T(R42 / 4) * x * (5 * z * z - 1), to[11] = T(R105 / 2) * z * (x * x - y * y);
    to[12] = T(R70 / 4) * x * (x * x - 3 * y * y), to[13] = T(R42 / 4) * y * (5 * z * z - 1);
    to[14] = T(R105) * x * y * z, to[15] = T(R70 / 4) * y * (3 * x * x - y * y);
}

// From the gradient of the harmonics to that of the direction.
template <class T> void harmonics_back(long ell, T x, T y, T z, const T *g, T &gx, T &gy, T &gz) {
    gz = T(R3) * g[1], gx = T(R3) * g[2], gy = T(R3) * g[3];
    if (ell < 2)
        return;
    gz += T(R5) * 3 * z * g[4] + T(R15) * (x * g[5] + y * g[7]);
    gx += T(R15) * (z * g[5] + x * g[6] + y * g[8]);
    gy += T(R15) * (-y * g[6] + z * g[7] + x * g[8]);
    if (ell < 3)
        return;
    const T a = T(R42 / 4), b = T(R105), c = T(R70 / 4) * 3, five = 5 * z * z - 1;
    gz += T(R7 / 2) * (15 * z * z - 3) * g[9] + 10 * a * z * (x * g[10] + y * g[13]) +
          b / 2 * (x * x - y * y) * g[11] + b * x * y * g[14];
    gx += a * five * g[10] + b * z * x * g[11] + c * (x * x - y * y) * g[12] + b * y * z * g[14] +
          2 * c * x * y * g[15];
    gy += -b * z * y * g[11] - 2 * c * x * y * g[12] + a * five * g[13] + b * x * z * g[14] +
          c * (x * x - y * y) * g[15];
}

// ---- products of tensors, as TensorProduct in equivariant.py ------------------------------------

struct Term {
    int first, second, out; // components of a and b, and index among those of all paths
    double factor;
};

template <class T> struct Product {
    long out_ell;                // maximum degree of the output
    std::vector<long> paths;     // number of paths per degree of the output
    std::vector<long> first_out; // index of the first component of the first path
    std::vector<Map<T>> linear;
    struct Entry {
        int first, second;
        T factor;
    };
    std::vector<Entry> entries;  // sorted by output index
    std::vector<int> begins;     // first entry of each output index, and the end
    long places = 0;

    // Index (l3, m3, path) of the coupled components of an atom.
    long place(long l3, long m3, long path) const { return first_out[l3] + m3 * paths[l3] + path; }

};

// x / √(1 + mean square), with the mean over components and channels of an atom, and the factor.
template <class T>
void soft_norm(long parts, long N, long ld, long channels, const T *x, T *y, T *factors) {
    for (long n = 0; n < N; ++n) {
        V<T> sum{};
        for (long c = 0; c < parts; ++c)
            for (long k = 0; k < ld; k += W<T>) {
                V<T> v = load(x + (c * N + n) * ld + k);
                sum += v * v;
            }
        const T factor = 1 / std::sqrt(1 + total<T>(sum) / T(parts * channels));
        factors[n] = factor;
        for (long c = 0; c < parts; ++c)
            for (long k = 0; k < ld; k += W<T>)
                store(y + (c * N + n) * ld + k, factor * load(x + (c * N + n) * ld + k));
    }
}

// From the gradient of y to that of x, in place.
template <class T>
void soft_norm_back(long parts, long N, long ld, long channels, const T *y, const T *factors,
                    T *g) {
    for (long n = 0; n < N; ++n) {
        V<T> sum{};
        for (long c = 0; c < parts; ++c)
            for (long k = 0; k < ld; k += W<T>)
                sum += load(y + (c * N + n) * ld + k) * load(g + (c * N + n) * ld + k);
        const T factor = factors[n], inside = total<T>(sum) / T(parts * channels);
        for (long c = 0; c < parts; ++c)
            for (long k = 0; k < ld; k += W<T>) {
                T *at = g + (c * N + n) * ld + k;
                store(at, factor * (load(at) - inside * load(y + (c * N + n) * ld + k)));
            }
    }
}

template <class T> struct Layer {
    long out_ell;
    bool inner; // not the first layer
    long weights;
    Map<T> first, second, third, to_target, to_source, message, gate_in, gate_out, hidden, value;
    std::vector<Map<T>> project, basis, linear, skip;
    std::vector<Product<T>> products;
    bool hidden_readout;
};

// Working memory of one thread for a chunk.
template <class T> struct Work {
    struct Kept {
        Buffer<T> u, mod, a1, s1, a2, s2, w;        // (edges, ...)
        Buffer<T> at_target, at_source, project;    // (atoms, hidden), including the element terms
        Buffer<T> x, sent, h, h_factor;             // inputs: scalars, messages, tensors
        Buffer<T> sums, a, a_factor, fresh, s, g, g_slope, gates, read, read_slope;
        std::vector<Buffer<T>> coupled, b, b_normed, b_factor;
    };
    std::vector<Kept> layers;
    Buffer<T> rbf, rbf_slope, rbf_wave, cut, cut_slope, Y; // of edges
    Buffer<T> g_rbf, g_cut, g_Y;
    Buffer<T> gx, x_last, gh, ga, gb, gb_next, g_fresh, g_sums, g_sent, g_gates, g_hidden,
        g_coupled, g_target, g_source, g_project, g_mod, values, g_value;
    Buffer<T> gradients;
    std::vector<long> first;
};

template <class T> class ACE {
  public:
    Sizes s;

    ACE(const Sizes &sizes, const double *lengths, const T *const *arrays)
        : s(sizes), cutoff(lengths[0]), norm(T(lengths[1])) {
        K = padded<T>(s.channels), H = padded<T>(s.hidden), R = padded<T>(s.radial);
        C = (s.ell + 1) * (s.ell + 1);
        shape();
        for (long l = 1; l <= s.ell; ++l)
            for (long m = 0; m <= 2 * l; ++m)
                degree_of[l * l + m] = int(l);
        update(arrays);
    }

    // Copies new weights.
    void update(const T *const *arrays) {
        std::lock_guard<std::mutex> lock(mutex);
        set_rows(embedding, s.elements, s.channels, *arrays++);
        const T *frequencies = *arrays++;
        waves.set(frequencies, s.radial, cutoff, s.exponent);
        set_rows(target_element, s.elements, s.hidden, *arrays++);
        set_rows(source_element, s.elements, s.hidden, *arrays++);
        for (Layer<T> &layer : layers)
            each_map(layer, [&](Map<T> &map) { map.set(arrays); });
    }

    // False if the edges are not sorted by target. With `back_values` (and `back_embeddings` or
    // null), writes gradients of Σ back_values · values + Σ back_embeddings · embeddings with
    // respect to the weights to `arrays`; otherwise values, edge gradients and embeddings to the
    // outputs of the call.
    bool run(const Call<T> &call, const T *back_values = nullptr,
             const T *back_embeddings = nullptr, void *const *arrays = nullptr) {
        std::lock_guard<std::mutex> lock(mutex);
        const long N = call.counts[0], E = call.counts[1];
        const int threads = int(std::max<int64_t>(1, call.counts[2]));
        if (!std::is_sorted(call.target, call.target + E))
            return false;
        make_chunks(chunks, N, E, call.source, call.target, CHUNK);
        work.resize(std::max<size_t>(work.size(), threads));
        if (arrays)
            std::fill_n(sum.get(total_gradients), total_gradients, T(0));
        const long count = long(chunks.size());
        std::atomic<bool> short_of_memory{false};
#pragma omp parallel for schedule(dynamic) ordered num_threads(threads)
        for (long c = 0; c < count; ++c) {
            Work<T> &own = work[thread()];
            try {
                chunk(own, call, chunks[c], N, back_values, back_embeddings, arrays != nullptr);
            } catch (const std::bad_alloc &) {
                short_of_memory = true;
            }
#pragma omp ordered
            if (arrays && !short_of_memory) // in a fixed order, for reproducible sums
                add(total_gradients, own.gradients(), sum());
        }
        if (short_of_memory)
            throw std::bad_alloc();
        if (arrays)
            write_gradients(arrays);
        return true;
    }

  private:
    double cutoff;
    T norm;
    long K, H, R, C; // padded widths, and the number of components
    int degree_of[MOST] = {};
    Waves<T> waves;
    Buffer<T> embedding, target_element, source_element;
    std::vector<Layer<T>> layers;
    long total_gradients = 0, embedding_at, frequencies_at, target_at, source_at;
    Buffer<T> sum;

    std::mutex mutex;
    std::vector<Chunk> chunks;
    std::vector<Work<T>> work;

    // ---- shapes ----

    template <class F> void each_map(Layer<T> &layer, F act) {
        act(layer.first), act(layer.second), act(layer.third);
        if (layer.inner && s.node_dependent)
            act(layer.to_target), act(layer.to_source);
        for (Map<T> &map : layer.project)
            act(map);
        act(layer.message);
        for (Map<T> &map : layer.basis)
            act(map);
        for (Map<T> &map : layer.linear)
            act(map);
        for (Product<T> &product : layer.products)
            for (Map<T> &map : product.linear)
                act(map);
        for (Map<T> &map : layer.skip)
            act(map);
        if (s.gated)
            act(layer.gate_in), act(layer.gate_out);
        if (layer.hidden_readout)
            act(layer.hidden);
        act(layer.value);
    }

    void shape() {
        const long k = s.channels, h = s.hidden;
        long &n = total_gradients;
        auto table = [&](long width) {
            const long at = n;
            n += s.elements * padded<T>(width);
            return at;
        };
        embedding_at = table(k);
        frequencies_at = n, n += R;
        target_at = table(h), source_at = table(h);
        layers.resize(s.interactions);
        for (long t = 0; t < s.interactions; ++t) {
            Layer<T> &layer = layers[t];
            const bool last = t == s.interactions - 1;
            layer.inner = t > 0, layer.out_ell = last ? 0 : s.ell;
            layer.weights = s.ell + 1 + (layer.inner ? s.ell : 0);
            layer.hidden_readout = last || !s.linear_readouts;
            layer.first.shape(1, h, 1, s.radial, false, n);
            layer.second.shape(1, h, 1, h, true, n);
            layer.third.shape(layer.weights, k, 1, h, false, n);
            layer.to_target.shape(1, h, 1, k, false, n);
            layer.to_source.shape(1, h, 1, k, false, n);
            auto tensor = [&](std::vector<Map<T>> &maps, long count, long out) {
                maps.resize(count);
                for (Map<T> &map : maps)
                    map.shape(1, out, 1, k, false, n);
            };
            tensor(layer.project, layer.inner && s.runtime ? s.ell : 0, h);
            layer.message.shape(1, k, 1, k, false, n);
            tensor(layer.basis, s.ell + 1, k);
            tensor(layer.linear, layer.out_ell + 1, k);
            layer.products.resize(s.correlation - 1);
            for (long p = 0; p < s.correlation - 1; ++p)
                shape(layer.products[p], p + 2 < s.correlation ? s.ell : layer.out_ell, p == 0, n);
            tensor(layer.skip, layer.inner ? layer.out_ell + 1 : 0, k);
            layer.gate_in.shape(1, k, 1, k, true, n);
            layer.gate_out.shape(1 + layer.out_ell, k, 1, k, true, n);
            layer.hidden.shape(1, k, 1, k, true, n);
            layer.value.shape(1, 1, 1, k, true, n);
        }
    }

    void shape(Product<T> &product, long out_ell, bool symmetric, long &n) {
        product.out_ell = out_ell;
        product.paths.assign(out_ell + 1, 0);
        product.first_out.assign(out_ell + 2, 0);
        std::vector<Term> terms;
        for (long l3 = 0; l3 <= out_ell; ++l3) {
            std::vector<std::pair<long, long>> pairs;
            for (long l1 = 0; l1 <= s.ell; ++l1)
                for (long l2 = symmetric ? l1 : 0; l2 <= s.ell; ++l2)
                    if ((l1 + l2 + l3) % 2 == 0 && std::abs(l1 - l2) <= l3 && l3 <= l1 + l2)
                        pairs.push_back({l1, l2});
            const long count = product.paths[l3] = long(pairs.size());
            product.first_out[l3 + 1] = product.first_out[l3] + (2 * l3 + 1) * count;
            for (long p = 0; p < count; ++p)
                couple(pairs[p].first, pairs[p].second, l3, [&](long c1, long c2, long m, double f) {
                    terms.push_back({int(c1), int(c2), int(product.place(l3, m, p)), f});
                });
        }
        product.places = product.first_out[out_ell + 1];
        std::stable_sort(terms.begin(), terms.end(),
                         [](const Term &a, const Term &b) { return a.out < b.out; });
        product.begins.assign(product.places + 1, 0);
        for (const Term &term : terms) {
            product.entries.push_back({term.first, term.second, T(term.factor)});
            ++product.begins[term.out + 1];
        }
        for (long p = 0; p < product.places; ++p)
            product.begins[p + 1] += product.begins[p];
        product.linear.resize(out_ell + 1);
        for (long l3 = 0; l3 <= out_ell; ++l3)
            product.linear[l3].shape(1, s.channels, product.paths[l3], s.channels, false, n);
    }

    // gaunt_coefficients of equivariant.py: calls add(component of a, of b, m3, factor). Exact, by
    // Gauss-Legendre quadrature in z and equal weights in φ.
    template <class F> static void couple(long l1, long l2, long l3, F add) {
        constexpr int count = 2 * MOST_ELL + 3, around = 2 * count;
        double sums[2 * MOST_ELL + 1][2 * MOST_ELL + 1][2 * MOST_ELL + 1] = {};
        for (int a = 0; a < count; ++a) {
            double z = std::cos(PI * (a + 0.75) / (count + 0.5)), slope = 0;
            for (int step = 0; step < 50; ++step) { // Newton's method for a root of P_count
                double p = 1, before = 0;
                for (int k = 0; k < count; ++k) {
                    const double next = ((2 * k + 1) * z * p - k * before) / (k + 1);
                    before = p, p = next;
                }
                slope = count * (z * p - before) / (z * z - 1);
                z -= p / slope;
            }
            const double weight = 2 / ((1 - z * z) * slope * slope);
            for (int b = 0; b < around; ++b) {
                const double phi = 2 * PI * b / around, ring = std::sqrt(1 - z * z);
                double y[MOST];
                harmonics<double>(MOST_ELL, ring * std::cos(phi), ring * std::sin(phi), z, y);
                for (long i = 0; i <= 2 * l1; ++i)
                    for (long j = 0; j <= 2 * l2; ++j)
                        for (long k = 0; k <= 2 * l3; ++k)
                            sums[i][j][k] += weight * y[l1 * l1 + i] * y[l2 * l2 + j] * y[l3 * l3 + k];
            }
        }
        double square = 0;
        for (auto &plane : sums)
            for (auto &line : plane)
                for (double value : line)
                    square += value * value;
        const double scale = std::sqrt((2 * l3 + 1) / square);
        for (long k = 0; k <= 2 * l3; ++k)
            for (long i = 0; i <= 2 * l1; ++i)
                for (long j = 0; j <= 2 * l2; ++j)
                    if (std::abs(sums[i][j][k]) * scale > 1e-10)
                        add(l1 * l1 + i, l2 * l2 + j, k, sums[i][j][k] * scale);
    }

    // ---- a chunk ----

    void chunk(Work<T> &w, const Call<T> &call, const Chunk &part, long all,
               const T *back_values, const T *back_embeddings, bool learn) {
        const long N = part.atoms, E = part.edges;
        w.layers.resize(s.interactions);
        starts(w.first, N, E, [&](long e) { return call.target[part.edge + e] - part.atom; });
        if (learn)
            std::fill_n(w.gradients.get(total_gradients), total_gradients, T(0));
        const int64_t *source = call.source + part.edge, *numbers = call.numbers + part.atom;
        edges(w, call, part);
        T *values = w.values.get(N);
        std::fill_n(values, N, T(0));
        T *x = w.layers[0].x.get(N * K);
        for (long i = 0; i < N; ++i)
            std::copy_n(embedding() + numbers[i] * K, K, x + i * K);
        const long width = s.norms ? s.channels * (s.ell + 1) : s.channels;
        for (long t = 0; t < s.interactions; ++t) {
            forth(w, t, N, E, source, part.atom, numbers);
            if (call.embeddings)
                give_embedding(w, t, N, call.embeddings + (t * all + part.atom) * width, width);
        }
        if (call.values)
            std::copy_n(values, N, call.values + part.atom);
        std::fill_n(w.g_rbf.get(E * R), E * R, T(0));
        std::fill_n(w.g_cut.get(E), E, T(0));
        std::fill_n(w.g_Y.get(E * MOST), E * MOST, T(0));
        const T *unit = back_values ? back_values + part.atom : nullptr;
        std::fill_n(w.gx.get(N * K), N * K, T(0));
        std::fill_n(w.gh.get(C * N * K), C * N * K, T(0));
        for (long t = s.interactions - 1; t >= 0; --t) {
            const T *taps = back_embeddings ? back_embeddings + (t * all + part.atom) * width
                                            : nullptr;
            back(w, t, N, E, source, part.atom, numbers, unit, taps, width, learn);
        }
        finish(w, call, part, numbers, learn);
    }

    void edges(Work<T> &w, const Call<T> &call, const Chunk &part) {
        const long E = part.edges;
        T *rbf = w.rbf.get(E * R), *slope = w.rbf_slope.get(E * R), *wave = w.rbf_wave.get(E * R);
        T *cut = w.cut.get(E), *cut_slope = w.cut_slope.get(E), *Y = w.Y.get(E * MOST);
        const T scale = T(std::sqrt(2 / cutoff));
        for (long e = 0; e < E; ++e) {
            const Line<T> line(call.vectors + 3 * (part.edge + e));
            T u, du;
            waves.envelope.at(line.distance, u, du);
            const T x = line.distance / T(cutoff);
            for (long r = 0; r < s.radial; ++r) {
                const T f = waves.frequencies[r], angle = f * x;
                const T sine = std::sin(angle), cosine = std::cos(angle);
                rbf[e * R + r] = scale * u * sine;
                slope[e * R + r] = scale * (du * sine + u * f / T(cutoff) * cosine);
                wave[e * R + r] = scale * u * x * cosine; // derivative w.r.t. the frequency
            }
            cut[e] = x * u, cut_slope[e] = u / T(cutoff) + x * du;
            harmonics<T>(s.ell, line.x, line.y, line.z, Y + e * MOST);
        }
    }

    // h without padding of components: components of degree l start at row l² N.
    void forth(Work<T> &w, long t, long N, long E, const int64_t *source, long shift,
               const int64_t *numbers) {
        Layer<T> &layer = layers[t];
        auto &own = w.layers[t];
        const T *x = own.x();
        modulate(w, layer, own, N, E, source, shift, numbers);
        T *a1 = own.a1.get(E * H), *s1 = own.s1.get(E * H), *mod = own.mod();
        T *u = own.u.get(E * H);
        layer.first.forth(E, w.rbf(), u);
        for (long i = 0; i < E * H; i += W<T>) {
            Activation<T> z = silu<T>(load(u + i) * load(mod + i));
            store(a1 + i, z.value), store(s1 + i, z.slope);
        }
        layer.second.activated(E, a1, own.a2.get(E * H), own.s2.get(E * H));
        layer.third.forth(E, own.a2(), own.w.get(E * layer.weights * K));
        layer.message.forth(N, x, own.sent.get(N * K));
        own.sums.get(C * N * K);
        switch (s.ell) {
        case 1:
            gather<1>(w, layer, own, N, source, shift);
            break;
        case 2:
            gather<2>(w, layer, own, N, source, shift);
            break;
        default:
            gather<3>(w, layer, own, N, source, shift);
        }
        on_atoms(w, layer, own, t, N);
    }

    // mod = 1 + t_i + s_j + Σ_lm q_i,lm Y_lm / (ell + 1), elements included in t and s.
    void modulate(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N, long E,
                  const int64_t *source, long shift, const int64_t *numbers) {
        T *at = own.at_target.get(N * H), *from = own.at_source.get(N * H);
        for (long i = 0; i < N; ++i) {
            std::copy_n(target_element() + numbers[i] * H, H, at + i * H);
            std::copy_n(source_element() + numbers[i] * H, H, from + i * H);
        }
        if (layer.inner && s.node_dependent) {
            layer.to_target.forth(N, own.x(), at, at);
            layer.to_source.forth(N, own.x(), from, from);
        }
        const bool runtime = layer.inner && s.runtime;
        if (runtime) {
            T *q = own.project.get((C - 1) * N * H);
            for (long l = 1; l <= s.ell; ++l)
                layer.project[l - 1].forth((2 * l + 1) * N, own.h() + l * l * N * K,
                                           q + (l * l - 1) * N * H);
        }
        T *mod = own.mod.get(E * H);
        const T share = T(1) / T(s.ell + 1);
        for (long i = 0; i < N; ++i)
            for (long e = w.first[i]; e < w.first[i + 1]; ++e) {
                const T *Y = w.Y() + e * MOST, *sent = from + (source[e] - shift) * H;
                for (long k = 0; k < H; k += W<T>) {
                    V<T> m = T(1) + load(at + i * H + k) + load(sent + k);
                    if (runtime)
                        for (long c = 1; c < C; ++c)
                            m += (share * Y[c]) * load(own.project() + ((c - 1) * N + i) * H + k);
                    store(mod + e * H + k, m);
                }
            }
    }

    // sums_lm,i = norm Σ_j cut (w_l x_j Y_lm + w'_l h_j,lm).
    template <int L>
    void gather(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N,
                const int64_t *source, long shift) {
        constexpr int parts = (L + 1) * (L + 1);
        const long ld = layer.weights * K;
        const T *h = own.h();
        for (long i = 0; i < N; ++i)
            for (long k = 0; k < K; k += W<T>) {
                V<T> sums[parts];
                for (int c = 0; c < parts; ++c)
                    sums[c] = V<T>{};
                for (long e = w.first[i]; e < w.first[i + 1]; ++e) {
                    const T *weight = own.w() + e * ld + k, *Y = w.Y() + e * MOST;
                    const long j = source[e] - shift;
                    const T cut = w.cut()[e];
                    const V<T> sent = cut * load(own.sent() + j * K + k);
#pragma GCC unroll 4
                    for (int l = 0; l <= L; ++l) {
                        const V<T> radial = load(weight + l * K) * sent;
#pragma GCC unroll 7
                        for (int m = 0; m <= 2 * l; ++m)
                            sums[l * l + m] += radial * Y[l * l + m];
                    }
                    if (layer.inner) {
#pragma GCC unroll 4
                        for (int l = 1; l <= L; ++l) {
                            const V<T> radial = cut * load(weight + (L + l) * K);
#pragma GCC unroll 7
                            for (int m = 0; m <= 2 * l; ++m)
                                sums[l * l + m] +=
                                    radial * load(h + ((l * l + m) * N + j) * K + k);
                        }
                    }
                }
                for (int c = 0; c < parts; ++c)
                    store(own.sums() + (c * N + i) * K + k, norm * sums[c]);
            }
    }

    // y = linear map of x, for each degree.
    static void tensor_forth(const std::vector<Map<T>> &maps, long N, const T *x, T *y, bool add) {
        for (size_t l = 0; l < maps.size(); ++l) {
            T *to = y + l * l * N * maps[l].out;
            maps[l].forth((2 * l + 1) * N, x + l * l * N * maps[l].in, to, add ? to : nullptr);
        }
    }
    static void tensor_back(const std::vector<Map<T>> &maps, long N, const T *x, const T *gy, T *gx,
                            bool add, T *gradients) {
        for (size_t l = 0; l < maps.size(); ++l) {
            const long from = l * l * N, rows = (2 * l + 1) * N;
            maps[l].learn(rows, x + from * maps[l].in, gy + from * maps[l].out, gradients);
            maps[l].back(rows, gy + from * maps[l].out, gx + from * maps[l].in, add);
        }
    }

    void on_atoms(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long t, long N) {
        const long kept = (layer.out_ell + 1) * (layer.out_ell + 1), k = s.channels;
        T *a = own.a.get(C * N * K);
        tensor_forth(layer.basis, N, own.sums(), a, false);
        if (s.normalised)
            soft_norm<T>(C, N, K, k, a, a, own.a_factor.get(N));
        T *fresh = own.fresh.get(kept * N * K);
        tensor_forth(layer.linear, N, a, fresh, false);
        const size_t count = layer.products.size();
        own.coupled.resize(count), own.b_normed.resize(count), own.b_factor.resize(count);
        const T *b = a;
        for (size_t p = 0; p < count; ++p) {
            Product<T> &product = layer.products[p];
            const long parts = (product.out_ell + 1) * (product.out_ell + 1);
            couple_forth(product, N, a, b, own.coupled[p].get(product.places * N * K));
            T *to = own.b_normed[p].get(parts * N * K);
            for (long l = 0; l <= product.out_ell; ++l)
                product.linear[l].forth((2 * l + 1) * N,
                                        own.coupled[p]() + product.first_out[l] * N * K,
                                        to + l * l * N * K);
            add(kept * N * K, to, fresh);
            if (s.normalised && p + 1 < count)
                soft_norm<T>(parts, N, K, k, to, to, own.b_factor[p].get(N));
            b = to;
        }
        if (layer.inner)
            tensor_forth(layer.skip, N, own.h(), fresh, true);
        update_atoms(w, layer, own, t, N, kept);
    }

    void update_atoms(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long t, long N,
                      long kept) {
        const bool last = t == s.interactions - 1;
        auto &next = w.layers[last ? t : t + 1];
        // The scalars of the last layer have a separate buffer.
        T *x = (last ? w.x_last : next.x).get(N * K), *scalars = own.s.get(N * K);
        T *fresh = own.fresh();
        for (long i = 0; i < N * K; i += W<T>)
            store(scalars + i, load(own.x() + i) + load(fresh + i));
        const long gates = layer.gate_out.out;
        if (s.gated) {
            layer.gate_in.activated(N, scalars, own.g.get(N * K), own.g_slope.get(N * K));
            layer.gate_out.forth(N, own.g(), own.gates.get(N * gates));
            for (long i = 0; i < N; ++i)
                for (long k = 0; k < K; k += W<T>)
                    store(x + i * K + k,
                          load(scalars + i * K + k) + load(own.gates() + i * gates + k));
        } else
            std::copy_n(scalars, N * K, x);
        if (!last) {
            T *h = next.h.get(C * N * K);
            std::copy_n(x, N * K, h);
            for (long c = 1; c < kept; ++c)
                for (long i = 0; i < N; ++i)
                    for (long k = 0; k < K; k += W<T>) {
                        V<T> v = load(fresh + (c * N + i) * K + k);
                        if (s.gated)
                            v *= T(1) + load(own.gates() + i * gates + degree_of[c] * K + k);
                        store(h + (c * N + i) * K + k, v);
                    }
            if (s.normalised)
                soft_norm<T>(kept, N, K, s.channels, h, h, next.h_factor.get(N));
        }
        const T *features = x;
        if (layer.hidden_readout) {
            layer.hidden.activated(N, x, own.read.get(N * K), own.read_slope.get(N * K));
            features = own.read();
        }
        T *column = w.g_value.get(N * layer.value.out);
        layer.value.forth(N, features, column);
        for (long i = 0; i < N; ++i)
            w.values()[i] += column[i * layer.value.out];
    }

    void give_embedding(Work<T> &w, long t, long N, T *to, long width) {
        const T *x = t == s.interactions - 1 ? w.x_last() : w.layers[t + 1].x();
        for (long i = 0; i < N; ++i)
            if (!s.norms)
                std::copy_n(x + i * K, s.channels, to + i * width);
            else
                for (long l = 0; l <= s.ell; ++l)
                    for (long k = 0; k < s.channels; ++k)
                        to[i * width + l * s.channels + k] =
                            root(w.layers[t].a(), l, i, k, N) - 1;
    }
    // √(1 + |a_l|²)
    T root(const T *a, long l, long i, long k, long N) const {
        T sum = 1;
        for (long c = l * l; c < (l + 1) * (l + 1); ++c)
            sum += a[(c * N + i) * K + k] * a[(c * N + i) * K + k];
        return std::sqrt(sum);
    }

    void couple_forth(const Product<T> &product, long N, const T *a, const T *b, T *coupled) {
        V<T> left[MOST], right[MOST];
        for (long i = 0; i < N; ++i)
            for (long k = 0; k < K; k += W<T>) {
                for (long c = 0; c < C; ++c) {
                    left[c] = load(a + (c * N + i) * K + k);
                    right[c] = load(b + (c * N + i) * K + k);
                }
                for (long l = 0, p = 0; l <= product.out_ell; ++l)
                    for (long m = 0; m <= 2 * l; ++m) {
                        T *to = coupled + (product.first_out[l] * N +
                                           (m * N + i) * product.paths[l]) * K + k;
                        for (long q = 0; q < product.paths[l]; ++q, ++p, to += K) {
                            V<T> sum{};
                            for (int n = product.begins[p]; n < product.begins[p + 1]; ++n) {
                                const auto &entry = product.entries[n];
                                sum += (entry.factor * left[entry.first]) * right[entry.second];
                            }
                            store(to, sum);
                        }
                    }
            }
    }
    // Adds to ga and gb, which may be the same array.
    void couple_back(const Product<T> &product, long N, const T *a, const T *b, const T *g, T *ga,
                     T *gb) {
        V<T> left[MOST], right[MOST], g_left[MOST], g_right[MOST];
        for (long i = 0; i < N; ++i)
            for (long k = 0; k < K; k += W<T>) {
                for (long c = 0; c < C; ++c) {
                    left[c] = load(a + (c * N + i) * K + k);
                    right[c] = load(b + (c * N + i) * K + k);
                    g_left[c] = g_right[c] = V<T>{};
                }
                for (long l = 0, p = 0; l <= product.out_ell; ++l)
                    for (long m = 0; m <= 2 * l; ++m) {
                        const T *from = g + (product.first_out[l] * N +
                                             (m * N + i) * product.paths[l]) * K + k;
                        for (long q = 0; q < product.paths[l]; ++q, ++p, from += K) {
                            const V<T> out = load(from);
                            for (int n = product.begins[p]; n < product.begins[p + 1]; ++n) {
                                const auto &entry = product.entries[n];
                                const V<T> scaled = entry.factor * out;
                                g_left[entry.first] += scaled * right[entry.second];
                                g_right[entry.second] += scaled * left[entry.first];
                            }
                        }
                    }
                for (long c = 0; c < C; ++c) {
                    T *to = ga + (c * N + i) * K + k;
                    store(to, load(to) + g_left[c]);
                    to = gb + (c * N + i) * K + k;
                    store(to, load(to) + g_right[c]);
                }
            }
    }

    // ---- backward pass ----

    // In: gradients gx and gh of the output scalars and tensors of the layer. Out: of its inputs.
    void back(Work<T> &w, long t, long N, long E, const int64_t *source, long shift,
              const int64_t *numbers, const T *unit, const T *taps, long width, bool learn) {
        Layer<T> &layer = layers[t];
        auto &own = w.layers[t];
        const bool last = t == s.interactions - 1;
        const long kept = (layer.out_ell + 1) * (layer.out_ell + 1);
        T *grads = learn ? w.gradients() : nullptr, *gx = w.gx();
        const T *x = last ? w.x_last() : w.layers[t + 1].x();
        read_back(w, layer, own, N, x, gx, unit, grads);
        if (taps && !s.norms)
            for (long i = 0; i < N; ++i)
                for (long k = 0; k < s.channels; ++k)
                    gx[i * K + k] += taps[i * width + k];
        T *g_fresh = w.g_fresh.get(kept * N * K);
        update_back(w, layer, own, t, N, kept, gx, g_fresh, grads);
        T *gh = w.gh();
        std::fill_n(gh, C * N * K, T(0));
        if (layer.inner)
            tensor_back(layer.skip, N, own.h(), g_fresh, gh, true, grads);
        T *ga = w.ga.get(C * N * K);
        products_back(w, layer, own, N, kept, g_fresh, ga, grads);
        if (taps && s.norms)
            for (long i = 0; i < N; ++i)
                for (long l = 0; l <= s.ell; ++l)
                    for (long k = 0; k < s.channels; ++k) {
                        const T g = taps[i * width + l * s.channels + k] / root(own.a(), l, i, k, N);
                        for (long c = l * l; c < (l + 1) * (l + 1); ++c)
                            ga[(c * N + i) * K + k] += g * own.a()[(c * N + i) * K + k];
                    }
        if (s.normalised)
            soft_norm_back<T>(C, N, K, s.channels, own.a(), own.a_factor(), ga);
        tensor_back(layer.basis, N, own.sums(), ga, w.g_sums.get(C * N * K), false, grads);
        std::fill_n(w.g_sent.get(N * K), N * K, T(0));
        if (learn)
            scatter<false>(w, layer, own, N, source, shift);
        else
            scatter<true>(w, layer, own, N, source, shift);
        layer.message.learn(N, own.x(), w.g_sent(), grads);
        layer.message.back(N, w.g_sent(), gx, true);
        radial_back(w, layer, own, N, E, source, shift, numbers, gx, gh, grads);
        if (layer.inner && s.normalised)
            soft_norm_back<T>(C, N, K, s.channels, own.h(), own.h_factor(), gh);
    }

    void read_back(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N, const T *x,
                   T *gx, const T *unit, T *grads) {
        const long ld = layer.value.out;
        T *g_value = w.g_value.get(N * ld);
        std::fill_n(g_value, N * ld, T(0));
        for (long i = 0; i < N; ++i)
            g_value[i * ld] = unit ? unit[i] : T(1);
        layer.value.learn(N, layer.hidden_readout ? own.read() : x, g_value, grads);
        if (!layer.hidden_readout)
            return layer.value.back(N, g_value, gx, true);
        T *g = w.g_hidden.get(N * K);
        layer.value.back(N, g_value, g, false, own.read_slope());
        layer.hidden.learn(N, x, g, grads);
        layer.hidden.back(N, g, gx, true);
    }

    // Turns gx from the gradient of the output scalars into that of the input scalars.
    void update_back(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long t, long N,
                     long kept, T *gx, T *g_fresh, T *grads) {
        const bool last = t == s.interactions - 1;
        const long ld = layer.gate_out.out;
        const T *gh = w.gh(), *fresh = own.fresh();
        T *g_gates = w.g_gates.get(N * ld);
        std::fill_n(g_gates, N * ld, T(0));
        if (!last) {
            add(N * K, gh, gx);
            for (long c = 1; c < kept; ++c)
                for (long i = 0; i < N; ++i)
                    for (long k = 0; k < K; k += W<T>) {
                        V<T> g = load(gh + (c * N + i) * K + k);
                        if (s.gated) {
                            const long at = i * ld + degree_of[c] * K + k;
                            store(g_gates + at, load(g_gates + at) +
                                                    g * load(fresh + (c * N + i) * K + k));
                            g *= T(1) + load(own.gates() + at);
                        }
                        store(g_fresh + (c * N + i) * K + k, g);
                    }
        }
        if (s.gated) {
            for (long i = 0; i < N; ++i)
                std::copy_n(gx + i * K, K, g_gates + i * ld);
            T *g = w.g_hidden.get(N * K);
            layer.gate_out.learn(N, own.g(), g_gates, grads);
            layer.gate_out.back(N, g_gates, g, false, own.g_slope());
            layer.gate_in.learn(N, own.s(), g, grads);
            layer.gate_in.back(N, g, gx, true);
        }
        std::copy_n(gx, N * K, g_fresh);
    }

    void products_back(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N, long kept,
                       const T *g_fresh, T *ga, T *grads) {
        std::fill_n(ga, C * N * K, T(0));
        tensor_back(layer.linear, N, own.a(), g_fresh, ga, true, grads);
        const long count = long(layer.products.size());
        T *gb = w.gb.get(C * N * K), *gb_next = w.gb_next.get(C * N * K);
        for (long p = count - 1; p >= 0; --p) {
            Product<T> &product = layer.products[p];
            const long parts = (product.out_ell + 1) * (product.out_ell + 1);
            if (p == count - 1)
                std::fill_n(gb, C * N * K, T(0));
            else if (s.normalised)
                soft_norm_back<T>(parts, N, K, s.channels, own.b_normed[p](), own.b_factor[p](),
                                  gb);
            add(kept * N * K, g_fresh, gb);
            T *g_coupled = w.g_coupled.get(product.places * N * K);
            for (long l = 0; l <= product.out_ell; ++l) {
                const long rows = (2 * l + 1) * N, at = product.first_out[l] * N * K;
                product.linear[l].learn(rows, own.coupled[p]() + at, gb + l * l * N * K, grads);
                product.linear[l].back(rows, gb + l * l * N * K, g_coupled + at, false);
            }
            if (p == 0) {
                couple_back(product, N, own.a(), own.a(), g_coupled, ga, ga);
            } else {
                std::fill_n(gb_next, C * N * K, T(0));
                couple_back(product, N, own.a(), own.b_normed[p - 1](), g_coupled, ga, gb_next);
                std::swap(gb, gb_next);
            }
        }
    }

    // Backward pass of `gather`; overwrites weights with their gradients. Those of Y and cut are
    // left out if gradients of edge vectors are not needed.
    template <bool EDGES>
    void scatter(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N,
                 const int64_t *source, long shift) {
        switch (s.ell) {
        case 1:
            return scatter<EDGES, 1>(w, layer, own, N, source, shift);
        case 2:
            return scatter<EDGES, 2>(w, layer, own, N, source, shift);
        default:
            return scatter<EDGES, 3>(w, layer, own, N, source, shift);
        }
    }
    template <bool EDGES, int L>
    void scatter(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N,
                 const int64_t *source, long shift) {
        constexpr int parts = (L + 1) * (L + 1);
        const long ld = layer.weights * K;
        T *gh = w.gh();
        const T *h = own.h();
        for (long i = 0; i < N; ++i)
            for (long e = w.first[i]; e < w.first[i + 1]; ++e) {
                const T *Y = w.Y() + e * MOST;
                const long j = source[e] - shift;
                const T scale = norm * w.cut()[e];
                V<T> to_Y[parts], to_cut{};
                for (int c = 0; c < parts; ++c)
                    to_Y[c] = V<T>{};
                for (long k = 0; k < K; k += W<T>) {
                    T *weight = own.w() + e * ld + k;
                    const V<T> sent = load(own.sent() + j * K + k);
                    V<T> to_sent{};
#pragma GCC unroll 4
                    for (int l = 0; l <= L; ++l) {
                        const V<T> radial = load(weight + l * K), both = radial * sent;
                        V<T> along{};
#pragma GCC unroll 7
                        for (int m = 0; m <= 2 * l; ++m) {
                            const V<T> g = load(w.g_sums() + ((l * l + m) * N + i) * K + k);
                            along += g * Y[l * l + m];
                            if (EDGES)
                                to_Y[l * l + m] += g * both;
                        }
                        to_sent += along * radial;
                        if (EDGES)
                            to_cut += along * both;
                        store(weight + l * K, scale * along * sent);
                    }
                    if (layer.inner) {
#pragma GCC unroll 4
                        for (int l = 1; l <= L; ++l) {
                            const V<T> radial = load(weight + (L + l) * K);
                            V<T> along{};
#pragma GCC unroll 7
                            for (int m = 0; m <= 2 * l; ++m) {
                                const long row = (l * l + m) * N;
                                const V<T> g = load(w.g_sums() + (row + i) * K + k);
                                along += g * load(h + (row + j) * K + k);
                                T *to = gh + (row + j) * K + k;
                                store(to, load(to) + scale * radial * g);
                            }
                            if (EDGES)
                                to_cut += along * radial;
                            store(weight + (L + l) * K, scale * along);
                        }
                    }
                    T *to = w.g_sent() + j * K + k;
                    store(to, load(to) + scale * to_sent);
                }
                if (!EDGES)
                    continue;
                for (int c = 1; c < parts; ++c)
                    w.g_Y()[e * MOST + c] += scale * total<T>(to_Y[c]);
                w.g_cut()[e] += norm * total<T>(to_cut);
            }
    }

    void radial_back(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N, long E,
                     const int64_t *source, long shift, const int64_t *numbers, T *gx, T *gh,
                     T *grads) {
        const T *gw = own.w();
        T *g = w.g_mod.get(E * H), *g2 = own.mod.get(E * H); // mod is needed until g2 is written
        layer.third.learn(E, own.a2(), gw, grads);
        layer.third.back(E, gw, own.a2(), false, own.s2()); // of the argument of σ
        layer.second.learn(E, own.a1(), own.a2(), grads);
        layer.second.back(E, own.a2(), own.a1(), false, own.s1());
        for (long i = 0; i < E * H; i += W<T>) {
            const V<T> outer = load(own.a1() + i), mod = load(g2 + i);
            store(g + i, outer * load(own.u() + i)); // of mod
            store(g2 + i, outer * mod);              // of u
        }
        layer.first.learn(E, w.rbf(), g2, grads);
        layer.first.back(E, g2, w.g_rbf(), true);
        modulate_back(w, layer, own, N, E, source, shift, numbers, g, gx, gh, grads);
    }

    void modulate_back(Work<T> &w, Layer<T> &layer, typename Work<T>::Kept &own, long N, long E,
                       const int64_t *source, long shift, const int64_t *numbers, const T *g, T *gx,
                       T *gh, T *grads) {
        const bool runtime = layer.inner && s.runtime, nodes = layer.inner && s.node_dependent;
        if (!runtime && !nodes && !grads)
            return;
        T *at = w.g_target.get(N * H), *from = w.g_source.get(N * H);
        std::fill_n(at, N * H, T(0)), std::fill_n(from, N * H, T(0));
        T *gq = nullptr;
        if (runtime)
            std::fill_n(gq = w.g_project.get((C - 1) * N * H), (C - 1) * N * H, T(0));
        const T share = T(1) / T(s.ell + 1);
        for (long i = 0; i < N; ++i)
            for (long e = w.first[i]; e < w.first[i + 1]; ++e) {
                const T *Y = w.Y() + e * MOST;
                T *sent = from + (source[e] - shift) * H;
                add(H, g + e * H, at + i * H);
                add(H, g + e * H, sent);
                if (runtime)
                    for (long c = 1; c < C; ++c) {
                        const long row = ((c - 1) * N + i) * H;
                        const T factor = share * Y[c];
                        for (long k = 0; k < H; k += W<T>) {
                            const V<T> one = load(g + e * H + k);
                            store(gq + row + k, load(gq + row + k) + factor * one);
                        }
                        if (!grads) // gradients of edge vectors are needed
                            w.g_Y()[e * MOST + c] +=
                                share * dot(g + e * H, own.project() + row, H);
                    }
            }
        if (grads)
            for (long i = 0; i < N; ++i)
                for (long k = 0; k < H; ++k) {
                    grads[target_at + numbers[i] * H + k] += at[i * H + k];
                    grads[source_at + numbers[i] * H + k] += from[i * H + k];
                }
        if (nodes) {
            layer.to_target.learn(N, own.x(), at, grads);
            layer.to_target.back(N, at, gx, true);
            layer.to_source.learn(N, own.x(), from, grads);
            layer.to_source.back(N, from, gx, true);
        }
        if (runtime)
            for (long l = 1; l <= s.ell; ++l) {
                const long rows = (2 * l + 1) * N;
                const T *by = gq + (l * l - 1) * N * H;
                layer.project[l - 1].learn(rows, own.h() + l * l * N * K, by, grads);
                layer.project[l - 1].back(rows, by, gh + l * l * N * K, true);
            }
    }

    // Gradients of edge vectors, element embeddings and frequencies.
    void finish(Work<T> &w, const Call<T> &call, const Chunk &part, const int64_t *numbers,
                bool learn) {
        if (learn) {
            T *grads = w.gradients();
            for (long i = 0; i < part.atoms; ++i)
                for (long k = 0; k < s.channels; ++k)
                    grads[embedding_at + numbers[i] * K + k] += w.gx()[i * K + k];
            for (long e = 0; e < part.edges; ++e)
                for (long r = 0; r < s.radial; ++r)
                    grads[frequencies_at + r] += w.g_rbf()[e * R + r] * w.rbf_wave()[e * R + r];
        }
        if (!call.gradient)
            return;
        for (long e = 0; e < part.edges; ++e) {
            const Line<T> line(call.vectors + 3 * (part.edge + e));
            T gx, gy, gz;
            const T along = inner(s.radial, w.g_rbf() + e * R, w.rbf_slope() + e * R,
                                  w.g_cut()[e] * w.cut_slope()[e]);
            harmonics_back<T>(s.ell, line.x, line.y, line.z, w.g_Y() + e * MOST, gx, gy, gz);
            line.gradient(along, gx, gy, gz, call.gradient + 3 * (part.edge + e));
        }
    }

    void write_gradients(void *const *arrays) {
        const T *grads = sum();
        auto table = [&](long at, long width, long ld, long rows) {
            T *to = static_cast<T *>(*arrays++);
            for (long z = 0; z < rows; ++z)
                std::copy_n(grads + at + z * ld, width, to + z * width);
        };
        table(embedding_at, s.channels, K, s.elements);
        table(frequencies_at, s.radial, R, 1);
        table(target_at, s.hidden, H, s.elements);
        table(source_at, s.hidden, H, s.elements);
        for (Layer<T> &layer : layers)
            each_map(layer, [&](Map<T> &map) { map.write(grads, arrays); });
    }
};

} // namespace

EXPORT(ACE)
EXPORT_TRAINING(ACE)
