// Who has moved from what they were told.

__device__ static inline float distance(const float* blend, const u16* sent) {
    float sum = 0;
    EACH_PART(first) {
        Piece moved[PIECES];
        EACH_PIECE(first) {
            moved[piece] = load_fixed(blend + first + piece * LANES * V);
            const Piece told = load_half(sent + first + piece * LANES * V);
            for (int number = 0; number < V; number++) moved[piece].at[number] -= told.at[number];
        }
        sum += squares(moved, first);
    }
    return sqrtf(total(sum));
}

// Those who are watched, stirred, and were told long enough ago: they are stirred no more, and who is further than its
// threshold is listed.
//   far: (rows,) room for the list; `length` counts.
//   moved: (rows,) how far, by row.
extern "C" __global__ void __launch_bounds__(THREADS)
    due(u64 rows, i64 now_ms, const float* blended, const u16* sent, u8* stirred, const float* threshold,
        const i64* interval_ms, const i64* sent_ms, i64* far, float* moved, u64* length) {
    for (u64 begin = warp_number() * LANES; begin < rows; begin += warp_count() * LANES) {
        const u64 mine = begin + lane_number();
        const bool may = mine < rows && stirred[mine] && threshold[mine] < INFINITE &&
                         now_ms - sent_ms[mine] >= interval_ms[mine];
        if (may) stirred[mine] = 0;
        float found = 0;
        for (u32 lanes = __ballot_sync(EVERY_LANE, may); lanes; lanes &= lanes - 1) {
            const u32 lane = __ffs(lanes) - 1;
            const u64 row = begin + lane;
            const float* blend = blended + row * WIDTH;
            const u16* told = sent + row * WIDTH;
            const float one = distance(blend, told);
            if (lane == lane_number()) found = one;
        }
        const bool is_far = may && found > threshold[mine];
        if (is_far) moved[mine] = found;
        append(is_far, (i64)mine, far, length);
    }
}

// Those who are listed are told: what reaches them is written down, for them and for the host.
//   told_slots, told_moved: (counted,) the list, and how far.
//   told: (counted, d)
extern "C" __global__ void __launch_bounds__(THREADS)
    tell(const i64* far, u64 counted, i64 now_ms, const float* blended, const float* moved, u16* sent, i64* sent_ms,
         i64* told_slots, float* told_moved, u16* told) {
    for (u64 which = warp_number(); which < counted; which += warp_count()) {
        const u64 row = far[which];
        EACH_PART(first) {
            EACH_PIECE(first) {
                const u64 column = first + piece * LANES * V;
                const Piece blend = load_fixed(blended + row * WIDTH + column);
                store_half(sent + row * WIDTH + column, blend);
                store_half(told + which * WIDTH + column, blend);
            }
        }
        if (lane_number()) continue;
        sent_ms[row] = now_ms;
        told_slots[which] = row;
        told_moved[which] = moved[row];
    }
}
