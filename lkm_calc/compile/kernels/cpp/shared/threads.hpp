// Parallel loops.

#pragma once

#include <algorithm>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Index of the thread in a parallel region.
inline int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Calls work(k) for all k < count.
template <class F> void for_each(long count, int threads, F work) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long k = 0; k < count; ++k)
        work(k);
}

// Calls work(first row, rows) for all tiles of at most a given number of rows.
template <class F> void for_tiles(long rows, long tile, int threads, F work) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long row = 0; row < rows; row += tile)
        work(row, std::min(tile, rows - row));
}

} // namespace
