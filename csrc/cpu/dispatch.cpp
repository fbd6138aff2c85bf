// Chooses the instruction set and shares the work out. A result does not depend on the number of threads.
#include <algorithm>

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

void sampled(const Sampled& c, int threads, int index) {
    const Level& use = level(index);
    share(c.places, 16, threads, [&](Index first, Index last) { use.sampled(c, first, last); });
}

}  // namespace adaptc
