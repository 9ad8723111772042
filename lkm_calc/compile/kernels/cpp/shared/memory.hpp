// Memory that is reused between calls, and tables of padded rows.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "vectors.hpp"

namespace {

template <class T> class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer(Buffer &&other) : data(other.data), size(other.size) { other.data = nullptr; }
    ~Buffer() { std::free(data); }
    // Memory for n numbers, zero-initialised when it is allocated.
    T *get(long n) {
        if (n > size) {
            std::free(data);
            data = nullptr;
            size = 0;
            n += n / 16; // spare, as the number of edges fluctuates
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

// The rows of a matrix, in one array or the first `count` in one and the others in a second; N is T
// or const T.
template <class N> struct Rows {
    N *first;
    long ld, count = -1;
    N *second = nullptr;
    long second_ld = 0;

    N *operator()(long row) const {
        return second && row >= count ? second + (row - count) * second_ld : first + row * ld;
    }
};

// Rows of `width` numbers, each padded to whole vectors.
template <class T> void set_rows(Buffer<T> &to, long rows, long width, const T *from) {
    const long ld = padded<T>(width);
    T *out = to.get(rows * ld);
    for (long i = 0; i < rows; ++i)
        std::copy_n(from + i * width, width, out + i * ld);
}

} // namespace
