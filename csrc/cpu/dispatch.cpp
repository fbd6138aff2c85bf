// Chooses the instruction set and shares the work out. A result does not depend on the number of threads.
#include <algorithm>
#include <atomic>

#include "native.h"
#include "x86.h"

namespace adaptc {
namespace {

struct Levels {
    const Level* found[4];
    int count = 0;

    Levels() {
        found[count++] = &plain_level;
#ifdef ADAPTC_X86
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (avx2) found[count++] = &avx2_level;
        if (avx512) found[count++] = &avx512_level;
        if (avx512 && __builtin_cpu_supports("avx512bf16")) found[count++] = &avx512bf16_level;
#endif
    }
};

const Levels& all() {
    static const Levels levels;
    return levels;
}

// work(first, last) on at most `threads` ranges of [0, items), each a whole number of `grain` but the last.
template <class Work>
void share(Index items, Index grain, int threads, Work work) {
    const Index grains = (items + grain - 1) / grain;
    const Index parts = std::min<Index>(threads, grains);
    if (parts <= 1) {
        if (items > 0) work(Index{0}, items);
        return;
    }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
    for (Index part = 0; part < parts; ++part) {
        work(grains * part / parts * grain, std::min(items, grains * (part + 1) / parts * grain));
    }
}

constexpr Index TOGETHER = 32;  // columns of b that stay in the first cache

// `from` in the order of key(place) < keys, equal ones as they come.
template <class Key>
void sort(const Place* from, Index places, Index keys, Place* to, Key key) {
    const Buffer<Index> next(keys + 1);
    std::fill_n(next.get(), keys + 1, Index{0});
    for (Index j = 0; j < places; ++j) ++next.get()[key(from[j]) + 1];
    for (Index r = 0; r < keys; ++r) next.get()[r + 1] += next.get()[r];
    for (Index j = 0; j < places; ++j) to[next.get()[key(from[j])]++] = from[j];
}

}  // namespace

int levels() { return all().count; }

const Level& level(int index) { return *all().found[index < 0 ? all().count - 1 : index]; }

void blocks_apply(const Apply& c, int threads, int index) {
    const Level& use = level(index);
    const Buffer<float> packed(use.packed_floats(c));
    share(use.packed_items(c), 1, threads, [&](Index first, Index last) { use.pack(c, packed.get(), first, last); });
    share(c.m, 4, threads, [&](Index first, Index last) { use.apply(c, packed.get(), first, last); });
}

void blocks_gradient(const Gradient& c, int threads, int index) {
    const Level& use = level(index);
    share(use.gradient_items(c), 1, threads, [&](Index first, Index last) { use.gradient(c, first, last); });
}

void draw(const Draw& c, int threads, int index) {
    const Level& use = level(index);
    const Buffer<std::uint32_t> columns(c.k);
    use.columns(columns.get(), c.k);
    share(c.m, 1, threads, [&](Index first, Index last) { use.draw(c, columns.get(), first, last); });
}

void sampled(const Sampled& call, int threads, int index) {
    const Level& use = level(index);
    const Buffer<float> columns(use.span * (call.n + call.k));
    const Buffer<Place> order(call.places), by_row(call.places);
    for (Index t = 0; t < call.places; ++t) {
        order.get()[t] = {static_cast<std::int32_t>(call.rows[t]), static_cast<std::int32_t>(call.cols[t]), t};
    }
    sort(order.get(), call.places, call.n, by_row.get(), [](const Place& p) { return p.row; });
    sort(by_row.get(), call.places, call.k / TOGETHER + 1, order.get(), [](const Place& p) { return p.col / TOGETHER; });
    const Buffer<float> sums(call.places);
    if (!call.m) std::fill_n(sums.get(), call.places, 0.0f);
    Sampled c = call;
    c.columns = columns.get();
    c.order = order.get();
    c.sums = sums.get();
    for (c.token = 0; c.token < c.m; c.token += use.span) {
        share(use.span, 16, threads, [&](Index first, Index last) { use.columns_of(c, first, last); });
        share(c.places, 16, threads, [&](Index first, Index last) { use.sampled(c, first, last); });
    }
    for (Index j = 0; j < c.places; ++j) c.out[c.order[j].at] = c.sums[j];
}

void scatter(const Scatter& c, int threads, int index) {
    const Level& use = level(index);
    share(c.m, 16, threads, [&](Index first, Index last) { use.scatter(c, first, last); });
}

void product(const Product& c, int threads, int index) {
    const Level& use = level(index);
    share(use.product_items(c), 1, threads, [&](Index first, Index last) { use.product(c, first, last); });
}

void copy(const Copy& c, int threads, int index) {
    const Level& use = level(index);
    Index items = 1;
    for (int d = 0; d < c.loops - (c.turned ? 2 : 1); ++d) items *= c.loop[d].extent;
    share(items, 1, threads, [&](Index first, Index last) { use.copy(c, first, last); });
}

bool solve(const Solves& c, int threads, int index) {
    const Level& use = level(index);
    std::atomic<bool> regular{true};
    share(c.g, 1, threads, [&](Index first, Index last) {
        if (!use.solve(c, first, last)) regular = false;
    });
    return regular;
}

}  // namespace adaptc
