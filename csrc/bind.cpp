// The Python module: addresses, sizes and dtype codes in, nothing out. The caller checks and allocates.
#include <pybind11/pybind11.h>

#include "calls.h"
#include "native.h"

namespace py = pybind11;

namespace {

using adaptc::Dtype;
using adaptc::Index;
using Address = std::uintptr_t;

void check_level(int level) {
    if (level < -1 || level >= adaptc::levels()) throw py::value_error("no such instruction set on this machine");
}

void blocks_apply(Address x, Address R, Address out, Index m, Index g, Index p, Index q, Index x_stride, int data,
                  int blocks, bool transposed, int threads, int level) {
    check_level(level);
    const adaptc::Apply call{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(R),
                             reinterpret_cast<void*>(out), m, g, p, q, x_stride, static_cast<Dtype>(data),
                             static_cast<Dtype>(blocks), transposed};
    const py::gil_scoped_release release;
    adaptc::blocks_apply(call, threads, level);
}

void blocks_gradient(Address x, Address gy, Address out, Index m, Index g, Index p, Index q, Index x_stride,
                     Index gy_stride, int data, int threads, int level) {
    check_level(level);
    const adaptc::Gradient call{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(gy),
                                reinterpret_cast<float*>(out), m, g, p, q, x_stride, gy_stride,
                                static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::blocks_gradient(call, threads, level);
}

void draw(Address seed, std::uint32_t stream, std::int64_t threshold, Address out, Index m, Index k, int data,
          int threads, int level) {
    check_level(level);
    const adaptc::Draw call{reinterpret_cast<const std::uint64_t*>(seed), stream, threshold,
                            reinterpret_cast<void*>(out), m, k, static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::draw(call, threads, level);
}

void sampled(Address a, Address b, Address rows, Address cols, Address out, Index places, Index m, int data, int threads,
             int level) {
    check_level(level);
    const adaptc::Sampled call{reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b),
                               reinterpret_cast<const std::int64_t*>(rows), reinterpret_cast<const std::int64_t*>(cols),
                               reinterpret_cast<float*>(out), places, m, static_cast<Dtype>(data)};
    const py::gil_scoped_release release;
    adaptc::sampled(call, threads, level);
}

py::tuple levels() {
    py::list names;
    for (int n = 0; n < adaptc::levels(); ++n) names.append(adaptc::level(n).name);
    return py::tuple(names);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Kernels for the CPU. Dtypes are 0 float32, 1 bfloat16; level -1 is the best instruction set.";
    module.def("levels", levels, "The instruction sets that this machine runs, the best last.");
    module.def("blocks_apply", blocks_apply);
    module.def("blocks_gradient", blocks_gradient);
    module.def("sampled", sampled);
    module.def("draw", draw, "Uniform numbers if the threshold is below 0, else ones where the bits reach it.");

    using adaptc::Library, adaptc::Repeat, adaptc::Steps;
    py::class_<Library, std::shared_ptr<Library>>(module, "Library", "A tensor library, by the exact types it has.")
        .def(py::init<py::type, py::type>())
        .def("ready", &Library::ready, "Can tensors be looked at?");
    py::class_<Steps>(module, "Steps", "Products of small tensors, one after the other, in one call.")
        .def(py::init([](std::shared_ptr<Library> library, py::function lower, bool wide, int level) {
            check_level(level);
            return Steps(std::move(library), std::move(lower), wide, level);
        }))
        .def("__call__", &Steps::operator());
    py::class_<Repeat>(module, "Repeat", "A call like one before.")
        .def(py::init<std::shared_ptr<Library>, py::object, py::list, py::object, adaptc::Index, adaptc::Index>())
        .def("usable", &Repeat::usable, "Could all tensors be looked at?")
        .def("__call__", &Repeat::operator());
}
