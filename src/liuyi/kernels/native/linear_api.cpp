// Linear layers through the C interface, one at a time: what `kernels/linear.py` calls.

#include <memory>
#include <new>

#include "api.h"
#include "cpu.h"
#include "linear.h"

using namespace liuyi;

// A packed matrix, or null without memory. `set` is an InstructionSet, sources are as in linear.h; `rounds_x` 0 or 1, or -1
// for what pays here.
LIUYI_API Linear* liuyi_linear_new(int set, int format, int rows, int columns, int gated, int rounds_x,
                                   const Source* sources) {
    try {
        bool bias = false;
        for (int row = 0, i = 0; row < rows; row += sources[i++].rows) bias = bias || sources[i].bias != nullptr;
        auto w = std::make_unique<Linear>(
            linear_new(static_cast<InstructionSet>(set), static_cast<Format>(format), rows, columns, gated != 0, bias));
        if (rounds_x >= 0) linear_round_x(*w, rounds_x != 0);
        for (int panel = 0; panel < w->panels; ++panel) linear_pack(*w, sources, panel);
        return w.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

LIUYI_API void liuyi_linear_free(Linear* w) { delete w; }

LIUYI_API int liuyi_linear_panels(const Linear* w) { return w->panels; }
LIUYI_API int64_t liuyi_linear_bytes(const Linear* w) { return static_cast<int64_t>(w->panel_bytes) * w->panels; }
LIUYI_API int64_t liuyi_linear_prepared_bytes(const Linear* w) { return static_cast<int64_t>(w->prepared_bytes); }
LIUYI_API void liuyi_linear_unpack(const Linear* w, int row, float* out) { linear_unpack(*w, row, out); }

// x [tokens, columns] -> prepared [tokens, prepared_bytes]; `set` is an InstructionSet.
LIUYI_API void liuyi_linear_prepare(const Linear* w, int set, const float* x, int tokens, unsigned char* prepared) {
    const auto function = LIUYI_FOR(static_cast<InstructionSet>(set), prepare);
    for (int t = 0; t < tokens; ++t) function(*w, x + static_cast<size_t>(t) * w->columns, prepared + t * w->prepared_bytes);
}

LIUYI_API void liuyi_linear_multiply(const Linear* w, int set, const void* prepared, int first_token, int last_token,
                                     int first_panel, int last_panel, float* y, int64_t stride, int epilogue) {
    const auto function = LIUYI_FOR(static_cast<InstructionSet>(set), multiply);
    function(*w, prepared, {first_token, last_token}, {first_panel, last_panel}, y, static_cast<size_t>(stride),
             static_cast<Epilogue>(epilogue));
}

LIUYI_API void liuyi_swiglu(int set, const float* gate, const float* up, int count, float* out) {
    LIUYI_FOR(static_cast<InstructionSet>(set), swiglu)(gate, up, count, out);
}
