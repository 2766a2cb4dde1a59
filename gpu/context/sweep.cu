// Sweeps that pass on what some rows have, one after another without the host: what is to be done is counted on the
// device, and a kernel that finds nothing ends at once.
//
// A sweep is `pass_on` and `take`. The first is preceded by `select_rows`, which lists the rows that are long, and `take`.

struct Sweep {
    u64 reached;  // rows whose R has changed, listed
    u64 taken;    // of these the rows that are passed on, above the number of their parts in 32 bits
    u64 edges;    // to who hears those
    u64 ran;      // they have been passed on
    u64 ahead;    // of the first one: edges to who hears the rows that are listed
    u64 longest;  // of the last one of several: the bits of the length of the longest row of R
};

// What a list has no room for is not passed on, and is not lost: R anew from Z has it.
__device__ static inline bool is_cheap(u64 rows, u64 edges, u64 limit, u64 rows_room) {
    return rows && rows + edges < limit && rows <= rows_room;
}

// The rows of R that are longer than epsilon.
extern "C" __global__ void __launch_bounds__(THREADS)
    select_rows(const float* norm, u64 rows, u64 epsilon_bits, const u64* count, i32* reached, Sweep* sweep) {
    const float epsilon = number(epsilon_bits);
    for (u64 begin = warp_number() * LANES; begin < rows; begin += warp_count() * LANES) {
        const u64 row = begin + lane_number();
        const bool is_over = row < rows && norm[row] > epsilon;
        if (!__ballot_sync(EVERY_LANE, is_over)) continue;
        append(is_over, (i32)row, reached, &sweep->reached);
        const u64 edges = total(is_over ? count[row] : (u64)0);
        if (!lane_number()) atomicAdd(&sweep->ahead, edges);
    }
}

__device__ static inline void take_row(float* left, float* blend, float* copy) {
    EACH_PART(first) {
        Piece taken[PIECES], blended[PIECES];
        EACH_PIECE(first) {
            taken[piece] = load(left + first + piece * LANES * V);
            blended[piece] = load(blend + first + piece * LANES * V);
        }
        EACH_PIECE(first) {
            const u64 column = first + piece * LANES * V;
            for (int number = 0; number < V; number++) blended[piece].at[number] += taken[piece].at[number];
            store(blend + column, blended[piece]);
            store(left + column, Piece());
            if (copy) store(copy + column, taken[piece]);
        }
    }
}

// Of the rows that are listed, those that are longer than epsilon: Z += R, R = 0, and a copy of R to be passed on.
//   is_first: `select_rows` has listed them, and none is measured.
//   reached: (sweep->reached,).
//   is_reached: of each row, whether it is in that list; not set by `select_rows`.
//   frontier: (rows_room,) the rows taken.
//   parts: (parts_room,) what `pass_on` goes along: the number of the row in `frontier`, and above it that of the part.
//   passed: (rows_room) the copy.
extern "C" __global__ void __launch_bounds__(THREADS)
    take(Sweep* sweep, u64 is_first, u64 epsilon_bits, u64 limit, const i32* reached, i32* is_reached, float* residual,
         float* blended, float* norm, u8* stirred, const u64* count, i32* frontier, float* passed,
         u64 rows_room, u64* parts, u64 parts_room) {
    const float epsilon = number(epsilon_bits);
    const u64 many = sweep->reached;
    if (is_first && !is_cheap(many, sweep->ahead, limit, rows_room)) return;
    for (u64 which = warp_number(); which < many; which += warp_count()) {
        const u64 row = (u32)reached[which];
        float* left = residual + row * WIDTH;
        if (!is_first) {
            const float length = length_of(left);
            if (!lane_number()) {
                norm[row] = length;
                is_reached[row] = 0;
            }
            if (!(length > epsilon)) continue;
        }
        const u64 edges = count[row], row_parts = edges / PART + 1;
        u64 place = 0;
        if (!lane_number()) {
            place = atomicAdd(&sweep->taken, (u64)1 << 32 | row_parts);
            atomicAdd(&sweep->edges, edges);
            stirred[row] = 1;
        }
        place = __shfl_sync(EVERY_LANE, place, 0);
        const u64 number_taken = place >> 32, first_part = (u32)place;
        const bool has_room = number_taken < rows_room;
        if (has_room && !lane_number()) frontier[number_taken] = (i32)row;
        for (u64 part = lane_number(); part < row_parts; part += LANES) {
            if (first_part + part < parts_room) parts[first_part + part] = part << 32 | number_taken;
        }
        float *blend = blended + row * WIDTH, *copy = has_room ? passed + number_taken * WIDTH : 0;
        take_row(left, blend, copy);
    }
}

// What a row had, added to R of those whose numbers the lanes hold, `many` of them.
__device__ static inline void pass_row(const float* copy, float* residual, u32 whom, float share, int many) {
    EACH_PART(first) {
        Piece taken[PIECES];
        EACH_PIECE(first) taken[piece] = load_fixed(copy + first + piece * LANES * V);
        for (int one = 0; one < many; one++) {
            const u64 row = __shfl_sync(EVERY_LANE, whom, one);
            const float by = __shfl_sync(EVERY_LANE, share, one);
            if (by == 0) continue;
            EACH_PIECE(first) add(residual + row * WIDTH + first + piece * LANES * V, taken[piece], by);
        }
    }
}

// R += (1 - a) A S, where S is what was taken; each row hears itself with weight 1, before its other edges.
//   sweep: of what was taken; the next one in memory gets what is reached.
extern "C" __global__ void __launch_bounds__(THREADS)
    pass_on(Sweep* sweep, u64 limit, i32* reached, i32* is_reached, float* residual, const u64* start,
            const u64* count, const i32* other, const float* weight, const float* scale, u64 alpha_bits,
            const i32* frontier, const float* passed, u64 rows_room, const u64* parts) {
    const u64 taken = sweep->taken, many = (u32)taken;
    if (!is_cheap(taken >> 32, sweep->edges, limit, rows_room)) return;
    if (!warp_number() && !lane_number()) sweep->ran = 1;
    const float kept = 1 - number(alpha_bits);
    for (u64 which = warp_number(); which < many; which += warp_count()) {
        const u64 number_taken = (u32)parts[which], begin = (parts[which] >> 32) * PART;
        const u64 row = (u32)frontier[number_taken], all = count[row] + 1;
        const u64 end = begin + PART < all ? begin + PART : all;
        for (u64 from = begin; from < end; from += LANES) {
            const u64 mine = from + lane_number();
            u32 whom = (u32)row;
            float share = 0;
            if (mine < end) {
                const u64 edge = start[row] + mine - 1;
                if (mine) whom = (u32)other[edge];
                share = kept * scale[whom] * (mine ? weight[edge] : 1.0f);
            }
            // The row itself in any case: its length is not what it was.
            const bool is_heard = mine < end && (!mine || share != 0);
            const bool is_new = is_heard && !is_reached[whom] && !atomicExch(is_reached + whom, 1);
            append(is_new, (i32)whom, reached, &sweep[1].reached);
            const int lanes = end - from < LANES ? (int)(end - from) : LANES;
            const float* copy = passed + number_taken * WIDTH;
            pass_row(copy, residual, whom, share, lanes);
        }
    }
}

// The length of the longest row of R; not negative, so its bits have the order of numbers.
extern "C" __global__ void __launch_bounds__(THREADS) longest(const float* norm, u64 rows, Sweep* sweep) {
    float most = 0;
    const u64 threads = warp_count() * LANES;
    for (u64 row = warp_number() * LANES + lane_number(); row < rows; row += threads) most = fmaxf(most, norm[row]);
    for (int far = LANES / 2; far; far /= 2) most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, far));
    if (!lane_number()) atomicMax(&sweep->longest, (u64)__float_as_uint(most));
}
