// R anew from Z, and the lengths of rows.

// R_i = a X0_i - Z_i + (1 - a) scale_i (Z_i + sum of w_ij Z_j), without the edges of rows that have more than LONG: those
// are listed, and `refresh_parts` adds theirs.
__device__ static inline void refresh_row(u64 row, bool is_long, const u16* own, const float* blended, float* residual,
                                          float* norm, const u64* start, const u64* count, const i32* other,
                                          const float* weight, float mixed, float alpha, float* ahead) {
    const float* here = blended + row * WIDTH;
    const u64 begin = start[row], end = is_long ? begin : begin + count[row];
    float sum = 0;
    EACH_PART(first) {
        Piece heard[PIECES];
        EACH_PIECE(first) heard[piece] = load_fixed(here + first + piece * LANES * V);
        add_rows(heard, first, blended, other, weight, begin, end, (u32)row);
        EACH_PIECE(first) {
            const u64 column = first + piece * LANES * V;
            const Piece known = load_half(own + row * WIDTH + column);
            const Piece blend = load_fixed(here + column);
            for (int number = 0; number < V; number++)
                heard[piece].at[number] = mixed * heard[piece].at[number] + alpha * known.at[number] - blend.at[number];
            store_once(residual + row * WIDTH + column, heard[piece]);
            if (!ahead) continue;
            Piece next;
            for (int number = 0; number < V; number++) next.at[number] = blend.at[number] + heard[piece].at[number];
            store_once(ahead + row * WIDTH + column, next);
        }
        sum += squares(heard, first);
    }
    sum = total(sum);
    if (!lane_number()) norm[row] = sqrtf(sum);
}

//   rows: (count_rows,) which, each once; null for all from 0 on.
//   ahead: gets Z + R, of which no other matrix is; null for none.
//   long_rows, long_parts: lists of rows with many edges, and of their parts: the row, and above it the number. Their
//     lengths in `lengths`.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    refresh(const i64* rows, u64 count_rows, const u16* own, const float* blended, float* residual, float* norm, const u64* start, const u64* count, const i32* other, const float* weight, const float* scale,
            u64 alpha_bits, i64* long_rows, u64* long_parts, u64* lengths, float* ahead) {
    const float alpha = number(alpha_bits);
    for (u64 which = warp_number(); which < count_rows; which += warp_count()) {
        const u64 row = rows ? (u64)rows[which] : which, edges = count[row];
        const float mixed = (1 - alpha) * scale[row];
        const bool is_long = edges > LONG;
        refresh_row(row, is_long, own, blended, residual, norm, start, count, other, weight, mixed, alpha, ahead);
        if (!is_long) continue;
        append(!lane_number(), (i64)row, long_rows, lengths);
        const u64 parts = (edges + LONG_PART - 1) / LONG_PART;
        for (u64 part = 0; part < parts; part += LANES) {
            const u64 mine = part + lane_number();
            append(mine < parts, mine << 32 | row, long_parts, lengths + 1);
        }
    }
}

__device__ static inline void refresh_part(u64 row, u64 begin, u64 end, const float* blended, float* residual,
                                           const i32* other, const float* weight, float mixed, float* ahead) {
    EACH_PART(first) {
        Piece heard[PIECES];
        EACH_PIECE(first) heard[piece] = Piece();
        add_rows(heard, first, blended, other, weight, begin, end, (u32)row);
        EACH_PIECE(first) {
            const u64 at = row * WIDTH + first + piece * LANES * V;
            add(residual + at, heard[piece], mixed);
            if (ahead) add(ahead + at, heard[piece], mixed);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    refresh_parts(const float* blended, float* residual, const u64* start, const u64* count,
                  const i32* other, const float* weight, const float* scale, u64 alpha_bits, const u64* long_parts,
                  const u64* lengths, float* ahead) {
    const float alpha = number(alpha_bits);
    for (u64 which = warp_number(); which < lengths[1]; which += warp_count()) {
        const u64 row = (u32)long_parts[which], part = long_parts[which] >> 32;
        const u64 begin = start[row] + part * LONG_PART, all = start[row] + count[row];
        const u64 end = begin + LONG_PART < all ? begin + LONG_PART : all;
        const float mixed = (1 - alpha) * scale[row];
        refresh_part(row, begin, end, blended, residual, other, weight, mixed, ahead);
    }
}

//   rows: which, as many as `length` says.
extern "C" __global__ void __launch_bounds__(THREADS)
    measure(const i64* rows, const u64* length, const float* residual, float* norm) {
    for (u64 which = warp_number(); which < *length; which += warp_count()) {
        const u64 row = rows[which];
        const float* left = residual + row * WIDTH;
        const float found = length_of(left);
        if (!lane_number()) norm[row] = found;
    }
}
