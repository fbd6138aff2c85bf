// Tensors of a Python library as C sees them, by the exchange table of DLPack 1.3 (`__dlpack_c_exchange_api__`): what
// a type's own attributes would say, in one call. The declarations follow that standard's layout.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

namespace adaptc {

struct Device {
    std::int32_t type, id;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct Exchange {
    std::uint32_t major, minor;
    Exchange* previous;
    void* others[3];
    int (*view)(void* object, Tensor* out);  // borrows; 0, or -1 with a Python error
    void* stream;
};

constexpr int CPU = 1;
constexpr int FLOAT = 2;

template <class T>
bool same(const T& a, const T& b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// The types whose objects may be looked at: themselves, never what is derived from them.
class Library {
  public:
    Library(const pybind11::type& tensor, const pybind11::type& parameter)
        : tensor_(reinterpret_cast<PyTypeObject*>(tensor.ptr())),
          parameter_(reinterpret_cast<PyTypeObject*>(parameter.ptr())) {
        constexpr auto name = "__dlpack_c_exchange_api__";
        if (!pybind11::hasattr(tensor, name)) return;
        const pybind11::object table = tensor.attr(name);
        auto* found = static_cast<Exchange*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
        if (!found) throw pybind11::error_already_set();
        if (found->major == 1) exchange_ = found;
    }

    bool ready() const { return exchange_ && exchange_->view; }

    // False for other types, and for tensors that cannot be described.
    bool view(PyObject* object, Tensor* out) const {
        if (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_) return false;
        if (exchange_->view(object, out) == 0) return true;
        PyErr_Clear();
        return false;
    }

  private:
    PyTypeObject *tensor_, *parameter_;
    Exchange* exchange_ = nullptr;
};

// Row-major? A tensor without entries may have any strides.
inline bool straight(const Tensor& t) {
    std::int64_t run = 1;
    bool found = true;
    for (int d = t.ndim - 1; d >= 0; --d) {
        found = found && (t.shape[d] == 1 || !t.strides || t.strides[d] == run);
        run *= t.shape[d];
    }
    return found || run == 0;
}

}  // namespace adaptc
