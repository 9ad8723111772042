// Edges sorted by target, pairs of an edge and its reverse, chunks of structures, tiles of atoms, and
// sums over edges.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.hpp"

namespace {

// First row of each group of rows sorted by group(row), and one past the last.
template <class F> void starts(std::vector<long> &to, long groups, long rows, F group) {
    to.assign(groups + 1, 0);
    for (long row = 0; row < rows; ++row)
        ++to[group(row) + 1];
    for (long i = 0; i < groups; ++i)
        to[i + 1] += to[i];
}

// Number of rows of the largest group.
inline long most(const std::vector<long> &first) {
    long rows = 0;
    for (size_t i = 1; i < first.size(); ++i)
        rows = std::max(rows, first[i] - first[i - 1]);
    return rows;
}

// Consecutive atoms, and the edges into them.
struct Chunk {
    long atom, atoms, edge, edges;
};

// Chunks of whole structures, so that no edge connects two chunks, with at least a given number of
// edges (except for the last).
template <class I>
void make_chunks(std::vector<Chunk> &to, long atoms, long edges, const I *source, const I *target,
                 long least_edges) {
    to.clear();
    Chunk now{0, 0, 0, 0};
    long edge = 0, reach = -1;
    for (long i = 0; i < atoms; ++i) {
        reach = std::max(reach, i);
        for (; edge < edges && target[edge] == i; ++edge)
            reach = std::max(reach, long(source[edge]));
        now.atoms = i + 1 - now.atom, now.edges = edge - now.edge;
        if (reach == i && (now.edges >= least_edges || i == atoms - 1)) {
            to.push_back(now);
            now = {i + 1, 0, edge, 0};
        }
    }
}

// Tiles of whole atoms with a maximum number of rows (unless one atom has more) and of atoms.
struct Tiles {
    std::vector<long> atom; // first atom of each tile, and one past the last
    long rows = 0;          // of the largest tile

    void set(const std::vector<long> &first, long most_rows, long most_atoms) {
        const long atoms = long(first.size()) - 1;
        atom.assign(1, 0);
        rows = 0;
        for (long i = 0; i < atoms; ++i) {
            const long a0 = atom.back();
            if (i > a0 && (first[i + 1] - first[a0] > most_rows || i - a0 == most_atoms))
                atom.push_back(i);
            rows = std::max(rows, first[i + 1] - first[atom.back()]);
        }
        atom.push_back(atoms);
    }
    long count() const { return long(atom.size()) - 1; }
};

// An edge and its reverse have the same length, so functions of it are computed once per pair.
struct Pairs {
    std::vector<long> edge; // the first edge of each pair
    std::vector<long> of;   // the pair of each edge

    template <class I> void set(const I *reverse, long edges) {
        edge.clear();
        of.resize(edges);
        for (long e = 0; e < edges; ++e)
            if (e < reverse[e]) {
                of[e] = of[reverse[e]] = long(edge.size());
                edge.push_back(e);
            }
    }
    long size() const { return long(edge.size()); }
};

// Sums of rows over the edges into an atom, from e0 to e1, followed by sums over those out of it.
template <class T, class I>
void both_ends(long e0, long e1, const I *reverse, const T *rows, long ld, long width, T *to) {
    std::fill_n(to, 2 * width, T(0));
    for (long e = e0; e < e1; ++e) {
        add(width, rows + e * ld, to);
        add(width, rows + reverse[e] * ld, to + width);
    }
}

} // namespace
